"""On the reference model: with the same mask, joint removal loses no more than SparseGPT and no update, row by row."""

from __future__ import annotations

from typing import Any

import torch

from prune_export.prune.closed_form import damped, row_losses, row_updates
from prune_export.prune.layer_walk import LayerWalk
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.masks import multiple_mask, single_mask
from prune_export.prune.projections import input_groups, input_moment, projections_of, replace_weight, weight_of
from prune_export.prune.sources import resolve_source
from prune_export.prune.sparsegpt import left_to_right, sparsegpt
from prune_export.sparsity import Pattern
from prune_export.texts import load_text, token_windows

HALF, TWO_FOUR = Pattern(0.5), Pattern(0.5, 2, 4)


def reference() -> tuple[Any, torch.Tensor]:
    source = resolve_source("reference")
    windows = token_windows(load_text(None, "calibration"), load_tokenizer(source), count=8, length=256)
    return load_model(source), torch.from_numpy(windows)


def check_rows(weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> None:
    """Every row of one projection, for the mask that SparseGPT chooses and for those of the joint method."""
    pruned, mask = sparsegpt(weights, hessian, pattern)
    joint = row_updates(weights, mask, hessian)
    allowed = 1 + 1e-9
    assert (joint.losses <= row_losses(pruned - weights, hessian) * allowed).all()
    assert (joint.losses <= row_losses(weights * mask, hessian) * allowed).all()
    assert joint.losses.sum() < row_losses(pruned - weights, hessian).sum()
    mask = multiple_mask(weights, hessian, pattern) if pattern.group else single_mask(weights, hessian, pattern)
    joint = row_updates(weights, mask, hessian)
    single = left_to_right(weights, hessian, mask)
    assert (joint.losses <= row_losses(single - weights, hessian) * allowed).all()
    assert (joint.losses <= row_losses(weights * mask, hessian) * allowed).all()
    assert torch.allclose(joint.losses, row_losses(joint.weights - weights, hessian), rtol=1e-8)


def test_every_row_of_every_projection() -> None:
    model, tokens = reference()
    walk = LayerWalk(model, tokens)
    checked = 0
    for index, layer in enumerate(walk.layers):
        projections = projections_of(layer, where=f"layer {index}")
        for names in input_groups(walk, index, projections, where=f"layer {index}"):
            hessian = damped(input_moment(walk, index, projections[names[0]], where=names[0]), 0.01)
            for name in names:
                weights = weight_of(projections[name]).double()
                for pattern in (HALF, TWO_FOUR):
                    check_rows(weights, hessian, pattern)
                    checked += 1
                done = row_updates(weights, single_mask(weights, hessian, HALF), hessian).weights
                replace_weight(projections[name], done.float())
        walk.advance(index)
    assert checked == 2 * 7 * len(walk.layers)
