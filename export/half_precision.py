"""Half-precision storage of an IR's matrices; a runtime widens them in its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError

HALF = ("fp16", "bf16")
# What reads a matrix; norms, biases and decay rates are few and stay in fp32.
_READERS = ("MatMul", "Gather", "Convolution", "GroupConvolution")
_FP16_LARGEST = float(np.finfo(np.float16).max)
# End of the names of the conversions.
_WIDENED = "/widened"
# Values rounded at a time, so that temporaries stay small beside a large embedding table.
_PIECE = 1 << 22


def store_in_half(model: Any, precision: str) -> None:
    """Replaces every fp32 matrix by one in "fp16" or "bf16", rounded to nearest even, and a conversion back.

    Args:
        model: `openvino.Model`; changed in place.
        precision: "fp16" or "bf16".

    Raises:
        BadInputError: a value that fp16 cannot hold.
    """
    import openvino
    from openvino import opset13 as ops

    kind = {"fp16": openvino.Type.f16, "bf16": openvino.Type.bf16}[precision]
    for node in list(float_matrices(model)):
        name = node.get_friendly_name()
        values = node.get_data()
        tensor = openvino.Tensor(kind, openvino.Shape(values.shape))
        target = tensor.data.reshape(-1).view(np.uint16)
        source = values.reshape(-1)
        for begin in range(0, source.size, _PIECE):
            piece = source[begin : begin + _PIECE]
            target[begin : begin + _PIECE] = _fp16(piece, name) if precision == "fp16" else _bf16(piece)
        constant = openvino.op.Constant(tensor)
        constant.set_friendly_name(name)
        widened = ops.convert(constant, "f32")
        widened.set_friendly_name(name + _WIDENED)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(widened.output(0))
    model.validate_nodes_and_infer_types()


def is_in_half(model: Any) -> bool:
    """Whether `store_in_half` made a model what it is."""
    return any(node.get_friendly_name().endswith(_WIDENED) for node in model.get_ops())


def mark_conversions(xml: Path) -> None:
    """Marks the conversions of a saved IR as decompression, so that the runtime keeps the halves in memory.

    Without the mark it widens them when it loads the model.  Python's interface cannot set it on a graph.
    """
    tree = ElementTree.parse(xml)
    for layer in tree.iter("layer"):
        if layer.get("type") == "Convert" and layer.get("name", "").endswith(_WIDENED):
            info = ElementTree.Element("rt_info")
            ElementTree.SubElement(info, "attribute", name="decompression", version="0")
            layer.insert(1, info)  # after the data
    tree.write(xml, encoding="utf-8", xml_declaration=True)


def float_matrices(model: Any) -> Iterator[Any]:
    """Constants in fp32 with two dimensions or more that a matrix product, a lookup or a convolution reads.

    Rotary frequencies, one column for a product with positions, are no matrix.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32":
            continue
        readers = {reader.get_node().get_type_name() for reader in node.output(0).get_target_inputs()}
        if sum(size > 1 for size in node.get_output_shape(0)) >= 2 and readers & set(_READERS):
            yield node


def _fp16(values: NDArray[np.float32], name: str) -> NDArray[np.uint16]:
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _FP16_LARGEST:
        raise BadInputError(
            f"{name} has a weight of size {largest:g}, fp16 holds {_FP16_LARGEST:g} at most: use --precision bf16"
        )
    return values.astype(np.float16).view(np.uint16)


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of the words, rounded: adding just under half a unit carries into them, ties to even."""
    words = values.view(np.uint32)
    rounded = words + (np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype(np.uint16)
