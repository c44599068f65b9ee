"""Builds a model in every precision: export, parity gate, weight compression, perplexity through the result."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.delivery.exporters import exporter_of
from prune_export.delivery.ir_checks import compare, score_ir
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.resources import free_memory
from prune_export.evaluate import torch_nll
from prune_export.export.gate import check_nll, parity_record
from prune_export.export.parity import greedy_tokens_of, torch_reference, unchecked
from prune_export.manifest import CHECKPOINT_FOLDER, ParityRecord
from prune_export.shape import ModelShape

_GREEDY_TOKENS = 128
_GREEDY_PROMPT = 32
# Seconds a parameter on two cores: what the remaining time of the first phase of each kind is guessed from.
_EXPORT_S, _PARITY_S, _COMPRESS_S = 1e-7, 5e-8, 6e-8


@dataclass(frozen=True)
class Build:
    """One model, exported in one or more precisions.

    Attributes:
        variants: one entry a precision.
        parity: what the gate found, by precision.
        plain: directory of the fp32 export, from which further precisions are made.
        expected: torch's greedy continuation of the check's prompt.
        reference_nll: torch's mean token NLL on the first held-out window.
        window_nll: torch's mean token NLL over the check's prompt and `expected`.
    """

    variants: dict[str, Variant]
    parity: dict[str, ParityRecord]
    plain: Path
    expected: tuple[int, ...]
    reference_nll: float
    window_nll: float = 0.0


def build(job: Job, name: str, make: Callable[[], tuple[Any, Any, ModelShape]], precisions: tuple[str, ...]) -> Build:
    """Exports a model, passes it through the parity gate, compresses and scores it.

    Args:
        job: the delivery at work; results lie in its scratch directory.
        name: "dense", or the name of a plan.
        make: gives model, tokenizer and shape; the model is released before anything is compressed or scored.
        precisions: weight precisions wanted.

    Raises:
        ParityError: the fp32 export does not compute what the model computes.
    """
    plain = job.work / name / "fp32"
    prompt = greedy_prompt(job)
    size = job.shape.parameters()
    model, tokenizer, shape = make()
    exporter = exporter_of(job.request.format)
    with job.progress.phase(f"{name}: exporting to {exporter.title}", expected_s=2 + size * _EXPORT_S):
        exporter.plain(model, tokenizer, plain)
    with job.progress.phase(f"{name}: parity with torch", expected_s=2 + size * _PARITY_S):
        saved = plain / "reference.npz"
        torch_reference(model).save(saved)
        expected = greedy_tokens_of(model, prompt, new_tokens=min(_GREEDY_TOKENS, shape.context - len(prompt)))
        (reference_nll,) = torch_nll(model, job.evaluation[:1])
        beyond = unchecked(model)
        (window_nll,) = torch_nll(model, np.asarray([[*prompt, *expected]], dtype=np.int64))
        # The model and the compiled IR are never in memory together.
        del model
        free_memory()
        errors, tolerance = compare(saved, plain, threads=torch.get_num_threads())
        saved.unlink()
    record = parity_record(errors, tolerance, greedy_tokens=len(expected), greedy_agreement=0.0, unchecked=beyond)
    made = Build({}, {"": record}, plain, tuple(expected), reference_nll, window_nll)
    for precision in precisions:
        made = compressed(job, made, precision, name=name, shape=shape)
    return made


def compressed(job: Job, made: Build, precision: str, *, name: str = "", shape: ModelShape | None = None) -> Build:
    """The same build with one more precision.

    Args:
        job: the delivery at work.
        made: the build so far.
        precision: weight precision to add.
        name, shape: of the model; those of the variants already there unless told.
    """
    first = next(iter(made.variants.values()), None)
    name = name or (first.name if first else "")
    shape = shape or (first.shape if first else job.shape)
    directory = made.plain if precision == "fp32" else made.plain.parent / precision
    if precision != "fp32":
        expected_s = 1 + job.shape.parameters() * _COMPRESS_S
        with job.progress.phase(f"{name}: compressing weights to {precision}", expected_s=expected_s):
            kept = made.plain.parent / CHECKPOINT_FOLDER  # of a plan; the dense one is the source
            checkpoint = kept if kept.is_dir() else job.source
            exporter_of(job.request.format).compressed(
                made.plain, checkpoint, directory, precision, job.profile.int4_group
            )
    with job.progress.phase(f"{name} {precision}: perplexity through the artifact"):
        found = score_ir(
            directory,
            precision=precision,
            prompt=greedy_prompt(job).tolist(),
            expected=made.expected,
            windows=job.evaluation,
            gate_threads=torch.get_num_threads(),
            score_threads=job.threads if job.measured else 0,
            progress=job.progress,
            scratch=job.work,
        )
    gate = next(iter(made.parity.values()))
    error = found.nll[0] - made.reference_nll
    for each in (error, found.continuation_nll - made.window_nll):
        check_nll(each, precision=precision, name=name)
    record = replace(
        gate,
        greedy_agreement=found.agreement,
        prompt=tuple(greedy_prompt(job).tolist()),
        nll_error=error,
        continuation=made.expected,
        window_nll=made.window_nll,
    )
    variant = Variant(name, precision, directory, shape, exp(statistics.fmean(found.nll)))
    parity = {key: value for key, value in made.parity.items() if key} | {precision: record}
    return replace(made, variants={**made.variants, precision: variant}, parity=parity)


def greedy_prompt(job: Job) -> NDArray[np.int64]:
    """The prompt of greedy checks and samples, from the evaluation text: [T]."""
    return job.evaluation[0, : min(_GREEDY_PROMPT, job.evaluation.shape[1] // 2)]
