"""Hashes of an artifact's files, and of the document that lists them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.files import sha256

SEAL = "content_digest"


@dataclass(frozen=True)
class FileRecord:
    """One delivered file."""

    sha256: str
    bytes: int


def file_records(directory: Path, *, besides: str) -> dict[str, FileRecord]:
    """Relative path to size and hash of every file below a directory, but for the document that will list them."""
    return {
        path.relative_to(directory).as_posix(): FileRecord(sha256(path), path.stat().st_size)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).as_posix() != besides
    }


def check_files(directory: Path, records: Mapping[str, FileRecord], *, besides: str) -> None:
    """Compares every file below a directory with its record.

    Raises:
        BadInputError: one is missing, changed, not listed, a symbolic link or hard-linked; names them all in one line.
    """
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if _counts(path)}
    symbolic = sorted(name for name, path in found.items() if path.is_symlink())
    plain = {name: path for name, path in found.items() if name not in symbolic}
    hard = sorted(name for name, path in plain.items() if path.stat().st_nlink > 1)
    listed = {name: path for name, path in plain.items() if name != besides}
    missing = sorted(set(records) - set(found))
    extra = sorted(set(found) - set(records) - {besides})
    changed = [name for name, record in records.items() if name in listed and sha256(listed[name]) != record.sha256]
    problems = (
        ("missing", missing),
        ("changed", changed),
        ("not listed", extra),
        ("a symbolic link", symbolic),
        ("hard-linked", hard),
    )
    text = "; ".join(f"{word}: {', '.join(names)}" for word, names in problems if names)
    if text:
        raise BadInputError(f"{directory} is not as its {besides} says ({text}): copy or make the artifact again")


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON document with the digest of its own content, so that an edit by hand shows."""
    path.write_text(json.dumps(sealed(data), indent=1) + "\n", encoding="utf8")


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document's data with the digest of its own content."""
    content = {key: value for key, value in data.items() if key != SEAL}
    return {**content, SEAL: _digest(content)}


def check_seal(path: Path) -> None:
    """Refuses a document whose content is not what was written.

    Raises:
        BadInputError: it was edited, or has no digest of itself.
    """
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
    found = data.pop(SEAL, None) if isinstance(data, dict) else None
    if not found:
        raise BadInputError(f"{path} has no {SEAL}: it was edited, or an earlier version wrote it; make it again")
    if found != _digest(data):
        raise BadInputError(
            f"{path} was edited after it was written (its content has digest {_digest(data)[:12]}, it says "
            f"{str(found)[:12]}): take the original, or make the artifact again"
        )


def _counts(path: Path) -> bool:
    """Files, and links to whatever."""
    return path.is_symlink() or not path.is_dir()


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
