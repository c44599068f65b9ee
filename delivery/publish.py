"""Assembles the artifact's directory: exported model, checkpoint, plan, report, model card, and the manifest last."""

from __future__ import annotations

import datetime
import shutil
from dataclasses import replace
from pathlib import Path

from prune_export.benchmark.runtimes import runtime_of
from prune_export.delivery.card import delivery_card, write_card
from prune_export.delivery.ir_checks import continuation
from prune_export.delivery.latency import medians
from prune_export.delivery.report import with_report_files, write_report
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.sparse import stored_sparsity
from prune_export.delivery.variants import greedy_prompt
from prune_export.delivery.workshop import Outcome
from prune_export.export.departures import departures_of
from prune_export.export.versions import package_versions
from prune_export.files import staged
from prune_export.hashes import file_records
from prune_export.manifest import (
    CHECKPOINT_FOLDER,
    MANIFEST,
    PLAN_FILE,
    Candidate,
    Manifest,
    PlannedDevice,
)
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.realise import stored_dtype
from prune_export.records import to_json

_SAMPLE_TOKENS = 48


def publish(job: Job, outcome: Outcome) -> Manifest:
    """Writes the artifact to the job's output, whole or not at all, and returns its manifest.

    Raises:
        PruneExportError: the disk refused a write.
    """
    with job.progress.phase("writing the artifact"), staged(job.output, force=job.request.force) as stage:
        shutil.copytree(outcome.delivered.directory, stage / job.request.format)
        _checkpoint(job, outcome, stage / CHECKPOINT_FOLDER)
        if outcome.plan is not None:
            outcome.plan.save(stage / PLAN_FILE)
        manifest = replace(_manifest(job, outcome), sparsity=stored_sparsity(stage / CHECKPOINT_FOLDER))
        write_card(stage, delivery_card(manifest, outcome.plan))
        # The report shows the manifest with the other files, and the manifest lists the report: it is written twice.
        manifest = replace(manifest, files=file_records(stage, besides=MANIFEST))
        manifest.save(stage)
        write_report(stage)
        manifest = with_report_files(manifest, stage)
        manifest.save(stage)
    return manifest


def _checkpoint(job: Job, outcome: Outcome, directory: Path) -> None:
    kept = outcome.delivered.directory.parent / CHECKPOINT_FOLDER
    if kept.is_dir():  # the very weights that were exported
        shutil.copytree(kept, directory)
        return
    model = load_model(job.source)
    save_checkpoint(model, load_tokenizer(job.source), directory, dtype=stored_dtype(job.source))


def _manifest(job: Job, outcome: Outcome) -> Manifest:
    request = job.request
    met = outcome.figure >= outcome.limit if request.target.metric == "parameters" else outcome.figure <= outcome.limit
    return Manifest(
        command=request.command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=request.model,
        source_digest=job.source_digest,
        shape=outcome.delivered.shape,
        dense_parameters=job.shape.parameters(),
        formats=(request.format, "checkpoint"),
        precision=outcome.delivered.precision,
        target=request.target,
        limit=outcome.limit,
        claim="measured" if job.measured else "predicted",
        met=met,
        figure=outcome.figure,
        profile=job.profile.name,
        plan_digest=outcome.plan.digest() if outcome.plan else "",
        calibration={**job.calibration_text.provenance(), "tokens": job.calibration.digest},
        evaluation=job.evaluation_text.provenance(),
        seed=request.seed,
        candidates=tuple(_candidate(variant, outcome) for variant in outcome.variants),
        rounds=outcome.rounds,
        front=outcome.front,
        parity=outcome.parity,
        versions=package_versions(),
        speedups=outcome.speedups,
        further=outcome.further,
        medians=medians(job),
        workload=job.workload,
        device=PlannedDevice(
            runtime=runtime_of(request.format).name,
            device=job.profile.device,
            threads=request.threads or job.profile.threads,
            match=to_json(job.profile.match),
        ),
        timings_s={name: round(seconds, 2) for name, seconds in job.progress.timings_s.items()},
        peak_tree_bytes=job.memory.peak_bytes,
        peak_tree_phase=job.memory.peak_phase,
        phases_bytes=dict(job.memory.phases_bytes),
        departures=departures_of(outcome.delivered.directory),
        samples=_samples(job, outcome),
    )


def _candidate(variant: Variant, outcome: Outcome) -> Candidate:
    return Candidate(
        name=variant.name,
        precision=variant.precision,
        parameters=variant.shape.parameters(),
        perplexity=variant.perplexity,
        measurement=variant.measurement,
        predicted_s=(outcome.predictions or {}).get((variant.name, variant.precision)),
        delivered=(variant.name, variant.precision) == (outcome.delivered.name, outcome.delivered.precision),
    )


def _samples(job: Job, outcome: Outcome) -> dict[str, str]:
    dense = next(variant for variant in outcome.variants if variant.name == "dense")
    prompt = greedy_prompt(job)
    tokenizer = load_tokenizer(job.source)
    texts = {"prompt": prompt.tolist()}
    for name, variant in (("dense", dense), ("delivered", outcome.delivered)):
        texts[name] = continuation(
            variant.directory, precision=variant.precision, prompt=prompt.tolist(), new_tokens=_SAMPLE_TOKENS
        )
    return {name: str(tokenizer.decode(tokens)) for name, tokens in texts.items()}
