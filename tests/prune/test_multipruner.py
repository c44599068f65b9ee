from __future__ import annotations

import itertools
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from plain_multipruner import PlainMultiPruner, plain_perplexity  # type: ignore[import-not-found]
from tiny_models import tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.plan import PrunePlan
from prune_export.prune import evaluator as evaluator_module
from prune_export.prune.candidates import block_changes
from prune_export.prune.evaluator import Evaluator, Score
from prune_export.prune.journal import JournalFile
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.reorder import identity_orders, importance_orders
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.prune.surgery import prune_model
from prune_export.prune.wanda import wanda_orders
from prune_export.shape import ModelShape

DISTRIBUTION = (44.0, 46.0, 10.0)


def parameters(shape: ModelShape) -> float:
    return shape.parameters()


def seconds(shape: ModelShape) -> float:
    """A made-up table: attention is dear, MLPs pay by steps of 8 channels, and there is a fixed part."""
    return 1e-3 + sum(
        2e-4 * (layer.kv_heads > 0) + 5e-5 * layer.kv_heads + 2e-5 * -(-layer.mlp_width // 8)
        for layer in shape.layers
    )  # fmt: skip


def search(variant: str = "llama", **settings: Any) -> tuple[Any, torch.Tensor, MultiPruner]:
    model, ids = tiny_model(variant), tokens(3, 14)
    chosen: dict[str, Any] = {"cost": parameters, "distribution": DISTRIBUTION, "mlp_group": 7} | settings
    return model, ids, MultiPruner(Evaluator(model, ids), **chosen)


def steps(result: SearchResult) -> list[tuple[str, int, str, int]]:
    return [(step.stage, step.layer, step.part, step.size) for step in result.history]


def plan_of_result(result: SearchResult) -> PrunePlan:
    return make_plan(result, source="tiny", source_digest="s", calibration_digest="c")


@pytest.mark.parametrize("variant", ["llama-mha", "llama", "qwen2", "llama-biases-tied"])
def test_selects_what_the_plain_search_selects(variant: str) -> None:
    model, ids, pruner = search(variant)
    plain = PlainMultiPruner(model, ids, mlp_group=7, kv_group=1)
    ratio = 0.4
    plain.run(ratio, DISTRIBUTION)
    dense = pruner._dense.parameters()
    result = pruner.run(dense * (1 - ratio))
    assert {stage for stage, *_ in plain.steps} == {"blocks", "mlp", "attention"}
    assert steps(result) == [step[:4] for step in plain.steps]
    for step, (*_, perplexity) in zip(result.history, plain.steps, strict=True):
        assert step.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert result.block_evaluations <= 0.75 * plain.blocks_run
    assert result.plain_evaluations - 10 == plain.blocks_run  # the dense model is evaluated once more
    assert dense - result.cost == plain.removed()


def own_text(model: Any) -> torch.Tensor:
    """12 x 14 tokens that the model continues itself, greedily: every removal makes them less likely."""
    model.lm_head.weight.mul_(5)
    ids = tokens(12, 2)
    while ids.shape[1] < 14:
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sequence a batch, so that candidates can be dropped after each."""
    monkeypatch.setattr(evaluator_module, "_BATCH_TOKENS", 14)


@pytest.mark.parametrize(
    ("variant", "cache_bytes"),
    [*((variant, 2 << 30) for variant in ("llama-mha", "qwen2", "llama-biases-tied")), ("llama", 6 * 12 * 14 * 32 * 4)],
)
def test_dropping_candidates_changes_no_step(variant: str, cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    model = tiny_model(variant)
    ids = own_text(model)
    plain = PlainMultiPruner(model, ids, mlp_group=7, kv_group=1)
    plain.run(0.4, DISTRIBUTION)
    evaluator = Evaluator(model, ids, cache_bytes=cache_bytes)
    pruner = MultiPruner(evaluator, cost=parameters, distribution=DISTRIBUTION, mlp_group=7)
    result = pruner.run(0.6 * evaluator.shape.parameters())
    assert steps(result) == [step[:4] for step in plain.steps]
    for step, (*_, perplexity) in zip(result.history, plain.steps, strict=True):
        assert step.perplexity == pytest.approx(perplexity, rel=1e-5)
    # Every candidate went through the head at least in part, and not all of them wholly.
    assert result.head_tokens < 0.97 * result.evaluations * ids[:, 1:].numel()
    assert result.block_tokens == result.block_evaluations * ids.numel()


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_dropping_changes_no_step_with_prices(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)

    class Undropped(Evaluator):
        def score(self, change: Any = None, hopeless: Any = None) -> Score:
            return super().score(change, None)

    model = tiny_model()
    ids = own_text(model)
    results = [
        MultiPruner(
            kind(model, ids),
            cost=seconds,
            cost_unit="seconds",
            distribution=DISTRIBUTION,
            mlp_group=7,
        ).run(share * seconds(Evaluator(model, ids).shape))
        for kind in (Undropped, Evaluator)
    ]
    assert results[1].history == results[0].history
    assert results[1].head_tokens < results[0].head_tokens


def test_equals_keep_their_canonical_order_when_visited_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two MLPs without effect: the first goes first, although the last is visited first."""
    small_batches(monkeypatch)
    model = tiny_model()
    for index in (1, 3):
        model.model.layers[index].mlp.down_proj.weight.zero_()
    ids = own_text(model)
    pruner = MultiPruner(Evaluator(model, ids), cost=parameters, distribution=(1, 0, 0), mlp_group=7)
    dense = pruner._dense.parameters()
    result = pruner.run(0.5 * dense)
    plain = PlainMultiPruner(model, ids, mlp_group=7, kv_group=1)
    plain.run(0.5, (1, 0, 0))
    assert steps(result) == [step[:4] for step in plain.steps]
    assert [(layer, part) for _, layer, part, _ in steps(result)][:2] == [(1, "mlp"), (3, "mlp")]


@pytest.mark.parametrize("order", ["wanda", "none"])
@pytest.mark.parametrize("variant", ["llama-mha", "qwen2"])
def test_other_orders(order: str, variant: str) -> None:
    model, ids = tiny_model(variant), tokens(3, 14)
    plain = PlainMultiPruner(model, ids, mlp_group=7, kv_group=1, order=order)
    orders = wanda_orders(model, ids) if order == "wanda" else identity_orders(Evaluator(model, ids).shape.layers)
    assert [list(layer.mlp_channels) for layer in orders] == plain.channel_order
    assert [list(layer.kv_groups) for layer in orders] == plain.group_order
    assert orders != importance_orders(model)
    plain.run(0.4, DISTRIBUTION)
    evaluator = Evaluator(model, ids, orders=orders)
    pruner = MultiPruner(evaluator, cost=parameters, distribution=DISTRIBUTION, mlp_group=7, order_name=order)
    result = pruner.run(0.6 * evaluator.shape.parameters())
    assert steps(result) == [step[:4] for step in plain.steps]
    assert f"order {order}" in result.method


def test_widths_on_their_own_tokens() -> None:
    model, ids, widths = tiny_model("qwen2"), tokens(3, 14), tokens(2, 14, seed=5)
    plain = PlainMultiPruner(model, ids, mlp_group=7, kv_group=1, width_ids=widths)
    plain.run(0.4, DISTRIBUTION)
    _, _, pruner = search("qwen2", width_tokens=widths)
    result = pruner.run(0.6 * pruner._dense.parameters())
    assert steps(result) == [step[:4] for step in plain.steps]
    for step, (*_, perplexity) in zip(result.history, plain.steps, strict=True):
        assert step.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert result.dense_perplexity == pytest.approx(plain_perplexity(model, widths), rel=1e-5)
    assert result.perplexity == pytest.approx(
        plain_perplexity(prune_model(model, plan_of_result(result)), widths), rel=1e-5
    )
    _, _, priced = search("qwen2", width_tokens=widths, cost=seconds, cost_unit="seconds")
    assert priced.run(0.6 * seconds(priced._dense)).cost <= 0.6 * seconds(priced._dense)


@pytest.mark.parametrize("variant", ["llama-mha", "qwen2"])
def test_blocks_alone_are_blockpruner(variant: str) -> None:
    model, ids, pruner = search(variant, blocks_only=True)
    dense = pruner._dense.parameters()
    plain = PlainMultiPruner(model, ids, mlp_group=7, kv_group=1)
    plain.run(0.45, (1, 0, 0))
    result = pruner.run(0.55 * dense)
    assert steps(result) == [step[:4] for step in plain.steps]
    assert {step.stage for step in result.history} == {"blocks"}
    assert result.method.startswith("BlockPruner")
    with pytest.raises(SearchInfeasibleError) as caught:
        pruner.run(0)
    (left,) = [layer for layer in caught.value.shape.layers if layer.kv_heads]
    assert left.kv_heads == pruner._dense.layers[0].kv_heads


def test_result_is_what_surgery_makes() -> None:
    model, ids, pruner = search("qwen2")
    result = pruner.run(0.7 * pruner._dense.parameters())
    pruned = prune_model(model, plan_of_result(result))
    assert plain_perplexity(pruned, ids) == pytest.approx(result.perplexity, rel=1e-5)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == result.cost


def test_stages_stop_at_their_shares() -> None:
    _, _, pruner = search()
    dense = pruner._dense.parameters()
    result = pruner.run(0.6 * dense)
    removed = {"start": 0.0}
    for stage, share in (("blocks", 0.44), ("mlp", 0.9), ("attention", 1.0)):
        costs = [step.cost for step in result.history if step.stage == stage]
        before = 1 - costs[-2] / dense if len(costs) > 1 else max(removed.values())
        assert before < 0.4 * share <= 1 - costs[-1] / dense
        removed[stage] = 1 - costs[-1] / dense
    assert [step.stage for step in result.history] == sorted(
        (step.stage for step in result.history), key=("blocks", "mlp", "attention").index
    )


def test_no_stage_without_a_share() -> None:
    _, _, pruner = search(distribution=(0, 100, 0))
    result = pruner.run(0.8 * pruner._dense.parameters())
    assert {step.stage for step in result.history} == {"mlp"}


def test_equal_scores_go_to_the_first_candidate() -> None:
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    pruner = MultiPruner(Evaluator(model, tokens(2, 8)), cost=parameters, distribution=(1, 0, 0), mlp_group=7)
    taken = steps(pruner.run(0.5 * pruner._dense.parameters()))
    assert [(layer, part) for _, layer, part, _ in taken][:5] == [
        (0, "attention"), (1, "attention"), (2, "attention"), (3, "attention"), (0, "mlp"),
    ]  # fmt: skip


def test_an_attention_always_remains() -> None:
    _, _, pruner = search()
    smallest = pruner._dense.with_layers(pruner._dense.layers[:0]).parameters()
    result = pruner.run(smallest + 3000)
    assert result.shape.attention_layers
    assert result.cost <= smallest + 3000


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.5, 0.45])
def test_price_rule_meets_every_budget(share: float) -> None:
    model, ids, pruner = search(cost=seconds, cost_unit="seconds")
    budget = share * seconds(pruner._dense)
    result = pruner.run(budget)
    assert result.cost <= budget
    assert result.cost == pytest.approx(seconds(result.shape))
    costs = [result.dense_cost, *(step.cost for step in result.history)]
    assert all(after < before for before, after in itertools.pairwise(costs))  # each step saves something
    assert plain_perplexity(prune_model(model, plan_of_result(result)), ids) == pytest.approx(
        result.perplexity, rel=1e-5
    )


