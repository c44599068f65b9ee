"""Scores on disk, a file for each sub-block: a killed search goes on where it was, and targets share one scoring."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.prune.scoring import BlockScores

_FORMAT = 2
_HEADER = "scores.json"
_ARRAYS = ("order", "losses", "sizes", "divergences", "sketches")


class ScoreFolder:
    """A folder of scores that belong to one model, calibration and setting.

    Args:
        path: created if missing.
        settings: everything the scores depend on; scores of other settings are thrown away.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        header = {"format": _FORMAT, **json.loads(json.dumps(settings))}
        try:
            if self._header() != header:
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True, exist_ok=True)
                (path / _HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf8")
        except OSError as error:
            raise BadInputError(f"scores {path} cannot be written: {error.strerror}") from None

    def get(self, index: int) -> BlockScores | None:
        """The scores of a sub-block, if they are known and whole."""
        try:
            # Opened here: numpy leaves a file open that is cut off.
            with self._file(index).open("rb") as file, np.load(file, allow_pickle=False) as data:
                return BlockScores(index, str(data["part"]), *(data[name] for name in _ARRAYS))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # missing, or cut off by a kill: computed again

    def put(self, scores: BlockScores) -> None:
        """Writes the scores of a sub-block, whole or not at all."""
        target = self._file(scores.index)
        try:
            partial = target.with_suffix(".part")
            with partial.open("wb") as file:
                np.savez(file, part=np.asarray(scores.part), **{name: getattr(scores, name) for name in _ARRAYS})
            partial.replace(target)
        except OSError as error:
            raise BadInputError(f"scores {target} cannot be written: {error.strerror}") from None

    def matrix(self, name: str, index: int) -> NDArray[np.float32] | None:
        """A matrix that `put_matrix` kept, as a memory map, or None."""
        try:
            kept: NDArray[np.float32] = np.load(self._matrix_file(name, index), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return kept

    def put_matrix(self, name: str, index: int, values: NDArray[np.float32]) -> None:
        """Keeps a sub-block's moment or the like, in float32, whole or not at all."""
        target = self._matrix_file(name, index)
        try:
            partial = target.with_suffix(".part")
            with partial.open("wb") as file:
                np.save(file, values.astype(np.float32, copy=False))
            partial.replace(target)
        except OSError as error:
            raise BadInputError(f"scores {target} cannot be written: {error.strerror}") from None

    def _matrix_file(self, name: str, index: int) -> Path:
        return self.path / f"{name}-{index:04}.npy"

    def _file(self, index: int) -> Path:
        return self.path / f"block-{index:04}.npz"

    def _header(self) -> Any:
        try:
            return json.loads((self.path / _HEADER).read_text(encoding="utf8"))
        except (OSError, ValueError):
            return None
