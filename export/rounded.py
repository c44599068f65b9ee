"""Weights that were rounded to integers before the export; the exporters take the integers over as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prune_export.prune.projections import replace_weight

_LARGEST = 15


@dataclass(frozen=True)
class RoundedMatrix:
    """One matrix [N, K] in 4 bits: (integer - zero point) * scale, in groups along K.

    Scales are fp16 values, what an IR stores: a product with an integer of 4 bits is exact in fp32, so that everything
    that computes with these weights agrees on them to the last bit.

    Attributes:
        integers: [N, K], 0 to 15.
        scales: [N, K / group].
        zero_points: [N, K / group], 0 to 15.
    """

    integers: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zero_points: NDArray[np.uint8]

    def __post_init__(self) -> None:
        rows, width = self.integers.shape
        groups = self.scales.shape[1]
        if self.scales.shape != (rows, groups) or self.zero_points.shape != (rows, groups) or width % groups:
            raise ValueError(
                f"integers {list(self.integers.shape)}, scales {list(self.scales.shape)} and zero points "
                f"{list(self.zero_points.shape)} do not fit together"
            )
        if max(self.integers.max(initial=0), self.zero_points.max(initial=0)) > _LARGEST:
            raise ValueError(f"integers of 4 bits are at most {_LARGEST}")
        if not np.isfinite(self.scales).all():
            raise ValueError("scales are not finite in fp16")

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return int(self.integers.shape[1] // self.scales.shape[1])

    def rows(self, chosen: slice | NDArray[np.int64]) -> RoundedMatrix:
        """Some of the outputs."""
        return RoundedMatrix(self.integers[chosen], self.scales[chosen], self.zero_points[chosen])

    def values(self) -> NDArray[np.float32]:
        """What the integers stand for: [N, K]."""
        rows, groups = self.scales.shape
        steps = self.integers.reshape(rows, groups, -1).astype(np.float32) - self.zero_points[:, :, None]
        result: NDArray[np.float32] = steps * self.scales.astype(np.float32)[:, :, None]
        return result.reshape(rows, -1)


def stacked(parts: Sequence[RoundedMatrix]) -> RoundedMatrix:
    """The outputs of several matrices with one input, below each other."""
    return RoundedMatrix(
        np.concatenate([part.integers for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zero_points for part in parts]),
    )


@dataclass(frozen=True)
class RoundedWeights:
    """What became of a checkpoint's weights.

    Attributes:
        method: of rounding.
        group_size: as asked for; a matrix whose width it does not divide has a smaller one.
        matrices: by name of the linear layer.
        floats: other parameters that the method changed (AWQ divides a norm by what it multiplies a matrix with), by
            name.
        calibration: name and digests of the text that the method went by; empty without one.
        library: name and version of what rounded; empty where that has none.
    """

    method: str
    group_size: int
    matrices: dict[str, RoundedMatrix]
    floats: dict[str, torch.Tensor] = field(default_factory=dict)
    calibration: dict[str, str] = field(default_factory=dict)
    library: str = ""

    def described(self) -> dict[str, str]:
        """How the weights were rounded, for the record of an export."""
        text = {f"calibration {key}": value for key, value in self.calibration.items()}
        return {"method": self.method, "group size": str(self.group_size), "library": self.library, **text}


def put_into(model: Any, rounded: RoundedWeights) -> None:
    """Replaces a model's weights by what their integers stand for, in place.

    Args:
        model: what was rounded, or a fresh copy of it.
        rounded: its weights.
    """
    for name, tensor in rounded.floats.items():
        owner, _, own = name.rpartition(".")
        # A new tensor: the old one may be a file's memory map.
        model.get_submodule(owner).register_parameter(own, nn.Parameter(tensor.clone(), requires_grad=False))
    for name, matrix in rounded.matrices.items():
        replace_weight(model.get_submodule(name), torch.from_numpy(matrix.values()))
