"""Integers of 4 bits that nobody chose, for every linear layer of a model, and readers of what was exported of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from transformers.pytorch_utils import Conv1D

from prune_export.export.rounded import RoundedMatrix, RoundedWeights
from prune_export.export.rounding_options import RoundingOptions

HEADS = ("lm_head", "embed_out")


def linear_names(model: Any) -> dict[str, tuple[int, int]]:
    """Name of every linear layer but the head to its outputs and inputs."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and name not in HEADS:
            rows, width = module.weight.shape
            found[name] = (width, rows) if isinstance(module, Conv1D) else (rows, width)
    return found


def made_up(model: Any, *, group_size: int = 128, seed: int = 0, scale: float = 0.02) -> RoundedWeights:
    random = np.random.default_rng(seed)
    options = RoundingOptions("rtn", group_size)
    matrices = {}
    for name, (rows, width) in linear_names(model).items():
        if group := options.group_for(width):
            groups = rows, width // group
            matrices[name] = RoundedMatrix(
                random.integers(0, 16, (rows, width), dtype=np.uint8),
                random.uniform(scale / 2, scale, groups).astype(np.float16),
                random.integers(4, 12, groups, dtype=np.uint8),
            )
    return RoundedWeights("gptq", group_size, matrices)


def ir_integers(directory: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Integers [N, K], scales and zero points [N, K / group] of every matrix of 4 bits in an IR."""
    model = openvino.Core().read_model(directory / "openvino_model.xml")
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    found = {}
    for name, op in constants.items():
        if op.get_element_type().get_type_name() == "u4" and not name.endswith("zero_point"):
            weight = op.get_data(dtype=np.float32)
            zero = constants[f"{name}/zero_point"].get_data(dtype=np.float32)
            scale = constants[f"{name}/scale"].get_data()
            if scale.shape[1] == 1 and scale.shape[2] > 1:  # [K / group, group, N]
                weight, zero, scale = (values.transpose(2, 0, 1) for values in (weight, zero, scale))
            layer = name.removeprefix("self.").removesuffix(".weight")
            found[layer] = weight.reshape(len(weight), -1), scale[:, :, 0], zero[:, :, 0]
    return found


def onnx_integers(directory: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same of an ONNX model, by the graph's own names; unpacked as MatMulNBits documents it."""
    graph = onnx.load(directory / "model.onnx").graph
    held = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    found = {}
    for node in graph.node:
        values = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits" and values["bits"] == 4:
            packed, scales, zeros = (held[name] for name in node.input[1:4])
            rows, width, groups = values["N"], values["K"], values["K"] // values["block_size"]
            found[node.name.removesuffix("/MatMul")] = (
                _nibbles(packed.reshape(rows, -1))[:, :width],
                scales.reshape(rows, groups),
                _nibbles(zeros.reshape(rows, -1))[:, :groups],
            )
    return found


def _nibbles(data: np.ndarray) -> np.ndarray:
    both = np.empty((len(data), 2 * data.shape[1]), np.uint8)
    both[:, 0::2], both[:, 1::2] = data % 16, data // 16
    return both


def assert_equal(found: tuple[np.ndarray, ...], expected: RoundedMatrix) -> None:
    integers, scales, zero_points = found
    np.testing.assert_array_equal(integers, expected.integers)
    np.testing.assert_array_equal(scales.astype(np.float32), expected.scales.astype(np.float32))
    np.testing.assert_array_equal(zero_points, expected.zero_points)
