"""fp16 and bf16 storage of an exported IR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from tiny_exports import DENSE_LAYER, Exported, make_model, make_shape

from prune_export.benchmark.artifact import weight_precision
from prune_export.errors import BadInputError
from prune_export.export.gate import TOLERANCE
from prune_export.export.half_precision import _bf16
from prune_export.export.openvino_ir import export_graph_only
from prune_export.export.parity import check_parity
from prune_export.export.weights import compress

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=TYPES)
def half(request: pytest.FixtureRequest, llama: Exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("half") / str(request.param)
    compress(llama.directory, directory, precision=request.param)
    return request.param, directory


def test_matrices_are_rounded_to_nearest_and_the_rest_stays(llama: Exported, half: tuple[str, Path]) -> None:
    precision, directory = half
    model = openvino.Core().read_model(directory / "openvino_model.xml")
    constants: dict[str, Any] = {
        op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"
    }
    found = 0
    for name, weight in llama.model.named_parameters():
        if f"self.{name}" not in constants:
            continue  # a norm's weight goes by another name
        values = constants[f"self.{name}"].get_data(dtype=np.float32)
        rounded = weight.to(TYPES[precision]).float() if weight.ndim > 1 else weight
        assert torch.equal(torch.from_numpy(values.copy()).reshape(weight.shape), rounded), name
        found += weight.ndim > 1
    assert found == sum(weight.ndim > 1 for weight in llama.model.parameters())
    assert weight_precision(directory / "openvino_model.xml") == precision


def test_the_runtime_may_keep_the_halves_in_memory(half: tuple[str, Path]) -> None:
    """Only conversions that are marked stay; all others are carried out when a model is loaded."""
    model = openvino.Core().read_model(half[1] / "openvino_model.xml")
    readers = [
        next(iter(op.output(0).get_target_inputs())).get_node()
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().get_type_name() in ("f16", "bf16")
    ]
    assert {reader.get_type_name() for reader in readers} == {"Convert"}
    assert all("decompression_0" in reader.get_rt_info() for reader in readers)


def test_half_precision_is_made_from_fp32_alone(half: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="has compressed weights already: give the fp32 export"):
        compress(half[1], tmp_path / "int8", precision="int8")


def test_the_file_is_half_as_large(llama: Exported, half: tuple[str, Path]) -> None:
    sizes = [(folder / "openvino_model.bin").stat().st_size for folder in (half[1], llama.directory)]
    assert 0.5 <= sizes[0] / sizes[1] < 0.53
    record = json.loads((half[1] / "openvino_export.json").read_text())
    assert (record["precision"], record["weights_bytes"], record["mode"]) == (half[0], sizes[0], "")


def test_the_model_computes_with_the_rounded_weights(llama: Exported, half: tuple[str, Path]) -> None:
    """Torch with the rounded weights is the reference, so fp32's limit holds."""
    model = make_model(llama.shape, seed=1)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = weight.data.to(TYPES[half[0]]).float()
    errors, _ = check_parity(model, half[1])
    assert max(errors.values()) <= TOLERANCE


def test_genai_generates_with_half_precision_weights(llama: Exported, half: tuple[str, Path]) -> None:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(half[1]), "CPU", INFERENCE_PRECISION_HINT="f32")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = 8
    config.ignore_eos = True
    assert len(pipeline.generate(openvino.Tensor(llama.prompt()[None, :]), config).tokens[0]) == 8


def test_bf16_rounds_ties_to_even_and_carries() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**32, 4096, dtype=np.uint32)
    edges = np.array([0x3F808000, 0x3F818000, 0x3F7FFFFF, 0x80000001, 0x00007FFF, 0x3F807FFF], dtype=np.uint32)
    values = np.concatenate([words, edges]).view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(_bf16(values), expected)


def test_weights_beyond_fp16_are_refused(tmp_path: Path) -> None:
    model = make_model(make_shape("llama", (DENSE_LAYER,)))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = -70000.0
    export_graph_only(model, tmp_path / "fp32" / "openvino_model.xml")
    with pytest.raises(
        BadInputError, match=r"up_proj.* has a weight of size 70000, fp16 holds 65504 .*--precision bf16"
    ):
        compress(tmp_path / "fp32", tmp_path / "fp16", precision="fp16")
    assert compress(tmp_path / "fp32", tmp_path / "bf16", precision="bf16").precision == "bf16"
