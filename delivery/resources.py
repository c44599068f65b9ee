"""Peak memory of a whole process tree, sampled in the background."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import psutil

from prune_export.errors import BadInputError
from prune_export.units import format_bytes

_INTERVAL_S = 0.2
_IMPORTS_BYTES = 1 << 30  # what torch, transformers and openvino take once imported
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 20


class TreeMemory:
    """Context manager that samples the resident memory of this process and its children.

    Args:
        phase: names what the run is at; asked at each sample.

    Attributes:
        phases_bytes: phase to the largest sum seen in it; pages shared between processes count once for each.

    While something is timed, sampling pauses, so that it takes no time from it; `add` then accounts for what ran.
    """

    def __init__(self, phase: Callable[[], str] = str) -> None:
        self.phases_bytes: dict[str, int] = {}
        self._phase = phase
        self._stop = threading.Event()
        self._pauses = 0
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def peak_bytes(self) -> int:
        """The largest sum seen."""
        return max(self.phases_bytes.values(), default=0)

    @property
    def peak_phase(self) -> str:
        """The phase in which it was seen."""
        return max(self.phases_bytes, key=lambda phase: self.phases_bytes[phase], default="")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No sampling during the block."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def add(self, bytes_: int) -> None:
        """Counts a child that is gone: its own peak on top of this process as it is now."""
        self._note(int(psutil.Process().memory_info().rss) + bytes_)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        this = psutil.Process()
        while not self._stop.is_set():
            if not self._pauses:
                phase, found = self._phase(), _resident(this)
                if self._phase() == phase:  # else it may be of the one before or of the one after
                    self._note(found)
            self._stop.wait(_INTERVAL_S)

    def _note(self, bytes_: int) -> None:
        phase = self._phase()
        self.phases_bytes[phase] = max(self.phases_bytes.get(phase, 0), bytes_)


def check_memory(needed: int, parameters: int) -> None:
    """Refuses to start with too little memory.

    Args:
        needed: bytes beside the imports.
        parameters: of the model, for the message.

    Raises:
        BadInputError: less is free.
    """
    total, free = needed + _IMPORTS_BYTES, psutil.virtual_memory().available
    if free < total:
        raise BadInputError(
            f"{format_bytes(free)} of memory free, about {format_bytes(total)} needed for {parameters:,} "
            "parameters: close other programs or take a larger machine"
        )


def map_large_blocks() -> None:
    """Makes the C library take blocks of 1 MiB and more from the system, and give them back at once, for this process.

    glibc raises that size by itself, up to 32 MiB, as such blocks are freed; tensors then share the heap with small
    objects that outlive them, and it never shrinks: at 135 million parameters a search kept 0.5 GB that it did not use.
    """
    with suppress(OSError, AttributeError):  # another C library: nothing to set
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def free_memory() -> None:
    """Collects garbage and gives freed memory back to the system.

    glibc keeps freed blocks for later; between phases of hundreds of megabytes that adds up in the process tree.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library: nothing to trim
        ctypes.CDLL(None).malloc_trim(0)


def _resident(process: psutil.Process) -> int:
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += int(member.memory_info().rss)
        except psutil.Error:  # it ended between listing and asking
            continue
    return total
