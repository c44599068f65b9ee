"""Everything that can be refused before long work starts, and the job that results when nothing is wrong."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.delivery.exporters import exporter_of
from prune_export.delivery.known_table import planned_format, with_precisions
from prune_export.delivery.request import Job, Request, SearchSettings, default_output
from prune_export.delivery.resources import TreeMemory, check_memory, free_memory, map_large_blocks
from prune_export.delivery.search import replayable
from prune_export.delivery.sparse import check_sparsity
from prune_export.delivery.stacks import refuse_mixers
from prune_export.errors import BadInputError
from prune_export.evaluate import default_tokens
from prune_export.files import check_destination, check_space, scratch_folder
from prune_export.profiles.device import DeviceProfile
from prune_export.profiles.host import host_cores, host_fingerprint, mismatch
from prune_export.profiles.load import load_profile
from prune_export.progress import Progress
from prune_export.prune.calibration import CalibrationTokens, default_fast_size, default_size, shortage
from prune_export.prune.evolve import GENERATIONS, POPULATION
from prune_export.prune.loading import load_config, load_tokenizer, source_digest
from prune_export.prune.shapes import model_shape
from prune_export.prune.sources import resolve_source
from prune_export.shape import ModelShape
from prune_export.target import Workload
from prune_export.texts import Text, load_text, token_windows, windows_digest

# Candidates are compared with each other: windows shorter than the papers' 2048 rank them as well, in less memory.
_WINDOW = 512
_WORK_PREFIX = ".prune-export-"


@dataclass(frozen=True)
class _Texts:
    """What plans are compared on, what perplexity is scored on, and where both come from."""

    calibration: CalibrationTokens
    calibration_text: Text
    evaluation: NDArray[np.int64]
    evaluation_text: Text


@contextmanager
def open_job(request: Request, progress: Progress, memory: TreeMemory, *, planning: bool = False) -> Iterator[Job]:
    """Checks a request and yields the job; its scratch directory is removed when the block ends, however it ends.

    Args:
        request: what is wanted.
        progress: where progress goes.
        memory: samples the run's memory.
        planning: nothing is delivered: the format is the one that the profile's latency table was measured with.

    Raises:
        BadInputError: anything in the request that cannot work, before any long work.
    """
    exporter_of(request.format)
    map_large_blocks()
    output = (request.output or default_output(request)).absolute()
    check_destination(output, force=request.force)
    profile = load_profile(request.device)
    if planning:
        request = replace(request, format=planned_format(request, profile))
    reason = mismatch(profile, host_fingerprint()) or _not_run(profile, request.format)
    if reason and request.require_measured:
        raise BadInputError(f"--require-measured: {reason}; run it there, or use --device host")
    if reason and "memory" in {target.metric for target in (request.target, *request.further)}:
        raise BadInputError(f"--target-memory is measured, never estimated, and {reason}: run it there")
    threads = _threads(request.threads, profile, measured=not reason)
    with progress.phase("checking the model"):
        source = resolve_source(request.model)
        config = load_config(source)
        shape = model_shape(config)
        digest = source_digest(source)
        tokenizer = load_tokenizer(source)
        plan = None
        if request.plan is not None:
            plan = replayable(request.plan, digest, shape, uniform=request.search.uniform)
        request = replace(request, search=request.search.for_model(shape))
        if request.sparsity is not None:
            multiple = profile.width_multiple
            check_sparsity(request.sparsity, config, search=request.search, multiple=multiple, plan=plan)
    if request.search.ignored:
        progress.note(request.search.ignored)
    workload = _workload(request, shape, progress)
    if reason and request.target.metric != "parameters":
        refuse_mixers(shape, "a latency target")
    request, profile = with_precisions(
        request, profile, shape, workload, threads, measured=not reason, planning=planning, progress=progress
    )
    if "int4" in request.precisions:
        exporter_of(request.format).check_group(profile.int4_group, profile.name)
    check_resources(shape, output)
    compensated = plan.compensated if plan is not None else request.search.compensated
    texts = _texts(request, tokenizer, shape, progress, compensated=compensated)
    with scratch_folder(output.parent, _WORK_PREFIX) as work:
        yield Job(
            request=request,
            source=source,
            source_digest=digest,
            shape=shape,
            profile=profile,
            measured=not reason,
            mismatch=reason,
            workload=workload,
            threads=threads,
            output=output,
            work=work,
            calibration=texts.calibration,
            calibration_text=texts.calibration_text,
            evaluation=texts.evaluation,
            evaluation_text=texts.evaluation_text,
            plan=plan,
            progress=progress,
            memory=memory,
        )


def _workload(request: Request, shape: ModelShape, progress: Progress) -> Workload:
    """The request's, shortened to the model's context."""
    workload = request.workload.fitted(shape.context)
    if workload.prompt_tokens < request.workload.prompt_tokens:
        progress.note(
            f"note: prompt shortened from {request.workload.prompt_tokens} to {workload.prompt_tokens} tokens: "
            f"with {workload.new_tokens} new ones it fits the model's context of {shape.context}"
        )
    return workload


def _texts(request: Request, tokenizer: Any, shape: ModelShape, progress: Progress, *, compensated: bool) -> _Texts:
    """Reads both texts and warns of what will make the figures look better or worse than they are."""
    with progress.phase("reading the texts"):
        calibration_text = load_text(request.calibration, "calibration")
        evaluation_text = load_text(request.eval_text, "evaluation")
        lazy = request.target.metric != "parameters"
        calibration = calibration_tokens(calibration_text, tokenizer, shape, request.search, lazy=lazy)
        evaluation = _evaluation(evaluation_text, tokenizer, shape, request.eval_tokens)
    if calibration_text.is_default and request.model != "reference":
        progress.note(
            "warning: this model is calibrated on Python's standard library, which it may know little of: "
            "name text of its own kind with --calibration (and --eval-text)"
        )
    elif evaluation_text.is_default and request.model != "reference":
        progress.note("warning: this model is evaluated on Python's standard library: name other text with --eval-text")
    if evaluation_text.digest == calibration_text.digest:
        progress.note("warning: calibration and evaluation text are the same: perplexities will look too good")
    progress.note(f"calibration: {calibration.description}")
    if compensated and (short := shortage(calibration.tokens.size, shape)):
        progress.note(short)
    free_memory()  # the tokenizer went through megabytes of text, of which a few windows are kept
    return _Texts(calibration, calibration_text, evaluation, evaluation_text)


def calibration_tokens(
    text: Text, tokenizer: Any, shape: ModelShape, settings: SearchSettings, *, lazy: bool
) -> CalibrationTokens:
    """Calibration windows in the size asked for, or in the default size for the model.

    Raises:
        BadInputError: a window exceeds the context, or the text is shorter than what is asked for.
    """
    distribution = (1.0, 0.0, 0.0) if settings.search == "blockpruner" else settings.distribution
    if settings.search == "fast":
        default = default_fast_size(shape)
    else:
        default = default_size(
            shape,
            distribution=distribution,
            mlp_group=settings.mlp_group,
            lazy=lazy and not settings.exact,
            evaluations=GENERATIONS * POPULATION if settings.search == "evolve" else 0,
        )
    length = settings.calibration_length or min(default.length, shape.context)
    if not 2 <= length <= shape.context:
        raise BadInputError(
            f"--calibration-length {length} must lie between 2 and the model's context, {shape.context}"
        )
    if settings.calibration_rows:
        windows, described = _row_windows(text, tokenizer, settings.calibration_rows, length)
        widths = None if settings.width_rows is None else _row_windows(text, tokenizer, settings.width_rows, length)[0]
    else:
        wanted = settings.calibration_windows
        windows, described = _spread_windows(text, tokenizer, wanted, default.windows, length)
        count = settings.width_windows
        widths = None if count is None else _spread_windows(text, tokenizer, count, count, length)[0]
    digest = windows_digest(windows)
    if widths is not None:
        described += f"; widths on {len(widths)} of that length"
        digest = hashlib.sha256(f"{digest} {windows_digest(widths)}".encode()).hexdigest()
    return CalibrationTokens(tokens=windows, digest=digest, description=described, width_tokens=widths)


def _spread_windows(
    text: Text, tokenizer: Any, wanted: int | None, default: int, length: int
) -> tuple[NDArray[np.int64], str]:
    windows = token_windows(text, tokenizer, count=wanted or default, length=length)
    if wanted is not None and len(windows) < wanted:
        raise BadInputError(
            f"{text.name} has {len(windows)} windows of {length} tokens, --calibration-windows asks for {wanted}: "
            "give a longer text or a smaller number"
        )
    return windows, (
        f"{len(windows)} windows of {length} tokens of {text.name} (--calibration-windows, --calibration-length)"
    )


def _row_windows(text: Text, tokenizer: Any, rows: int, length: int) -> tuple[NDArray[np.int64], str]:
    """All windows of the first rows joined by blank lines, as the papers calibrate."""
    windows = token_windows(text.first(rows), tokenizer, count=sys.maxsize, length=length)
    return windows, f"{len(windows)} windows of {length} tokens, the first {rows} rows of {text.name}"


def check_resources(shape: ModelShape, output: Path) -> None:
    """Refuses to start without the disk and the memory that a delivery takes at most.

    Raises:
        BadInputError: too little of either.
    """
    weights = 4 * shape.parameters()
    # Dense and pruned IRs in each precision, the stacks of the latency table, and the delivered copy.
    check_space(output, 6 * weights + (256 << 20))
    check_memory(3 * weights, shape.parameters())


def _evaluation(text: Text, tokenizer: Any, shape: ModelShape, tokens: int | None) -> NDArray[np.int64]:
    length = min(_WINDOW, shape.context)
    count = max(1, (tokens or default_tokens(shape)) // length)
    return token_windows(text, tokenizer, count=count, length=length)


def _threads(wanted: int, profile: DeviceProfile, *, measured: bool) -> int:
    cores = host_cores()
    if wanted < 0 or (measured and wanted > cores):
        raise BadInputError(f"--threads {wanted}: this machine has {cores} cores, use 1 to {cores}")
    if wanted or not measured:
        return wanted or profile.threads or profile.cores
    return min(profile.threads or cores, cores)


def _not_run(profile: DeviceProfile, format: str) -> str:
    """Why what is delivered is not measured on a device that is there; empty if it is."""
    if profile.device != "cuda":
        return ""
    return (
        f"{profile.name} runs checkpoints through {profile.runtime}, not {format}: what is delivered is timed with "
        f"`prune-export benchmark CHECKPOINT --device {profile.name}`"
    )
