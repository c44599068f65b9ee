"""One projection pruned by one of the four methods, given the second moment of its input."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prune_export.errors import BadInputError, nearest
from prune_export.prune.closed_form import MEMORY_BYTES, damped, row_losses, row_updates
from prune_export.prune.conjugate import conjugate_updates
from prune_export.prune.masks import magnitude_mask, multiple_mask, single_mask, wanda_mask
from prune_export.prune.sparsegpt import left_to_right, sparsegpt
from prune_export.sparsity import METHODS, Pattern

SOLVERS = ("exact", "cg")
DAMPING = 0.01


@dataclass(frozen=True)
class SparsityMethod:
    """How a projection is pruned.

    Attributes:
        pattern: what may go.
        name: mrp, sparsegpt, wanda or magnitude.
        mask: for mrp, S (each weight by itself) or M (jointly; N:M patterns only); empty for M where it is defined.
        compensation: for mrp, S (left to right) or M (jointly); empty for M.
        damping: share of the mean diagonal that is added to the Hessian; 0.01 in the paper.
        solver: of compensation M; exact, or cg for conjugate gradients (see `conjugate.py`).
        memory_bytes: bound of the exact solver's memory.

    Raises:
        BadInputError: a combination that is not defined.
    """

    pattern: Pattern
    name: str = "mrp"
    mask: str = ""
    compensation: str = ""
    damping: float = DAMPING
    solver: str = "exact"
    memory_bytes: int = MEMORY_BYTES

    def __post_init__(self) -> None:
        for what, value, known in (("--method", self.name, METHODS), ("--solver", self.solver, SOLVERS)):
            if value not in known:
                raise BadInputError(f'{what} "{value}" is not one of {", ".join(known)}{nearest(value, known)}')
        for what, value in (("--mask", self.mask), ("--compensation", self.compensation)):
            if value not in ("", "S", "M"):
                raise BadInputError(f'{what} "{value}" is neither S (one by one) nor M (jointly)')
            if value and self.name != "mrp":
                raise BadInputError(
                    f"{what} {value} belongs to --method mrp; {self.name} has a mask and update of its own"
                )
        if self.mask == "M" and not self.pattern.group:
            raise BadInputError(
                f"--mask M is defined for N:M patterns only, not for {self.pattern}: "
                "use --mask S, or a pattern such as 2:4"
            )
        if not 0 < self.damping < float("inf"):
            raise BadInputError(f"--damping {self.damping} must be above zero; the paper uses {DAMPING}")

    @property
    def mask_kind(self) -> str:
        """S or M as it is used; empty for the methods without a choice."""
        return (self.mask or ("M" if self.pattern.group else "S")) if self.name == "mrp" else ""

    @property
    def compensation_kind(self) -> str:
        """S or M as it is used; empty for the methods without a choice."""
        return (self.compensation or "M") if self.name == "mrp" else ""


def prune_projection(
    weights: torch.Tensor, moment: torch.Tensor, method: SparsityMethod
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pruned weights and mask [R, n] of a projection.

    Args:
        weights: [R, n] floating point.
        moment: [n, n], X X^T of its input on the calibration tokens.
        method: how.
    """
    pattern = method.pattern
    if method.name == "magnitude":
        mask = magnitude_mask(weights, pattern)
        return weights.masked_fill(mask, 0.0), mask
    if method.name == "wanda":
        mask = wanda_mask(weights, moment, pattern)
        return weights.masked_fill(mask, 0.0), mask
    hessian = damped(moment, method.damping)
    if method.name == "sparsegpt":
        return sparsegpt(weights, hessian, pattern)
    choose = multiple_mask if method.mask_kind == "M" else single_mask
    mask = choose(weights, hessian, pattern)
    if method.compensation_kind == "S":
        return left_to_right(weights, hessian, mask), mask
    if method.solver == "cg":
        return conjugate_updates(weights, mask, hessian).weights, mask
    return row_updates(weights, mask, hessian, memory_bytes=method.memory_bytes).weights, mask


def relative_error(weights: torch.Tensor, pruned: torch.Tensor, moment: torch.Tensor) -> float:
    """|dW X|^2 / |W X|^2 on the calibration tokens; 0 where the output is silent."""
    energy = float(row_losses(weights, moment).sum())
    return float(row_losses(pruned.double() - weights.double(), moment).sum()) / energy if energy > 0 else 0.0
