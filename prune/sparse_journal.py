"""Finished layers of a run of one-shot sparsity, on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prune_export.errors import BadInputError
from prune_export.records import from_json, to_json
from prune_export.sparsity import ProjectionSparsity

_ROWS = "rows"


@dataclass(frozen=True)
class KnownLayer:
    """A finished layer: name to weight [out, in], and what the report says of it."""

    weights: dict[str, torch.Tensor]
    rows: list[ProjectionSparsity]


class SparseJournal:
    """One file for each finished layer, in a directory that belongs to one run.

    Args:
        directory: named by the caller after everything that the outcome depends on; created if missing.

    Raises:
        BadInputError: the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"journal {directory} cannot be created: {error.strerror}") from None

    def __len__(self) -> int:
        return len(list(self._directory.glob("layer-*.safetensors")))

    def layer(self, index: int) -> KnownLayer | None:
        """A finished layer, or None.

        Raises:
            BadInputError: its file is damaged.
        """
        path = self._path(index)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                rows = json.loads(file.metadata()[_ROWS])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise BadInputError(f"journal {path} is damaged: delete it to prune that layer again") from None
        return KnownLayer(weights, [from_json(ProjectionSparsity, row, where=path.name) for row in rows])

    def keep(self, index: int, weights: dict[str, torch.Tensor], rows: list[ProjectionSparsity]) -> None:
        """Writes a finished layer; it appears whole or not at all."""
        path = self._path(index)
        part = path.with_suffix(".part")
        # A layer whose sub-blocks were all removed has nothing to keep, and is known all the same.
        tensors = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(tensors, part, metadata={_ROWS: json.dumps(to_json(rows))})
        os.replace(part, path)

    def _path(self, index: int) -> Path:
        return self._directory / f"layer-{index:04}.safetensors"
