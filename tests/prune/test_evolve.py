from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from plain_multipruner import plain_perplexity  # type: ignore[import-not-found]
from tiny_models import tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.evolve import EvolveSearch
from prune_export.prune.journal import JournalFile
from prune_export.prune.planning import make_plan
from prune_export.prune.search_result import SearchInfeasibleError
from prune_export.prune.surgery import prune_model
from prune_export.shape import LayerShape, ModelShape


def parameters(shape: ModelShape) -> float:
    return shape.parameters()


def search(layers: int = 3, **settings: Any) -> EvolveSearch:
    chosen: dict[str, Any] = {"cost": parameters, "mlp_group": 8, "population": 8, "generations": 4, "seed": 1}
    return EvolveSearch(Evaluator(tiny_model(layers=layers), tokens(3, 14)), **(chosen | settings))


def test_finds_what_trying_everything_finds() -> None:
    found = search(population=12, generations=12)
    dense = found._dense.parameters()
    budget = 0.7 * dense
    result = found.run(budget)
    blocks = [step for step in result.history if step.stage == "blocks"]
    assert blocks
    assert blocks[-1].cost <= 0.85 * dense
    gone = {(step.layer, step.part) for step in blocks}
    # Every structure that the widths could make of what the blocks left, each evaluated whole.
    choices = [
        [
            LayerShape(2 * heads, heads, width)
            for heads in ((0,) if (index, "attention") in gone else (2, 1))
            for width in ((0,) if (index, "mlp") in gone else (24, 16, 8))
        ]
        for index in range(3)
    ]
    evaluator, best = Evaluator(tiny_model(layers=3), tokens(3, 14)), None
    for layers in itertools.product(*choices):
        if evaluator.shape.with_layers(layers).parameters() <= budget:
            evaluator.move_to(layers)
            perplexity = evaluator.perplexity()
            best = perplexity if best is None else min(best, perplexity)
    assert result.cost <= budget
    assert result.perplexity == pytest.approx(best, rel=1e-6)


def test_result_is_what_surgery_makes_and_the_front_is_one() -> None:
    found = search()
    result = found.run(0.75 * found._dense.parameters())
    model = tiny_model(layers=3)
    plan = make_plan(result, source="tiny", source_digest="s", calibration_digest="c")
    assert plan.target == result.shape
    assert plan.history[-1].cost == result.cost
    assert plain_perplexity(prune_model(model, plan), tokens(3, 14)) == pytest.approx(result.perplexity, rel=1e-5)
    assert len(result.front) > 1
    for one, other in itertools.pairwise(result.front):
        assert (one.cost < other.cost, one.perplexity > other.perplexity) == (True, True)
    assert all(point.cost == found._dense.with_layers(point.layers).parameters() for point in result.front)
    within = [point for point in result.front if point.cost <= 0.75 * result.dense_cost]
    assert (within[-1].cost, within[-1].perplexity) == (result.cost, result.perplexity)


def test_the_seed_decides() -> None:
    runs = [search(seed=seed).run(40_000) for seed in (1, 1, 2)]
    assert runs[0].front == runs[1].front
    assert runs[0].history == runs[1].history
    assert runs[0].front != runs[2].front


def test_a_killed_search_ends_with_the_same_plan(tmp_path: Path) -> None:
    budget = 0.7 * search()._dense.parameters()
    expected = search().run(budget)
    for lines in (3, 11):
        file = JournalFile(tmp_path / f"{lines}.jsonl", "source", "calibration")
        search(journal=file).run(budget)
        kept = file.path.read_text().splitlines(keepends=True)[:lines]
        file.path.write_text("".join(kept) + '{"structure": "2,')
        again = search(journal=file).run(budget)
        assert (again.history, again.front, again.shape) == (expected.history, expected.front, expected.shape)
        assert 0 < again.evaluations < expected.evaluations


def test_smaller_budgets_take_more_blocks_and_the_smallest_is_named() -> None:
    found = search()
    with pytest.raises(SearchInfeasibleError, match=r"the lowest reachable is") as caught:
        found.run(0)
    tight = found.run(caught.value.lowest_cost)
    assert tight.cost == caught.value.lowest_cost
    assert sum(layer.kv_heads for layer in tight.shape.layers) == 1


def test_nothing_to_remove() -> None:
    found = search()
    result = found.run(found._dense.parameters())
    assert result.cost <= result.dense_cost
    assert result.perplexity <= result.dense_perplexity


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"population": 2}, r"2 points in 4 generations"), ({"mlp_group": 0}, r"both must be at least 1")],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        search(**settings)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    search().run(40_000)
    assert capsys.readouterr() == ("", "")