def test_price_rule_ranks_by_rise_per_saving() -> None:
    _, _, pruner = search(cost=seconds, cost_unit="seconds")
    dense = seconds(pruner._dense)
    first = pruner.run(0.95 * dense).history[0]
    evaluator = Evaluator(tiny_model(), tokens(3, 14))
    now = evaluator.log_perplexity()
    prices = {}
    for change in block_changes(evaluator.structure):
        saved = 2e-5 * 3 if change.part == "mlp" else 2e-4 + 2 * 5e-5
        prices[change.layer, change.part] = (evaluator.log_perplexity(change) - now) / saved
    assert (first.layer, first.part) == min(prices, key=prices.__getitem__)


def test_dear_widths_end_their_stage_early() -> None:
    """MLP channels that save next to nothing are taken only where the perplexity falls; blocks are bought instead."""

    def cost(shape: ModelShape) -> float:
        live = sum((layer.kv_heads > 0) + (layer.mlp_width > 0) for layer in shape.layers)
        return 1.0 + 0.1 * live + 1e-6 * sum(layer.mlp_width for layer in shape.layers)

    _, _, pruner = search(cost=cost, cost_unit="seconds")
    result = pruner.run(0.7 * cost(pruner._dense))
    assert result.cost <= 0.7 * cost(pruner._dense)
    perplexities = [result.dense_perplexity, *(step.perplexity for step in result.history)]
    for step, (before, after) in zip(result.history, itertools.pairwise(perplexities), strict=True):
        assert step.stage == "blocks" or after < before


