"""Progress on standard error: phases with elapsed and remaining time.

On a terminal the current line is redrawn; elsewhere a line is printed at each phase's end, so logs stay short.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from prune_export.units import format_clock

_REDRAW_S = 0.2


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
        self._phase = ""
        self._begun = 0.0
        self._drawn = 0.0
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Progress]:
        """Times one phase and prints one line when it ends. Phases nest; an inner one shows instead of the outer."""
        outer = (self._phase, self._begun)
        self._phase, self._begun = name, time.monotonic()
        self._draw(f"{name} ...")
        try:
            yield self
        except BaseException:
            self._clear()
            raise
        else:
            spent = time.monotonic() - self._begun
            self.timings_s[name] = self.timings_s.get(name, 0.0) + spent
            self._finish(f"{name}  {format_clock(spent)}")
        finally:
            self._phase, self._begun = outer

    def update(self, done: float, total: float, detail: str = "") -> None:
        """Redraws the current phase's line: share done, remaining time, and `detail`."""
        now = time.monotonic()
        if not self._live or now - self._drawn < _REDRAW_S:
            return
        share = min(1.0, done / total) if total > 0 else 0.0
        left = f", {format_clock((now - self._begun) * (1 - share) / share)} left" if share > 0.02 else ""
        self._draw(f"{self._phase}  {share:4.0%}{left}  {detail}".rstrip())

    def note(self, line: str) -> None:
        """Prints a line that stays."""
        if not self._quiet:
            self._clear()
            print(line, file=self._stream, flush=True)

    def _finish(self, line: str) -> None:
        if not self._quiet:
            self._clear()
            print(line, file=self._stream, flush=True)

    def _draw(self, line: str) -> None:
        if self._live:
            self._drawn = time.monotonic()
            print(f"\r\x1b[2K{line[:150]}", end="", file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", file=self._stream, flush=True)
