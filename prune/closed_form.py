"""Least squares with some weights forced to zero, in closed form.

Legend: R rows, n inputs, P the removed inputs of a row, K its kept ones, H [n, n] the Hessian 2 X X^T + damping.

Zhao et al. 2024 (arXiv 2410.15567), the multiple removal problem: minimise 1/2 d H d^T subject to d_P = -w_P, solved by
    d = -w_P [(H^-1)_PP]^-1 (H^-1)_{P,:}          (removed form: one |P| x |P| system a row)
    w_K' = w_K + w_P H_PK (H_KK)^-1               (kept form: one |K| x |K| system a row, no inverse of H)
Both are the same optimum; the smaller system is solved.  Systems are factored in float32 and refined against float64
residuals; what does not converge is factored in float64, and what is singular gets the minimum-norm solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.units import format_bytes

MEMORY_BYTES = 1 << 30
# Refinement ends when a correction is this small beside the solution; by the precision of the given weights.
_TOLERANCE = {torch.float64: 1e-12}
_FLOAT32_TOLERANCE = 1e-7
_REFINEMENTS = 12
_BATCH_BYTES = 256 << 20  # more rows at once are not faster
_GATHERED_ROWS = 256  # a piece that stays in the cache between the two steps of a gather
# Largest squared ratio of a Cholesky factor's diagonal (a lower bound of the condition) with which H^-1 is formed.
_INVERTIBLE = 1e8


@dataclass(frozen=True)
class RowUpdates:
    """Rows with their masked weights at zero and the kept ones at the optimum.

    Attributes:
        weights: [R, n], in the precision of the given weights.
        losses: [R] float64, 1/2 d H d^T of each row.
    """

    weights: torch.Tensor
    losses: torch.Tensor


def damped(moment: torch.Tensor, share: float) -> torch.Tensor:
    """H = 2 X X^T plus `share` of its mean diagonal, float64, from the moment X X^T [n, n].

    Inputs that are all silent give the identity: nothing can be learnt from them, and nothing depends on them.
    """
    hessian = 2.0 * moment.double()
    mean = float(hessian.diagonal().mean())
    hessian.diagonal().add_(share * mean if mean > 0 else 1.0)
    return hessian


def inverse(hessian: torch.Tensor) -> torch.Tensor:
    """H^-1 in float64; the pseudo-inverse where H is singular."""
    factor, info = torch.linalg.cholesky_ex(hessian.double())
    return torch.linalg.pinv(hessian.double(), hermitian=True) if int(info) else torch.cholesky_inverse(factor)


def row_losses(deltas: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """1/2 d H d^T [R] float64 of changes d [R, n]."""
    deltas = deltas.double()
    return 0.5 * ((deltas @ hessian.double()) * deltas).sum(1)


def row_updates(
    weights: torch.Tensor, masks: torch.Tensor, hessian: torch.Tensor, *, memory_bytes: int = MEMORY_BYTES
) -> RowUpdates:
    """Removes a set of weights of its own from every row, compensated jointly.

    Args:
        weights: [R, n].
        masks: [R, n] bool, true where a weight goes.
        hessian: [n, n], positive semi-definite.
        memory_bytes: bound on what is allocated besides the arguments and the result.

    Raises:
        BadInputError: the bound does not allow even a single row.
    """
    matrix = hessian.double()
    result, losses = weights.clone(), torch.zeros(len(weights), dtype=torch.float64)
    counts = masks.sum(1)
    kept, removed = _System(matrix, inverted=False), None
    if bool(((counts > 0) & (2 * counts < masks.shape[1])).any()) and _invertible(matrix):
        removed = _System(inverse(matrix), inverted=True)
    for count in counts.unique().tolist():
        if count == 0:
            continue
        system = removed if removed is not None and 2 * count < masks.shape[1] else kept
        size = count if system.inverted else masks.shape[1] - count
        step = _rows_at_once(size, masks.shape[1], memory_bytes, inverted=removed is not None)
        for rows in (counts == count).nonzero()[:, 0].split(step):
            deltas = system.deltas(weights[rows], masks[rows], size)
            losses[rows] = row_losses(deltas, matrix)
            result[rows] = (weights[rows] + deltas).to(weights.dtype).masked_fill(masks[rows], 0.0)
    return RowUpdates(result, losses)


class _System:
    """Row systems taken out of one matrix: H (kept form) or H^-1 (removed form)."""

    def __init__(self, matrix: torch.Tensor, *, inverted: bool) -> None:
        self.inverted = inverted
        self._matrix = matrix
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._single: NDArray[np.float32] = matrix.float().numpy()

    def deltas(self, weights: torch.Tensor, masks: torch.Tensor, size: int) -> torch.Tensor:
        """Changes d [B, n] float64 of rows whose systems have `size` unknowns each."""
        tolerance = _TOLERANCE.get(weights.dtype, _FLOAT32_TOLERANCE)
        removed = weights.double() * masks
        if self.inverted:
            index = masks.nonzero()[:, 1].view(len(masks), size)
            solved = self._solve(index, removed.gather(1, index), tolerance)
            deltas = -_scatter(solved, index, removed.shape[1]) @ self._matrix
            return torch.where(masks, -removed, deltas)
        index = (~masks).nonzero()[:, 1].view(len(masks), size)
        solved = self._solve(index, (removed @ self._matrix).gather(1, index), tolerance)
        return _scatter(solved, index, removed.shape[1]) - removed

    def _solve(self, index: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> torch.Tensor:
        """x [B, k] float64 with x M[index, index] = wanted, for each row's index [B, k]."""
        if index.shape[1] == 0:
            return wanted
        systems, factors = self._workspace(*index.shape)
        self._gather(index, systems.numpy())
        factor, info = torch.linalg.cholesky_ex(systems, out=(factors, torch.empty(len(index), dtype=torch.int32)))
        solved, residual = torch.zeros_like(wanted), wanted
        last = torch.full((len(index),), torch.inf, dtype=torch.float64)
        good = info == 0
        for _ in range(_REFINEMENTS):
            half = torch.linalg.solve_triangular(factor, residual.float()[:, :, None], upper=False)
            step = torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, :, 0].double()
            solved = solved + step
            size = step.norm(dim=1)
            # A correction that does not shrink fast means that float32 is not enough for this row.
            good &= ~(size > 0.5 * last) | (size <= tolerance * solved.norm(dim=1))
            last = size
            if bool((~good | (size <= tolerance * solved.norm(dim=1))).all()):
                break
            residual = wanted - (_scatter(solved, index, len(self._matrix)) @ self._matrix).gather(1, index)
        else:
            good &= last <= tolerance * solved.norm(dim=1)
        for row in (~good).nonzero()[:, 0].tolist():
            chosen = index[row]
            solved[row] = _solve_double(self._matrix[chosen[:, None], chosen[None]], wanted[row])
        return solved

    def _workspace(self, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for systems and factors [B, k, k], used again by the next batch: fresh pages are slow."""
        if self._buffers is None or self._buffers[0].shape[1] != size or len(self._buffers[0]) < count:
            self._buffers = None  # freed before the next ones are allocated
            self._buffers = (torch.empty(count, size, size), torch.empty(count, size, size))
        systems, factors = self._buffers
        return systems[:count], factors[:count].mT  # LAPACK's order of columns

    def _gather(self, index: torch.Tensor, systems: NDArray[np.float32]) -> None:
        """Writes M[index, index] of each row's index [B, k]; numpy's take is several times as fast as torch's."""
        rows = np.empty((_GATHERED_ROWS, len(self._single)), np.float32)
        for system, chosen in zip(systems, index.numpy(), strict=True):
            for start in range(0, len(chosen), _GATHERED_ROWS):
                part = chosen[start : start + _GATHERED_ROWS]
                # "clip" lets take write to its destination without a copy; every index is in range.
                np.take(self._single, part, axis=0, out=rows[: len(part)], mode="clip")
                np.take(rows[: len(part)], chosen, axis=1, out=system[start : start + len(part)], mode="clip")


def _solve_double(matrix: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """One symmetric system in float64; the minimum-norm solution where it is singular."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0 and _diagonal_ratio(factor) < 1.0 / (len(matrix) * torch.finfo(torch.float64).eps):
        return torch.cholesky_solve(wanted[:, None], factor)[:, 0]
    solved: torch.Tensor = torch.linalg.pinv(matrix, hermitian=True) @ wanted
    return solved


def _invertible(matrix: torch.Tensor) -> bool:
    factor, info = torch.linalg.cholesky_ex(matrix)
    return int(info) == 0 and _diagonal_ratio(factor) < _INVERTIBLE


def _diagonal_ratio(factor: torch.Tensor) -> float:
    diagonal = factor.diagonal()
    return float((diagonal.max() / diagonal.min()) ** 2)


def _scatter(values: torch.Tensor, index: torch.Tensor, width: int) -> torch.Tensor:
    return torch.zeros(len(values), width, dtype=values.dtype).scatter_(1, index, values)


def _rows_at_once(size: int, width: int, memory_bytes: int, *, inverted: bool) -> int:
    """Rows of a batch under the bound: what all rows share first, then two float32 systems and vectors for each row."""
    shared = (24 if inverted else 12) * width * width
    row = 8 * size * size + 96 * width
    # The fallback in float64 takes the place of a batch: one system, its factor or eigenvectors and a copy.
    needed = shared + max(row, 24 * size * size)
    if memory_bytes < needed:
        raise BadInputError(
            f"{format_bytes(memory_bytes)} of memory are too little for rows of {width} weights, {size} of them in one "
            f"system: at least {format_bytes(needed)} are needed (--memory)"
        )
    return max(1, min(memory_bytes - shared, _BATCH_BYTES) // row)


def shared_update(weights: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor, *, ridge: float) -> torch.Tensor:
    """What the kept inputs' weights become when the same inputs leave every row (pruning of structures).

    W_K' = W_K + W_P C_PK (C_KK + lambda I)^-1: one system for all rows.

    Args:
        weights: [R, n].
        moment: C [n, n], X X^T or its mean.
        kept: [k] indices.
        ridge: lambda as a share of C's mean diagonal.

    Returns:
        [R, k] float64.
    """
    removed = torch.ones(len(moment), dtype=torch.bool)
    removed[kept] = False
    wide = weights.double()
    if not len(kept) or not bool(removed.any()):
        return wide[:, kept]
    cross = wide[:, removed] @ moment[removed][:, kept].double()
    return wide[:, kept] + regression(moment[kept][:, kept], cross, ridge=ridge, scale=mean_diagonal(moment))


def regression(moment: torch.Tensor, cross: torch.Tensor, *, ridge: float, scale: float) -> torch.Tensor:
    """Ridge regression from moments: Y X^T (X X^T + lambda I)^-1, [R, k] float64.

    Args:
        moment: X X^T [k, k].
        cross: Y X^T [R, k].
        ridge, scale: lambda is their product; silent inputs make it 1, since nothing depends on them.
    """
    system = moment.double().clone()
    system.diagonal().add_(ridge * scale if scale > 0 else 1.0)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info) or _diagonal_ratio(factor) > 1.0 / (max(1, len(system)) * torch.finfo(torch.float64).eps):
        least: torch.Tensor = cross.double() @ torch.linalg.pinv(system, hermitian=True)
        return least
    solved: torch.Tensor = torch.cholesky_solve(cross.double().T, factor).T
    return solved


def mean_diagonal(moment: torch.Tensor) -> float:
    """What ridges are shares of."""
    return float(moment.diagonal().double().mean())
