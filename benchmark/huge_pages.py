"""Memory of a process in huge pages, as far as glibc and the kernel give them.

The physical pages behind 4 KiB ones differ in quality, from process to process and, in one process, from what is loaded
first to what is loaded last: the same 0.5 GiB of int8 weights took 54 to 45 ms a token there, 41 to 43 ms in huge pages
(docs/devices.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

TUNABLES = "GLIBC_TUNABLES"
_HUGE = "glibc.malloc.hugetlb=1"  # madvise(MADV_HUGEPAGE), glibc 2.35 or later; ignored by others


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment whose processes ask for huge pages; a choice that it makes already stays."""
    set_already = environment.get(TUNABLES, "")
    if "glibc.malloc.hugetlb" in set_already:
        return dict(environment)
    return {**environment, TUNABLES: f"{set_already}:{_HUGE}" if set_already else _HUGE}


def tunables() -> dict[str, str]:
    """The settings of the C library that this process was started with, for a measurement's options."""
    found = os.environ.get(TUNABLES)
    return {TUNABLES: found} if found else {}
