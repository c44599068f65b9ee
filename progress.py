"""Progress on standard error: phases with elapsed and remaining time.

On a terminal the current line is redrawn; elsewhere a line is printed at each phase's end, so logs stay short.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from prune_export.units import format_clock

_REDRAW_S = 0.25
_WIDTH = 150
# A share below this says too little about the rest.
_SMALL_SHARE = 0.02


@dataclass
class _Phase:
    """A phase at work; `expected_s` is 0 where nothing is known of its length."""

    name: str
    begun: float
    expected_s: float
    share: float = 0.0
    detail: str = ""

    def line(self, now: float) -> str:
        """What the screen shows: share done and remaining time where known, else elapsed time."""
        spent = now - self.begun
        if self.share > _SMALL_SHARE:
            left = format_clock(spent * (1 - self.share) / self.share)
            return f"{self.name}  {self.share:4.0%}, {left} left  {self.detail}".rstrip()
        if self.expected_s > spent:
            return f"{self.name}  {format_clock(spent)}, about {format_clock(self.expected_s - spent)} left"
        return f"{self.name}  {format_clock(spent)}  {self.detail}".rstrip()


class Progress:
    """Where phases report to.

    Args:
        quiet: print nothing.
        stream: standard error unless told.

    Attributes:
        timings_s: phase to the seconds that it took, summed over repetitions.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream if stream is not None else sys.stderr
        self._live = not quiet and self._stream.isatty()
        self._phases: list[_Phase] = []
        self._lock = threading.Lock()
        self._ticker: threading.Thread | None = None
        self._last_s: dict[str, float] = {}
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, *, expected_s: float = 0.0) -> Iterator[Progress]:
        """Times one phase and prints one line when it ends.

        Phases nest; an inner one shows instead of the outer.

        Args:
            name: what the screen says; "dense: exporting" and "pruned: exporting" are of one kind, and the time that
                the last phase of a kind took is what the next one is expected to take.
            expected_s: what to expect of the first of its kind, 0 if nothing is known.
        """
        kind = name.rpartition(": ")[2]
        current = _Phase(name, time.monotonic(), self._last_s.get(kind, expected_s))
        with self._lock:
            self._phases.append(current)
        self._start_ticker()
        try:
            yield self
        except BaseException:
            self._end(current, finished=False)
            raise
        self._last_s[kind] = time.monotonic() - current.begun
        self.timings_s[name] = self.timings_s.get(name, 0.0) + self._last_s[kind]
        self._end(current, finished=True)

    @property
    def current(self) -> str:
        """Name of the innermost phase at work, empty between phases."""
        with self._lock:
            return self._phases[-1].name if self._phases else ""

    def update(self, done: float, total: float, detail: str = "") -> None:
        """Tells how much of the current phase is done, and what it is at."""
        with self._lock:
            if self._phases and total > 0:
                self._phases[-1].share = min(1.0, done / total)
                self._phases[-1].detail = detail

    def note(self, line: str) -> None:
        """Prints a line that stays."""
        if not self._quiet:
            with self._lock:
                self._clear()
                print(line, file=self._stream, flush=True)

    def _end(self, phase: _Phase, *, finished: bool) -> None:
        with self._lock:
            self._phases.remove(phase)
            self._clear()
            if finished and not self._quiet:
                took = format_clock(time.monotonic() - phase.begun)
                print(f"{phase.name}  {took}", file=self._stream, flush=True)

    def _start_ticker(self) -> None:
        if self._live and (self._ticker is None or not self._ticker.is_alive()):
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()

    def _tick(self) -> None:
        """Redraws until no phase is left."""
        while True:
            with self._lock:
                if not self._phases:
                    return
                self._clear()
                line = self._phases[-1].line(time.monotonic())
                print(line[:_WIDTH], end="", file=self._stream, flush=True)
            time.sleep(_REDRAW_S)

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", file=self._stream, flush=True)
