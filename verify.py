"""Checks an artifact: its document against itself, every file against its hash, what it computes against what it did.

A delivery brings its checkpoint along, so its logits are compared with torch's.  An export does not: its tokens and its
NLL are compared with those that torch gave when it was made, or with the checkpoint where that is named.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError, ParityError
from prune_export.export.files import MODEL_ONNX, MODEL_XML
from prune_export.export_record import EXPORT_FILE, ExportRecord
from prune_export.hashes import check_files
from prune_export.manifest import CHECKPOINT_FOLDER, MANIFEST, Manifest, ParityRecord, asked_cache
from prune_export.progress import Progress

# Near ties fall otherwise where a processor, or another number of threads, rounds otherwise.
_TIES = 0.1  # of the tokens
_FEWEST_TIES = 2  # of a short continuation


def verify(directory: Path, *, checkpoint: str | None = None, progress: Progress | None = None) -> str:
    """Returns a line of what was checked, for exports in several formats one each.

    Parity of an fp32 delivery is its logits' against the checkpoint in torch; a compressed one is compared by the NLL
    of torch's greedy tokens, within the limits of the gate, and by its own, whose agreement must not lie well below
    the manifest's.

    Args:
        directory: a delivery, an export, or a folder with exports in several formats.
        checkpoint: that an export was made from: its logits (fp32) or tokens are compared with torch's, too.
        progress: where progress goes.

    Raises:
        BadInputError: no artifact, its document was edited, a file is missing, changed, linked or not listed, or
            another checkpoint.
        ParityError: it does not compute what the checkpoint computes.
    """
    report = progress or Progress(quiet=True)
    if (directory / MANIFEST).is_file():
        if checkpoint is not None:
            raise BadInputError(f"{directory} brings its own checkpoint along: leave out --model")
        return _delivery(directory, report)
    if (directory / EXPORT_FILE).is_file():
        return _export(directory, checkpoint, report)
    return "\n".join(_export(folder, checkpoint, report) for folder in _exports_in(directory))


def _exports_in(directory: Path) -> list[Path]:
    """Folders of exports that lie beside each other: none of those that were made together may be missing."""
    folders = sorted(path.parent for path in directory.glob(f"*/{EXPORT_FILE}"))
    if not folders:
        raise BadInputError(f"{directory} is no artifact of prune-export: it has no {MANIFEST} and no {EXPORT_FILE}")
    models = {path.parent for name in (MODEL_XML, MODEL_ONNX) for path in directory.glob(f"*/{name}")}
    names = {folder.name for folder in folders}
    together = {name for folder in folders for name in ExportRecord.load(folder).together}
    present = {path.name for path in directory.iterdir()} if together else set()
    problems = (
        (f"without {EXPORT_FILE}", {folder.name for folder in models} - names),
        ("missing", together - names - {folder.name for folder in models}),
        ("not listed", present - together - names - {folder.name for folder in models}),
    )
    text = "; ".join(f"{word}: {', '.join(sorted(found))}" for word, found in problems if found)
    if text:
        raise BadInputError(f"{directory} is not as it was exported ({text}): copy or make the artifact again")
    return folders


def _delivery(directory: Path, report: Progress) -> str:
    with report.phase("checking hashes"):
        manifest = Manifest.load_unedited(directory)
        check_files(directory, manifest.files, besides=MANIFEST)
    with report.phase("checking parity"):
        parity = _delivered_parity(directory, manifest)
    return f"{directory}: {len(manifest.files)} files as in the manifest; {parity}"


def _delivered_parity(directory: Path, manifest: Manifest) -> str:
    from prune_export.export.parity import check_parity, greedy_tokens_of
    from prune_export.prune.checkpoint import load

    model = load(directory / CHECKPOINT_FOLDER)
    folder, recorded = directory / manifest.formats[0], manifest.parity
    if manifest.precision == "fp32":
        return _logits(*check_parity(model, folder))
    if recorded.continuation:
        _check_checkpoint(model, recorded, name=f"{directory / CHECKPOINT_FOLDER}")
    else:  # an earlier version recorded the share alone
        tokens = greedy_tokens_of(model, recorded.prompt, new_tokens=recorded.greedy_tokens)
        recorded = replace(recorded, continuation=tuple(tokens))
        recorded = replace(recorded, window_nll=_nll_of(model, recorded))
    del model
    return _recorded_parity(folder, manifest.precision, recorded)


def _export(directory: Path, checkpoint: str | None, report: Progress) -> str:
    with report.phase("checking hashes"):
        record = ExportRecord.load_unedited(directory)
        check_files(directory, record.files, besides=EXPORT_FILE)
    with report.phase("checking parity"):
        lines = [_own_parity(directory, record)]
        if checkpoint is not None:
            lines.append(_parity_with(checkpoint, directory, record))
    return f"{directory}: {len(record.files)} files as in {EXPORT_FILE}; {'; '.join(lines)}"


def _own_parity(directory: Path, record: ExportRecord) -> str:
    """Tokens and NLL of the export as it is against torch's when it was made."""
    recorded = record.parity
    if record.format == "decilm":
        from prune_export.export.decilm import read_decilm
        from prune_export.export.parity import torch_agreement

        agreement = torch_agreement(read_decilm(directory), recorded.prompt, recorded.continuation)
        return _tokens(directory, agreement, recorded)
    return _recorded_parity(directory, record.precision, recorded)


