"""One measurement in a process of its own: `python -m prune_export.benchmark.worker`.

Reads a `Request` as JSON on standard input, writes a `Reply` as JSON on standard output (`benchmark.child`).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prune_export.benchmark.child import Parent, answer
from prune_export.records import from_json, to_json
from prune_export.target import Workload

if TYPE_CHECKING:
    from prune_export.benchmark.runtimes import OpenedPipeline, OpenedSession

Through = Literal["session", "genai"]


@dataclass(frozen=True)
class Request:
    """What a worker is asked for.

    Attributes:
        directory: holds the model, which decides the runtime.
        precision: weight precision.
        threads: threads of the runtime, 0 for all.
        device: the runtime's name of the device.
        workload: what to run.
        mode: "time", or "memory" for an untimed run.
        repeats: exact number of timed repeats, or None to choose; who gives turns decides instead.
        samples: of later tokens to choose for (`timing.repeats_for`).
        through: the runtime itself, or its GenAI pipeline.
    """

    directory: str
    precision: str
    threads: int
    device: str
    workload: Workload
    mode: Literal["time", "memory"]
    repeats: int | None = None
    samples: int = 0
    through: Through = "session"


@dataclass(frozen=True)
class Reply:
    """What a worker found; times in seconds.

    Attributes:
        before_bytes: resident memory before the model was loaded.
        peak_bytes: its peak; both 0 in a timed run.
        device_peak_bytes: most memory held on a GPU; 0 on a CPU and in a timed run, None if unknown.
        options: runtime properties, the CPUs that the process was left, and the C library's settings where it had any.
        versions: package name to version.
        turns: that the process took with others; 1 if it ran alone.
    """

    load_s: float = 0.0
    ttft_s: tuple[float, ...] = ()
    itl_s: tuple[float, ...] = ()
    before_bytes: int = 0
    peak_bytes: int = 0
    device_peak_bytes: int | None = 0
    options: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    turns: int = 1


def main() -> int:
    """Runs one request; 0 if a reply was written."""
    return answer(_handle)


def _handle(data: dict[str, Any], parent: Parent) -> dict[str, Any]:
    request = from_json(Request, data, where="worker request")
    found: dict[str, Any] = to_json(_time(request, parent) if request.mode == "time" else _memory(request))
    return found


def _session(request: Request) -> OpenedSession | OpenedPipeline:
    # Imported here, so that the request is read and standard output is redirected before native code is loaded.
    from prune_export.benchmark.runtimes import find_model

    directory = Path(request.directory)
    runtime = find_model(directory).runtime
    if request.through == "genai":
        assert runtime.open_pipeline is not None, "refused before the worker was started"
        return runtime.open_pipeline(
            directory, precision=request.precision, threads=request.threads, device=request.device
        )
    return runtime.open_session(
        directory,
        precision=request.precision,
        threads=request.threads,
        device=request.device,
        last_token_only=True,
    )


def _time(request: Request, parent: Parent) -> Reply:
    from prune_export.benchmark.affinity import pin
    from prune_export.benchmark.huge_pages import tunables
    from prune_export.benchmark.timing import time_session

    affinity = pin(request.threads, request.device)
    session = _session(request)
    session.load()
    samples = time_session(
        session, request.workload, repeats=request.repeats, samples=request.samples, turn=parent.wait
    )
    return Reply(
        load_s=session.load_s,
        ttft_s=samples.ttft_s,
        itl_s=samples.itl_s,
        options=session.options | affinity | tunables(),
        versions=_versions(request),
    )


def _memory(request: Request) -> Reply:
    from prune_export.benchmark.affinity import pin
    from prune_export.benchmark.memory import watch_memory
    from prune_export.benchmark.timing import generate, synthetic_prompt

    pin(request.threads, request.device)
    session = _session(request)
    with watch_memory() as watch:
        session.load()
        generate(session, synthetic_prompt(request.workload, session.vocab_size), request.workload.new_tokens)
    return Reply(
        before_bytes=watch.before_bytes,
        peak_bytes=watch.peak_bytes,
        device_peak_bytes=session.device_peak_bytes,
        versions=_versions(request),
    )


def _versions(request: Request) -> dict[str, str]:
    from prune_export.benchmark.runtimes import find_model

    runtime = find_model(Path(request.directory)).runtime
    return versions_of([*runtime.packages, *([runtime.pipeline_package] if request.through == "genai" else [])])


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Package name to version, Python's own included."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


if __name__ == "__main__":
    sys.exit(main())
