"""Weights in blocks of 4 or 8 bits, as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.export.rounded import RoundedMatrix

# Larger blocks have fewer scales to read; smaller ones follow the weights more closely.
BLOCKS = (128, 64, 32)
# Rows that are rounded at once: a large table is never held a second time in fp32.
_ROWS = 4096


@dataclass(frozen=True)
class Quantized:
    """One matrix [N, K] in blocks along K.

    Attributes:
        packed: [N, K / block, block * bits / 8], two 4-bit values a byte, the lower half first.
        scales: [N, K / block].
        zero_points: [N, K / block * bits / 8, rounded up], packed like the weights.
        bits: 4 or 8.
        block: weights that share a scale.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]
    bits: int
    block: int


def block_for(width: int, wanted: int) -> int:
    """The largest block up to `wanted` that divides a width, or 0 where none does."""
    return next((block for block in BLOCKS if block <= wanted and width % block == 0), 0)


def check_block(block: int) -> None:
    """Refuses a block size that is not offered.

    Raises:
        BadInputError: it is none of `BLOCKS`.
    """
    if block not in BLOCKS:
        raise BadInputError(f"block size {block} is not supported: use one of {', '.join(map(str, BLOCKS))}")


def quantize(weight: torch.Tensor, *, bits: int, block: int) -> Quantized:
    """Rounds a matrix [N, K] to the nearest of 2^bits values between each block's smallest and largest.

    ONNX Runtime's own rounding (`quantize_matmul_4bits`), asymmetric.

    Args:
        weight: fp32; `block` divides its K.
        bits: 4 or 8.
        block: one of `BLOCKS`.
    """
    from onnxruntime.capi import _pybind_state as native

    rows, width = weight.shape
    blocks = width // block
    if blocks * block != width:
        raise ValueError(f"blocks of {block} do not divide a width of {width}")
    packed = np.zeros((rows, blocks, block * bits // 8), np.uint8)
    scales = np.zeros((rows, blocks), np.float32)
    zero_points = np.zeros((rows, -(-blocks * bits // 8)), np.uint8)
    turn = native.quantize_matmul_4bits if bits == 4 else native.quantize_matmul_8bits
    for begin in range(0, rows, _ROWS):
        part = slice(begin, begin + _ROWS)
        # It takes the matrix as MatMul has it: [K, N].
        turned = np.ascontiguousarray(weight[part].detach().float().numpy().T)
        inner = scales[part].reshape(-1), zero_points[part].reshape(-1)
        turn(packed[part], turned, *inner, block, turned.shape[1], width, False)
    return Quantized(packed, scales, zero_points, bits, block)


def packed(matrix: RoundedMatrix) -> Quantized:
    """Integers that were chosen elsewhere, as they are."""
    rows, blocks = matrix.scales.shape
    halves = _pack(matrix.integers).reshape(rows, blocks, matrix.group // 2)
    return Quantized(halves, matrix.scales.astype(np.float32), _pack(matrix.zero_points), 4, matrix.group)


def _pack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, K] of 4 bits to [N, K / 2], rounded up."""
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    halves: NDArray[np.uint8] = even[:, ::2] | (even[:, 1::2] << np.uint8(4))
    return halves


def dequantize(quantized: Quantized) -> NDArray[np.float32]:
    """The matrix [N, K] that the integers stand for."""
    rows, blocks = quantized.scales.shape
    values = _unpack(quantized.packed.reshape(rows, -1), quantized.bits).reshape(rows, blocks, quantized.block)
    zeros = _unpack(quantized.zero_points, quantized.bits)[:, :blocks]
    matrix: NDArray[np.float32] = (values - zeros[:, :, None]) * quantized.scales[:, :, None]
    return matrix.reshape(rows, -1)


def _unpack(data: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    if bits == 8:
        return data.astype(np.float32)
    halves = np.stack([data & 15, data >> 4], axis=-1)
    return halves.reshape(len(data), -1).astype(np.float32)
