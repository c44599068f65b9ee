"""In which order the units of a projection go: structured OBS.

Optimal Brain Surgeon for groups of columns, as in ZipLM (Kurtic, Frantar, Alistarh 2023, arXiv 2302.04089): remove the
unit P with the least  W_P [(C^-1)_PP]^-1 W_P^T  (its loss once the rest compensates), update W and C^-1, repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prune_export.prune.closed_form import mean_diagonal

_STEPS = 128  # units that go together: one in so many, since their order among each other matters little
_COMPACT = 0.75  # the dead part of the inverse is dropped when no more than this share is alive
_SMALL = 128  # columns; copying fewer is not worth it


@dataclass(frozen=True)
class Elimination:
    """The outcome for one projection.

    Attributes:
        order: units, the one that goes last first; a width keeps the first ones.
        losses: [units + 1], summed squared output error by number of kept units, compensated; 0 for all of them.
    """

    order: tuple[int, ...]
    losses: tuple[float, ...]


def eliminate(
    weights: torch.Tensor, moment: torch.Tensor, columns: torch.Tensor, *, ridge: float, steps: int = _STEPS
) -> Elimination:
    """Orders the units of an output projection.

    Args:
        weights: [R, n].
        moment: C [n, n], mean of x x^T.
        columns: [units, columns of one].
        ridge: share of C's mean diagonal that is added to it.
        steps: at least so many steps; with as many units or fewer, each step removes one.
    """
    units, size = columns.shape
    flat = columns.reshape(-1)
    work = weights.double()[:, flat]
    system = moment.double()[flat][:, flat]
    system.diagonal().add_(ridge * (mean_diagonal(system) or 1.0))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    del system
    names, alive = torch.arange(units), torch.ones(units, dtype=torch.bool)
    removed: list[int] = []
    losses = [0.0]
    at_once = max(1, units // steps)
    while int(alive.sum()) > 0:
        scores = _scores(work, inverse, size).masked_fill(~alive, torch.inf)
        chosen = scores.topk(min(at_once, int(alive.sum())), largest=False).indices
        gone = (chosen[:, None] * size + torch.arange(size)).reshape(-1)
        loss = _remove(work, inverse, gone)
        alive[chosen] = False
        share = scores[chosen] / scores[chosen].sum().clamp_min(1e-300)
        removed += names[chosen].tolist()
        losses += (losses[-1] + loss * share.cumsum(0)).tolist()
        if 0 < int(alive.sum()) <= _COMPACT * len(alive) and size * len(alive) > _SMALL:
            kept = (alive.nonzero() * size + torch.arange(size)).reshape(-1)
            work, inverse = work[:, kept].contiguous(), inverse[kept][:, kept].contiguous()
            names, alive = names[alive], torch.ones(int(alive.sum()), dtype=torch.bool)
    return Elimination(tuple(reversed(removed)), tuple(reversed(losses)))


def _scores(weights: torch.Tensor, inverse: torch.Tensor, size: int) -> torch.Tensor:
    """Loss of removing each unit alone, [units]."""
    if size == 1:
        single: torch.Tensor = weights.square().sum(0) / inverse.diagonal().clamp_min(1e-300)
        return single
    units = len(inverse) // size
    blocks = torch.stack([inverse[at : at + size, at : at + size] for at in range(0, units * size, size)])
    # Dead units have a block of zeros; any regular one serves, their score is masked.
    dead = blocks.diagonal(dim1=1, dim2=2).sum(1) == 0
    blocks[dead] = torch.eye(size, dtype=blocks.dtype)
    grouped = weights.view(len(weights), units, size).permute(1, 2, 0)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), grouped, upper=False)
    joint: torch.Tensor = half.square().sum((1, 2))
    return joint


def _remove(weights: torch.Tensor, inverse: torch.Tensor, gone: torch.Tensor) -> float:
    """Takes columns out of both, in place; returns the loss."""
    rows = inverse[gone]
    factor = torch.linalg.cholesky(rows[:, gone])
    solved = torch.cholesky_solve(rows, factor)
    lost = weights[:, gone]
    loss = float(torch.linalg.solve_triangular(factor, lost.T, upper=False).square().sum())
    weights.addmm_(lost, solved, alpha=-1.0)  # in place: of thousands of columns, memory is what takes the time
    inverse.addmm_(rows.T, solved, alpha=-1.0)
    weights[:, gone] = 0.0
    inverse[gone] = 0.0
    inverse[:, gone] = 0.0
    return loss
