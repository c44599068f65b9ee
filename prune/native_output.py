"""Drops what native code prints although it was asked not to."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def dropped() -> Iterator[None]:
    """Nothing that C code prints to standard output in the block gets there; Python's own buffered text does.

    For libraries without a switch for it: scipy's HiGHS prints a line of its debugging whatever `disp` says, when a
    solution has to be repaired.  Other threads must not print meanwhile.
    """
    if sys.stdout is None:  # closed: nothing gets anywhere
        yield
        return
    sys.stdout.flush()
    library = ctypes.CDLL(None)
    library.fflush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        library.fflush(None)  # or it would be printed later
        os.dup2(kept, 1)
        os.close(kept)
