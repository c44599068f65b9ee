"""Integers as Neural Compressor and AutoRound pack them into their layers, read back without a change."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from prune_export.export.rounded import RoundedMatrix

# Eight values of 4 bits a word; AutoAWQ's order of them: the j-th lies at this place.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def read_matrix(module: Any) -> RoundedMatrix | None:
    """What a layer holds, or None for one that was left in floating point."""
    kind = type(module).__name__
    if kind == "INCWeightOnlyLinear":
        held = module.unpack()
        return _matrix(held["int_weight"], held["scales"], held["zp"])
    if kind == "WQLinear_GEMM":  # [K, N / 8], [K / group, N]
        integers, zero_points = (_awq_values(words) for words in (module.qweight, module.qzeros))
        return _matrix(integers.t(), module.scales.t(), zero_points.t())
    if kind == "Linear":
        return None
    raise ValueError(f"a layer of unknown kind {kind}")


def _awq_values(words: torch.Tensor) -> torch.Tensor:
    """[R, C / 8] words to [R, C]."""
    shifts = torch.tensor(_AWQ_PLACES, dtype=torch.int32) * 4
    return ((words[:, :, None] >> shifts) & 15).reshape(len(words), -1)


def _matrix(integers: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor) -> RoundedMatrix:
    if scales.dtype != torch.float16:
        raise ValueError(f"scales are {scales.dtype}, fp16 is what both formats can hold")
    return RoundedMatrix(
        np.ascontiguousarray(integers.cpu().numpy().astype(np.uint8)),
        np.ascontiguousarray(scales.cpu().numpy()),
        np.ascontiguousarray(zero_points.cpu().numpy().astype(np.uint8)),
    )
