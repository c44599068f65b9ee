"""The dense model's residual stream in front of every sub-block, on disk.

The scoring passes the calibration tokens through the dense model anyway; what it keeps spares the refit of every plan
that pass.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prune_export.errors import BadInputError


class DenseStreams:
    """Streams of one model on some tokens.

    Args:
        folder: of that model's; created when something is put there.
        tokens: [N, T].
    """

    def __init__(self, folder: Path, tokens: torch.Tensor) -> None:
        digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]
        self._folder = folder / f"streams-{tokens.shape[0]}x{tokens.shape[1]}-{digest}"
        self._shape = tuple(tokens.shape)

    def put(self, index: int, parts: list[torch.Tensor]) -> None:
        """Keeps what enters sub-block `index`, whole or not at all.

        Args:
            index: of the sub-block; twice the number of layers for what leaves the last one.
            parts: [B, T, D] float32 each, together all N sequences.
        """
        target = self._file(index)
        shape = (*self._shape, parts[0].shape[-1])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".part")
            with partial.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                for part in parts:
                    file.write(np.ascontiguousarray(part.float().numpy(), dtype="<f4").data)
            partial.replace(target)
        except OSError as error:
            raise BadInputError(f"streams {target} cannot be written: {error.strerror}") from None

    def get(self, index: int, rows: slice) -> torch.Tensor:
        """What enters sub-block `index` of some sequences, [B, T, D] float32."""
        return torch.from_numpy(self._map(index)[rows].copy())

    def holds(self, indices: set[int]) -> bool:
        """Whether the streams in front of these sub-blocks are all there, whole."""
        try:
            return all(self._map(index).shape[:2] == self._shape for index in indices)
        except (OSError, ValueError, EOFError):
            return False

    def _map(self, index: int) -> Any:
        return np.load(self._file(index), mmap_mode="r", allow_pickle=False)

    def _file(self, index: int) -> Path:
        return self._folder / f"stream-{index:04}.npy"
