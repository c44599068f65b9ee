"""The gains of the norm before the head, fitted to the dense model's predictions.

What the refit leaves between the two residual streams reaches the predictions through a norm and the head.  To second
order the divergence of the predictions is that of logits W g n in the metric of the softmax, with n the normed stream
and g the gains.  That metric is the mean of u u^T over tokens y drawn from the dense model's own predictions, with
u = W^T (e_y - p) (the true Fisher information; Kunstner, Hennig, Balles 2019, arXiv 1905.12558), so changes d of the
gains, g (1 + d), are those of the regression

    min_d  sum over tokens and draws of (u . (x d) - u . (x_dense - x))^2,   x = g n of the pruned model.

Widths, weights and the head stay as they are, so tied embeddings stay tied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from prune_export.prune.families import family_of
from prune_export.prune.fitting import Sums, Update, best_update
from prune_export.prune.sensitivity import drawn_gradients
from prune_export.prune.sub_blocks import set_parameter

_DRAWS = 4  # of each token; more tell hardly more
_SEED = 20243


def fit_gains(
    dense: Any, pruned: Any, rows: Iterable[tuple[torch.Tensor, torch.Tensor, bool]], *, stored: torch.dtype
) -> Update | None:
    """Changes the gains of the pruned model's last norm where that serves the held-out tokens; returns the change.

    Args:
        dense, pruned: models of one family; the dense one is not changed, nor is a tensor that they share.
        rows: last residual streams [R, D] of both, and whether these tokens are held out from the fit.
        stored: precision in which the weights will be stored.
    """
    family = family_of(dense.config)
    ours, theirs = (model.get_submodule(family.final_norm) for model in (dense, pruned))
    if theirs.weight is None:
        return None
    width = len(theirs.weight)
    fitted, held = Sums(width, 1), Sums(width, 1)
    generator = torch.Generator().manual_seed(_SEED)
    for dense_rows, pruned_rows, held_out in rows:
        wanted, found = ours(dense_rows), theirs(pruned_rows)
        pull = drawn_gradients(dense, wanted, generator, draws=_DRAWS)
        if pull is None:
            return None
        scaled = found if getattr(theirs, "bias", None) is None else found - theirs.bias
        effect = (pull * scaled).reshape(-1, width).float()
        missing = (pull * (wanted - found)).sum(-1).reshape(-1, 1).float()
        (held if held_out else fitted).add(effect, missing, torch.ones_like(missing))
    update = best_update(fitted, held, bias=False) if fitted.count and held.count else None
    if update is not None:
        gains = theirs.weight.double() + family.norm_offset
        set_parameter(theirs, "weight", (gains * (1.0 + update.weight[0]) - family.norm_offset).to(stored))
    return update
