"""Scores of a model on a calibration text, kept between runs: another target of the same model is not scored again.

One folder for each model, calibration and version of the pruning code.  While a run works with a folder, or was killed
and may be resumed, a marker named after the run lies in it; of the rest only the latest are kept, up to a limit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

from prune_export import prune
from prune_export.delivery.places import cache_directory
from prune_export.records import digest

LIMIT_BYTES = 16 * 2**30  # or a quarter of what is free, if that is less
_MARKER = "used-by-"


def open_scores(source_digest: str, calibration_digest: str, *, run: str) -> Path:
    """The folder of a model's scores on a calibration, marked as used by a run; it may hold all of them already.

    Args:
        source_digest: sha256 of the model.
        calibration_digest: sha256 of the calibration tokens.
        run: name of the run.

    Returns:
        The folder; it need not exist yet.

    Raises:
        OSError: nothing can be written there.
    """
    folder = _folder() / digest([source_digest, calibration_digest, _code_digest()])[:24]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{_MARKER}{run}").touch()
    os.utime(folder)
    return folder / "scores"


def close_scores(run: str, *, limit_bytes: int | None = None) -> None:
    """The run is over: takes its marker away, and deletes folders without markers that the limit has no room for.

    The latest come first; one that is larger than the limit alone goes, and leaves the others their room.
    """
    if not _folder().is_dir():
        return
    if limit_bytes is None:
        limit_bytes = min(LIMIT_BYTES, shutil.disk_usage(_folder()).free // 4)
    for marker in _folder().glob(f"*/{_MARKER}{run}"):
        marker.unlink(missing_ok=True)
    kept = 0
    for folder in sorted(_folder().glob("*"), key=_changed, reverse=True):
        if not any(folder.glob(f"{_MARKER}*")):
            size = _size(folder)
            if kept + size > limit_bytes:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                kept += size


def _folder() -> Path:
    return cache_directory() / "scores"


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # another run deleted it
        return 0.0


def _size(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        try:
            sizes += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return sizes


@cache
def _code_digest() -> str:
    """sha256 of the pruning code: scores of another version may mean something else."""
    found = hashlib.sha256()
    for path in sorted(Path(prune.__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
