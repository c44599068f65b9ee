"""Several models in one process, timed in step: `python -m prune_export.benchmark.panel_worker`.

For ratios between models that nobody delivers, such as the stacks of a latency table: each generates some tokens, then
the next one does (`timing.stretches`), so the machine is the same for all, and none waits for another to load.  What is
claimed of an artifact is measured in a process of its own (`benchmark.worker`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from prune_export.benchmark.affinity import pin
from prune_export.benchmark.child import Report, answer
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.timing import Generations, generate, no_collection, stretches, synthetic_prompt
from prune_export.benchmark.worker import versions_of
from prune_export.manifest import percentile
from prune_export.records import from_json, to_json
from prune_export.target import Workload

_LEAST_TURNS = 2


@dataclass(frozen=True)
class PanelRequest:
    """What a panel is asked for.

    Attributes:
        directories: the models.
        precision: weight precision of all.
        threads: threads of the runtime, 0 for all.
        device: the runtime's name of the device.
        workload: what to run.
        seconds: how long, loading included; every model has two turns at least.
        huge_pages: ask for them: models then differ by what they are, not by the pages they got.
    """

    directories: tuple[str, ...]
    precision: str
    threads: int
    device: str
    workload: Workload
    seconds: float
    huge_pages: bool = True


@dataclass(frozen=True)
class PanelReply:
    """What a panel found.

    Attributes:
        ttft_s: of each model, the time to first token of each turn, a generation.
        tpot_s: of each model, the median time per output token of each turn.
        versions: package name to version.
        token_tails: of each model, the tails of the times of all of its tokens (`tails_of`).
    """

    ttft_s: tuple[tuple[float, ...], ...] = ()
    tpot_s: tuple[tuple[float, ...], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    token_tails: tuple[dict[str, float], ...] = ()


def tails_of(samples: Sequence[float]) -> dict[str, float]:
    """p90 and p99 as multiples of the median."""
    known = tuple(samples)
    middle = percentile(known, 50)
    return {name: percentile(known, share) / middle for name, share in (("p90", 90), ("p99", 99))}


def main() -> int:
    """Runs one request; 0 if a reply was written."""
    return answer(_handle)


def _handle(data: dict[str, Any], _: Report) -> dict[str, Any]:
    begun = time.monotonic()
    request = from_json(PanelRequest, data, where="panel request")
    pin(request.threads, request.device)
    sessions = []
    for directory in map(Path, request.directories):
        session = find_model(directory).runtime.open_session(
            directory,
            precision=request.precision,
            threads=request.threads,
            device=request.device,
            last_token_only=True,
        )
        session.load()
        sessions.append(session)
    work = request.workload
    prompt = synthetic_prompt(work, sessions[0].vocab_size)
    warm_up_s = [marks[-1] - marks[0] for marks in (generate(item, prompt, work.new_tokens) for item in sessions)]
    members = [Generations(session, prompt, work.new_tokens) for session in sessions]
    interruptible = all(member.interruptible for member in members)
    parts = stretches(work.new_tokens, fmean(warm_up_s) / work.new_tokens, interruptible=interruptible)
    order = list(members)
    with no_collection():
        while members[0].count < _LEAST_TURNS or time.monotonic() - begun < request.seconds:
            for count in parts:
                for member in order:
                    member.go_on(count)
                order.reverse()  # there and back: no model is always the one after the largest
    versions = versions_of(find_model(Path(request.directories[0])).runtime.packages)
    found = [member.samples() for member in members]
    size = work.new_tokens - 1
    reply = PanelReply(
        tuple(samples.ttft_s for samples in found),
        tuple(
            tuple(median(samples.itl_s[size * turn : size * (turn + 1)]) for turn in range(len(samples.ttft_s)))
            for samples in found
        ),
        versions,
        tuple(tails_of(samples.itl_s) for samples in found),
    )
    written: dict[str, Any] = to_json(reply)
    return written


if __name__ == "__main__":
    sys.exit(main())
