"""Scores of a search by structure, in memory and, if wanted, in a file that survives a kill.

The file is JSON lines: a header, then one line for each evaluation.  A search that starts again reads them back and
replays the same decisions without evaluating anything twice.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.prune.candidates import Structure
from prune_export.prune.evaluator import Score
from prune_export.shape import LayerShape

_FORMAT = 2


@dataclass(frozen=True)
class JournalFile:
    """Where a journal is kept and what it belongs to.

    Attributes:
        path: created if missing.
        source_digest: sha256 of the model.
        calibration_digest: sha256 of the calibration tokens.
    """

    path: Path
    source_digest: str
    calibration_digest: str


class Journal:
    """Score of each structure evaluated so far; lower bounds of candidates that were dropped are marked as such.

    Args:
        file: or None for memory only.
        settings: the search's settings; they must be the same when a file is used again.

    Raises:
        BadInputError: the file belongs to another search, is damaged or cannot be written.
    """

    def __init__(self, file: JournalFile | None, settings: dict[str, Any]) -> None:
        self._scores: dict[str, Score] = {}
        self._path = None if file is None else file.path
        if file is not None:
            header = {
                "journal": _FORMAT,
                "source_digest": file.source_digest,
                "calibration_digest": file.calibration_digest,
                "settings": settings,
            }
            self._open(file.path, json.loads(json.dumps(header)))

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, structure: Structure, tokens: str = "") -> Score | None:
        """The structure's score on the calibration set named `tokens`, if it is known."""
        return self._scores.get(_key(structure, tokens))

    def put(self, structure: Structure, score: Score, tokens: str = "") -> None:
        """Remembers a score and writes it out at once."""
        key = _key(structure, tokens)
        self._scores[key] = score
        if self._path is not None:
            bound = {} if score.exact else {"at_least": True}
            self._append({"structure": key, "log_perplexity": repr(score.log_perplexity), **bound})

    def _open(self, path: Path, header: dict[str, Any]) -> None:
        text = ""
        try:
            if path.exists():
                text = path.read_text(encoding="utf8")
                # A kill in the middle of a write leaves a last line without its end.
                text = text[: text.rfind("\n") + 1]
                os.truncate(path, len(text.encode()))
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"journal {path} cannot be read: {error}") from None
        if not text:
            self._append(header)
            return
        try:
            first, *rest = [json.loads(line) for line in text.splitlines()]
            self._scores = {
                entry["structure"]: Score(float(entry["log_perplexity"]), not entry.get("at_least")) for entry in rest
            }
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadInputError(f"journal {path} is damaged: delete it to start the search anew") from None
        self._check(path, first, header)

    def _check(self, path: Path, found: Any, wanted: dict[str, Any]) -> None:
        if found == wanted:
            return
        keys = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
        raise BadInputError(
            f"journal {path} belongs to another search (different {', '.join(keys) or 'header'}): "
            "delete it or name another file"
        )

    def _append(self, entry: dict[str, Any]) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise BadInputError(f"journal {self._path} cannot be written: {error.strerror}") from None


def _key(structure: Structure, tokens: str) -> str:
    sizes = ";".join(",".join(map(str, _sizes(layer))) for layer in structure)
    return f"{tokens} {sizes}" if tokens else sizes


def _sizes(layer: LayerShape) -> tuple[int, ...]:
    mixer = (layer.mixer_width, layer.state_size) if layer.mixer_width else ()
    return (layer.kv_heads, layer.mlp_width, *mixer)
