"""Which weights of a projection go: true in a mask [R, n] means removed."""

from __future__ import annotations

from itertools import combinations

import torch

from prune_export.prune.closed_form import inverse
from prune_export.sparsity import Pattern

_CHUNK_BYTES = 64 << 20


def lowest(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The lowest scores [R, n] of each row, or of each group of neighbours in it.

    Ties go to the first weight, so that the same scores give the same mask everywhere.
    """
    width = scores.shape[1]
    count = pattern.removed(width)
    grouped = scores
    if pattern.group:
        grouped, count = scores.reshape(-1, pattern.group), pattern.group - pattern.keep
    order = grouped.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, order, True).view(scores.shape)


def lowest_of_all(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The lowest `share` of all scores [R, n] together, whatever row they are in."""
    order = scores.reshape(-1).argsort(stable=True)[: round(share * scores.numel())]
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.view(scores.shape)


def magnitude_mask(weights: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Smallest |w|, ranked over the whole projection, or in each group (the baseline of Sun et al. 2023)."""
    return lowest(weights.abs(), pattern) if pattern.group else lowest_of_all(weights.abs(), pattern.share)


def wanda_mask(weights: torch.Tensor, moment: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Smallest |w_ij| ||x_j||, ranked in each row or group (Wanda: Sun et al. 2023, arXiv 2306.11695, eq. 1)."""
    return lowest(weights.abs().double() * moment.diagonal().double().clamp(min=0).sqrt(), pattern)


def single_mask(weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Mask S of Zhao et al. 2024: each weight by itself, w_j^2 / (2 [H^-1]_jj)."""
    return lowest(weights.double() ** 2 / (2 * inverse(hessian).diagonal()), pattern)


def multiple_mask(weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Mask M of Zhao et al. 2024: in each group the set with the least joint loss 1/2 w_P [(H^-1)_PP]^-1 w_P^T.

    Every set is tried: six pairs of four neighbours for 2:4, seventy for 4:8.  Defined for N:M patterns only.
    """
    group, gone = pattern.group, pattern.group - pattern.keep
    rows, width = weights.shape
    sets = torch.tensor(list(combinations(range(group), gone)))
    blocks = _diagonal_blocks(inverse(hessian), group)
    systems = torch.linalg.inv(blocks[:, sets[:, :, None], sets[:, None, :]])  # [n/g, sets, gone, gone]
    chosen = torch.zeros(rows, width // group, dtype=torch.long)
    step = max(1, _CHUNK_BYTES // (16 * (width // group) * len(sets) * gone))
    for start in range(0, rows, step):
        picked = weights[start : start + step].double().view(-1, width // group, group)[:, :, sets]
        losses = torch.einsum("rgsi,gsij,rgsj->rgs", picked, systems, picked)
        chosen[start : start + step] = losses.argmin(2)
    mask = torch.zeros(len(sets), group, dtype=torch.bool).scatter_(1, sets, True)
    return mask[chosen].view(rows, width)


def _diagonal_blocks(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """The blocks [n / size, size, size] on the diagonal of a matrix [n, n]."""
    count = len(matrix) // size
    every = torch.arange(count)
    return matrix.view(count, size, count, size)[every, :, every, :]
