"""The verbs of the command line as functions: deliver, plan(s), prune, sparsify, export, benchmark, evaluate, load.

They live here, since `prune_export.prune`, `.export` and `.benchmark` are folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prune_export.benchmark.run import run_benchmark as benchmark
from prune_export.deliver import baseline, deliver
from prune_export.delivery.card import checkpoint_card, write_card
from prune_export.delivery.exported import describe_export
from prune_export.delivery.latency import medians
from prune_export.delivery.preflight import calibration_tokens, open_job
from prune_export.delivery.request import Job, Request, SearchSettings, Variant
from prune_export.delivery.resources import TreeMemory
from prune_export.delivery.search import replayable, unlike
from prune_export.delivery.single import first_proposal
from prune_export.delivery.sparse import carry_report, check_sparsity, make_sparse, save_report
from prune_export.delivery.sweep import Planned, plan_ratios
from prune_export.delivery.variants import Build
from prune_export.delivery.workshop import Workshop
from prune_export.errors import BadInputError
from prune_export.evaluate import evaluate
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.rounding_options import RoundingOptions
from prune_export.files import check_destination, staged
from prune_export.formats import STORED, formats_of, unheeded
from prune_export.manifest import PLAN_FILE, ParityRecord
from prune_export.plan import PrunePlan
from prune_export.progress import Progress
from prune_export.prune.calibration import shortage
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.loading import load_config, load_tokenizer, source_digest
from prune_export.prune.planning import save_front
from prune_export.prune.realise import realise, stored_precision
from prune_export.prune.shapes import model_shape
from prune_export.prune.sources import resolve_source
from prune_export.prune.streams import DenseStreams
from prune_export.rounding import Rounder
from prune_export.sparsify import sparsify
from prune_export.sparsity import Sparsity
from prune_export.target import Target
from prune_export.texts import load_text

__all__ = ["benchmark", "deliver", "evaluate", "export", "load", "plan", "plans", "prune", "sparsify"]


def plan(request: Request, *, front_file: Path | None = None, progress: Progress | None = None) -> PrunePlan:
    """Chooses what to remove for a request's target; exports nothing that stays.

    Latency and memory targets are planned for the request's first precision.

    Args:
        request: what is wanted.
        front_file: where the Pareto front goes, if the search makes one.
        progress: where progress goes.

    Raises:
        BadInputError: something in the request cannot work.
        InfeasibleError: nothing reaches the target.
    """
    report = progress or Progress(quiet=True)
    with _planned(request, report, front_file=front_file) as found:
        return found.plan


@dataclass(frozen=True)
class _Found:
    """A plan, the calibration tokens that it was made with, where they come from, and the dense streams on them."""

    plan: PrunePlan
    tokens: NDArray[np.int64] | None
    text: dict[str, str]
    streams: DenseStreams | None = None


@contextmanager
def _planned(request: Request, report: Progress, *, front_file: Path | None = None) -> Iterator[_Found]:
    """Searches a plan; what was evaluated is forgotten at the end, unless something fails: it can be resumed then."""
    with TreeMemory(lambda: report.current) as memory, open_job(request, report, memory, planning=True) as job:
        precision = job.request.precisions[0]
        if request.target.metric != "parameters" and (names := " and ".join(medians(job))):
            report.note(
                f"note: {names} is planned by its median: nothing tells {request.target.statistic} on this device"
            )
        made = _no_baseline(job, precision) if request.target.metric == "parameters" else baseline(job)
        workshop = Workshop(job, made, precision)
        found = first_proposal(workshop).plan
        if front_file is not None and workshop.searcher.front:
            save_front(front_file, workshop.searcher.front, cost_unit=found.cost_unit)
        workshop.searcher.release()
        streams = workshop.searcher.streams
        yield _Found(found, job.calibration.tokens, job.calibration_text.provenance(), streams)
        workshop.state.forget()


def plans(
    request: Request,
    ratios: Sequence[float],
    *,
    metric: str = "tpot",
    as_far_as_possible: bool = False,
    progress: Progress | None = None,
) -> tuple[Planned, ...]:
    """Several plans from one search, each what the search finds for its ratio alone.

    Args:
        request: what is wanted; of its target the statistic alone matters.
        ratios: removed shares of the parameters.
        metric: the latency to predict: "tpot", "ttft" or "total".
        as_far_as_possible: end before the first ratio out of reach, if there is one before it, instead of raising.
        progress: where progress goes.

    Raises:
        BadInputError: something in the request cannot work.
        InfeasibleError: a ratio is out of reach; the message says the highest that is not.
    """
    report = progress or Progress(quiet=True)
    request = replace(request, target=Target("parameters", ratios[0], request.target.statistic))
    with TreeMemory() as memory, open_job(request, report, memory, planning=True) as job:
        precision = job.request.precisions[0]
        workshop = Workshop(job, _no_baseline(job, precision), precision)
        found = plan_ratios(job, workshop.searcher, ratios, metric=metric, as_far_as_possible=as_far_as_possible)
        workshop.state.forget()
    return found


def prune(
    model: str,
    output: Path,
    *,
    plan_file: Path | None = None,
    ratio: float | None = None,
    search: SearchSettings | None = None,
    sparsity: Sparsity | None = None,
    calibration: str | None = None,
    seed: int = 42,
    force: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> PrunePlan:
    """Writes a dense, smaller checkpoint (and its plan.json) to `output`.

    Args:
        model: directory, hub id, or "reference".
        output: destination directory.
        plan_file: replay this plan; a compensated one gives the same weights with the same calibration.
        ratio: or search one that removes this share of the parameters.
        search: search settings.
        sparsity: zeros on top of the plan, or None.
        calibration: text for the search, or None for the standard library's.
        seed: of everything random.
        force: replace an existing output.
        command: the command line, for the model card.
        progress: where progress goes.

    Raises:
        BadInputError: neither or both of `plan_file` and `ratio`, or anything unusable in the input.
        InfeasibleError: the ratio cannot be reached.
    """
    report = progress or Progress(quiet=True)
    check_destination(output, force=force)
    if (plan_file is None) == (ratio is None):
        raise BadInputError("prune needs either a plan or a ratio")
    source = resolve_source(model)
    settings = search or SearchSettings()
    with ExitStack() as stack:
        if plan_file is not None:
            found = _replayed(source, plan_file, settings, sparsity, calibration, report)
        else:
            request = Request(
                model=model,
                device="host",
                target=Target("parameters", ratio),
                output=output,
                search=settings,
                sparsity=sparsity,
                calibration=calibration,
                seed=seed,
                force=force,
            )
            found = stack.enter_context(_planned(request, report))
        title = "fitting what stays to what goes" if found.plan.compensated else "cutting"
        with report.phase(title) as phase:
            smaller = realise(source, found.plan, found.tokens, streams=found.streams, progress=phase.update)
        zeros = None
        if sparsity is not None and found.tokens is not None:
            zeros = make_sparse(smaller, found.tokens, sparsity, stored=smaller.dtype, progress=report)
        with report.phase("writing the checkpoint"), staged(output, force=force) as stage:
            save_checkpoint(smaller, load_tokenizer(source), stage)
            if zeros is not None:
                save_report(zeros, stage)
            found.plan.save(stage / PLAN_FILE)
            write_card(stage, checkpoint_card(found.plan, command=command, calibration=found.text))
        return found.plan


def _replayed(
    source: Path,
    plan_file: Path,
    settings: SearchSettings,
    sparsity: Sparsity | None,
    calibration: str | None,
    report: Progress,
) -> _Found:
    """A plan from a file, with the calibration tokens that it is compensated on, if it is.

    Notes are made where they are not what they should be.
    """
    config = load_config(source)
    chosen = replayable(plan_file, source_digest(source), model_shape(config), uniform=settings.uniform)
    if sparsity is not None:
        check_sparsity(sparsity, config, search=settings, multiple=0, plan=chosen)
    elif not chosen.compensated:
        return _Found(chosen, None, {})
    text = load_text(calibration, "calibration")
    made = calibration_tokens(text, load_tokenizer(source), chosen.dense, settings, lazy=False)
    for note in (unlike(chosen, made), shortage(made.tokens.size, chosen.dense)):
        if note:
            report.note(note)
    return _Found(chosen, made.tokens, text.provenance())


def export(
    model: str,
    output: Path,
    *,
    format: str = "openvino",
    precision: str | None = None,
    openvino: OpenVinoOptions | None = None,
    rounding: RoundingOptions | None = None,
    force: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> ParityRecord:
    """Exports a checkpoint behind the parity gate.

    Args:
        model: checkpoint directory (dense or pruned), hub id, or "reference".
        output: destination directory.
        format: "openvino", "onnx", "both", each in a folder of its own then, or "decilm".
        precision: weight precision, or None for the format's own: int8, for decilm that of the checkpoint.
        openvino: how OpenVINO's weights are compressed and its cache is kept, where it shall not be the default; the
            group size holds for ONNX too.
        rounding: let Neural Compressor choose the int4 weights, the same for all formats; None for each one's own.
        force: replace an existing output.
        command: the command line, for the model card.
        progress: where progress goes.

    Returns:
        What the gate found; of both formats, that with the larger error.

    Raises:
        BadInputError: an unusable checkpoint or output, or a precision, options or an architecture that the format does
            not have.
        ParityError: the fp32 export does not compute what the checkpoint computes; nothing is published.
    """
    report = progress or Progress(quiet=True)
    rounder = Rounder(rounding) if rounding is not None else None
    rows = formats_of(format, precision=precision, openvino=openvino, rounder=rounder)
    check_destination(output, force=force)
    if note := unheeded(format, openvino):
        report.note(note)
    source = resolve_source(model)
    config = load_config(source)
    precisions = {
        row.name: precision or (row.default if row.default != STORED else stored_precision(source)) for row in rows
    }
    for row in rows:
        row.check(config, precisions[row.name])
    records = []
    with staged(output, force=force) as stage:
        for row in rows:
            folder = stage if len(rows) == 1 else stage / row.name
            folder.mkdir(exist_ok=True)
            chosen = precisions[row.name]
            parity = row.write(source, folder, chosen, report)
            carry_report(source, folder)
            describe_export(
                folder,
                source,
                parity,
                source=model,
                format=row.name,
                precision=chosen,
                command=command,
                rounding=rounder.of(source, report).described() if rounder is not None else None,
                together=tuple(each.name for each in rows) if len(rows) > 1 else (),
            )
            records.append(parity)
    return max(records, key=lambda record: record.max_logit_error)


def _no_baseline(job: Job, precision: str) -> Build:
    """A ratio needs no exported model to compare with."""
    return Build({precision: Variant("dense", precision, job.work, job.shape, 0.0)}, {}, job.work, (), 0.0)
