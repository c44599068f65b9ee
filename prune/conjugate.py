"""The multiple removal problem by conjugate gradients: all rows at once, nothing but products with two shared matrices.

The exact solver factors one system a row, R k^3 / 3 operations.  This one takes 4 R n^2 for each iteration and the
memory of a few [R, n] matrices.  The kept form's system H_KK is preconditioned by (H^-1)_KK, whose product with it is
the identity plus a term that is small where removed and kept inputs are weakly correlated (block inverse of H).
"""

from __future__ import annotations

import torch

from prune_export.prune.closed_form import RowUpdates, inverse, row_losses

TOLERANCE = 1e-3
ITERATIONS = 200


def conjugate_updates(
    weights: torch.Tensor,
    masks: torch.Tensor,
    hessian: torch.Tensor,
    *,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
) -> RowUpdates:
    """Removes a set of weights of its own from every row, compensated jointly up to a tolerance.

    With r a row's gradient, its loss lies 1/2 r (H_KK)^-1 r^T above the optimum.  Since (H^-1)_KK >= (H_KK)^-1, half
    the energy r (H^-1)_KK r^T bounds that from above; a row ends when the bound is within `tolerance` of its loss.
    Never worse than no update on any row: the search starts there and every iteration lowers the loss.

    Args:
        weights: [R, n].
        masks: [R, n] bool, true where a weight goes.
        hessian: [n, n], positive definite.
        tolerance: share of its own loss that a row may lie above the optimum.
        iterations: at most.
    """
    matrix, preconditioner = hessian.float(), inverse(hessian).float()
    removed = weights.float() * masks
    wanted = (removed @ matrix).masked_fill_(masks, 0.0)  # the gradient of the loss in the kept weights
    solved, residual = torch.zeros_like(wanted), wanted
    better = (residual @ preconditioner).masked_fill_(masks, 0.0)
    direction, energy = better, (residual * better).sum(1)
    losses = 0.5 * ((removed @ matrix) * removed).sum(1)
    for _ in range(iterations):
        active = (energy > 2 * tolerance * losses).nonzero()[:, 0]
        if not len(active):
            break
        along = direction[active]
        curved = (along @ matrix).masked_fill_(masks[active], 0.0)
        length = energy[active] / (along * curved).sum(1)
        solved[active] += length[:, None] * along
        losses[active] -= 0.5 * length * energy[active]
        residual[active] -= length[:, None] * curved
        better = (residual[active] @ preconditioner).masked_fill_(masks[active], 0.0)
        now = (residual[active] * better).sum(1)
        direction[active] = better + (now / energy[active])[:, None] * along
        energy[active] = now
    updated = (weights.float() + solved).masked_fill_(masks, 0.0).to(weights.dtype)
    return RowUpdates(updated, row_losses(updated.double() - weights.double(), hessian))
