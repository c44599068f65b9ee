"""Zeros survive every export: counted in the files that a runtime reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from prune_export.api import export, sparsify
from prune_export.delivery.sparse import stored_sparsity
from prune_export.export.files import MODEL_ONNX, MODEL_XML
from prune_export.export.onnx_quantize import Quantized, dequantize
from prune_export.prune.projection_pruning import SparsityMethod
from prune_export.sparsity import SPARSITY_FILE, Pattern

LAYERS = 4  # of the checkpoint
PRODUCTS = {"fp32": 5, "int8": 4, "int4": 4}  # of a layer: query, key and value are one, quantized gate and up too


@pytest.fixture(scope="module")
def sparse(checkpoint: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sparse") / "checkpoint"
    method = SparsityMethod(Pattern(0.5, 2, 4))
    sparsify(str(checkpoint), output, method, calibration=str(text_file), windows=4, length=64)
    return output


def weights_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    """[out, in] of every product inside the layers of an ONNX artifact, dequantized."""
    model = onnx.load(folder / MODEL_ONNX)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            found[node.input[1]] = stored[node.input[1]].T
        elif node.op_type == "MatMulNBits":
            settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            packed, scales, zero_points = (stored[name] for name in node.input[1:4])
            rows, blocks = settings["N"], settings["K"] // settings["block_size"]
            quantized = Quantized(
                packed,
                scales.reshape(rows, blocks),
                zero_points.reshape(rows, -1),
                settings["bits"],
                settings["block_size"],
            )
            found[node.input[1]] = dequantize(quantized)
    return {name: matrix for name, matrix in found.items() if ".layers." in name}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_an_onnx_artifact_holds_the_pattern_in_every_product(sparse: Path, tmp_path: Path, precision: str) -> None:
    export(str(sparse), tmp_path / "onnx", format="onnx", precision=precision)
    found = weights_of(tmp_path / "onnx")
    assert len(found) == LAYERS * PRODUCTS[precision]
    for matrix in found.values():
        assert ((matrix != 0).reshape(-1, 4).sum(1) <= 2).all()
        assert (matrix != 0).mean() > 0.4  # and little else was lost
    assert (tmp_path / "onnx" / SPARSITY_FILE).read_bytes() == (sparse / SPARSITY_FILE).read_bytes()


def test_an_openvino_ir_has_as_many_zeros_as_the_checkpoint(sparse: Path, tmp_path: Path) -> None:
    import openvino

    export(str(sparse), tmp_path / "ir", precision="fp32")
    model = openvino.Core().read_model(tmp_path / "ir" / MODEL_XML)
    record = stored_sparsity(sparse)
    assert record is not None
    matrices = [
        node.data
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and "layers" in node.get_friendly_name() and len(node.shape) == 2
    ]
    counted = sum(int((matrix == 0).sum()) for matrix in matrices if matrix.size > 1024)
    assert counted == sum(layer.zeros for layer in record.layers)
    assert record.pattern_holds
    assert (tmp_path / "ir" / SPARSITY_FILE).is_file()
