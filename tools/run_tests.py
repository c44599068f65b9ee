"""Runs pytest so that a crash of native code names its test and does not take the others with it.

    python tools/run_tests.py -m "not slow"

torch, OpenVINO and ONNX Runtime each bring their own thread pools; when one of them kills the process, the test that
was running is named, the remaining ones run in a new process, and it gets a second chance there.  A test that dies
twice, or any failed test, makes the run fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

LOG = "PRUNE_EXPORT_TEST_LOG"


def main(arguments: list[str]) -> int:
    """Exit code of the run: pytest's own, or 1 where an earlier process failed or a test died twice."""
    died: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        while True:
            environment = {**os.environ, LOG: str(log)}
            code = subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment).returncode
            started, failed = read(log)
            if code >= 0:
                return 1 if failed else code
            last = started[-1] if started else "the collection"
            print(f"\npytest died of {signal.Signals(-code).name} in {last}", flush=True)
            if last in died or not started:
                return 1
            died.append(last)
            with log.open("a", encoding="utf8") as file:
                file.write(f"again {last}\n")


def read(log: Path) -> tuple[list[str], list[str]]:
    """(tests that were started and need not run again, failed tests) of a log."""
    started: list[str] = []
    failed: list[str] = []
    for line in log.read_text(encoding="utf8").splitlines():
        what, _, test = line.partition(" ")
        if what == "start":
            started.append(test)
        elif what == "failed":
            failed.append(test)
        elif what == "again" and test in started:
            started.remove(test)
    return started, failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
