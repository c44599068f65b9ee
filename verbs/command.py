"""What a command is, what all commands share, and how results are written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prune_export.errors import BadInputError


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        description: what it does, for --help.
        epilog: an example, for --help.
        add_arguments: declares its arguments.
        run: executes it and returns the exit code.
    """

    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments that every command takes."""
    group = parser.add_argument_group("common")
    group.add_argument("--quiet", action="store_true", help="print results only")
    group.add_argument("--verbose", action="store_true", help="show where an error came from")
    group.add_argument("--seed", type=int, default=42, help="seed of everything random (default 42)")
    group.add_argument("--threads", type=int, default=0, help="runtime threads (default: the device's)")
    group.add_argument("--force", action="store_true", help="replace an existing output")


def positive(value: int | None, what: str) -> int | None:
    if value is not None and value < 1:
        raise BadInputError(f"{what} {value} must be at least 1")
    return value


def limit_torch(threads: int) -> None:
    """Makes torch use that many threads; 0 leaves its default.

    Raises:
        BadInputError: more threads than cores, or a negative number.
    """
    from prune_export.profiles.host import host_cores

    if not 0 <= threads <= host_cores():
        raise BadInputError(f"--threads {threads}: this machine has {host_cores()} cores, use 1 to {host_cores()}")
    if threads:
        import torch

        torch.set_num_threads(threads)


def check_file(destination: str | None, force: bool, *, make_directory: bool = False) -> None:
    """Refuses a result file that cannot be written, before the work.

    Args:
        destination: a path, "-" for the screen, or None.
        force: an existing one may be replaced.
        make_directory: its directory may be missing, if the one above is there.

    Raises:
        BadInputError: it exists and --force is not given, or its directory does not.
    """
    if destination is None or destination == "-":
        return
    path = Path(destination)
    if path.exists() and not force:
        raise BadInputError(f"output {path} exists: pass --force to replace it, or name another")
    folder = path.absolute().parent
    if make_directory and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise BadInputError(f"output {path} cannot be written: {folder} is not a directory")


def emit(text: str, destination: str | None) -> None:
    if destination == "-":
        print(text)
    elif destination:
        Path(destination).write_text(text + "\n", encoding="utf8")
