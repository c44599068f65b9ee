"""The verb sparsify: a checkpoint with zeros by one-shot pruning, and the report of what was done."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from prune_export.delivery.places import cache_directory
from prune_export.delivery.sparse import save_report
from prune_export.files import check_destination, staged
from prune_export.progress import Progress
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.loading import load_model, load_tokenizer, source_digest
from prune_export.prune.projection_pruning import SparsityMethod
from prune_export.prune.realise import stored_dtype
from prune_export.prune.shapes import model_shape
from prune_export.prune.sources import resolve_source
from prune_export.prune.sparse_journal import SparseJournal
from prune_export.prune.sparsify import sparsify_model
from prune_export.records import digest, to_json
from prune_export.sparsity import SparsityReport
from prune_export.texts import load_text, token_windows, windows_digest

# As many windows as SparseGPT's and Wanda's papers take, and of the same length where the model allows it.
WINDOWS, LENGTH = 128, 2048


def sparsify(
    model: str,
    output: Path,
    method: SparsityMethod,
    *,
    calibration: str | None = None,
    windows: int | None = None,
    length: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> SparsityReport:
    """Writes a checkpoint whose decoder projections follow a sparsity pattern, and sparsity.json beside it.

    Weights are stored in the source's precision.

    A run that was killed goes on after the last layer that it finished, when it is started again with the same request.

    Args:
        model: directory, hub id, or "reference".
        output: destination directory.
        method: pattern, method and its settings.
        calibration: text, or None for the standard library's.
        windows: calibration sequences; 128 unless told.
        length: tokens a sequence; 2048 or the model's context unless told.
        force: replace an existing output.
        progress: where progress goes.

    Raises:
        BadInputError: an unusable model, text, output, or a pattern that a projection does not fit.
    """
    report = progress or Progress(quiet=True)
    check_destination(output, force=force)
    text = load_text(calibration, "calibration")
    source = resolve_source(model)
    loaded, tokenizer, stored = load_model(source), load_tokenizer(source), stored_dtype(source)
    size = length or min(LENGTH, model_shape(loaded.config).context)
    tokens = token_windows(text, tokenizer, count=windows or WINDOWS, length=size)
    # The solver's memory changes the size of its batches, not what it computes.
    settings = {name: value for name, value in to_json(method).items() if name != "memory_bytes"}
    key = {"source": source_digest(source), "calibration": windows_digest(tokens), "method": settings}
    directory = cache_directory() / "sparsify" / digest(key)[:24]
    journal = SparseJournal(directory)
    if len(journal):
        report.note(f"resuming: {len(journal)} layers were pruned by an earlier run with the same request")
    result = sparsify_model(loaded, torch.from_numpy(tokens), method, stored=stored, journal=journal, progress=report)
    with report.phase("writing the checkpoint"), staged(output, force=force) as stage:
        save_checkpoint(loaded, tokenizer, stage, dtype=stored)
        save_report(result, stage)
    shutil.rmtree(directory, ignore_errors=True)
    return result
