"""Weights that were rounded before the export, in an IR: the integers as they are, in NNCF's form of compression.

The runtime recognizes that form and decompresses within its kernels.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.export.half_precision import float_matrices
from prune_export.export.rounded import RoundedMatrix, RoundedWeights


def take_over(model: Any, rounded: RoundedWeights, *, backup: str) -> tuple[Any, str]:
    """The model with the integers in the place of the matrices they stand for, and the name of the scheme.

    Args:
        model: `openvino.Model` in fp32, exported from the model that `put_into` changed; used up.
        rounded: its weights.
        backup: of the other matrices, embeddings and head included: "int8_asym", "int8_sym", or "none".

    Raises:
        BadInputError: the IR has not the weights that the integers stand for.
    """
    if backup != "none":
        model = _others_in_int8(model, rounded.matrices, backup)
    found = {_layer(node): node for node in float_matrices(model)}
    for name, matrix in rounded.matrices.items():
        if name not in found:
            raise BadInputError(
                f"the IR has no matrix {name}, which was rounded: export the rounded model in fp32 first"
            )
        _replace(found[name], name, matrix)
    model.validate_nodes_and_infer_types()
    return model, "int4_asym"


def _layer(node: Any) -> str:
    """The module that a matrix is of.

    The converter turns the matrices of GPT-2's `Conv1D` round, after which only what reads them knows.
    """
    name = str(node.get_friendly_name())
    if name.startswith("self."):
        return name.removeprefix("self.").removesuffix(".weight")
    readers = [reader.get_node().get_friendly_name() for reader in node.output(0).get_target_inputs()]
    return str(readers[0]).removeprefix("__module.").partition("/")[0]


def _others_in_int8(model: Any, rounded: Collection[str], backup: str) -> Any:
    import nncf

    readers = [
        reader.get_node().get_friendly_name()
        for node in float_matrices(model)
        if _layer(node) in rounded
        for reader in node.output(0).get_target_inputs()
    ]
    mode = nncf.CompressWeightsMode(backup)
    return nncf.compress_weights(model, mode=mode, ignored_scope=nncf.IgnoredScope(names=readers))


def _replace(node: Any, name: str, matrix: RoundedMatrix) -> None:
    import openvino
    from openvino import opset13 as ops

    is_turned = _is_turned(node, name, matrix)
    label, shape = f"self.{name}.weight", list(node.get_output_shape(0))
    kinds = {"": openvino.Type.u4, "/zero_point": openvino.Type.u4, "/scale": openvino.Type.f16}
    made = {
        suffix: ops.constant(values, dtype=kinds[suffix], name=f"{label}{suffix}")
        for suffix, values in _grouped(matrix, is_turned=is_turned).items()
    }
    weight, zero = (ops.convert(made[suffix], openvino.Type.f16) for suffix in ("", "/zero_point"))
    steps = ops.subtract(weight, zero, name=f"{label}/zero_point/subtract")
    product = ops.multiply(steps, made["/scale"], name=f"{label}/fq_weights_1")
    whole = ops.reshape(product, np.array(shape, np.int64), special_zero=False)
    widened = ops.convert(whole, openvino.Type.f32, name=f"{label}/fq_weights_1/convert")
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(widened.output(0))


def _is_turned(node: Any, name: str, matrix: RoundedMatrix) -> bool:
    """Whether the IR holds the matrix as [K, N]; it must be the very matrix that the integers stand for."""
    held, expected = node.get_data(), matrix.values()
    for turned in (False, True):
        if np.array_equal(held, expected.T if turned else expected):
            return turned
    raise BadInputError(f"{name} in the IR is not what its integers stand for: export the rounded model in fp32 first")


def _grouped(matrix: RoundedMatrix, *, is_turned: bool) -> dict[str, NDArray[np.generic]]:
    """Integers in groups along an axis of their own, and what goes with each group, by end of the name."""
    rows, groups = matrix.scales.shape
    parts: dict[str, NDArray[np.generic]] = {
        "": matrix.integers.reshape(rows, groups, matrix.group),
        "/zero_point": matrix.zero_points[:, :, None],
        "/scale": matrix.scales[:, :, None],
    }
    if is_turned:  # [N, K / group, group] to [K / group, group, N]
        parts = {suffix: values.transpose(1, 2, 0) for suffix, values in parts.items()}
    return {suffix: np.ascontiguousarray(values) for suffix, values in parts.items()}
