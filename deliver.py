"""The main job: from a model, a device and a target to a measured artifact."""

from __future__ import annotations

from dataclasses import replace

from prune_export.delivery.bench import measured
from prune_export.delivery.exporters import exporter_of
from prune_export.delivery.latency import medians, trust
from prune_export.delivery.loop import decide
from prune_export.delivery.preflight import open_job
from prune_export.delivery.publish import publish
from prune_export.delivery.request import Job, Request
from prune_export.delivery.resources import TreeMemory
from prune_export.delivery.several import driven
from prune_export.delivery.summary import LOUD_LOSS, Delivery, timed_metric
from prune_export.delivery.variants import Build, build
from prune_export.delivery.workshop import Outcome
from prune_export.errors import InfeasibleError
from prune_export.files import full_disk_explained
from prune_export.progress import Progress
from prune_export.prune.loading import load_model, load_tokenizer


def deliver(request: Request, *, progress: Progress | None = None) -> Delivery:
    """Delivers the artifact with the least loss of quality that meets the request's target.

    Dense precisions come first, best quality first; pruning only where none of them meets the target.

    Args:
        request: what is wanted.
        progress: where progress goes; silent unless given.

    Raises:
        BadInputError: something in the request cannot work, or the family has no export in its format; found before
            long work starts.
        InfeasibleError: no plan meets the target, or only at more quality than allowed; nothing is published.
        ParityError: the export does not compute what the model computes; nothing is published.
    """
    report = progress or Progress(quiet=True)
    memory = TreeMemory(lambda: report.current)
    with memory, open_job(request, report, memory) as job, full_disk_explained(job.output):
        exporter_of(job.request.format).check_family(job.shape.family)
        if not job.measured:
            report.note(f"note: {job.mismatch}: figures are predicted, not measured")
        dense = baseline(job)
        job = driven(job, dense.variants)
        outcome = decide(job, dense)
        loss = _quality_loss(job, outcome)
        manifest = publish(job, outcome)
        if outcome.finish is not None:
            outcome.finish()
    exporter, folder = exporter_of(request.format), job.output / request.format
    return Delivery(
        job.output, manifest, exporter.usage(folder), exporter.server(folder), notes=_notes(job, outcome, loss)
    )


def baseline(job: Job) -> Build:
    """The dense model in every allowed precision, measured where the host is the device."""
    made = build(
        job, "dense", lambda: (load_model(job.source), load_tokenizer(job.source), job.shape), job.request.precisions
    )
    results = measured(job, list(made.variants.values()), title="dense: measuring", sample_memory=True)
    return replace(made, variants={variant.precision: variant for variant in results})


def _quality_loss(job: Job, outcome: Outcome) -> float:
    """Relative rise of perplexity over the best dense precision.

    Raises:
        InfeasibleError: it exceeds what the request allows.
    """
    base = min(variant.perplexity for variant in outcome.variants if variant.name == "dense")
    loss = outcome.delivered.perplexity / base - 1.0
    allowed = job.request.max_quality_loss
    if allowed is not None and loss > allowed:
        raise InfeasibleError(
            f"{job.request.target} is met only with perplexity {outcome.delivered.perplexity:.2f}, {loss:.1%} above "
            f"dense, --max-quality-loss allows {allowed:.1%}: ask for less speed or allow more"
        )
    return loss


def _notes(job: Job, outcome: Outcome, loss: float) -> tuple[str, ...]:
    notes = [f"perplexity {outcome.delivered.perplexity:.2f}, {loss:+.1%} against the best dense precision"]
    if outcome.plan is None:
        done = "nothing was pruned" if job.request.sparsity is None else "no structure was removed"
        notes.append(
            f"the dense model in {outcome.delivered.precision} already meets the target, {done}; "
            "a target that needs pruning: --target-speedup 1.3x"
        )
    if loss > LOUD_LOSS:
        notes.append(
            "WARNING: this costs much quality; read the sample below, and consider a milder target or more calibration "
            "text"
        )
    if not job.measured:
        metric = timed_metric(job.request.target)
        if found := trust(job, metric, outcome.delivered.precision):
            notes.append(f"{metric} {found}")
        if found := " and ".join(medians(job)):
            notes.append(
                f"predicted {found} is the median: nothing tells {job.request.target.statistic} on this device"
            )
        notes.append(f"{job.mismatch}: run `prune-export benchmark {job.output}` there to measure it")
    return tuple(notes)
