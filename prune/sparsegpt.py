"""SparseGPT: left to right with one shared Cholesky factor.

Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

import torch

from prune_export.prune.closed_form import inverse
from prune_export.prune.masks import lowest, lowest_of_all
from prune_export.sparsity import Pattern

BLOCK = 128


def sparsegpt(
    weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern, *, block: int = BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pruned weights and mask [R, n]; the mask is chosen block by block on weights that were already compensated.

    An unstructured mask takes the lowest w^2 / [U]_jj^2 of all rows of a block, U the upper Cholesky factor of H^-1; an
    N:M mask is chosen group by group when the sweep arrives there.  Only columns to the right of a removed weight
    compensate for it.
    """
    return _sweep(weights, hessian, None, pattern, block)


def left_to_right(
    weights: torch.Tensor, hessian: torch.Tensor, mask: torch.Tensor, *, block: int = BLOCK
) -> torch.Tensor:
    """The same compensation for a given mask [R, n]: weights go one at a time, columns to the right make up for it."""
    return _sweep(weights, hessian, mask, None, block)[0]


def _sweep(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    given: torch.Tensor | None,
    pattern: Pattern | None,
    block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    factor = torch.linalg.cholesky(inverse(hessian), upper=True).to(weights.dtype)
    result, width = weights.clone(), weights.shape[1]
    if pattern is not None and pattern.group:
        block = max(1, block // pattern.group) * pattern.group
    mask = torch.zeros_like(weights, dtype=torch.bool) if given is None else given
    for start in range(0, width, block):
        end = min(start + block, width)
        columns, local = result[:, start:end].clone(), factor[start:end, start:end]
        chosen = mask[:, start:end]
        if given is None and pattern is not None and not pattern.group:
            chosen |= lowest_of_all(columns**2 / local.diagonal() ** 2, pattern.share)
        errors = torch.zeros_like(columns)
        for column in range(end - start):
            if given is None and pattern is not None and pattern.group and column % pattern.group == 0:
                group = slice(column, column + pattern.group)
                chosen[:, group] = lowest(columns[:, group] ** 2 / local.diagonal()[group] ** 2, pattern)
            errors[:, column] = columns[:, column] * chosen[:, column] / local[column, column]
            columns[:, column:] -= errors[:, column, None] * local[column, column:]
        result[:, start:end] = columns.masked_fill(chosen, 0.0)
        result[:, end:] -= errors @ factor[start:end, end:]
    return result, mask
