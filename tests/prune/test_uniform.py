"""One shape for all layers: the choice against every uniform choice there is, and checkpoints that need no code."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_reloading import read_elsewhere  # type: ignore[import-not-found]
from tiny_models import plan_of, tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.delivery.settings import SEARCHES, SearchSettings
from prune_export.delivery.steps import search_steps
from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep, PrunePlan
from prune_export.prune.allocation import Problem
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.families import needs_eager
from prune_export.prune.fast import FastSearch
from prune_export.prune.planning import make_plan
from prune_export.prune.refit import refit
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.search_result import SearchInfeasibleError
from prune_export.prune.shapes import model_shape
from prune_export.prune.stock import heads_fit, stock_model
from prune_export.prune.sub_blocks import SubBlock
from prune_export.prune.surgery import prune_model
from prune_export.prune.uniform import UniformAllocation
from prune_export.shape import LayerShape, ModelShape

IDS = tokens(40, 12).numpy()
# Sizes of an attention and of an MLP in the allocation's tests.
SIZES = ((0, 1, 2), (0, 4, 8))
LAYERS = 4
ABLE = ("llama-biases-tied", "llama-wide-heads", "mistral-window", "qwen2-mixed-windows", "qwen3", "gemma2")


def options() -> list[tuple[int, int]]:
    return [(position, size) for position in range(2 * LAYERS) for size in SIZES[position % 2]]


def allocator(fits: tuple[int, ...] = (1, 2)) -> UniformAllocation:
    blocks = [
        SubBlock(position, "mlp" if position % 2 else "attention", None, torch.zeros(8, 1)) for position in range(8)
    ]
    return UniformAllocation(options(), blocks, fits=lambda heads: heads in fits)


def random_problem(seed: int, *, interactions: bool) -> Problem:
    random = np.random.default_rng(seed)
    effects = random.normal(size=(2 * LAYERS, 3, 9)) * np.array([1.0, 0.4, 0.0])[None, :, None]
    effects += 0.4 * effects[:, :, :1]
    rows = effects.reshape(-1, 9)
    gram = rows @ rows.T if interactions else np.diag((rows**2).sum(1))
    # Sub-blocks of a kind cost the same in every layer.
    costs = np.array([[-60.0, -30.0, 0.0], [-90.0, -45.0, 0.0]])[np.arange(2 * LAYERS) % 2]
    vital = [size > 0 and position % 2 == 0 for position, size in options()]
    return Problem(np.repeat(np.arange(2 * LAYERS), 3), costs.reshape(-1), gram, np.asarray(vital))


def every_choice(budget: float, problem: Problem) -> Iterator[NDArray[np.int64]]:
    """Every uniform choice within the budget, by the words of the definition."""
    rows = {option: row for row, option in enumerate(options())}
    for heads, width in itertools.product(SIZES[0][1:], SIZES[1][1:]):
        for stays in itertools.product((True, False), repeat=LAYERS):
            sizes = [size for here in stays for size in ((heads, width) if here else (0, 0))]
            choice = np.asarray([rows[position, size] for position, size in enumerate(sizes)])
            if any(stays) and problem.cost[choice].sum() <= budget:
                yield choice


@pytest.mark.parametrize("interactions", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_least_harm_of_every_uniform_choice(seed: int, interactions: bool) -> None:
    problem = random_problem(seed, interactions=interactions)
    for budget in (0.0, -150.0, -290.0, -450.0, -525.0):
        found = allocator().allocate(problem, budget)
        assert found is not None
        allowed = list(every_choice(budget, problem))
        assert all(any(np.array_equal(choice, other) for other in allowed) for choice in found)
        harms = [problem.harm(choice) for choice in found]
        assert harms == sorted(harms)
        assert harms[0] == pytest.approx(min(problem.harm(choice) for choice in allowed), abs=1e-9)
    assert allocator().allocate(problem, -526.0) is None


def test_the_cheapest_is_one_small_layer_of_least_harm() -> None:
    problem = random_problem(0, interactions=False)
    cheapest = allocator().cheapest(problem)
    assert problem.cost[cheapest].sum() == -525.0 == min(problem.cost[c].sum() for c in every_choice(0.0, problem))
    equal = [choice for choice in every_choice(0.0, problem) if problem.cost[choice].sum() == -525.0]
    assert problem.harm(cheapest) == pytest.approx(min(problem.harm(choice) for choice in equal))


def test_only_heads_that_a_configuration_takes_are_chosen() -> None:
    problem = random_problem(1, interactions=True)
    for budget in (-100.0, -300.0):
        sizes = {options()[row] for choice in allocator(fits=(2,)).allocate(problem, budget) or () for row in choice}
        assert {size for position, size in sizes if position % 2 == 0} <= {0, 2}
    with pytest.raises(BadInputError, match="no MLP width and number of KV heads that all layers"):
        allocator(fits=())


def test_a_layer_without_mlp_has_no_uniform_plan() -> None:
    blocks = [SubBlock(position, "attention", None, torch.zeros(2, 1)) for position in (0, 2)]
    with pytest.raises(BadInputError, match="layer 0 of this model has no MLP"):
        UniformAllocation([(0, 0), (0, 2), (1, 0), (1, 2)], blocks, fits=lambda _: True)


def uniform_search(folder: Path, model: object, **settings: int) -> FastSearch:
    return FastSearch(
        model,
        IDS,
        cost=lambda shape: float(shape.parameters()),
        folder=ScoreFolder(folder, {"source": "s", "calibration": "c"}),
        uniform=partial(heads_fit, model.config),  # type: ignore[attr-defined]
        **{"mlp_group": 4, **settings},
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PrunePlan, torch.nn.Module]]:
    """Plan and refitted model of each family, a fifth to a half of the parameters gone."""
    found = {}
    for number, variant in enumerate(ABLE):
        model = tiny_model(variant, layers=4)
        search = uniform_search(tmp_path_factory.mktemp(variant), model)
        share = (0.8, 0.6, 0.5)[number % 3]
        result = search.run(share * model_shape(model.config).parameters())
        plan = make_plan(
            result, source="tiny", source_digest="s", calibration_digest="c", compensated=True, uniform=True
        )
        assert plan.target.parameters() == result.cost <= share * plan.dense.parameters()
        assert "one shape for all layers" in plan.method
        pruned = prune_model(model, plan)
        refit(model, pruned, torch.as_tensor(IDS).long())
        found[variant] = plan, pruned
    return found


@pytest.mark.parametrize("variant", ABLE)
def test_a_stock_model_computes_what_the_pruned_one_does(
    variant: str, searched: dict[str, tuple[PrunePlan, torch.nn.Module]]
) -> None:
    plan, pruned = searched[variant]
    stock = stock_model(pruned)
    ids = tokens(3, 11)
    assert type(stock).__module__.startswith("transformers.models.")
    assert (stock(ids).logits - pruned(ids).logits).abs().max() <= 1e-5
    layer = plan.target.common_layer
    assert layer is not None
    assert set(model_shape(stock.config).layers) == {layer}
    assert len(model_shape(stock.config).layers) == len(plan.target.attention_layers)
    assert model_shape(stock.config).head_dim == plan.dense.head_dim
    assert model_shape(stock.config).parameters() == plan.target.parameters()
    assert stock_model(stock) is stock


@pytest.mark.parametrize("variant", ABLE)
def test_fewer_heads_and_layers_gone_from_front_and_middle(variant: str) -> None:
    """Head width and each layer's window stay those of the dense layers, whatever number a layer gets."""
    model = tiny_model(variant)
    gone, half = LayerKeep((), ()), LayerKeep((1,), tuple(range(2, 24, 2)))
    plan = plan_of(model, {0: gone, 1: half, 2: gone, 3: half, 4: half})
    pruned = prune_model(model, plan)
    stock, ids = stock_model(pruned), tokens(2, 20)
    assert (stock(ids).logits - pruned(ids).logits).abs().max() <= 1e-5
    assert model_shape(stock.config).layers == (LayerShape(2, 1, 11),) * 3
    assert model_shape(stock.config).head_dim == plan.dense.head_dim


