"""How many threads a runtime may be given."""

from __future__ import annotations

from prune_export.errors import BadInputError
from prune_export.profiles import host_cores


def checked_threads(threads: int) -> int:
    """`threads`, or all physical cores for 0.

    Raises:
        BadInputError: negative, or more than the cores that this process may use.
    """
    cores = host_cores()
    if threads < 0 or threads > cores:
        raise BadInputError(
            f"threads {threads}: this process may use {cores} cores: use --threads 1 to {cores}, or 0 for all"
        )
    return threads or cores
