"""Inference of one exported model, in a process of its own: `python -m prune_export.delivery.ir_worker`.

The model's file decides the runtime.  Imports no torch.  What OpenVINO keeps of a compiled model (half a gigabyte and
more for a hundred million parameters) ends with the process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prune_export.benchmark.child import Report, answer
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.score import score
from prune_export.benchmark.session import Session
from prune_export.export.gate import Reference, check_against, ir_greedy_agreement
from prune_export.files import release_pages
from prune_export.records import from_json, to_json


@dataclass(frozen=True)
class Task:
    """What is asked of one exported model; each part that is given is done.

    Attributes:
        directory: holds the model.
        precision: of its weights.
        gate_threads: threads of the comparison with torch; 0 leaves the choice to the runtime.
        score_threads: threads of scoring; 0 for all cores.
        reference: .npz file of torch's logits to compare with.
        prompt: token ids.
        expected: torch's greedy continuation of the prompt, to compare with.
        new_tokens: length of the greedy continuation that is wanted.
        windows: .npy file of windows [N, T] to score.
    """

    directory: str
    precision: str
    gate_threads: int = 0
    score_threads: int = 0
    reference: str = ""
    prompt: tuple[int, ...] = ()
    expected: tuple[int, ...] = ()
    new_tokens: int = 0
    windows: str = ""


@dataclass(frozen=True)
class Found:
    """What came of a task.

    Attributes:
        errors: check to its largest logit error.
        tolerance: the limit on it.
        agreement: share of the expected tokens that are chosen too, each after those before it.
        continuation_nll: mean token NLL of the prompt and the expected tokens.
        nll: mean token NLL of each window.
        tokens: greedy continuation.
    """

    errors: dict[str, float] | None = None
    tolerance: float = 0.0
    agreement: float = 0.0
    continuation_nll: float = 0.0
    nll: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()


def main() -> int:
    """Does one task; 0 if a reply was written."""
    return answer(lambda data, report: _plain(perform(from_json(Task, data, where="task"), report)))


def perform(task: Task, report: Report) -> Found:
    """Does every part of a task.

    Raises:
        ParityError: a comparison with torch failed.
        PruneExportError: the model cannot be run or scored.
    """
    directory = Path(task.directory)
    errors, tolerance, agreement = None, 0.0, 0.0
    if task.reference:
        reference = Reference.load(Path(task.reference))
        errors, tolerance = check_against(reference, directory, threads=task.gate_threads)
    if task.expected:
        agreement = ir_greedy_agreement(
            directory, task.prompt, task.expected, precision=task.precision, threads=task.gate_threads
        )
    nll, tokens = (), ()  # type: tuple[float, ...], tuple[int, ...]
    continuation_nll = 0.0
    if task.windows or task.new_tokens or task.expected:
        session = find_model(directory).runtime.open_session(
            directory, precision=task.precision, threads=task.score_threads, device="CPU", last_token_only=False
        )
        session.load()
        release_pages(directory)
        if task.expected:
            window = np.asarray([[*task.prompt, *task.expected]], dtype=np.int64)
            (continuation_nll,) = score(session, window).nll_per_window
        if task.windows:
            nll = score(session, np.load(task.windows), report=report).nll_per_window
        if task.new_tokens:
            tokens = _continuation(session, task)
    return Found(errors, tolerance, agreement, continuation_nll, nll, tokens)


def _continuation(session: Session, task: Task) -> tuple[int, ...]:
    tokens: list[int] = []
    logits = session.prefill(np.asarray([task.prompt], dtype=np.int64))
    for _ in range(task.new_tokens):
        tokens.append(int(logits[0, -1].argmax()))
        logits = session.decode(np.asarray([[tokens[-1]]], dtype=np.int64))
    return tuple(tokens)


def _plain(found: Found) -> dict[str, Any]:
    data: dict[str, Any] = to_json(found)
    return data


if __name__ == "__main__":
    sys.exit(main())