def test_plain_transformers_loads_them_without_any_code(
    tmp_path: Path, searched: dict[str, tuple[PrunePlan, torch.nn.Module]]
) -> None:
    directories = []
    for variant, (_, pruned) in searched.items():
        save_checkpoint(stock_model(pruned), None, tmp_path / variant)
        assert sorted(path.name for path in (tmp_path / variant).iterdir()) == [
            "config.json", "generation_config.json", "model.safetensors",
        ]  # fmt: skip
        config = json.loads((tmp_path / variant / "config.json").read_text())
        assert config["model_type"] == variant.split("-")[0]
        assert "prune_layers" not in config
        assert "auto_map" not in config
        directories.append(tmp_path / variant)
    ids = tokens(2, 9)
    for (_, pruned), found in zip(
        searched.values(), read_elsewhere(directories, ids, tmp_path, trust=False), strict=True
    ):
        same: Any = copy.deepcopy(pruned)
        if needs_eager(same.config):  # `transformers` takes the fused attention, soft caps or not, unless told
            same.set_attn_implementation("sdpa")
        assert (found["logits"] - same(ids).logits).abs().max() <= 1e-5
        expected = same.generate(ids, max_new_tokens=5, do_sample=False)
        assert found["generated"].tolist() == expected.tolist()
    again = load(directories[0])
    assert torch.equal(again(ids).logits, stock_model(searched[ABLE[0]][1])(ids).logits)