def test_infeasible_budget_says_what_is_possible() -> None:
    _, _, pruner = search(cost=seconds, cost_unit="seconds")
    with pytest.raises(
        SearchInfeasibleError, match=r"no plan reaches 0\.001 seconds: the lowest .* is 0\.00125"
    ) as caught:
        pruner.run(1e-3)
    # One attention with one KV head and nothing else.
    assert caught.value.lowest_cost == pytest.approx(1e-3 + 2e-4 + 5e-5)
    assert [layer.kv_heads for layer in caught.value.shape.layers if layer.kv_heads] == [1]
    assert caught.value.perplexity > 1
    assert pruner.run(caught.value.lowest_cost).cost == pytest.approx(caught.value.lowest_cost)


def test_a_budget_above_the_dense_cost_changes_nothing() -> None:
    _, _, pruner = search()
    result = pruner.run(pruner._dense.parameters())
    assert result.history == ()
    assert result.perplexity == result.dense_perplexity


def test_second_run_replays_for_free() -> None:
    _, _, pruner = search(cost=seconds, cost_unit="seconds")
    budget = 0.7 * seconds(pruner._dense)
    first = pruner.run(budget)
    again = pruner.run(budget)
    assert (again.evaluations, again.history) == (0, first.history)
    assert pruner.run(0.97 * budget).evaluations < first.evaluations


