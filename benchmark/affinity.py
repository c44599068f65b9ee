"""Which logical CPUs a measuring process runs on."""

from __future__ import annotations

import os

from prune_export.profiles import core_cpus

OPTION = "affinity"


def pin(threads: int, device: str) -> dict[str, str]:
    """Leaves this process one logical CPU of each of its first physical cores, before a runtime starts threads.

    Every runtime's threads inherit it, and OpenVINO's own pinning stays within it; without it a thread could move to
    another core, or two of them could share one. Where each logical CPU has a thread of its own there is nothing to do.

    Args:
        threads: of the runtime; 0 for all physical cores. More than there are is the session's to refuse.
        device: the runtime's name of the device; on others than the CPU the host's threads are left alone.

    Returns:
        The CPUs, for a measurement's options; nothing on another device, or where the system knows no affinity (it is
        Linux that does).
    """
    cpus = core_cpus()
    count = threads or len(cpus)
    if device != "CPU" or not cpus:
        return {}
    if 0 < count <= len(cpus):
        os.sched_setaffinity(0, cpus[:count])
    return {OPTION: ",".join(map(str, sorted(os.sched_getaffinity(0))))}
