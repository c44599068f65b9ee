"""Integers that were chosen before the export, bit for bit in both formats; they are made up here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import test_onnx_families
import torch
from made_up import assert_equal, ir_integers, linear_names, made_up, onnx_integers
from tiny_exports import PRUNED_LAYERS, make_model, make_shape, with_exact_activations

from prune_export.errors import BadInputError
from prune_export.export.onnx_export import export_onnx
from prune_export.export.onnx_quantize import dequantize, quantize
from prune_export.export.openvino_ir import export_graph_only
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.parity import check_parity
from prune_export.export.rounded import RoundedMatrix, RoundedWeights, put_into, stacked
from prune_export.export.rounding_options import RoundingOptions
from prune_export.export.weights import CompressionRecord, compress
from prune_export.shape import LayerShape

# Widths that 128, 64, 32 and none of them divide.
LAYERS = (*PRUNED_LAYERS, LayerShape(4, 2, 72))
# Products of several matrices in an ONNX artifact: their block in the model and the matrices, in order.
FUSED = {"attn.qkv_proj": ("self_attn", "qkv"), "mlp.gate_up_proj": ("mlp", ("gate", "up"))}


def rounded_model(family: str, *, tied: bool = True, **how: Any) -> tuple[Any, RoundedWeights]:
    """A model that has the weights that made-up integers stand for."""
    model = make_model(make_shape(family, LAYERS, tied=tied))
    rounded = made_up(model, **how)
    put_into(model, rounded)
    return model, rounded


def as_ir(model: Any, rounded: RoundedWeights, folder: Path, **options: Any) -> CompressionRecord:
    export_graph_only(model, folder / "fp32" / "openvino_model.xml")
    settings = OpenVinoOptions(**options)
    return compress(folder / "fp32", folder / "int4", precision="int4", options=settings, rounded=rounded)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
def test_an_ir_has_the_integers_and_computes_with_them(family: str, tied: bool, tmp_path: Path) -> None:
    model, rounded = rounded_model(family, tied=tied)
    record = as_ir(model, rounded, tmp_path, backup="none")
    found = ir_integers(tmp_path / "int4")
    assert found.keys() == rounded.matrices.keys()
    for name, matrix in rounded.matrices.items():
        assert_equal(found[name], matrix)
    assert (record.mode, record.rounding, record.group_size) == ("int4_asym", "gptq", 128)
    assert record.smaller_groups["model.layers.4.mlp.down_proj"] == 32
    heads = {"model.embed_tokens"} | (set() if tied else {"lm_head"})
    assert set(record.fp32_layers) == heads | {"model.layers.5.mlp.down_proj"}
    errors, tolerance = check_parity(model, tmp_path / "int4")
    assert max(errors.values()) <= tolerance


def test_the_runtime_keeps_4_bits_in_memory(tmp_path: Path) -> None:
    """It decompresses within its kernels: what it executes holds as many matrices of 4 bits as NNCF's own export."""
    model, rounded = rounded_model("llama")
    as_ir(model, rounded, tmp_path)
    compress(tmp_path / "fp32", tmp_path / "nncf", precision="int4")
    counts = []
    for name in ("int4", "nncf"):
        compiled = openvino.Core().compile_model(tmp_path / name / "openvino_model.xml", "CPU")
        nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
        kinds = [(str(info["layerType"].value), str(info["outputPrecisions"].value)) for info in nodes]
        counts.append(kinds.count(("Const", "u4")))
    assert counts[0] == counts[1] >= len(rounded.matrices)


def test_what_was_not_rounded_gets_the_backup_precision(tmp_path: Path) -> None:
    model, rounded = rounded_model("llama", group_size=64)
    record = as_ir(model, rounded, tmp_path)
    assert record.int8_layers == ("model.embed_tokens", "model.layers.5.mlp.down_proj")
    assert record.fp32_layers == ()
    assert record.smaller_groups["model.layers.2.self_attn.o_proj"] == 32
    assert ir_integers(tmp_path / "int4").keys() == rounded.matrices.keys()


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
def test_onnx_has_the_integers_and_computes_with_them(family: str, tied: bool, tmp_path: Path) -> None:
    model, rounded = rounded_model(family, tied=tied)
    record = export_onnx(model, None, tmp_path, precision="int4", rounded=rounded)
    found = onnx_integers(tmp_path)
    for name, matrix in rounded.matrices.items():
        if name.endswith(("o_proj", "down_proj")):
            assert_equal(found.pop(name.replace("self_attn", "attn")), matrix)
    for name in list(found):  # one product of several matrices
        for fused, (block, kinds) in FUSED.items():
            if name.endswith(fused):
                layer = name.removesuffix(fused)
                parts = [rounded.matrices[f"{layer}{block}.{kind}_proj"] for kind in kinds]
                assert_equal(found.pop(name), stacked(parts))
    assert not found
    assert (record.rounding, record.block_size) == ("gptq", 128)
    assert record.smaller_blocks["model.layers.4.mlp.down_proj"] == 32
    assert record.fp32_layers == ("model.layers.5.mlp.down_proj",)
    assert record.int8_layers == (("model.embed_tokens",) if tied else ("model.embed_tokens", "lm_head"))
    with torch.no_grad():  # ONNX Runtime's own 8 bits
        for table in {model.model.embed_tokens.weight, model.lm_head.weight}:
            table.copy_(torch.from_numpy(dequantize(quantize(table, bits=8, block=64))))
    with_exact_activations(tmp_path)
    errors, tolerance = check_parity(model, tmp_path)
    assert max(errors.values()) <= tolerance


