"""One-shot sparsity over a whole model: layer by layer, each on the activations of what was pruned before it."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prune_export.errors import BadInputError
from prune_export.progress import Progress
from prune_export.prune.layer_walk import LayerWalk, decoder_layers
from prune_export.prune.projection_pruning import SparsityMethod, prune_projection, relative_error
from prune_export.prune.projections import (
    check_widths,
    input_groups,
    input_moment,
    projections_of,
    replace_weight,
    weight_of,
)
from prune_export.prune.sparse_journal import SparseJournal
from prune_export.prune.sparsegpt import BLOCK
from prune_export.sparsity import Pattern, ProjectionSparsity, SparsityReport


def sparsify_model(
    model: Any,
    tokens: torch.Tensor | NDArray[np.int64],
    method: SparsityMethod,
    *,
    stored: torch.dtype | None = None,
    journal: SparseJournal | None = None,
    progress: Progress | None = None,
) -> SparsityReport:
    """Prunes the projections of every decoder layer in place; embeddings, norms, convolutions and LM head stay.

    Within a layer, projections that read the same tensor share its moment, and later ones see the effect of earlier
    ones.  Only one moment is in memory at a time.

    Precondition: the model is in evaluation mode; structures may have been removed before.
    Postcondition: every projection has zeros where its mask says so, counted in the report.

    Args:
        model: causal language model, changed in place.
        tokens: [N, T] calibration token ids.
        method: pattern, method and its settings.
        stored: precision that the weights will be stored in: they are rounded to it, so that what follows sees the
            activations of the stored model; that of the model unless told.
        journal: finished layers on disk, for a run that may be killed.
        progress: where progress goes.

    Raises:
        BadInputError: an unsupported architecture or module, a pattern that a width does not fit, activations that are
            not finite; the first ones before any work.
    """
    report = progress or Progress(quiet=True)
    found = check_projections(model, method.pattern)
    ids = torch.as_tensor(tokens)
    warnings = _too_few_tokens(found, ids.numel(), method)
    for line in warnings:
        report.note(f"note: {line}")
    done: list[ProjectionSparsity] = []
    with report.phase(f"sparsifying ({method.name}, {method.pattern})"):
        walk = LayerWalk(model, ids)
        for index, projections in enumerate(found):
            report.update(index, len(found), f"layer {index}")
            known = journal.layer(index) if journal is not None else None
            if known is not None:
                for name, weight in known.weights.items():
                    replace_weight(projections[name], weight)
                rows = known.rows
            else:
                rows = _prune_layer(walk, index, projections, method, stored, report)
                if journal is not None:
                    journal.keep(index, {name: weight_of(module) for name, module in projections.items()}, rows)
            done += rows
            walk.advance(index)
    digest = hashlib.sha256(str(tuple(ids.shape)).encode() + ids.numpy().tobytes()).hexdigest()
    return SparsityReport(
        pattern=str(method.pattern),
        method=method.name,
        mask=method.mask_kind,
        compensation=method.compensation_kind,
        damping=method.damping,
        calibration_tokens=ids.numel(),
        calibration_digest=digest,
        projections=tuple(done),
        warnings=warnings,
    )


def pattern_holds(weights: torch.Tensor, pattern: Pattern) -> bool:
    """Counts zeros: at most N others in every group of an N:M pattern; else at least the pattern's share in all."""
    if pattern.group:
        return bool(((weights != 0).reshape(-1, pattern.group).sum(1) <= pattern.keep).all())
    # The share is rounded to whole weights: in each row, or in each of SparseGPT's blocks.
    rounding = 0.5 * max(weights.shape[0], math.ceil(weights.shape[1] / BLOCK))
    return int((weights == 0).sum()) >= pattern.share * weights.numel() - rounding


def check_projections(model: Any, pattern: Pattern) -> list[dict[str, nn.Module]]:
    """The projections of every decoder layer by name; looks at shapes only, so an empty model will do.

    Raises:
        BadInputError: an unsupported architecture or module, or a width that the pattern does not fit.
    """
    found = []
    for index, layer in enumerate(decoder_layers(model)):
        projections = projections_of(layer, where=f"layer {index}")
        check_widths(projections, pattern, where=f"layer {index}")
        found.append(projections)
    if not any(found):
        raise BadInputError("no decoder layer holds a Linear or Conv1D projection: there is nothing to make sparse")
    return found


def _too_few_tokens(found: list[dict[str, nn.Module]], tokens: int, method: SparsityMethod) -> tuple[str, ...]:
    widest = max(weight_of(module).shape[1] for projections in found for module in projections.values())
    if tokens >= widest or method.name == "magnitude":
        return ()
    return (
        f"{tokens} calibration tokens are fewer than the {widest} inputs of the widest projection: what they leave "
        f"open is decided by the damping; give {10 * widest} tokens or more (--calibration-windows)",
    )


def _prune_layer(
    walk: LayerWalk,
    index: int,
    projections: dict[str, nn.Module],
    method: SparsityMethod,
    stored: torch.dtype | None,
    report: Progress,
) -> list[ProjectionSparsity]:
    where = f"layer {index}"
    if not projections:
        return []
    rows: list[ProjectionSparsity] = []
    for names in input_groups(walk, index, projections, where=where):
        moment = input_moment(walk, index, projections[names[0]], where=f"{where}.{names[0]}")
        for name in names:
            report.update(index + len(rows) / len(projections), len(walk.layers), f"{where}.{name}")
            weights = weight_of(projections[name])
            pruned, _ = prune_projection(weights.float(), moment, method)
            replace_weight(projections[name], pruned.to(stored or weights.dtype).to(weights.dtype))
            rows.append(_row(f"{where}.{name}", weights, weight_of(projections[name]), moment, method.pattern))
    return rows


def _row(
    name: str, before: torch.Tensor, after: torch.Tensor, moment: torch.Tensor, pattern: Pattern
) -> ProjectionSparsity:
    if not bool(torch.isfinite(after).all()):
        raise BadInputError(f"{name}: its pruned weights are not finite: raise --damping")
    return ProjectionSparsity(
        name=name,
        rows=after.shape[0],
        columns=after.shape[1],
        zeros=int((after == 0).sum()),
        pattern_holds=pattern_holds(after, pattern),
        error=relative_error(before, after, moment),
    )
