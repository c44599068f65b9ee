"""Outputs appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prune_export.errors import BadInputError, PruneExportError
from prune_export.units import format_bytes

_CHUNK = 1 << 20
_FULL_BYTES = 16 << 20
_ABANDONED_S = 24 * 3600.0
# Address range, permissions, offset, device, inode, path: a mapping's first line in /proc/self/smaps.
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s+(/.*)$")
_DONT_NEED = 4  # MADV_DONTNEED
# A directory that --force may replace holds one of these: something that this package, or a tool like it, wrote.
_OURS = (
    "manifest.json",
    "plan.json",
    "config.json",
    "openvino_model.xml",
    "openvino/openvino_model.xml",
    "onnx/model.onnx",
    "kit.json",
)


class DiskFullError(PruneExportError):
    """A write failed and nothing is free.

    Args:
        directory: what was to be written.
        free: bytes, at the time of the failure.
    """

    def __init__(self, directory: Path, free: int) -> None:
        super().__init__(
            f"No space left on device: {format_bytes(free)} free where {directory} lies; nothing was left there, "
            "free some space or choose another -o"
        )
        self.free = free


def sha256(path: Path) -> str:
    """Hash of a file's content, 64 hex digits."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def release_pages(directory: Path) -> None:
    """Gives the memory of files in a directory that are mapped into this process back to the system; no data is lost.

    A mapped checkpoint counts as resident once it was read through.  Where its pages are needed again they come back
    from the system's file cache.  A mapping that was written to (which is private to this process) is left alone.
    Does something on Linux only.
    """
    table = Path("/proc/self/smaps")
    if not table.is_file():
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        # Resolved, since a hub's cache holds links: the table names what they point to.
        names = {str(path.resolve()) for path in directory.iterdir()}
        for begin, end in _clean_mappings(table.read_text(errors="replace"), names):
            library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONT_NEED)


def _clean_mappings(smaps: str, names: set[str]) -> Iterator[tuple[int, int]]:
    """Address ranges of these mapped files without a page of this process's own."""
    current: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if match := _MAPPING.match(line):
            current = (int(match[1], 16), int(match[2], 16)) if match[3] in names else None
        elif current is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield current
            current = None


def check_destination(directory: Path, *, force: bool) -> None:
    """Refuses a destination that cannot be written, before any work.

    Raises:
        BadInputError: it exists and `force` is not given, it is a file or holds something that no model directory
            holds, or its parent cannot be written.
    """
    if directory.is_symlink() or directory.is_file():
        raise BadInputError(f"output {directory} is a file or a link, a directory is needed: choose another with -o")
    if directory.is_dir() and any(directory.iterdir()) and not force:
        raise BadInputError(f"output {directory} exists and is not empty: pass --force to replace it, or another -o")
    if directory.is_dir() and any(directory.iterdir()) and not _replaceable(directory):
        raise BadInputError(
            f"output {directory} is no artifact or checkpoint (none of {', '.join(_OURS)} is in it) or holds the "
            "current directory: --force will not delete it, choose another -o"
        )
    parent = _existing_parent(directory)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BadInputError(f"output {directory} cannot be created: {parent} is not a writable directory")


def check_space(directory: Path, needed: int, *, remedy: str = "choose another -o") -> None:
    """Refuses to start when the disk is too full.

    Args:
        directory: where the files will lie; it need not exist yet.
        needed: bytes.
        remedy: what helps, beside freeing some.

    Raises:
        BadInputError: less than `needed` bytes are free where `directory` lies.
    """
    free = shutil.disk_usage(_existing_parent(directory)).free
    if free < needed:
        raise BadInputError(
            f"{directory}: {format_bytes(free)} free on that disk, about {format_bytes(needed)} needed: "
            f"free some or {remedy}"
        )


@contextmanager
def staged(directory: Path, *, force: bool) -> Iterator[Path]:
    """A temporary directory beside `directory` that takes its place when the block ends well.

    The old content, if any, is replaced only then.  Whatever ends the block early (an error, Ctrl-C, a full disk)
    leaves `directory` as it was; what a killed process left beside it goes when it is written again.

    Raises:
        BadInputError: as `check_destination`.
        PruneExportError: the disk is full.
    """
    check_destination(directory, force=force)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(directory.parent, f".{directory.name}.")
        stage = Path(tempfile.mkdtemp(prefix=_owned(f".{directory.name}."), dir=directory.parent))
    except OSError as error:
        raise BadInputError(f"output {directory} cannot be created: {error.strerror}") from None
    try:
        with full_disk_explained(directory):
            yield stage
            _sync(stage)
        stage.chmod(0o755)
        _replace(stage, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with stage.open("w", encoding="utf8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)


def _replaceable(directory: Path) -> bool:
    inside = directory.resolve()
    return inside not in (Path.cwd(), *Path.cwd().parents) and any((directory / name).is_file() for name in _OURS)


def _replace(stage: Path, directory: Path) -> None:
    if not directory.exists():
        stage.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    directory.rename(old / directory.name)
    try:
        stage.rename(directory)
    except BaseException:  # Ctrl-C between the two renames as well: the old content comes back
        (old / directory.name).rename(directory)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def full_disk_explained(directory: Path) -> Iterator[None]:
    """Turns any error of the block into one about the disk, if the disk is full.

    safetensors and OpenVINO report a failed write with error classes and words of their own.

    Raises:
        PruneExportError: the block failed and nothing is free where `directory` lies.
    """
    try:
        yield
    except DiskFullError as error:  # found before its scratch went, under the name of that
        raise DiskFullError(directory, error.free) from error.__cause__
    except PruneExportError:
        raise
    except Exception as error:
        free = shutil.disk_usage(_existing_parent(directory)).free
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if not full and free > _FULL_BYTES:
            raise
        raise DiskFullError(directory, free) from error


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder that is gone when the block ends; those of the same prefix that killed runs left go first.

    Args:
        parent: where it is made; made itself where it does not exist.
        prefix: of its name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, prefix)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_owned(prefix), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Removes folders made by `scratch_folder` or `staged` whose process was killed outright, after a day.

    Not on Windows, where asking for a process may end it.
    """
    name = re.compile(rf"{re.escape(prefix)}(\d+)-[a-z0-9_]{{8}}")
    with suppress(OSError):
        for path in parent.iterdir() if os.name == "posix" else ():
            match = name.fullmatch(path.name)
            # On a shared volume the owner may live elsewhere.
            if match and time.time() - path.stat().st_mtime > _ABANDONED_S and not _alive(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)


def _owned(prefix: str) -> str:
    return f"{prefix}{os.getpid()}-"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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
