"""The timed generation loop."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prune_export.benchmark.session import Pipeline, Session, Tokens
from prune_export.target import Workload

# A process times at least this long, so that a model of half a millisecond a token still gives many samples.
_MIN_TIMED_S = 1.5
_MAX_REPEATS = 100
# Takes the seconds of a repeat, 0 before the warm-up, and gives how often to repeat now; 0: no (further) turn.
Turn = Callable[[float], int]
_PROMPT_SEED = 20260714


@dataclass(frozen=True)
class Samples:
    """Raw timings of one process.

    Attributes:
        ttft_s: time to first token of each repeat.
        itl_s: every inter-token latency, repeat after repeat.
    """

    ttft_s: tuple[float, ...]
    itl_s: tuple[float, ...]


def synthetic_prompt(workload: Workload, vocab_size: int) -> Tokens:
    """Random token ids [B, T] from a fixed seed: latency does not depend on which tokens they are."""
    generator = np.random.default_rng(_PROMPT_SEED)
    return generator.integers(0, vocab_size, (workload.batch, workload.prompt_tokens), dtype=np.int64)


def generate(session: Session | Pipeline, prompt: Tokens, new_tokens: int) -> list[float]:
    """Greedy generation of exactly `new_tokens` tokens; the times (s) at the start and after each token.

    A token counts as there when its id is known: choosing it is part of the latency, as in a server.
    """
    if isinstance(session, Pipeline):
        return session.generate(prompt, new_tokens)
    session.reset()
    marks = [0.0] * (new_tokens + 1)
    clock = time.perf_counter
    marks[0] = clock()
    token = session.prefill(prompt)[:, -1].argmax(axis=-1, keepdims=True)
    marks[1] = clock()
    for step in range(2, new_tokens + 1):
        token = session.decode(token)[:, -1].argmax(axis=-1, keepdims=True)
        marks[step] = clock()
    return marks


def time_session(
    session: Session | Pipeline, workload: Workload, *, repeats: int | None, turn: Turn | None = None
) -> Samples:
    """Warm-up, then timed repeats.

    Args:
        session: loaded.
        workload: what to run; its `repeats` is the least number of repeats.
        repeats: exact number of repeats, or None to choose one that times about 1.5 s; where `turn` gives turns it
            decides.
        turn: where others are timed in between: waits until it is this session's turn; the first one is a warm-up
            beside the others, the second one alone.
    """
    prompt = synthetic_prompt(workload, session.vocab_size)
    ttft: list[float] = []
    itl: list[float] = []

    def once() -> float:
        marks = generate(session, prompt, workload.new_tokens)
        ttft.append(marks[1] - marks[0])
        itl.extend(later - earlier for earlier, later in pairwise(marks[1:]))
        return marks[-1] - marks[0]

    in_turns = turn is not None and turn(0.0) > 0
    if in_turns:
        assert turn is not None
        turn(once())
    once_s = math.inf
    for _ in range(max(workload.warmup, int(in_turns))):
        once_s = min(once_s, once())
    ttft.clear()
    itl.clear()
    with no_collection():
        if in_turns:
            assert turn is not None
            while count := turn(once_s):
                # What ran in between has the caches, and threads that waited for long sleep: a token untimed.
                generate(session, prompt[:, :1], 1)
                for _ in range(count):
                    once()
        else:
            once_s = once()
            for _ in range((repeats or repeats_for(once_s, workload.repeats)) - 1):
                once()
    return Samples(tuple(ttft), tuple(itl))


def repeats_for(once_s: float, least: int) -> int:
    """How often to repeat what takes `once_s`, so that a process times about 1.5 s: at least `least`, at most 100."""
    return max(least, min(_MAX_REPEATS, math.ceil(_MIN_TIMED_S / max(once_s, 1e-9))))


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection while timing; it would land in some token's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
