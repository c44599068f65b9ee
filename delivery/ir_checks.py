"""Runs exported models in small processes, IRs as well as ONNX: this one never holds a compiled model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prune_export.benchmark.child import Report, converse
from prune_export.delivery.ir_worker import Found, Task
from prune_export.progress import Progress
from prune_export.records import from_json, to_json

_WORKER = "prune_export.delivery.ir_worker"


def compare(saved: Path, directory: Path, *, threads: int) -> tuple[dict[str, float], float]:
    """`gate.check_against` with a reference that was saved to a file.

    Raises:
        ParityError: the fp32 export in `directory` does not compute what the model computes.
    """
    found = run_task(Task(str(directory), "fp32", gate_threads=threads, reference=str(saved)))
    assert found.errors is not None
    return found.errors, found.tolerance


def score_ir(
    directory: Path,
    *,
    precision: str,
    prompt: Sequence[int],
    expected: Sequence[int],
    windows: NDArray[np.int64] | None = None,
    gate_threads: int,
    score_threads: int,
    progress: Progress,
    scratch: Path,
) -> Found:
    """Share of torch's greedy tokens that the export chooses too, each after torch's; NLL of them, windows.

    Args:
        directory: holds the exported model.
        precision: of its weights.
        prompt: token ids.
        expected: torch's greedy continuation of them.
        windows: [N, T], or None for none.
        gate_threads: threads for the greedy tokens; 0 leaves the choice to the runtime.
        score_threads: threads for the windows; 0 for all cores.
        progress: is told of windows done.
        scratch: directory for what is handed to the process.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        stored = Path(folder) / "windows.npy"
        if windows is not None:
            np.save(stored, windows)
        task = Task(
            directory=str(directory),
            precision=precision,
            gate_threads=gate_threads,
            score_threads=score_threads,
            prompt=tuple(map(int, prompt)),
            expected=tuple(map(int, expected)),
            windows="" if windows is None else str(stored),
        )
        return run_task(task, progress.update)


def continuation(directory: Path, *, precision: str, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy continuation of one prompt through an exported model."""
    task = Task(str(directory), precision, prompt=tuple(map(int, prompt)), new_tokens=new_tokens)
    return list(run_task(task).tokens)


def run_task(task: Task, report: Report | None = None) -> Found:
    """Does a task in a fresh process.

    Raises:
        PruneExportError: what the task raised, with the same words, or that the process died.
    """
    reply = converse(_WORKER, to_json(task), subject=f"running {task.directory}", report=report)
    return from_json(Found, reply, where="reply of the worker")