def test_blocks_of_an_earlier_plan_are_kept() -> None:
    _, _, pruner = search()
    dense = pruner._dense.parameters()
    plan = plan_of_result(pruner.run(0.7 * dense))
    blocks = [step for step in plan.history if step.stage == "blocks"]
    result = pruner.run(0.6 * dense, blocks_from=plan)
    assert result.history[: len(blocks)] == tuple(blocks)
    assert {step.stage for step in result.history[len(blocks) :]} <= {"mlp", "attention"} or result.cost <= 0.6 * dense
    _, _, other = search("llama-mha")
    with pytest.raises(BadInputError, match=r"blocks are to be kept is of another model"):
        other.run(0.6 * dense, blocks_from=plan)


@pytest.mark.parametrize("unit", ["parameters", "seconds"])
def test_a_journal_cut_anywhere_gives_the_same_plan(unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    cost = parameters if unit == "parameters" else seconds
    settings: dict[str, Any] = {"cost": cost, "cost_unit": unit, "width_tokens": tokens(4, 14, seed=3)}

    def run(path: Path) -> SearchResult:
        evaluator = Evaluator(tiny_model(), tokens(6, 14))
        file = JournalFile(path, "source", "calibration")
        pruner = MultiPruner(evaluator, distribution=DISTRIBUTION, mlp_group=7, journal=file, **settings)
        return pruner.run(0.6 * cost(evaluator.shape))

    expected = run(tmp_path / "whole.jsonl")
    data = (tmp_path / "whole.jsonl").read_bytes()
    random = Random(7)
    for number, at in enumerate(sorted(random.sample(range(data.index(b"\n") + 1, len(data)), 4))):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(data[:at])
        again = run(path)
        assert plan_of_result(again) == plan_of_result(expected)
        assert again.perplexity == expected.perplexity
        assert again.evaluations <= expected.evaluations
        assert path.read_bytes() == data


def test_killed_search_resumes_to_the_same_plan(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "journal.jsonl", "source", "calibration")
    settings: dict[str, Any] = {"cost": seconds, "cost_unit": "seconds"}
    _, _, whole = search(**settings)
    budget = 0.6 * seconds(whole._dense)
    expected = whole.run(budget)

    class KillError(Exception):
        pass

    calls = 0

    def kill(done: float, total: float, detail: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 25:
            raise KillError

    _, _, first = search(**settings, journal=file)
    with pytest.raises(KillError):
        first.run(budget, progress=kill)
    with file.path.open("a") as journal:
        journal.write('{"structure": "2,24;2,')  # killed in the middle of a write
    _, _, second = search(**settings, journal=file)
    result = second.run(budget)
    assert plan_of_result(result) == plan_of_result(expected)
    assert 0 < result.evaluations <= expected.evaluations - 20
    _, _, third = search(**settings, journal=file)
    assert third.run(budget).evaluations == 0


def test_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    search(journal=JournalFile(path, "source", "calibration"))
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("other", "calibration", {}, r"different source_digest"),
        ("source", "other", {}, r"different calibration_digest"),
        ("source", "calibration", {"mlp_group": 5}, r"different settings"),
    ]
    for source, calibration, settings, words in cases:
        with pytest.raises(BadInputError, match=rf"journal\.jsonl belongs to another search \({words}\): delete it"):
            search(journal=JournalFile(path, source, calibration), **settings)
    path.write_text("no json\n")
    with pytest.raises(BadInputError, match=r"is damaged: delete it"):
        search(journal=JournalFile(path, "source", "calibration"))
    with pytest.raises(BadInputError, match=r"cannot be (written|read)"):
        search(journal=JournalFile(tmp_path / "no" / "journal.jsonl", "source", "calibration"))


def test_journal_lines_hold_exact_scores(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "journal.jsonl", "source", "calibration")
    _, _, pruner = search(journal=file)
    result = pruner.run(0.9 * pruner._dense.parameters())
    _, *lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert len(lines) == result.evaluations
    assert float(lines[0]["log_perplexity"]) == Evaluator(tiny_model(), tokens(3, 14)).log_perplexity()


def test_plan_round_trip(tmp_path: Path) -> None:
    _, _, pruner = search()
    plan = plan_of_result(pruner.run(0.7 * pruner._dense.parameters()))
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    assert plan.target == pruner.run(0.7 * pruner._dense.parameters()).shape


def test_progress_ends_at_most_at_its_total() -> None:
    _, _, pruner = search()
    seen = []
    pruner.run(
        0.7 * pruner._dense.parameters(), progress=lambda done, total, detail: seen.append((done, total, detail))
    )
    assert all(0 <= done <= total for done, total, _ in seen)
    assert seen[-1][0] > seen[0][0]
    assert seen[0][2].startswith("blocks, perplexity ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distribution": (0, 0, 0)}, r"needs three shares"),
        ({"distribution": (50, -1, 51)}, r"needs three shares"),
        ({"mlp_group": 0}, r"both must be at least 1"),
        ({"kv_group": 0}, r"both must be at least 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        search(**settings)


def test_wanda_names_the_layer_that_overflows() -> None:
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(BadInputError, match=r"layer 2: the input of its attention is not finite"):
        wanda_orders(model, tokens(2, 8))


def test_a_model_without_a_finite_loss_is_refused() -> None:
    model = tiny_model()
    model.model.norm.weight.fill_(3e38)
    pruner = MultiPruner(Evaluator(model, tokens(2, 8)), cost=parameters, mlp_group=7)
    with pytest.raises(BadInputError, match=r"the last norm or the LM head gives no finite loss"):
        pruner.run(30_000)