def test_a_budget_out_of_reach_says_the_lowest_uniform_cost(tmp_path: Path) -> None:
    search = uniform_search(tmp_path, tiny_model("llama", layers=3))
    with pytest.raises(SearchInfeasibleError) as caught:
        search.run(0.0)
    lowest = caught.value
    assert lowest.shape.common_layer == LayerShape(2, 1, 4)
    assert len(lowest.shape.attention_layers) == 1
    assert search.run(lowest.lowest_cost).cost == lowest.lowest_cost == lowest.shape.parameters()


def test_heads_that_the_configuration_refuses() -> None:
    """Llama's wants the hidden size, 32 here, to be a multiple of the query heads."""
    eight = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4}
    llama, qwen3 = tiny_model("llama", layers=1, **eight), tiny_model("qwen3", layers=1, **eight)
    assert [heads for heads in range(1, 9) if heads_fit(llama.config, heads)] == [1, 2, 4, 8]
    assert all(heads_fit(qwen3.config, heads) for heads in range(1, 9))
    plan = plan_of(llama, {0: LayerKeep((0, 1, 2), tuple(range(8)))})
    with pytest.raises(BadInputError, match=r"no stock llama configuration takes 3 query heads: .*not a multiple"):
        stock_model(prune_model(llama, plan))


@pytest.mark.parametrize("search", [name for name in SEARCHES if name != "fast"])
def test_other_searches_and_families_are_refused(search: str) -> None:
    shape = ModelShape("llama", 32, 8, 61, True, (LayerShape(4, 2, 24),))
    assert SearchSettings(uniform=True).for_model(shape).uniform
    with pytest.raises(BadInputError, match=f"by --search fast alone, not by --search {search}"):
        SearchSettings(search=search, uniform=True).for_model(shape)
    with pytest.raises(BadInputError, match="not by --preset llama-2-7b"):
        SearchSettings(preset="llama-2-7b", uniform=True).for_model(shape)
    gpt2 = ModelShape("gpt2", 32, 8, 61, True, (LayerShape(4, 4, 24),))
    with pytest.raises(BadInputError, match=r"family gpt2 .*: llama, mistral, qwen2, qwen3, gemma2; leave out"):
        SearchSettings(uniform=True).for_model(gpt2)


def test_widths_go_in_small_steps() -> None:
    shape = ModelShape("llama", 32, 8, 61, True, (LayerShape(4, 2, 4096),))
    assert search_steps(shape, SearchSettings(uniform=True), 0).mlp == 64
    assert search_steps(shape, SearchSettings(uniform=True), 128).mlp == 128
    assert search_steps(shape, SearchSettings(), 128).mlp == 384
    assert search_steps(shape, SearchSettings(uniform=True, mlp_group=32), 128).mlp == 32


def test_a_plan_that_says_uniform_must_be(tmp_path: Path) -> None:
    model = tiny_model("llama", layers=3)
    half = LayerKeep((0,), tuple(range(8)))
    plan = plan_of(model, {0: half, 1: LayerKeep((), ()), 2: half})
    plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    assert "uniform" not in data
    (tmp_path / "plan.json").write_text(json.dumps({**data, "uniform": True}))
    assert PrunePlan.load(tmp_path / "plan.json").target.common_layer == LayerShape(2, 1, 8)
    data["keep"][0]["mlp_channels"] = "0-8"
    (tmp_path / "plan.json").write_text(json.dumps({**data, "uniform": True}))
    with pytest.raises(BadInputError, match="the plan says uniform, but its layers differ"):
        PrunePlan.load(tmp_path / "plan.json")
