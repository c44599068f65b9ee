"""Memory bandwidth as decoding uses it: reading, all threads at once, far more bytes than the caches hold.

And how much of the last cache these threads have: a virtual machine is told the whole processor's, and shares it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import psutil

from prune_export.profiles.host import last_cache_bytes

_BYTES = 256 << 20  # a thread
_SHARE = 4  # of the free memory all of them together take one part
_REPEATS = 5
_LEAST_CACHE = 8 << 20
_FASTER = 1.1  # than memory: what is read at such a rate lies in cache for a good part
_READ = 256 << 20  # bytes of a small array that are read for one timing: 8 ms, threads take 0.1 ms to begin
_FILLS = 2  # of a cache that takes what others evict
_ROUNDS = 7


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read together; the best of a few tries, as McCalpin's STREAM counts.

    Args:
        threads: at least 1; each reads 256 MiB of its own, or less where memory is short.
    """
    size = min(_BYTES, psutil.virtual_memory().available // (_SHARE * threads))
    arrays = [np.ones(size // 8, np.int64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_REPEATS):
            started = time.perf_counter()
            # A maximum reads once, writes nothing, runs vectorised and without the interpreter's lock.
            list(pool.map(np.max, arrays))
            best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - started))
    return best


def usable_cache_bytes(threads: int) -> int:
    """How much of the last cache `threads` threads have: the largest array they read faster than memory by a tenth.

    Sizes are doubled from 8 MiB up to what the system reports.  On two virtual cores of a processor with 480 MiB it was
    64 to 128 MiB: 128 MiB are read at 1.05 to 1.1 times the rate of 2 GiB.

    Args:
        threads: at least 1; the array is shared out among them.

    Returns:
        0 where the system reports nothing; what it reports where that is less than 16 MiB, or memory too short to tell.
    """
    reported = last_cache_bytes()
    sizes = [_LEAST_CACHE << step for step in range(32) if _LEAST_CACHE << step <= reported]
    whole = 2 * reported
    if len(sizes) < 2 or whole > psutil.virtual_memory().available // _SHARE:
        return reported
    array = np.ones(whole // 8, np.int64)
    found: dict[int, list[float]] = {size: [] for size in sizes}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            memory = _rate(pool, threads, array)
            for size in sizes:
                found[size].append(_rate(pool, threads, array[: size // 8]) / memory)
    return max((size for size in sizes if median(found[size]) > _FASTER), default=_LEAST_CACHE)


def _rate(pool: ThreadPoolExecutor, threads: int, array: Any) -> float:
    """Bytes a second that are read of an array, again and again, after a few times that fill the caches."""
    times = max(1, _READ // array.nbytes)
    parts = np.array_split(array, threads)

    def read(part: Any, count: int) -> None:
        for _ in range(count):
            np.max(part)

    list(pool.map(read, parts, [_FILLS] * threads))
    started = time.perf_counter()
    list(pool.map(read, parts, [times] * threads))
    return float(times * array.nbytes / (time.perf_counter() - started))
