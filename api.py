"""The verbs of the command line as functions: deliver, plan(s), prune, sparsify, export, benchmark, evaluate, load.

They live here, since `prune_export.prune`, `.export` and `.benchmark` are folders.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.benchmark.run import run_benchmark as benchmark
from prune_export.deliver import baseline, deliver
from prune_export.delivery.ir_checks import compare, score_ir
from prune_export.delivery.preflight import calibration_tokens, open_job
from prune_export.delivery.request import Job, Request, SearchSettings, Variant
from prune_export.delivery.resources import TreeMemory, free_memory
from prune_export.delivery.search import replayable
from prune_export.delivery.single import first_proposal
from prune_export.delivery.sparse import check_sparsity, make_sparse, save_report
from prune_export.delivery.sweep import Planned, plan_ratios
from prune_export.delivery.variants import Build, check_nll
from prune_export.delivery.workshop import Workshop
from prune_export.errors import BadInputError
from prune_export.evaluate import evaluate, torch_nll
from prune_export.export.gate import parity_record
from prune_export.export.openvino_ir import export_openvino
from prune_export.export.parity import greedy_tokens_of, torch_reference
from prune_export.export.weights import compress
from prune_export.files import check_destination, staged
from prune_export.manifest import PLAN_FILE, ParityRecord
from prune_export.plan import PrunePlan
from prune_export.progress import Progress
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.loading import load_config, load_tokenizer, source_digest
from prune_export.prune.planning import save_front
from prune_export.prune.realise import realise
from prune_export.prune.shapes import model_shape
from prune_export.prune.sources import resolve_source
from prune_export.sparsify import sparsify
from prune_export.sparsity import Sparsity
from prune_export.target import Target
from prune_export.texts import load_text

__all__ = ["benchmark", "deliver", "evaluate", "export", "load", "plan", "plans", "prune", "sparsify"]

_PROMPT = tuple(range(1, 17))
_GREEDY_TOKENS = 64


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
    return _planned(request, report, front_file=front_file)[0]


def _planned(
    request: Request, report: Progress, *, front_file: Path | None = None
) -> tuple[PrunePlan, NDArray[np.int64]]:
    """A plan and the calibration tokens that it was made with."""
    with TreeMemory(lambda: report.current) as memory, open_job(request, report, memory) as job:
        precision = request.precisions[0]
        made = _no_baseline(job, precision) if request.target.metric == "parameters" else baseline(job)
        workshop = Workshop(job, made, precision)
        found = first_proposal(workshop).plan
        if front_file is not None and workshop.searcher.front:
            save_front(front_file, workshop.searcher.front, cost_unit=found.cost_unit)
        workshop.state.forget()
        return found, job.calibration.tokens


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
        request: what is wanted; its target does not matter.
        ratios: removed shares of the parameters.
        metric: the latency to predict: "tpot", "ttft" or "total".
        as_far_as_possible: end before the first ratio out of reach, if there is one before it, instead of raising.
        progress: where progress goes.

    Raises:
        BadInputError: something in the request cannot work.
        InfeasibleError: a ratio is out of reach; the message says the highest that is not.
    """
    report = progress or Progress(quiet=True)
    request = replace(request, target=Target("parameters", ratios[0]))
    with TreeMemory() as memory, open_job(request, report, memory) as job:
        workshop = Workshop(job, _no_baseline(job, request.precisions[0]), request.precisions[0])
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
    progress: Progress | None = None,
) -> PrunePlan:
    """Writes a dense, smaller checkpoint (and its plan.json) to `output`.

    Args:
        model: directory, hub id, or "reference".
        output: destination directory.
        plan_file: replay this plan.
        ratio: or search one that removes this share of the parameters.
        search: search settings.
        sparsity: zeros on top of the plan, or None.
        calibration: text for the search, or None for the standard library's.
        seed: of everything random.
        force: replace an existing output.
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
    if plan_file is not None:
        shape = model_shape(load_config(source))
        chosen = replayable(plan_file, source_digest(source), shape)
        if sparsity is not None:
            check_sparsity(sparsity, load_config(source), search=settings, multiple=0, plan=chosen)
        tokens = calibration_tokens(
            load_text(calibration, "calibration"), load_tokenizer(source), shape, settings, lazy=False
        ).tokens
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
        chosen, tokens = _planned(request, report)
    title = "fitting what stays to what goes" if chosen.compensated else "cutting"
    with report.phase(title) as phase:
        smaller = realise(source, chosen, tokens, progress=phase.update)
    zeros = None
    if sparsity is not None:
        zeros = make_sparse(smaller, tokens, sparsity, stored=smaller.dtype, progress=report)
    with report.phase("writing the checkpoint"), staged(output, force=force) as stage:
        save_checkpoint(smaller, load_tokenizer(source), stage)
        if zeros is not None:
            save_report(zeros, stage)
        chosen.save(stage / PLAN_FILE)
    return chosen


def export(
    model: str, output: Path, *, precision: str = "int8", force: bool = False, progress: Progress | None = None
) -> ParityRecord:
    """Exports a checkpoint to OpenVINO behind the parity gate.

    Args:
        model: checkpoint directory (dense or pruned), hub id, or "reference".
        output: destination directory.
        precision: weight precision.
        force: replace an existing output.
        progress: where progress goes.

    Raises:
        BadInputError: an unusable checkpoint or output.
        ParityError: the fp32 export does not compute what the checkpoint computes; nothing is published.
    """
    report = progress or Progress(quiet=True)
    check_destination(output, force=force)
    source = resolve_source(model)
    checkpoint, tokenizer = load(source), load_tokenizer(source)
    with staged(output, force=force) as stage, tempfile.TemporaryDirectory(dir=stage.parent, prefix=".fp32-") as folder:
        plain = Path(folder)
        with report.phase("exporting to OpenVINO"):
            export_openvino(checkpoint, tokenizer, plain)
        with report.phase("parity with torch"):
            expected = greedy_tokens_of(checkpoint, _PROMPT, new_tokens=_GREEDY_TOKENS)
            window = np.asarray([[*_PROMPT, *expected]], dtype=np.int64)
            (reference,) = torch_nll(checkpoint, window)
            saved = plain / "reference.npz"
            torch_reference(checkpoint).save(saved)
            del checkpoint  # the model and the compiled IR are never in memory together
            free_memory()
            errors, tolerance = compare(saved, plain, threads=torch.get_num_threads())
            saved.unlink()
        with report.phase(f"writing {precision}"):
            if precision == "fp32":
                shutil.copytree(plain, stage, dirs_exist_ok=True)
            else:
                compress(plain, stage, precision=precision)
        agreement, (nll,) = score_ir(
            stage,
            precision=precision,
            prompt=_PROMPT,
            expected=expected,
            windows=window,
            gate_threads=torch.get_num_threads(),
            score_threads=0,
            progress=report,
            scratch=plain,
        )
        check_nll(nll - reference, precision=precision, name=str(model))
    return parity_record(errors, tolerance, greedy_tokens=len(expected), greedy_agreement=agreement)


def _no_baseline(job: Job, precision: str) -> Build:
    """A ratio needs no exported model to compare with."""
    return Build({precision: Variant("dense", precision, job.work, job.shape, 0.0)}, {}, job.work, (), 0.0)
