"""What the user asks for: the workload that is timed and the limit that it must meet."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from prune_export.errors import BadInputError, nearest
from prune_export.units import format_bytes, format_duration

Metric = Literal["tpot", "ttft", "total", "memory", "parameters"]
LATENCIES = ("tpot", "ttft", "total")
Statistic = Literal["p50", "p90", "p99"]
_KEYS = {"prompt": "prompt_tokens", "new": "new_tokens", "batch": "batch", "warmup": "warmup", "repeats": "repeats"}


@dataclass(frozen=True)
class Workload:
    """One generation request, greedy, with exactly `new_tokens` new tokens.

    Attributes:
        batch: sequences at once.
        prompt_tokens: length of the prompt.
        new_tokens: tokens generated after it; the first counts towards TTFT, the others towards ITL.
        warmup: untimed repetitions.
        repeats: timed repetitions.
    """

    batch: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 128
    warmup: int = 1
    repeats: int = 3

    def __post_init__(self) -> None:
        if min(self.batch, self.prompt_tokens, self.repeats) < 1 or self.new_tokens < 2 or self.warmup < 0:
            raise ValueError(f"workload needs batch, prompt, repeats of at least 1 and new of at least 2, got {self}")

    def fitted(self, context: int) -> Workload:
        """The same workload with the prompt shortened so that prompt + new fits `context` tokens.

        Raises:
            BadInputError: even a prompt of one token does not fit.
        """
        room = context - self.new_tokens
        if room < 1:
            raise BadInputError(
                f"workload asks for {self.new_tokens} new tokens, the model's context is {context}: "
                f"use --workload new={context // 2} or less"
            )
        return replace(self, prompt_tokens=min(self.prompt_tokens, room))

    def __str__(self) -> str:
        return f"prompt={self.prompt_tokens},new={self.new_tokens},batch={self.batch}"


@dataclass(frozen=True)
class Target:
    """A limit on one figure of the delivered artifact.

    Attributes:
        metric: what is limited. Times are seconds, memory is bytes, parameters is the removed share.
        limit: the limit; None for a speed-up, whose limit follows from the dense measurement.
        statistic: which percentile of the raw samples must meet it.
        speedup: factor against the dense model in the same precision, or None.
    """

    metric: Metric
    limit: float | None
    statistic: Statistic = "p90"
    speedup: float | None = None

    def __post_init__(self) -> None:
        if (self.limit is None) == (self.speedup is None):
            raise ValueError("a target has either a limit or a speed-up")

    def __str__(self) -> str:
        if self.speedup is not None:
            return f"{self.metric} {self.statistic} at least {self.speedup:g}x faster than dense"
        assert self.limit is not None
        if self.metric == "parameters":
            return f"{self.limit:.1%} of the parameters removed"
        if self.metric == "memory":
            return f"memory <= {format_bytes(self.limit)}"
        return f"{self.metric} {self.statistic} <= {format_duration(self.limit)}"


def parse_workload(text: str) -> Workload:
    """A workload from "prompt=512,new=128,batch=1"; missing keys keep their defaults.

    Raises:
        BadInputError: unknown key (with the nearest known one), no whole number, or out of range.
    """
    values: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
        if match is None:
            raise BadInputError(f'workload "{text}": "{part}" is not key=number, e.g. prompt=512,new=128,batch=1')
        if match[1] not in _KEYS:
            raise BadInputError(
                f'workload "{text}": unknown key "{match[1]}"{nearest(match[1], _KEYS)}: use {", ".join(_KEYS)}'
            )
        if _KEYS[match[1]] in values:
            raise BadInputError(f'workload "{text}": "{match[1]}" is there twice: give it once')
        values[_KEYS[match[1]]] = int(match[2])
    try:
        return Workload(**values)
    except ValueError as error:
        raise BadInputError(f'workload "{text}": {error}') from None
