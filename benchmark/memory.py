"""Peak resident memory of this process and its children."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_INTERVAL_S = 0.01
_STATUS = Path("/proc/self/status")


@dataclass
class MemoryWatch:
    """Filled when the watched block ends.

    Attributes:
        before_bytes: resident memory when the block began, children included.
        peak_bytes: the most since then.
    """

    before_bytes: int = 0
    peak_bytes: int = 0


@contextmanager
def watch_memory() -> Iterator[MemoryWatch]:
    """Samples the process tree every 10 ms while the block runs, and takes the kernel's own peak where it keeps one.

    The kernel's figure is VmHWM: `getrusage`'s ru_maxrss survives exec, so that a worker started by a large process
    would report its parent's memory.
    """
    watch = MemoryWatch(before_bytes=_tree_bytes())
    watch.peak_bytes = watch.before_bytes
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(_INTERVAL_S):
            watch.peak_bytes = max(watch.peak_bytes, _tree_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield watch
    finally:
        stop.set()
        sampler.join()
        watch.peak_bytes = max(watch.peak_bytes, _tree_bytes(), _kernel_peak())


def _tree_bytes() -> int:
    process = psutil.Process()
    total: int = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _kernel_peak() -> int:
    if not _STATUS.is_file():
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
