"""The test runner goes on after a crash of native code, and does not hide what it saw."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CRASH = """
import os, signal
from pathlib import Path
import pytest

def test_before():
    pass

@pytest.mark.{mark}
def test_dies():
    mark = Path(__file__).with_name("died")
    if not mark.exists() or {always}:
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)

@pytest.mark.{mark}
def test_after():
    assert {good}
"""


def run(
    folder: Path, *arguments: str, mark: str = "together", always: bool = False, good: bool = True
) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    together\n    alone\n")
    (folder / "test_crash.py").write_text(CRASH.format(mark=mark, always=always, good=good))
    command = [sys.executable, str(ROOT / "tools" / "run_tests.py"), "-q", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("mark", ["together", "alone"])
def test_a_crash_is_named_and_the_rest_runs(tmp_path: Path, mark: str) -> None:
    done = run(tmp_path, mark=mark)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "died" in done.stdout
    assert done.stdout.count(" in test_crash.py::test_dies\n") == 1
    # xdist gives the second chance itself, and reports both.
    ran = {"together": "1 failed, 3 passed", "alone": "2 passed, 1 deselected"}[mark]
    assert ran in done.stdout, done.stdout


@pytest.mark.parametrize("mark", ["together", "alone"])
def test_a_second_crash_and_a_failure_are_not_hidden(tmp_path: Path, mark: str) -> None:
    twice = run(tmp_path, mark=mark, always=True)
    assert twice.returncode == 1
    assert twice.stdout.count(" in test_crash.py::test_dies\n") == (2 if mark == "alone" else 1), twice.stdout
    (tmp_path / "died").unlink()
    failed = run(tmp_path, mark=mark, good=False)
    assert failed.returncode == 1
    assert "FAILED test_crash.py::test_after" in failed.stdout


def test_a_selection_that_one_part_alone_has_passes_and_an_empty_one_does_not(tmp_path: Path) -> None:
    assert run(tmp_path, "-k", "before").returncode == 0
    assert run(tmp_path, "-k", "after", mark="alone").returncode == 0
    assert run(tmp_path, "-k", "nothing").returncode == 5
    (tmp_path / "test_broken.py").write_text("import that_is_not_there\n")
    assert run(tmp_path, "-k", "before").returncode not in (0, 5)
