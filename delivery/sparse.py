"""Zeros on top of what a delivery builds: put in, checked before the start, and counted in what was stored."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from prune_export.delivery.settings import SearchSettings
from prune_export.delivery.steps import check_plan, search_steps
from prune_export.plan import PrunePlan
from prune_export.progress import Progress
from prune_export.prune.layer_walk import decoder_layers
from prune_export.prune.loading import empty_model, load_model
from prune_export.prune.projection_pruning import SparsityMethod
from prune_export.prune.projections import weight_of
from prune_export.prune.realise import stored_dtype
from prune_export.prune.shapes import model_shape
from prune_export.prune.sparse_journal import SparseJournal
from prune_export.prune.sparsify import check_projections, pattern_holds, sparsify_model
from prune_export.records import from_json, to_json
from prune_export.sparsity import (
    SPARSITY_FILE,
    LayerSparsity,
    Sparsity,
    SparsityRecord,
    SparsityReport,
    parse_pattern,
)


def check_sparsity(
    sparsity: Sparsity, config: Any, *, search: SearchSettings, multiple: int, plan: PrunePlan | None
) -> None:
    """Refuses what could not be made sparse in the end, before any long work.

    Args:
        sparsity: what is asked for.
        config: of the dense model.
        search: how a plan would be searched.
        multiple: width that the device likes multiples of, or 0.
        plan: the plan to replay, or None to search one.

    Raises:
        BadInputError: an unknown method, an unsupported module, or a width of the model or the plan, or one that the
            search could leave, that the pattern does not fit.
    """
    method = SparsityMethod(sparsity.pattern, sparsity.method)
    check_projections(empty_model(config), method.pattern)
    if plan is not None:
        check_plan(plan.target, method.pattern)
    else:
        search_steps(model_shape(config), search, multiple, sparsity)


def make_sparse(
    model: Any,
    tokens: NDArray[Any],
    sparsity: Sparsity,
    *,
    stored: torch.dtype,
    progress: Progress,
    journal: Path | None = None,
) -> SparsityReport:
    """Puts the zeros into a model in place.

    Args:
        model: pruned and refitted, or dense.
        tokens: [N, T] calibration tokens; the activations are the model's own.
        sparsity: what is asked for.
        stored: precision that the weights will be stored in.
        progress: where progress goes.
        journal: directory that keeps finished layers; those of other models beside it are deleted.

    Raises:
        BadInputError: as `sparsify_model`.
    """
    kept = None
    if journal is not None:
        for other in journal.parent.glob("*"):
            if other != journal:
                shutil.rmtree(other, ignore_errors=True)
        kept = SparseJournal(journal)
    method = SparsityMethod(sparsity.pattern, sparsity.method)
    return sparsify_model(model, torch.as_tensor(tokens).long(), method, stored=stored, journal=kept, progress=progress)


def save_report(report: SparsityReport, directory: Path) -> None:
    """Writes sparsity.json beside a checkpoint."""
    (directory / SPARSITY_FILE).write_text(json.dumps(to_json(report), indent=1) + "\n", encoding="utf8")


def carry_report(checkpoint: Path, export: Path) -> None:
    """Copies sparsity.json, where the checkpoint has one, into its export."""
    if (checkpoint / SPARSITY_FILE).is_file():
        shutil.copyfile(checkpoint / SPARSITY_FILE, export / SPARSITY_FILE)


def stored_sparsity(directory: Path) -> SparsityRecord | None:
    """Counts the zeros of a checkpoint as it lies on disk; None where it has no sparsity.json.

    Raises:
        BadInputError: a damaged checkpoint or report.
    """
    path = directory / SPARSITY_FILE
    if not path.is_file():
        return None
    report = from_json(SparsityReport, json.loads(path.read_text(encoding="utf8")), where=str(path))
    pattern = parse_pattern(report.pattern)
    layers = decoder_layers(load_model(directory, dtype=stored_dtype(directory)))
    weights: dict[int, int] = defaultdict(int)
    zeros: dict[int, int] = defaultdict(int)
    holds = True
    for item in report.projections:
        number, _, name = item.name.removeprefix("layer ").partition(".")
        weight = weight_of(layers[int(number)].get_submodule(name))
        weights[int(number)] += weight.numel()
        zeros[int(number)] += int((weight == 0).sum())
        holds = holds and pattern_holds(weight, pattern)
    return SparsityRecord(
        pattern=report.pattern,
        method=report.method,
        mask=report.mask,
        compensation=report.compensation,
        pattern_holds=holds,
        layers=tuple(LayerSparsity(at, weights[at], zeros[at], zeros[at] / weights[at]) for at in sorted(weights)),
    )
