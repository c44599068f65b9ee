"""Outputs appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prune_export.errors import BadInputError, PruneExportError
from prune_export.units import format_bytes

_CHUNK = 1 << 20


def sha256(path: Path) -> str:
    """Hash of a file's content, 64 hex digits."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def check_destination(directory: Path, *, force: bool) -> None:
    """Refuses a destination that cannot be written, before any work.

    Raises:
        BadInputError: it exists and `force` is not given, it is a file, or its parent cannot be written.
    """
    if directory.is_symlink() or directory.is_file():
        raise BadInputError(f"output {directory} is a file or a link, a directory is needed: choose another with -o")
    if directory.is_dir() and any(directory.iterdir()) and not force:
        raise BadInputError(f"output {directory} exists and is not empty: pass --force to replace it, or another -o")
    parent = _existing_parent(directory)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BadInputError(f"output {directory} cannot be created: {parent} is not a writable directory")


def check_space(directory: Path, needed: int) -> None:
    """Refuses to start when the disk is too full.

    Raises:
        BadInputError: less than `needed` bytes are free where `directory` lies.
    """
    free = shutil.disk_usage(_existing_parent(directory)).free
    if free < needed:
        raise BadInputError(
            f"{directory}: {format_bytes(free)} free on that disk, about {format_bytes(needed)} needed: "
            "free some or choose another -o"
        )


@contextmanager
def staged(directory: Path, *, force: bool) -> Iterator[Path]:
    """A temporary directory beside `directory` that takes its place when the block ends well.

    The old content, if any, is replaced only then.  Whatever ends the block early (an error, Ctrl-C, a full disk)
    leaves `directory` as it was.

    Raises:
        BadInputError: as `check_destination`.
        PruneExportError: the disk refused a write.
    """
    check_destination(directory, force=force)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise BadInputError(f"output {directory} cannot be created: {error.strerror}") from None
    try:
        yield stage
        _sync(stage)
        stage.chmod(0o755)
        _replace(stage, directory)
    except OSError as error:
        raise PruneExportError(
            f"writing {directory} failed: {error.strerror or error}; nothing was left there"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(stage: Path, directory: Path) -> None:
    if directory.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
        directory.rename(old / directory.name)
        try:
            stage.rename(directory)
        except OSError:
            (old / directory.name).rename(directory)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        stage.rename(directory)


def _sync(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent if not path.is_dir() else path.absolute()
    while not parent.exists():
        parent = parent.parent
    return parent
