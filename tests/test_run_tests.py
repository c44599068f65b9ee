"""The test runner goes on after a crash of native code, and does not hide what it saw."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CRASH = """
import os, signal
from pathlib import Path

def test_before():
    pass

def test_dies():
    mark = Path(__file__).with_name("died")
    if not mark.exists() or {always}:
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)

def test_after():
    assert {good}
"""


def run(folder: Path, *, always: bool = False, good: bool = True) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_crash.py").write_text(CRASH.format(always=always, good=good))
    command = [sys.executable, str(ROOT / "tools" / "run_tests.py"), "-q", "-p", "no:cacheprovider", "test_crash.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_crash_is_named_and_the_rest_runs(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pytest died of SIGSEGV in test_crash.py::test_dies" in done.stdout
    assert "2 passed, 1 deselected" in done.stdout


def test_a_second_crash_and_a_failure_are_not_hidden(tmp_path: Path) -> None:
    twice = run(tmp_path, always=True)
    assert (twice.returncode, twice.stdout.count("died of SIGSEGV")) == (1, 2)
    (tmp_path / "died").unlink()
    failed = run(tmp_path, good=False)
    assert failed.returncode == 1
    assert "1 failed, 1 passed" in failed.stdout