def _recorded_parity(directory: Path, precision: str, recorded: ParityRecord) -> str:
    """What is exported in a directory against the tokens and the NLL that torch gave."""
    from prune_export.delivery.ir_checks import score_ir
    from prune_export.export.gate import check_nll

    with tempfile.TemporaryDirectory() as scratch:
        found = score_ir(
            directory,
            precision=precision,
            prompt=recorded.prompt,
            expected=recorded.continuation,
            gate_threads=0,
            score_threads=0,
            progress=Progress(quiet=True),
            scratch=Path(scratch),
        )
    error = found.continuation_nll - recorded.window_nll
    check_nll(error, precision=precision, name=str(directory), cache=asked_cache(directory))
    return _tokens(directory, found.agreement, recorded)


def _parity_with(checkpoint: str, directory: Path, record: ExportRecord) -> str:
    """The export against the checkpoint that it was made from, in torch."""
    from prune_export.export.parity import check_parity
    from prune_export.prune.checkpoint import load
    from prune_export.prune.loading import source_digest
    from prune_export.prune.sources import resolve_source

    source = resolve_source(checkpoint)
    digest = source_digest(source)
    if digest != record.source_digest:
        raise BadInputError(
            f"{checkpoint} (sha256 {digest[:12]}) is not what {directory} was exported from (sha256 "
            f"{record.source_digest[:12]}): give that checkpoint, or leave out --model"
        )
    model = load(source)
    if record.format == "decilm":
        return _logits(*_layout_parity(model, directory, record))
    if record.precision == "fp32":
        return _logits(*check_parity(model, directory))
    error = _check_checkpoint(model, record.parity, name=checkpoint)
    return f"{checkpoint}: NLL of these tokens {error:+.1e} from what was recorded"


def _check_checkpoint(model: Any, recorded: ParityRecord, *, name: str) -> float:
    """What the export is compared with is what the checkpoint computes: its NLL is the recorded one.

    By its NLL and not by its tokens, which a near tie of two of them may lead elsewhere on another processor.
    """
    from prune_export.export.gate import NLL_LIMITS

    error = _nll_of(model, recorded) - recorded.window_nll
    if not abs(error) <= NLL_LIMITS["fp32"]:
        raise ParityError(
            f"{name} in torch: mean NLL differs by {error:+.3f} from what was recorded, {NLL_LIMITS['fp32']:g} is "
            "allowed: this host or this version of torch computes something else, make the artifact here"
        )
    return error


def _nll_of(model: Any, recorded: ParityRecord) -> float:
    import numpy as np

    from prune_export.evaluate import torch_nll

    (nll,) = torch_nll(model, np.asarray([[*recorded.prompt, *recorded.continuation]], dtype=np.int64))
    return nll


def _layout_parity(model: Any, directory: Path, record: ExportRecord) -> tuple[dict[str, float], float]:
    from prune_export.export.decilm import DTYPES, check_decilm, round_weights

    round_weights(model, DTYPES[record.precision])
    errors, tolerance, _ = check_decilm(model, directory, prompt=record.parity.prompt, new_tokens=1)
    return errors, tolerance


def _logits(errors: dict[str, float], tolerance: float) -> str:
    return f"largest logit error {max(errors.values()):.1e} of {tolerance:.0e} allowed"


def _tokens(directory: Path, agreement: float, recorded: ParityRecord) -> str:
    ties = max(_TIES * recorded.greedy_tokens, _FEWEST_TIES)
    if agreement * recorded.greedy_tokens < recorded.greedy_agreement * recorded.greedy_tokens - ties:
        raise ParityError(
            f"{directory}: {agreement:.0%} of the greedy tokens equal the checkpoint's, when it was made "
            f"{recorded.greedy_agreement:.0%} did: this host computes something else, make the artifact here"
        )
    return f"{agreement:.0%} of {recorded.greedy_tokens} greedy tokens equal the checkpoint's"
