"""Memory bandwidth as decoding uses it: reading, all threads at once, far more bytes than the caches hold."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

_BYTES = 256 << 20  # a thread
_SHARE = 4  # of the free memory all of them together take one part
_REPEATS = 5


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
