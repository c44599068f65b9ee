"""Starts a measuring worker and brings back its reply or one clear line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import mean

from prune_export.benchmark.child import Child, converse
from prune_export.benchmark.huge_pages import with_huge_pages
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest
from prune_export.benchmark.threads import checked_threads
from prune_export.benchmark.timing import repeats_for, stretches
from prune_export.benchmark.worker import Reply, Request
from prune_export.profiles import DeviceProfile
from prune_export.records import from_json, to_json
from prune_export.target import Workload

_WORKER = "prune_export.benchmark.worker"
_PANEL = "prune_export.benchmark.panel_worker"
# The parts of a process's samples that are compared with another's parts of the same time.
_MOST_TURNS = 6


def run_worker(request: Request) -> Reply:
    """Runs one request in a fresh process.

    Raises:
        PruneExportError: what the worker raised, or that it died; then with the last line that it printed.
    """
    with _worker(request) as worker:
        return _reply(worker)


def turns_of(repeats: int) -> int:
    """Into how many parts the samples of processes that repeat so often are cut."""
    return min(_MOST_TURNS, repeats)


def run_in_turns(requests: Sequence[Request], tell: Callable[[float], None], turns: int | None = None) -> list[Reply]:
    """Runs several requests in a fresh process each; all are loaded, warmed up side by side, then in turns, and timed
    in turns: some tokens of the one, as many of the next (`stretches`), so that what slows the machine slows all alike.

    Every other time the order is the other way round.

    Args:
        requests: to time, all of one workload; all repeat as often as the one that needs it most.
        tell: is told the share done.
        turns: into how many parts to cut the samples; None for `turns_of` the repeats.

    Raises:
        PruneExportError: as `run_worker`.
    """
    new_tokens = requests[0].workload.new_tokens
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(request)) for request in requests[:1]]
        for request in requests[1:]:  # none loads beside another
            workers[-1].wait()
            workers.append(stack.enter_context(_worker(request)))
        workers[-1].wait()
        # Where first inferences ran one after the other, the first of two processes with the same model was 4% slower
        # ever after (what they allocate may differ in quality); side by side neither is favoured.
        for worker in workers:
            worker.begin(new_tokens)
        for worker in workers:
            worker.wait()
        # The second warm-up tells how long one takes alone; what waited while another was loaded needs it as well.
        once_s = [worker.turn(new_tokens) for worker in workers]
        repeats = max(
            request.repeats or repeats_for(once, request.workload, request.samples)
            for request, once in zip(requests, once_s, strict=True)
        )
        interruptible = all(request.through == "session" for request in requests)
        parts = stretches(new_tokens, mean(once_s) / new_tokens, interruptible=interruptible)
        order = list(workers)
        for repeat in range(repeats):
            tell(repeat / repeats)
            for tokens in parts:
                for worker in order:
                    worker.turn(tokens)
                order.reverse()
        return [replace(_reply(worker), turns=turns or turns_of(repeats)) for worker in workers]


def _worker(request: Request) -> Child:
    return Child(_WORKER, to_json(request), subject=f"measuring {request.directory}")


def _reply(worker: Child) -> Reply:
    return from_json(Reply, worker.result(), where="worker reply")


def panel_request(
    directories: Iterable[Path],
    *,
    profile: DeviceProfile,
    workload: Workload,
    precision: str,
    threads: int,
    seconds: float,
    huge_pages: bool = True,
) -> PanelRequest:
    """A request on a profile's device.

    Args:
        directories, workload, precision, seconds, huge_pages: as in `PanelRequest`.
        profile: names the device.
        threads: of the runtime; 0 takes the profile's.

    Raises:
        BadInputError: more threads than cores.
    """
    return PanelRequest(
        directories=tuple(map(str, directories)),
        precision=precision,
        threads=checked_threads(threads or profile.threads),
        device=profile.device,
        workload=workload,
        seconds=seconds,
        huge_pages=huge_pages,
    )


def run_panel(request: PanelRequest) -> PanelReply:
    """Runs several models turn by turn in a fresh process.

    Raises:
        PruneExportError: as `run_worker`.
    """
    subject = f"measuring {', '.join(request.directories)}"
    environment = with_huge_pages(os.environ) if request.huge_pages else None
    found = converse(_PANEL, to_json(request), subject=subject, environment=environment)
    return from_json(PanelReply, found, where="panel reply")
