"""The fast search: budgets, resumption, costs in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ONE_OF_EACH, tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.prune.divergence import Effect
from prune_export.prune.fast import FastSearch, clearly_better
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.refit import refit
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.scoring import Scoring
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.prune.surgery import prune_model
from prune_export.shape import ModelShape

IDS = tokens(40, 12).numpy()


def parameters(shape: ModelShape) -> float:
    return float(shape.parameters())


def search_of(
    folder: Path, variant: str = "llama", cost: Callable[[ModelShape], float] = parameters, **settings: Any
) -> FastSearch:
    model = tiny_model(variant, layers=3)
    scores = ScoreFolder(folder, {"source": "s", "calibration": "c"})
    return FastSearch(model, IDS, cost=cost, folder=scores, **{"mlp_group": 4, **settings})


def seconds(shape: ModelShape) -> float:
    """A device on which an attention takes a time of its own, and widths count in steps of eight channels."""
    return 1e-3 + sum(
        (2e-4 + 1e-4 * layer.kv_heads if layer.kv_heads else 0.0) + 1e-4 * -(-layer.mlp_width // 8)
        for layer in shape.layers
    )


def same(first: SearchResult, second: SearchResult) -> bool:
    return (first.shape, first.orders, first.history) == (second.shape, second.orders, second.history)


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_every_family_gets_a_plan_within_the_budget(variant: str, tmp_path: Path) -> None:
    search = search_of(tmp_path, variant)
    dense = search.run(1e12)
    assert dense.shape == dense.dense
    assert dense.history == ()
    budget = (0.7 if variant.startswith("mamba") else 0.8) * dense.dense_cost
    result = search.run(budget)
    plan = make_plan(result, source="tiny", source_digest="s", calibration_digest="c", compensated=True)
    assert result.shape == plan.target
    assert plan.target.parameters() == result.cost <= budget
    model = tiny_model(variant, layers=3)
    pruned = prune_model(model, plan)
    refit(model, pruned, torch.as_tensor(IDS).long())
    assert bool(torch.isfinite(pruned(torch.as_tensor(IDS[:1]).long()).logits).all())


def test_budgets_share_one_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    score = Scoring.score
    monkeypatch.setattr(Scoring, "score", lambda self, block: scored.append(block.index) or score(self, block))
    search = search_of(tmp_path)
    dense = search.run(1e12).dense_cost
    results = [search.run(share * dense) for share in (0.9, 0.7, 0.8)]
    assert scored == [0, 1, 2, 3, 4, 5]
    assert [result.cost <= share * dense for result, share in zip(results, (0.9, 0.7, 0.8), strict=True)] == [True] * 3
    # Whatever was asked before; and each run counts its own work.
    again = search_of(tmp_path).run(0.8 * dense)
    assert same(again, results[2])
    assert again.evaluations == results[2].evaluations
    assert scored == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("lost", [[2, 5], [0, 1, 2, 3, 4, 5]])
def test_what_is_missing_or_cut_off_is_scored_again(lost: list[int], tmp_path: Path) -> None:
    whole = search_of(tmp_path)
    budget = 0.75 * whole.run(1e12).dense_cost
    expected = whole.run(budget)
    for index in lost:
        (tmp_path / f"block-{index:04}.npz").unlink()
    for name in ("block-0001.npz", "moment-0003.npy", "cross-0004.npy"):
        path = tmp_path / name
        if path.exists():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert same(search_of(tmp_path).run(budget), expected)
    # Scores of another model, text or setting are of no use.
    ScoreFolder(tmp_path, {"source": "s", "calibration": "other"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json"]


def test_the_same_plan_from_the_same_tokens(tmp_path: Path) -> None:
    first, second = search_of(tmp_path / "a"), search_of(tmp_path / "b")
    budget = 0.7 * first.run(1e12).dense_cost
    assert same(first.run(budget), second.run(budget))


def test_a_budget_out_of_reach_says_the_lowest(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    with pytest.raises(SearchInfeasibleError, match=r"no plan reaches 0 parameters: the lowest reachable is") as caught:
        search.run(0.0)
    lowest = caught.value
    assert lowest.shape.parameters() == lowest.lowest_cost
    # One KV group of one attention is all that has to stay.
    assert sorted(layer.kv_heads for layer in lowest.shape.layers) == [0, 0, 1]
    assert all(layer.mlp_width == 0 for layer in lowest.shape.layers)
    assert search.run(lowest.lowest_cost).cost == lowest.lowest_cost
    with pytest.raises(SearchInfeasibleError):
        search.run(lowest.lowest_cost - 1)


def test_a_cost_in_seconds(tmp_path: Path) -> None:
    search = search_of(tmp_path, cost=seconds, cost_unit="seconds", mlp_group=1)
    dense = search.run(1.0)
    for share in (0.9, 0.7, 0.5):
        result = search.run(share * dense.dense_cost)
        assert result.cost_unit == "seconds"
        assert result.cost == seconds(result.shape) <= share * dense.dense_cost
        # No channel less than the time allows: widths end at steps of the device.
        assert all(layer.mlp_width % 8 == 0 for layer in result.shape.layers)


def test_small_groups_do_not_make_endless_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prune_export.prune import fast

    search = search_of(tmp_path, mlp_group=1)
    assert len(search._options) == 3 * 25 + 3 * 3
    monkeypatch.setattr(fast, "_MOST_OPTIONS", 60)
    monkeypatch.setattr(fast, "_FEWEST_SIZES", 8)
    search = search_of(tmp_path, mlp_group=1)
    assert [size for position, size in search._options if position == 1] == [0, 3, 6, 9, 12, 15, 18, 21, 24]


def test_another_choice_must_be_better_beyond_the_noise() -> None:
    def effect(*values: float) -> Effect:
        return Effect(torch.tensor(values, dtype=torch.float64), torch.zeros(1))

    base = effect(1.0, 2.0, 3.0, 4.0)
    assert clearly_better(effect(0.9, 1.9, 2.9, 3.9), base)
    assert not clearly_better(effect(2.0, 1.0, 3.9, 3.0), base)
    assert not clearly_better(base, base)
    assert clearly_better(base, effect(1.0, torch.nan, 1.0, 1.0))
    assert not clearly_better(effect(1.0, torch.inf, 1.0, 1.0), base)
    assert not clearly_better(effect(torch.nan), effect(torch.inf))


@pytest.mark.slow
def test_it_beats_the_papers_search_on_the_reference_model(tmp_path: Path) -> None:
    """Divergence from the dense model on text that nothing was chosen or fitted on, a fifth of the parameters gone."""
    from prune_export.delivery.steps import default_group
    from prune_export.prune.evaluator import Evaluator
    from prune_export.prune.loading import load_model, load_tokenizer
    from prune_export.prune.shapes import model_shape
    from prune_export.prune.sources import resolve_source
    from prune_export.texts import load_text, token_windows

    source = resolve_source("reference")
    model, tokenizer = load_model(source), load_tokenizer(source)
    shape = model_shape(model.config)
    ids = token_windows(load_text(None, "calibration"), tokenizer, count=64, length=128)
    other = torch.as_tensor(token_windows(load_text(None, "evaluation"), tokenizer, count=32, length=128)).long()
    budget, group = 0.8 * shape.parameters(), default_group(shape, 0)
    searches = {
        "fast": FastSearch(model, ids, cost=parameters, mlp_group=group, folder=ScoreFolder(tmp_path, {})),
        "paper": MultiPruner(Evaluator(model, np.asarray(ids[::4])), cost=parameters, mlp_group=group),
    }
    found = {}
    for name, search in searches.items():
        result = search.run(budget)  # type: ignore[attr-defined]
        plan = make_plan(result, source="reference", source_digest="s", calibration_digest="c")
        assert plan.ratio >= 0.2
        pruned = prune_model(model, plan)
        if name == "fast":
            refit(model, pruned, torch.as_tensor(ids).long())
        with torch.no_grad():
            p, q = (torch.log_softmax(item(other).logits, -1) for item in (model, pruned))
        found[name] = float((p.exp() * (p - q)).sum(-1).mean())
    assert found["fast"] < found["paper"]
