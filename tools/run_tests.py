"""Runs pytest in several processes, so that a crash of native code names its test and does not take others with it.

    python tools/run_tests.py -m "not slow"

Files of tests are spread over as many processes as there are CPUs, eight at most; tests marked `alone`, which measure
time or memory, follow in one process.  torch, OpenVINO and ONNX Runtime each bring their own thread pools; when one of
them kills a process, the test that was running is named and gets a second chance in a new process.  A test that dies
twice, or any failed test, makes the run fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

LOG = "PRUNE_EXPORT_TEST_LOG"  # where tests/conftest.py notes what starts, fails and ends
DONE = "PRUNE_EXPORT_TESTS_DONE"  # tests that it leaves out; fixed while a process runs, because xdist compares lists
PART = "PRUNE_EXPORT_TEST_PART"
MOST = 8  # processes: each takes up to 3 GB
PASSED, FAILED, INTERRUPTED, NOTHING = 0, 1, 2, 5  # pytest's exit codes


def main(arguments: list[str]) -> int:
    """Exit code of the run: pytest's own, or 1 where a test failed or died twice."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpus = min(cpus, MOST)
    spread = ["-n", str(cpus), "--dist", "loadfile", "--max-worker-restart", "8"] if cpus > 1 else []
    # Several processes that each compute with as many threads as there are CPUs wait for one another.
    threads = {"OMP_NUM_THREADS": "1"} if spread else {}
    codes = [run_part("together", [*arguments, *spread], threads), run_part("alone", arguments, {})]
    wrong = [code for code in codes if code not in (PASSED, NOTHING)]
    return wrong[0] if wrong else min(codes)


def run_part(part: str, arguments: list[str], defaults: Mapping[str, str]) -> int:
    """Exit code of one part of the tests; `defaults` are of the environment."""
    started: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    failed: set[str] = set()
    while True:
        before = started - ended
        with tempfile.TemporaryDirectory() as folder:
            log, done = Path(folder) / "log", Path(folder) / "done"
            log.touch()
            done.write_text("\n".join(ended), encoding="utf8")
            environment = {**defaults, **os.environ, LOG: str(log), DONE: str(done), PART: part}
            code = subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment).returncode
            noted = read(log)
        started += noted["start"]
        ended += noted["end"]
        failed.update(noted["failed"])
        died = started - ended
        new = died - before
        if code < 0 or new:
            print(f"\n{_cause(code)} in {', '.join(sorted(new)) or 'the collection'}", flush=True)
        if code == INTERRUPTED:
            return code
        if any(count > 1 for count in died.values()) or (code < 0 and not new):
            return FAILED
        if all(test in ended for test in died):  # xdist gives a second chance itself, and still reports a failure
            excused = bool(new) and code == FAILED
            return FAILED if failed else PASSED if excused else code


def read(log: Path) -> dict[str, Counter[str]]:
    """How often which test started, failed and ended."""
    noted: dict[str, Counter[str]] = {"start": Counter(), "failed": Counter(), "end": Counter()}
    for line in log.read_text(encoding="utf8").splitlines():
        what, _, test = line.partition(" ")
        noted[what][test] += 1
    return noted


def _cause(code: int) -> str:
    return f"pytest died of {signal.Signals(-code).name}" if code < 0 else "a process of the tests died"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
