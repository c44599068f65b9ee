from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_multipruner import PlainMultiPruner, plain_perplexity  # type: ignore[import-not-found]
from tiny_models import tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.plan import PrunePlan
from prune_export.prune.candidates import block_changes
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.journal import JournalFile
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.prune.surgery import prune_model
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
