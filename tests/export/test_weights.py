"""int8 and int4 weights of an exported IR."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from tiny_exports import Exported, make_model, make_shape

from prune_export.errors import BadInputError
from prune_export.export.checks import Step
from prune_export.export.gate import TOLERANCE, ir_greedy_agreement
from prune_export.export.openvino_ir import export_graph_only, export_openvino
from prune_export.export.parity import check_parity
from prune_export.export.runner import IrRunner
from prune_export.export.weights import CompressionRecord, compress
from prune_export.shape import LayerShape


@pytest.fixture(scope="module")
def compressed(llama: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, CompressionRecord]]:
    results = {}
    for precision in ("int8", "int4"):
        directory = tmp_path_factory.mktemp("compressed") / precision
        results[precision] = directory, compress(llama.directory, directory, precision=precision)
    return results


def dequantized(directory: Path, prefix: str) -> np.ndarray:
    """(q - zero point) * scale of one layer, read from the IR's constants: [out, in]."""
    model = openvino.Core().read_model(directory / "openvino_model.xml")
    constants: dict[str, Any] = {
        op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"
    }
    weight, zero, scale = (
        constants[f"self.{prefix}.weight{suffix}"].get_data(dtype=np.float32)
        for suffix in ("", "/zero_point", "/scale")
    )
    result: np.ndarray = (weight - zero) * scale
    return result


def last_logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    runner = IrRunner(directory, precision="fp32", threads=1)
    positions = np.arange(len(ids), dtype=np.int64)[None, :]
    result: np.ndarray = runner.step(Step(ids[None, :], np.ones_like(positions), positions))[0, -1]
    return result


def test_int8_weights_are_the_models_within_half_a_step(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]]
) -> None:
    weights = dict(llama.model.named_parameters())
    for name in ("model.embed_tokens", "model.layers.1.self_attn.q_proj", "model.layers.4.mlp.down_proj"):
        ours = dequantized(compressed["int8"][0], name)
        theirs = weights[f"{name}.weight"].detach().numpy()
        # 256 levels from the row's smallest to its largest value (zero included); scales are stored in fp16, which
        # moves a value by up to 255 steps * 2^-11.
        step = (np.maximum(theirs.max(axis=1), 0) - np.minimum(theirs.min(axis=1), 0)) / 255
        assert (np.abs(ours - theirs) <= step[:, None] * (0.5 + 255 * 2**-11 + 0.5)).all(), name
        assert np.abs(ours - theirs).max() > 0, name


def test_int8_is_a_quarter_of_the_weights(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]]
) -> None:
    directory, record = compressed["int8"]
    assert record == CompressionRecord("int8", "int8_asym", 0, {}, (), record.weights_bytes)
    assert record.weights_bytes == (directory / "openvino_model.bin").stat().st_size
    # One byte a weight, three a row for scale and zero point; rows here have 64 weights.
    assert 0.25 < record.weights_bytes / (llama.directory / "openvino_model.bin").stat().st_size < 0.31


def test_int4_names_the_layers_in_smaller_groups(compressed: dict[str, tuple[Path, CompressionRecord]]) -> None:
    record = compressed["int4"][1]
    assert record.mode == "int4_asym"
    assert record.group_size == 128
    assert record.smaller_groups["model.layers.0.mlp.gate_proj"] == 64
    assert record.smaller_groups["model.layers.2.self_attn.o_proj"] == 32
    assert record.smaller_groups["model.layers.4.mlp.down_proj"] == 32
    assert "model.layers.2.mlp.down_proj" not in record.smaller_groups
    assert record.int8_layers == ("model.embed_tokens",)


def test_int4_keeps_widths_without_a_group_in_int8(tmp_path: Path) -> None:
    model = make_model(make_shape("llama", (LayerShape(4, 2, 80), LayerShape(3, 3, 64))))
    export_graph_only(model, tmp_path / "fp32" / "openvino_model.xml")
    record = compress(tmp_path / "fp32", tmp_path / "int4", precision="int4", group_size=64)
    assert record.int8_layers == (
        "model.embed_tokens",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.o_proj",
    )
    assert record.smaller_groups == {}


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_compressed_models_compute_with_the_compressed_weights(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]], precision: str
) -> None:
    """Torch with the decompressed weights is the reference; fp32 activations, so fp32's parity limit holds."""
    directory = compressed[precision][0]
    model = copy.deepcopy(llama.model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(
                    torch.from_numpy(dequantized(directory, name.removesuffix(".weight")).reshape(weight.shape))
                )
    errors, _ = check_parity(model, directory)
    assert max(errors.values()) < TOLERANCE
    assert not np.allclose(
        last_logits(directory, llama.prompt()), last_logits(llama.directory, llama.prompt()), atol=0.01
    )


def test_int8_loads_and_generates_in_genai(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]]
) -> None:
    import openvino_genai

    directory = compressed["int8"][0]
    pipeline = openvino_genai.LLMPipeline(str(directory), "CPU", INFERENCE_PRECISION_HINT="f32")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = 8
    config.ignore_eos = True
    tokens = list(pipeline.generate(openvino.Tensor(llama.prompt()[None, :]), config).tokens[0])
    assert len(tokens) == 8
    assert ir_greedy_agreement(directory, llama.prompt(), tokens, precision="int8") >= 0.125


def test_companions_are_copied_and_the_cache_hint_is_dropped(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]]
) -> None:
    for directory, _ in compressed.values():
        names = {path.name for path in directory.iterdir()}
        assert names == {path.name for path in llama.directory.iterdir()}
        for name in ("config.json", "tokenizer.json", "openvino_tokenizer.bin"):
            assert (directory / name).read_bytes() == (llama.directory / name).read_bytes()
        model = openvino.Core().read_model(directory / "openvino_model.xml")
        assert model.get_rt_info("runtime_options").value == {"ACTIVATIONS_SCALE_FACTOR": "8.0"}


def test_nothing_is_printed(llama: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compress(llama.directory, tmp_path / "int8", precision="int8")
    assert capfd.readouterr() == ("", "")


def test_mistakes_are_named(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]], tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match='compressed to "int3": use int8 or int4'):
        compress(llama.directory, tmp_path, precision="int3")
    with pytest.raises(BadInputError, match="group size 48 is not supported: use one of 128, 64, 32"):
        compress(llama.directory, tmp_path, precision="int4", group_size=48)
    with pytest.raises(BadInputError, match=r"has no openvino_model\.xml: export the model in fp32 first"):
        compress(tmp_path, tmp_path / "new", precision="int8")
    with pytest.raises(BadInputError, match="has compressed weights already: give the fp32 export"):
        compress(compressed["int8"][0], tmp_path / "new", precision="int4")


def test_an_untied_head_is_compressed_too(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(make_shape("qwen2", (LayerShape(4, 2, 64),), tied=False))
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    export_openvino(model, tokenizer, tmp_path / "fp32")
    record = compress(tmp_path / "fp32", tmp_path / "int4", precision="int4", group_size=64)
    assert record.int8_layers == ("lm_head", "model.embed_tokens")
