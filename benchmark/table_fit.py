"""A latency table from measured stacks of blocks.

Every stack gives one equation: seconds = fixed + sum over its attentions a(k) + sum over its MLPs c(w).  The unknowns
are the fixed cost and the costs at the sizes that occur; stacks of n and of 2n equal blocks make them the slopes that
deployment asks for.  Costs cannot be negative and cannot fall with size, so the unknowns are increments between
neighbouring sizes, all non-negative: non-negative least squares (Lawson & Hanson 1974, chapter 23).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.profiles import CostCurve, PhaseCosts
from prune_export.profiles.latency import Phase
from prune_export.shape import LayerShape

Matrix = NDArray[np.float64]
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Stack:
    """One measured model: its layers and what a phase of it took."""

    layers: tuple[LayerShape, ...]
    seconds: float


@dataclass(frozen=True)
class FitError:
    """Relative error of predictions, |predicted / measured - 1|."""

    mean: float
    worst: float


def fit_costs(stacks: Sequence[Stack], *, phase: Phase, precision: str) -> PhaseCosts:
    """Costs of one phase in one precision.

    Args:
        stacks: measured stacks; every size that occurs in them becomes a point of a curve.
        phase: "prefill" or "decode", what the seconds are of.
        precision: weight precision that was measured.

    Returns:
        The costs, with the mean relative error on the stacks themselves as `error`.

    Raises:
        BadInputError: no attention or no MLP occurs, a time is not above zero, or the stacks cannot tell the costs
            apart (too few, or sizes that always occur together).
    """
    heads = _sizes(stacks, "kv_heads")
    widths = _sizes(stacks, "mlp_width")
    if not heads or not widths:
        raise BadInputError("a latency table needs stacks with attentions and with MLPs: measure both")
    times = np.array([stack.seconds for stack in stacks], np.float64)
    if not np.all(np.isfinite(times)) or times.min() <= 0:
        raise BadInputError(f"a stack took {times.min():g} s: times must be above zero, measure again")
    rows = np.array([_equation(stack, heads, widths) for stack in stacks], np.float64)
    # Divided by the measured time, so that short and long stacks count alike: the residual is the relative error.
    relative = rows / times[:, None]
    if np.linalg.matrix_rank(relative / np.linalg.norm(relative, axis=0)) < rows.shape[1]:
        raise BadInputError(
            f"{len(stacks)} stacks cannot tell {rows.shape[1]} costs apart (fixed, KV heads {list(heads)}, "
            f"MLP widths {list(widths)}): measure each size in stacks of two depths"
        )
    solution = nnls(relative, np.ones(len(stacks)))
    errors = np.abs(relative @ solution - 1.0)
    attention = np.cumsum(solution[1 : 1 + len(heads)])
    mlp = np.cumsum(solution[1 + len(heads) :])
    return PhaseCosts(
        phase=phase,
        precision=precision,
        fixed_s=float(solution[0]),
        attention=CostCurve(heads, tuple(attention.tolist())),
        mlp=CostCurve(widths, tuple(mlp.tolist())),
        error=float(errors.mean()),
    )


def prediction_error(costs: PhaseCosts, stacks: Sequence[Stack]) -> FitError:
    """Error of predictions on measured stacks; on stacks that were not fitted, it is the table's held-out error."""
    errors = [abs(costs.seconds(stack.layers) / stack.seconds - 1.0) for stack in stacks]
    return FitError(math.fsum(errors) / len(errors), max(errors))


def nnls(matrix: Matrix, target: Matrix) -> Matrix:
    """argmin |matrix x - target| over x >= 0, by Lawson and Hanson's active sets.

    Args:
        matrix: [equations, unknowns], full column rank.
        target: [equations].

    Raises:
        ArithmeticError: the active set does not settle; rounding can make it cycle on an ill-conditioned matrix.
    """
    scale = np.linalg.norm(matrix, axis=0)
    scaled = matrix / scale
    passive = np.zeros(matrix.shape[1], bool)
    solution = np.zeros(matrix.shape[1])
    for _ in range(10 * matrix.shape[1]):
        gradient = scaled.T @ (target - scaled @ solution)
        candidates = ~passive & (gradient > _TOLERANCE * max(1.0, float(np.linalg.norm(target))))
        if not candidates.any():
            return np.asarray(solution / scale, np.float64)
        passive[np.argmax(np.where(candidates, gradient, -np.inf))] = True
        solution = _step_inside(scaled, target, solution, passive)
    raise ArithmeticError(f"non-negative least squares did not settle on {matrix.shape[1]} unknowns")


def _step_inside(matrix: Matrix, target: Matrix, solution: Matrix, passive: NDArray[np.bool_]) -> Matrix:
    """Moves to the least squares of the passive unknowns, dropping those that would turn negative; edits `passive`."""
    while True:
        trial = np.zeros_like(solution)
        trial[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=None)[0]
        blocked = passive & (trial <= 0)
        if not blocked.any():
            return trial
        steps = solution[blocked] / (solution[blocked] - trial[blocked])
        solution = solution + float(steps.min()) * (trial - solution)
        passive &= solution > _TOLERANCE
        solution[~passive] = 0.0


def _sizes(stacks: Sequence[Stack], name: str) -> tuple[int, ...]:
    return tuple(sorted({getattr(layer, name) for stack in stacks for layer in stack.layers} - {0}))


def _equation(stack: Stack, heads: tuple[int, ...], widths: tuple[int, ...]) -> list[float]:
    """Coefficients of [fixed, increments of a, increments of c]: a block of size s holds every increment up to s."""
    attention = [float(sum(layer.kv_heads >= size for layer in stack.layers)) for size in heads]
    mlp = [float(sum(layer.mlp_width >= size for layer in stack.layers)) for size in widths]
    return [1.0, *attention, *mlp]
