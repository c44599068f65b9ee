"""Steps of the searches: with sparsity, every width that can be left must fit the pattern."""

from __future__ import annotations

from itertools import product

import pytest

from prune_export.delivery.settings import SEARCHES, SearchSettings
from prune_export.delivery.steps import Steps, check_plan, default_group, search_steps
from prune_export.errors import BadInputError
from prune_export.shape import LayerShape, MixerShape, ModelShape
from prune_export.sparsity import Pattern, Sparsity

TWO_FOUR, HALF = Pattern(0.5, 2, 4), Pattern(0.5)


def model(width: int, *, head_dim: int = 16) -> ModelShape:
    return ModelShape("llama", 64, head_dim, 100, True, (LayerShape(4, 4, width),) * 2)


PATTERNS = (TWO_FOUR, Pattern(0.5, 4, 8), Pattern(0.1), HALF)
FITTING = [(width, pattern) for width, pattern in product((128, 44, 24), PATTERNS) if pattern.fits(width)]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("width", "pattern"), FITTING)
def test_all_widths_that_a_step_leaves_fit(search: str, width: int, pattern: Pattern) -> None:
    steps = search_steps(model(width), SearchSettings(search=search), 0, Sparsity(pattern))
    if search != "blockpruner":
        left = [*range(width, 0, -steps.mlp), *range(0, width, steps.mlp)[1:]]
        assert all(0 < pattern.removed(size) < size for size in left)
        assert not pattern.group or all(size % pattern.group == 0 for size in left)
        assert steps.mlp >= default_group(model(width), 0)


def test_without_sparsity_nothing_changes() -> None:
    assert search_steps(model(44), SearchSettings(), 0) == Steps(default_group(model(44), 0), 1)
    assert search_steps(model(44), SearchSettings(mlp_group=3, kv_group=2), 0) == Steps(3, 2)


def test_steps_of_mixers_fit_too() -> None:
    channels = ModelShape("mamba", 32, 1, 61, True, (LayerShape(0, 0, 0, 64),), mixer=MixerShape(fixed=1, unit=1))
    assert search_steps(channels, SearchSettings(), 0, Sparsity(TWO_FOUR)).mixer == 8
    assert search_steps(channels, SearchSettings(search="multipruner"), 0, Sparsity(TWO_FOUR)).mlp == 4
    mixer = MixerShape(fixed=1, unit=1, unit_columns=6, heads=True)
    heads = ModelShape("mamba2", 32, 6, 61, True, (LayerShape(0, 0, 0, 8, 4),), mixer=mixer)
    assert search_steps(heads, SearchSettings(), 0, Sparsity(TWO_FOUR)).mixer == 2
    with pytest.raises(
        BadInputError, match="--kv-group 1 leaves widths that pattern 2:4 does not fit: give --kv-group 2"
    ):
        search_steps(heads, SearchSettings(search="multipruner"), 0, Sparsity(TWO_FOUR))


def test_what_was_asked_for_is_refused_with_the_next_that_fits() -> None:
    with pytest.raises(BadInputError, match=r"--mlp-group 6 leaves widths .* give --mlp-group 8"):
        search_steps(model(128), SearchSettings(mlp_group=6), 0, Sparsity(TWO_FOUR))
    with pytest.raises(BadInputError, match=r"--kv-group 1 leaves widths .* give --kv-group 2"):
        search_steps(model(128, head_dim=6), SearchSettings(), 0, Sparsity(TWO_FOUR))


def test_plans_are_checked_part_by_part() -> None:
    check_plan(model(128).with_layers((LayerShape(1, 1, 4), LayerShape(0, 0, 0))), TWO_FOUR)
    check_plan(model(128).with_layers((LayerShape(1, 1, 7),)), HALF)
    with pytest.raises(BadInputError, match="layer 1 an attention of 6 columns"):
        check_plan(model(128, head_dim=6).with_layers((LayerShape(2, 2, 4), LayerShape(1, 1, 0))), TWO_FOUR)
    with pytest.raises(BadInputError, match="layer 0 an MLP of 1 columns"):
        check_plan(model(128).with_layers((LayerShape(0, 0, 1),)), HALF)
