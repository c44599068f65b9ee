"""SparseGPT against a plain loop that inverts what is left of the Hessian for every column."""

from __future__ import annotations

import pytest
import torch
from least_squares import problem, random_masks  # type: ignore[import-not-found]

from prune_export.prune.closed_form import damped, row_losses, row_updates
from prune_export.prune.sparsegpt import left_to_right, sparsegpt
from prune_export.sparsity import Pattern


def naive(weights: torch.Tensor, hessian: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One column after the other; each removed weight is made up for by those to its right, in the optimal way."""
    result = weights.clone()
    for column in range(weights.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        removed = result[:, column] * mask[:, column]
        result[:, column:] -= removed[:, None] * inverse[0] / inverse[0, 0]
        result[mask[:, column], column] = 0.0
    return result


@pytest.mark.parametrize("block", [4, 7, 128])
def test_compensation_is_that_of_the_plain_loop(block: int) -> None:
    weights, inputs = problem(6, 20, 60)
    mask = random_masks(6, 20, 10)
    hessian = damped(inputs @ inputs.T, 0.01)
    expected = naive(weights, hessian, mask)
    assert torch.allclose(left_to_right(weights, hessian, mask, block=block), expected, rtol=1e-9, atol=1e-10)


def naive_masks(weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern, block: int) -> torch.Tensor:
    """The mask of each block, or group, from what the sweep has made of the weights when it arrives there."""
    mask = torch.zeros_like(weights, dtype=torch.bool)
    size = pattern.group or block
    for start in range(0, weights.shape[1], size):
        current = naive(weights, hessian, mask) if start else weights
        here = slice(start, start + size)
        diagonal = torch.stack(
            [torch.linalg.inv(hessian[column:, column:])[0, 0] for column in range(start, start + size)]
        )
        scores = current[:, here] ** 2 / diagonal
        if pattern.group:
            for row in range(len(weights)):
                mask[row, start + scores[row].argsort()[: pattern.group - pattern.keep]] = True
        else:
            limit = scores.flatten().sort().values[round(pattern.share * scores.numel())]
            mask[:, here] = scores < limit
    return mask


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.25), Pattern(0.5, 2, 4), Pattern(0.5, 4, 8)])
def test_masks_are_chosen_when_the_sweep_arrives(pattern: Pattern) -> None:
    weights, inputs = problem(8, 32, 100)
    hessian = damped(inputs @ inputs.T, 0.01)
    pruned, mask = sparsegpt(weights, hessian, pattern, block=16)
    assert torch.equal(mask, naive_masks(weights, hessian, pattern, 16))
    assert torch.allclose(pruned, naive(weights, hessian, mask), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.5, 2, 4)])
def test_no_row_loses_more_by_joint_removal(pattern: Pattern) -> None:
    weights, inputs = problem(64, 48, 100, seed=5)
    hessian = damped(inputs @ inputs.T, 0.01)
    pruned, mask = sparsegpt(weights, hessian, pattern)
    joint = row_updates(weights, mask, hessian).losses
    assert (joint <= row_losses(pruned - weights, hessian) * (1 + 1e-12)).all()
    assert (joint <= row_losses(weights * mask, hessian) * (1 + 1e-12)).all()
    assert joint.sum() < 0.95 * row_losses(pruned - weights, hessian).sum()
