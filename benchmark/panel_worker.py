"""Several models in one process, timed turn by turn: `python -m prune_export.benchmark.panel_worker`.

For ratios between models that nobody delivers, such as the stacks of a latency table: they take turns within seconds,
so the machine is the same for all, and none waits for another to load.  What is claimed of an artifact is measured in a
process of its own (`benchmark.worker`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from prune_export.benchmark.affinity import pin
from prune_export.benchmark.child import Report, answer
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.timing import generate, no_collection, synthetic_prompt
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
    """

    directories: tuple[str, ...]
    precision: str
    threads: int
    device: str
    workload: Workload
    seconds: float


@dataclass(frozen=True)
class PanelReply:
    """What a panel found.

    Attributes:
        ttft_s: of each model, the time to first token of each turn.
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
    for session in sessions:
        generate(session, prompt, work.new_tokens)
    ttft: list[list[float]] = [[] for _ in sessions]
    tpot: list[list[float]] = [[] for _ in sessions]
    tokens: list[list[float]] = [[] for _ in sessions]
    turns = list(range(len(sessions)))
    with no_collection():
        while len(ttft[0]) < _LEAST_TURNS or time.monotonic() - begun < request.seconds:
            for index in turns:
                marks = generate(sessions[index], prompt, work.new_tokens)
                ttft[index].append(marks[1] - marks[0])
                tokens[index] += (found := [later - earlier for earlier, later in pairwise(marks[1:])])
                tpot[index].append(median(found))
            turns.reverse()  # there and back: no model is always the one after the largest
    versions = versions_of(find_model(Path(request.directories[0])).runtime.packages)
    reply = PanelReply(tuple(map(tuple, ttft)), tuple(map(tuple, tpot)), versions, tuple(map(tails_of, tokens)))
    written: dict[str, Any] = to_json(reply)
    return written


if __name__ == "__main__":
    sys.exit(main())