@pytest.mark.parametrize("name", ["qwen3", "phi3", "gemma2", "gpt_neox", "opt", "gpt2"])
def test_every_familys_projections_are_taken_over(name: str, tmp_path: Path) -> None:
    """Fused ones, those that list the heads in turn, and GPT-2's, which lie the other way round."""
    model = test_onnx_families.make(name)
    rounded = made_up(model, scale=0.05)
    put_into(model, rounded)
    assert rounded.matrices.keys() == linear_names(model).keys()
    as_ir(model, rounded, tmp_path, backup="none")
    found = ir_integers(tmp_path / "int4")
    assert found.keys() == rounded.matrices.keys()
    for layer, matrix in rounded.matrices.items():
        assert_equal(found[layer], matrix)
    export_onnx(model, None, tmp_path / "onnx", precision="int4", rounded=rounded)
    rows = sorted(row.tobytes() for matrix in rounded.matrices.values() for row in matrix.integers)
    assert sorted(row.tobytes() for found in onnx_integers(tmp_path / "onnx").values() for row in found[0]) == rows
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad():
            table.weight.copy_(torch.from_numpy(dequantize(quantize(table.weight, bits=8, block=64))))
    with_exact_activations(tmp_path / "onnx")
    runner = test_onnx_families.OnnxRunner(tmp_path / "onnx", threads=1)
    assert test_onnx_families.largest_error(model, runner) <= 2 * test_onnx_families.TOLERANCE


def test_other_weights_than_those_that_were_rounded_are_refused(tmp_path: Path) -> None:
    model, rounded = rounded_model("llama")
    other = made_up(model, seed=1)
    with pytest.raises(BadInputError, match=r"_proj in the IR is not what its integers stand for: export the rounded"):
        as_ir(model, other, tmp_path)
    unknown = RoundedWeights("rtn", 128, {"model.layers.9.mlp.up_proj": next(iter(rounded.matrices.values()))})
    with pytest.raises(BadInputError, match=r"the IR has no matrix model\.layers\.9\.mlp\.up_proj"):
        compress(tmp_path / "fp32", tmp_path / "new", precision="int4", rounded=unknown)
    for write in (
        lambda: compress(tmp_path / "fp32", tmp_path / "new", precision="int8", rounded=rounded),
        lambda: export_onnx(model, None, tmp_path / "new", precision="int8", rounded=rounded),
    ):
        with pytest.raises(BadInputError, match="rounded to int4 cannot be exported in int8: use int4"):
            write()


def test_products_of_matrices_that_were_rounded_in_part_are_refused(tmp_path: Path) -> None:
    model, rounded = rounded_model("llama")
    del rounded.matrices["model.layers.1.self_attn.k_proj"]
    with pytest.raises(BadInputError, match=r"layers\.1\.attn\.qkv_proj is one product .* round all of them or none"):
        export_onnx(model, None, tmp_path, precision="int4", rounded=rounded)


def test_integers_stand_for_values() -> None:
    matrix = RoundedMatrix(
        np.array([[0, 15, 7, 8], [1, 2, 3, 4]], np.uint8),
        np.array([[0.5, 2.0], [1.0, 0.25]], np.float16),
        np.array([[0, 8], [1, 15]], np.uint8),
    )
    assert matrix.group == 2
    assert matrix.values().tolist() == [[0.0, 7.5, -2.0, 0.0], [0.0, 1.0, -3.0, -2.75]]
    assert stacked([matrix.rows(slice(1, 2)), matrix]).values().tolist()[0] == [0.0, 1.0, -3.0, -2.75]
    with pytest.raises(ValueError, match="do not fit together"):
        RoundedMatrix(matrix.integers, matrix.scales, matrix.zero_points[:1])
    with pytest.raises(ValueError, match="at most 15"):
        RoundedMatrix(matrix.integers + 1, matrix.scales, matrix.zero_points)
    with pytest.raises(ValueError, match="not finite"):
        RoundedMatrix(matrix.integers, np.full((2, 2), np.inf, np.float16), matrix.zero_points)


def test_options_that_do_not_exist_are_refused() -> None:
    assert RoundingOptions("gptq").group_for(192) == 64
    assert RoundingOptions("gptq", 32).group_for(128) == 32
    assert RoundingOptions("gptq").group_for(72) == 0
    for settings, words in (
        ({"method": "best"}, 'rounding "best" is not one of rtn, gptq, awq, autoround'),
        ({"method": "awq", "group_size": 48}, "group size 48 is not supported: use one of 128, 64, 32"),
        ({"method": "awq", "samples": 0}, "0 windows of calibration text are none: use at least 1"),
        ({"method": "rtn", "calibration": "a"}, "have no meaning for rtn, which reads no text: leave them out"),
    ):
        with pytest.raises(BadInputError, match=words):
            RoundingOptions(**settings)  # type: ignore[arg-type]
