"""The timed loop, on a session without a model."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest

from prune_export.benchmark import timing
from prune_export.benchmark.timing import generate, synthetic_prompt, time_session
from prune_export.target import Workload


class Counter:
    """A session whose next token is the last one plus one; keeps what it was asked."""

    vocab_size = 50
    load_s = 0.0

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[list[int]]]] = []
        self.collecting: set[bool] = set()

    def load(self) -> None: ...

    def reset(self) -> None:
        self.calls.append(("reset", []))

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        return self._answer("prefill", ids)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        return self._answer("decode", ids)

    def touch(self) -> None:
        self.calls.append(("touch", []))

    def _answer(self, kind: str, ids: np.ndarray) -> np.ndarray:
        self.calls.append((kind, ids.tolist()))
        self.collecting.add(gc.isenabled())
        logits = np.eye(self.vocab_size, dtype=np.float32)[(ids[:, -1:] + 1) % self.vocab_size]
        return np.asarray(logits)


def test_generation_is_greedy_and_exactly_as_long_as_asked() -> None:
    session = Counter()
    marks = generate(session, np.array([[3, 7], [1, 20]]), 4)
    assert session.calls == [
        ("reset", []),
        ("prefill", [[3, 7], [1, 20]]),
        ("decode", [[8], [21]]),
        ("decode", [[9], [22]]),
        ("decode", [[10], [23]]),
    ]
    assert len(marks) == 5
    assert marks == sorted(marks)


def test_the_prompt_is_the_same_each_time_and_within_the_vocabulary() -> None:
    workload = Workload(2, 300, 2)
    prompt = synthetic_prompt(workload, 50)
    assert prompt.shape == (2, 300)
    assert (prompt.min(), prompt.max()) == (0, 49)
    np.testing.assert_array_equal(prompt, synthetic_prompt(workload, 50))


def test_samples_are_counted_without_the_warm_up_and_without_garbage_collection() -> None:
    session = Counter()
    samples = time_session(session, Workload(1, 4, 6, warmup=2, repeats=1), repeats=3)
    assert (len(samples.ttft_s), len(samples.itl_s)) == (3, 3 * 5)
    assert [kind for kind, _ in session.calls].count("reset") == 2 + 3
    assert min(samples.ttft_s + samples.itl_s) > 0
    # On during warm-up, off while timing, on again afterwards.
    assert session.collecting == {True, False}
    assert gc.isenabled()


def test_a_turn_takes_up_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first turn is a warm-up beside others, the second one alone; in the others no token is lost or repeated."""
    monkeypatch.setattr(timing, "_WAKE_S", 0.0)
    session = Counter()
    counts = iter((6, 6, 1, 3, 4, 10, 0))
    told: list[float] = []

    def turn(once_s: float) -> int:
        told.append(once_s)
        return next(counts)

    samples = time_session(session, Workload(2, 4, 6, warmup=2, repeats=1), repeats=9, turn=turn)
    assert (len(samples.ttft_s), len(samples.itl_s)) == (3, 3 * 5)
    assert min(samples.ttft_s + samples.itl_s) > 0
    calls = [kind for kind, _ in session.calls]
    whole = ["reset", "prefill", *["decode"] * 5]
    timed = calls[3 * len(whole) :]
    assert calls[: 3 * len(whole)] == whole * 3
    assert [kind for kind in timed if kind != "touch"] == whole * 3
    turns = " ".join(timed).replace("decode", "d").split("touch")[1:]
    assert [turn.split() for turn in turns] == [
        ["reset", "prefill"],
        ["d"] * 3,
        ["d", "d", "reset", "prefill", "d"],
        [*["d"] * 4, "reset", "prefill", *["d"] * 5],
    ]
    asked = [ids[0][0] for kind, ids in session.calls if kind == "decode"]
    assert (
        asked == [(asked[0] + step) % Counter.vocab_size for step in range(5)] * 6
    )  # each generation goes on from its own last token
    assert told[0] == 0
    assert min(told[1:]) > 0


def test_before_a_turn_is_timed_the_session_computes_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now) / 1000)
    monkeypatch.setattr(timing, "_WAKE_S", 0.0035)
    session = Counter()
    counts = iter((3, 3, 3, 0))
    time_session(session, Workload(1, 4, 3, warmup=1, repeats=1), repeats=None, turn=lambda _: next(counts))
    assert [kind for kind, _ in session.calls].count("touch") == 4


def test_without_a_turn_a_session_is_timed_at_once() -> None:
    session = Counter()
    samples = time_session(session, Workload(1, 4, 6, warmup=1, repeats=1), repeats=3, turn=lambda _: 0)
    assert len(samples.ttft_s) == 3
    assert [len(ids[0]) for kind, ids in session.calls if kind == "prefill"] == [4] * 4


@pytest.mark.parametrize(
    ("once_s", "new_tokens", "least", "samples", "repeats"),
    [
        (0.01, 128, 3, 0, 100),  # 1.5 s, but no more than 100
        (0.5, 128, 1, 360, 3),  # 1.5 s
        (0.4, 128, 1, 360, 4),
        (0.65, 31, 3, 360, 12),  # 7.8 s
        (0.65, 31, 3, 72, 3),
        (0.7, 10, 3, 360, 12),  # would take 28 s: 8 s
        (10.0, 64, 3, 360, 3),  # what the workload asks for
        (0.02, 8, 200, 360, 200),
    ],
)
def test_requests_are_repeated_until_a_process_has_samples_enough(
    once_s: float, new_tokens: int, least: int, samples: int, repeats: int
) -> None:
    assert timing.repeats_for(once_s, Workload(1, 4, new_tokens, repeats=least), samples) == repeats


def test_a_percentile_wants_thirty_six_samples_beyond_it() -> None:
    workload = Workload(1, 4, 11)
    assert [timing.samples_for("tpot", statistic, workload) for statistic in ("p50", "p90", "p99")] == [72, 360, 3600]
    assert timing.samples_for("ttft", "p50", workload) == 72 * 10


def test_without_a_number_of_repeats_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "repeats_for", lambda once_s, workload, samples: workload.repeats + 2)
    samples = time_session(Counter(), Workload(1, 4, 3, warmup=0, repeats=5), repeats=None)
    assert len(samples.ttft_s) == 7
