"""The timed generation loop."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prune_export.benchmark.session import Pipeline, Session, Tokens
from prune_export.target import Statistic, Workload

# A process times at least this long, so that a model of half a millisecond a token still gives many samples.
_MIN_TIMED_S = 1.5
# And for so many samples beyond a percentile, unless that takes too long: a p90 of 93 tokens scattered from round to
# round by 4.6%, of 372 by 2.4%, and the rounds took 13 s and 33 s, 6 s of either without timing (docs/devices.md).
_SAMPLES_BEYOND = 36
_ENOUGH_S = 8.0
_MAX_REPEATS = 100
# What disturbs a shared machine lasts a tenth of a second or more, so those that are compared change places after this
# time: on two virtual cores ratios scatter a half to an eighth as much as after turns of a second (docs/devices.md).
_STRETCH_S = 0.04
# Each stretch begins with a token untimed: of shorter ones that would be most.
_LEAST_STRETCH = 2
# Computing for so long before a turn is timed: after a rest, tokens of 2 ms were up to 60% slower at first and took ten
# to twenty milliseconds to settle, which a p90 would be of; those of 20 ms not at all after the first.
_WAKE_S = 0.015
# Takes the seconds of a repeat, 0 before the warm-up, and gives how many tokens to generate now; 0: no (further) turn.
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
    return _tokens(session, prompt, new_tokens, begins=True)[0]


def time_session(
    session: Session | Pipeline,
    workload: Workload,
    *,
    repeats: int | None,
    samples: int = 0,
    turn: Turn | None = None,
) -> Samples:
    """Warm-up, then timed repeats.

    Args:
        session: loaded.
        workload: what to run; its `repeats` is the least number of repeats.
        repeats: exact number of repeats, or None for `repeats_for`; where `turn` gives turns it decides.
        samples: of later tokens, as in `repeats_for`.
        turn: where others are timed in between: waits until it is this session's turn; the first one is a warm-up
            beside the others, the second one alone, of whole repeats; in the others no token is lost.
    """
    prompt = synthetic_prompt(workload, session.vocab_size)
    if turn is not None and turn(0.0) > 0:
        return _time_in_turns(session, prompt, workload, turn)
    for _ in range(workload.warmup):
        generate(session, prompt, workload.new_tokens)
    with no_collection():
        found = [generate(session, prompt, workload.new_tokens)]
        further = (repeats or repeats_for(found[0][-1] - found[0][0], workload, samples)) - 1
        found += [generate(session, prompt, workload.new_tokens) for _ in range(further)]
    return _samples(found)


def _time_in_turns(session: Session | Pipeline, prompt: Tokens, workload: Workload, turn: Turn) -> Samples:
    marks = generate(session, prompt, workload.new_tokens)
    turn(marks[-1] - marks[0])
    once_s = math.inf
    for _ in range(max(workload.warmup, 1)):
        marks = generate(session, prompt, workload.new_tokens)
        once_s = min(once_s, marks[-1] - marks[0])
    generations = Generations(session, prompt, workload.new_tokens)
    with no_collection():
        while count := turn(once_s):
            generations.go_on(count)
    return generations.samples()


class Generations:
    """Generation after generation of one session, some tokens at a time, others' in between.

    Args:
        session: loaded and warmed up.
        prompt: [B, T].
        new_tokens: of each generation.

    Attributes:
        interruptible: else `go_on` takes whole generations alone.
    """

    def __init__(self, session: Session | Pipeline, prompt: Tokens, new_tokens: int) -> None:
        self._session, self._prompt, self._new_tokens = session, prompt, new_tokens
        self._last = prompt
        # Of each generation the times (s) at the start and after each token, waiting left out.
        self._marks: list[list[float]] = []
        self.interruptible = not isinstance(session, Pipeline)

    @property
    def count(self) -> int:
        """Generations so far."""
        return len(self._marks)

    def samples(self) -> Samples:
        """Of all tokens so far."""
        return _samples(self._marks)

    def go_on(self, count: int) -> None:
        """Generates the next `count` tokens."""
        if isinstance(self._session, Pipeline):
            # What ran in between has the caches, and threads that waited for long sleep: a token untimed.
            self._session.generate(self._prompt[:, :1], 1)
            whole = count // self._new_tokens
            self._marks += [self._session.generate(self._prompt, self._new_tokens) for _ in range(whole)]
            return
        _wake(self._session)
        while count:
            begins = not self._marks or len(self._marks[-1]) > self._new_tokens
            if begins:
                self._session.reset()
                self._last = self._prompt
                self._marks.append([0.0])
            known = self._marks[-1]
            part = min(count, self._new_tokens + 1 - len(known))
            marks, self._last = _tokens(self._session, self._last, part, begins=begins)
            known += [known[-1] + mark - marks[0] for mark in marks[1:]]
            count -= part


def stretches(new_tokens: int, token_s: float, *, interruptible: bool = True) -> list[int]:
    """How many tokens of a generation follow each other before it is another's turn: the first token, then about as
    many as take `_STRETCH_S`.

    Args:
        new_tokens: of a generation.
        token_s: how long one takes.
        interruptible: else the whole generation is one stretch.
    """
    if not interruptible:
        return [new_tokens]
    size = max(_LEAST_STRETCH, round(_STRETCH_S / max(token_s, 1e-9)))
    return [1, *(min(size, new_tokens - begin) for begin in range(1, new_tokens, size))]


def _wake(session: Session) -> None:
    awake = time.perf_counter() + _WAKE_S
    while True:
        session.touch()
        if time.perf_counter() >= awake:
            return


def _tokens(session: Session, ids: Tokens, count: int, *, begins: bool) -> tuple[list[float], Tokens]:
    """The times at the start and after each of `count` tokens, and the last one's ids [B, 1].

    Args:
        session: what generates.
        ids: the prompt [B, T] where the generation begins, else the last token [B, 1].
        count: how many tokens.
        begins: whether the first of them is the prompt's.
    """
    marks = [0.0] * (count + 1)
    clock = time.perf_counter
    marks[0] = clock()
    if begins:
        ids = session.prefill(ids)[:, -1].argmax(axis=-1, keepdims=True)
        marks[1] = clock()
    for step in range(1 + begins, count + 1):
        ids = session.decode(ids)[:, -1].argmax(axis=-1, keepdims=True)
        marks[step] = clock()
    return marks, ids


def _samples(repeats: Iterable[Sequence[float]]) -> Samples:
    """From the times at the start and after each token of each repeat."""
    ttft: list[float] = []
    itl: list[float] = []
    for marks in repeats:
        first, *others = (later - earlier for earlier, later in pairwise(marks))
        ttft.append(first)
        itl += others
    return Samples(tuple(ttft), tuple(itl))


def repeats_for(once_s: float, workload: Workload, samples: int) -> int:
    """How often a process repeats a workload: for so many samples, but no shorter than 1.5 s and no longer than 8 s;
    at least the workload's own `repeats`, at most 100.

    Args:
        once_s: how long it takes.
        workload: that is repeated.
        samples: of later tokens; a repeat has one less than new tokens.
    """
    wanted_s = min(max(samples / (workload.new_tokens - 1) * once_s, _MIN_TIMED_S), _ENOUGH_S)
    return max(workload.repeats, min(_MAX_REPEATS, math.ceil(wanted_s / max(once_s, 1e-9) - 1e-9)))


def samples_for(metric: str, statistic: Statistic, workload: Workload) -> int:
    """How many samples of later tokens a process needs for a percentile of a metric: 36 of the metric beyond it.

    Args:
        metric: "tpot", which every later token is a sample of, or another, which has one a repeat.
        statistic: p50, p90 or p99.
        workload: that is repeated.
    """
    wanted = math.ceil(_SAMPLES_BEYOND / (1 - int(statistic[1:]) / 100) - 1e-9)
    return wanted if metric == "tpot" else wanted * (workload.new_tokens - 1)


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection while timing; it would land in some token's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
