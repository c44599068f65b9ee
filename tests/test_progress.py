import io
import time

import pytest

from prune_export.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_a_phase() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    with progress.phase("outer"), progress.phase("inner"):
        progress.update(1, 2, "half")
    progress.note("note: said")
    assert stream.getvalue() == "inner  0:00\nouter  0:00\nnote: said\n"
    assert set(progress.timings_s) == {"outer", "inner"}


def test_quiet_says_nothing_but_keeps_the_timings() -> None:
    stream = io.StringIO()
    progress = Progress(quiet=True, stream=stream)
    with progress.phase("work"):
        progress.note("note")
    assert stream.getvalue() == ""
    assert progress.timings_s["work"] >= 0


def test_a_terminal_shows_the_share_and_the_remaining_time() -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    with progress.phase("work"):
        progress.update(1, 2, "block 3")
        time.sleep(0.6)
    assert "work   50%, 0:0" in stream.getvalue()
    assert "left  block 3" in stream.getvalue()
    assert stream.getvalue().endswith("work  0:01\n")


def test_the_next_phase_of_a_kind_is_expected_to_take_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.phase("dense: exporting"):
        now[0] = 70.0
    with progress.phase("pruned-1: exporting"):
        now[0] = 80.0
        time.sleep(0.6)
    assert "pruned-1: exporting  0:10, about 1:00 left" in stream.getvalue()


def test_an_error_leaves_no_half_line() -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    with pytest.raises(ValueError, match="inside"), progress.phase("work"):
        raise ValueError("inside")
    assert stream.getvalue().endswith("\r\x1b[2K")
    assert progress.timings_s == {}
