"""Masks against exhaustive search and plain loops."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from least_squares import brute_force, design, problem  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.prune.closed_form import damped
from prune_export.prune.masks import lowest, magnitude_mask, multiple_mask, single_mask, wanda_mask
from prune_export.sparsity import Pattern, parse_pattern

HALF, TWO_FOUR = Pattern(0.5), Pattern(0.5, 2, 4)


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:4", "4:8"])
def test_mask_m_is_what_exhaustive_search_finds(text: str) -> None:
    pattern = parse_pattern(text)
    weights, inputs = problem(3, 16, 48)
    hessian = damped(inputs @ inputs.T, 0.01)
    matrix = design(inputs, 0.01 * 2 * float((inputs**2).sum()) / 16)
    mask = multiple_mask(weights, hessian, pattern)
    for row in range(3):
        for start in range(0, 16, pattern.group):
            losses = {}
            for chosen in combinations(range(start, start + pattern.group), pattern.group - pattern.keep):
                removed = torch.zeros(16, dtype=torch.bool)
                removed[list(chosen)] = True
                losses[chosen] = brute_force(weights[row], removed, matrix)[1]
            found = tuple((mask[row, start : start + pattern.group].nonzero()[:, 0] + start).tolist())
            assert found == min(losses, key=losses.__getitem__)


def test_mask_s_takes_the_weights_that_cost_least_alone() -> None:
    weights, inputs = problem(4, 12, 40)
    matrix = design(inputs, 0.01 * 2 * float((inputs**2).sum()) / 12)
    hessian = damped(inputs @ inputs.T, 0.01)
    losses = torch.zeros(4, 12)
    for row in range(4):
        for column in range(12):
            removed = torch.zeros(12, dtype=torch.bool)
            removed[column] = True
            losses[row, column] = brute_force(weights[row], removed, matrix)[1]
    for pattern in (HALF, TWO_FOUR, Pattern(0.25)):
        assert torch.equal(single_mask(weights, hessian, pattern), lowest(losses, pattern))


def test_wanda_weighs_magnitude_by_the_norm_of_the_input() -> None:
    weights, inputs = problem(4, 8, 30)
    inputs[3] *= 100
    scores = torch.tensor([[float(w.abs() * x.norm()) for w, x in zip(row, inputs, strict=True)] for row in weights])
    mask = wanda_mask(weights, inputs @ inputs.T, HALF)
    for row in range(4):
        assert set(mask[row].nonzero()[:, 0].tolist()) == set(scores[row].argsort()[:4].tolist())
    grouped = wanda_mask(weights, inputs @ inputs.T, TWO_FOUR)
    assert (grouped.view(-1, 4).sum(1) == 2).all()


def test_magnitude_ranks_the_whole_projection_or_each_group() -> None:
    weights = torch.tensor([[1.0, -2.0, 3.0, -4.0], [50.0, 60.0, -70.0, 80.0]])
    assert magnitude_mask(weights, HALF).tolist() == [[True] * 4, [False] * 4]
    assert magnitude_mask(weights, TWO_FOUR).tolist() == [[True, True, False, False]] * 2


def test_ties_go_to_the_first_weight() -> None:
    assert lowest(torch.ones(1, 8), TWO_FOUR).tolist() == [[True, True, False, False] * 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half", "is not a number"),
        ("2:", "kept:group such as 2:4"),
        ("4:4", "at least one weight of a group is kept and one goes"),
        ("0:4", "out of range"),
        ("2:64", "a group has at most 16"),
        ("100%", "out of range"),
        ("0%", "must be above zero"),
    ],
)
def test_malformed_patterns_are_one_line(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        parse_pattern(text)


def test_patterns_print_as_they_are_written() -> None:
    assert str(parse_pattern("4:8")) == "4:8"
    assert str(parse_pattern("50%")) == "50%"
    assert parse_pattern("30%").removed(10) == 3
    assert parse_pattern("1:4").removed(8) == 6
