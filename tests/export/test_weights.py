"""int8 and int4 weights of an exported IR, and the options that they have."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from optimum.exporters.openvino import convert
from tiny_exports import Exported, make_model, make_shape

from prune_export.errors import BadInputError
from prune_export.export.checks import Step
from prune_export.export.departures import departures_of
from prune_export.export.gate import TOLERANCE, ir_greedy_agreement
from prune_export.export.integer_weights import Calibration
from prune_export.export.openvino_ir import export_graph_only, export_openvino, graph_in_memory
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.parity import check_parity
from prune_export.export.runner import IrRunner
from prune_export.export.weights import CompressionRecord, compress, compress_graph
from prune_export.manifest import OPENVINO_RECORD, asked_cache
from prune_export.shape import LayerShape, ModelShape


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
    assert record == CompressionRecord("int8", "int8_asym", 0, weights_bytes=record.weights_bytes)
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


def test_what_departs_from_the_precision_is_told_layer_by_layer(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]]
) -> None:
    found = departures_of(compressed["int4"][0])
    assert found["model.layers.2.self_attn.o_proj"] == "int4 in groups of 32"
    assert found["model.embed_tokens"] == "int8"
    assert "model.layers.2.mlp.down_proj" not in found
    assert departures_of(compressed["int8"][0]) == departures_of(llama.directory) == {}


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_a_graph_in_memory_becomes_what_a_written_one_does(llama: Exported, tmp_path: Path, precision: str) -> None:
    saving, options = convert.save_model, OpenVinoOptions(group_size=64)
    export_graph_only(llama.model, tmp_path / "fp32" / "openvino_model.xml")
    compress(tmp_path / "fp32", tmp_path / "written", precision=precision, options=options)
    compress_graph(graph_in_memory(llama.model), tmp_path / "kept", precision=precision, options=options)
    assert convert.save_model is saving
    written, kept = (tmp_path / name / "openvino_model.bin" for name in ("written", "kept"))
    assert kept.read_bytes() == written.read_bytes()
    graphs = [openvino.Core().read_model(path.with_suffix(".xml")) for path in (written, kept)]
    ours, theirs = ([op.get_type_name() for op in graph.get_ordered_ops()] for graph in graphs)
    assert ours == theirs
    settings = [dict(graph.get_rt_info("runtime_options").value) for graph in graphs]
    assert settings[0] == settings[1]
    assert sorted(path.name for path in kept.parent.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]


def test_int4_keeps_widths_without_a_group_in_int8(tmp_path: Path) -> None:
    model = make_model(make_shape("llama", (LayerShape(4, 2, 80), LayerShape(3, 3, 64))))
    export_graph_only(model, tmp_path / "fp32" / "openvino_model.xml")
    record = compress(tmp_path / "fp32", tmp_path / "int4", precision="int4", options=OpenVinoOptions(group_size=64))
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
    # The runtime's default is not GenAI's f32 here: a near tie may fall otherwise.
    assert ir_greedy_agreement(directory, llama.prompt(), tokens, precision="int8") >= 0.75


def test_companions_are_copied_and_the_cache_hint_is_dropped(
    llama: Exported, compressed: dict[str, tuple[Path, CompressionRecord]]
) -> None:
    for directory, _ in compressed.values():
        names = {path.name for path in directory.iterdir()}
        assert names == {path.name for path in llama.directory.iterdir()} | {OPENVINO_RECORD}
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
    with pytest.raises(BadInputError, match='compressed to "int3": use one of fp32, fp16, bf16, int8, int4'):
        compress(llama.directory, tmp_path, precision="int3")
    with pytest.raises(BadInputError, match="group size 48 is not supported: use one of 128, 64, 32"):
        OpenVinoOptions(group_size=48)
    with pytest.raises(BadInputError, match=r"has no openvino_model\.xml: export the model in fp32 first"):
        compress(tmp_path, tmp_path / "new", precision="int8")
    with pytest.raises(BadInputError, match="has compressed weights already: give the fp32 export"):
        compress(compressed["int8"][0], tmp_path / "new", precision="int4")


def test_an_untied_head_is_compressed_too(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(make_shape("qwen2", (LayerShape(4, 2, 64),), tied=False))
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    export_openvino(model, tokenizer, tmp_path / "fp32")
    record = compress(tmp_path / "fp32", tmp_path / "int4", precision="int4", options=OpenVinoOptions(group_size=64))
    assert record.int8_layers == ("lm_head", "model.embed_tokens")


def test_int4_that_fits_no_layer_is_refused(tmp_path: Path) -> None:
    model = make_model(ModelShape("llama", 48, 16, 96, True, (LayerShape(3, 3, 40),), (), 64))
    export_graph_only(model, tmp_path / "fp32" / "openvino_model.xml")
    with pytest.raises(BadInputError, match=r"int4 fits no layer .* multiple of 32; use --precision int8"):
        compress(tmp_path / "fp32", tmp_path / "int4", precision="int4")
    assert not (tmp_path / "int4" / "openvino_model.xml").exists()


def types_of(directory: Path) -> dict[str, str]:
    """Stored type of every weight by layer."""
    model = openvino.Core().read_model(directory / "openvino_model.xml")
    return {
        op.get_friendly_name().removeprefix("self.").removesuffix(".weight"): op.get_element_type().get_type_name()
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_friendly_name().endswith(".weight")
    }


def test_options_decide_what_is_rounded_to_what(llama: Exported, tmp_path: Path) -> None:
    def made(precision: str, **options: Any) -> tuple[dict[str, str], CompressionRecord]:
        folder = tmp_path / f"{precision} {options}"
        record = compress(llama.directory, folder, precision=precision, options=OpenVinoOptions(**options))
        return types_of(folder), record

    plain, record = made("int4")
    assert (plain["model.embed_tokens"], plain["model.layers.4.mlp.up_proj"]) == ("u8", "u4")
    assert (record.fp32_layers, record.ratio, record.methods) == ((), 1.0, ())
    assert made("int8", symmetric=True)[0]["model.layers.4.mlp.up_proj"] == "i8"
    symmetric, record = made("int4", symmetric=True, backup="int8_sym")
    assert (symmetric["model.embed_tokens"], symmetric["model.layers.4.mlp.up_proj"]) == ("i8", "i4")
    assert record.mode == "int4_sym"
    everything, record = made("int4", all_layers=True)
    assert everything["model.embed_tokens"] == "u4"
    assert record.int8_layers == ()
    assert record.smaller_groups["model.embed_tokens"] == 64
    bare, record = made("int4", backup="none")
    assert bare["model.embed_tokens"] == "f32"
    assert record.fp32_layers == ("model.embed_tokens",)
    half, record = made("int4", ratio=0.5)
    assert 0 < sum(kind == "u4" for kind in half.values()) < sum(kind == "u4" for kind in plain.values())
    assert set(record.int8_layers) == {name for name, kind in half.items() if kind == "u8"}
    assert record.ratio == 0.5


def test_awq_changes_what_is_rounded(tmp_path: Path) -> None:
    """Data-free AWQ moves scales between an up projection and the down projection that reads it."""
    export_graph_only(make_model(make_shape("llama", (LayerShape(4, 2, 128),))), tmp_path / "fp32/openvino_model.xml")
    weights = []
    for awq in (False, True):
        folder = tmp_path / f"awq {awq}"
        record = compress(tmp_path / "fp32", folder, precision="int4", options=OpenVinoOptions(awq=awq))
        assert record.methods == (("awq",) if awq else ())
        weights.append(dequantized(folder, "model.layers.0.mlp.down_proj"))
    assert not np.array_equal(weights[0], weights[1])


def outputs(weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    result: np.ndarray = inputs @ weights.T
    return result


@pytest.mark.parametrize(("method", "gain"), [("scale_estimation", -0.1), ("gptq", 0.03)])
def test_weights_are_rounded_by_the_calibration_text(tmp_path: Path, method: str, gain: float) -> None:
    """The first projections see the normed embeddings of the calibration tokens, whatever the layers after them do.

    GPTQ lowers the error on them by construction; scale estimation, which goes by mean activations, loses little where
    weights and tokens are random.
    """
    model = make_model(make_shape("llama", (LayerShape(4, 2, 128),)))
    export_graph_only(model, tmp_path / "fp32" / "openvino_model.xml")
    tokens = np.random.default_rng(0).integers(0, 320, (8, 64), dtype=np.int64)
    calibration = Calibration(tokens, {"name": "random"})
    layer = model.model.layers[0]
    with torch.no_grad():
        inputs = layer.input_layernorm(model.model.embed_tokens(torch.from_numpy(tokens))).flatten(0, 1).numpy()
    weight = layer.self_attn.q_proj.weight.detach().numpy()
    errors, found = [], []
    for folder, options in (("plain", OpenVinoOptions()), (method, OpenVinoOptions(**{method: True}))):
        given = calibration if options.needs_text else None
        record = compress(tmp_path / "fp32", tmp_path / folder, precision="int4", options=options, calibration=given)
        rounded = dequantized(tmp_path / folder, "model.layers.0.self_attn.q_proj").reshape(weight.shape)
        found.append(rounded)
        errors.append(np.square(outputs(rounded - weight, inputs)).mean())
    assert not np.array_equal(*found)
    assert errors[1] < (1 - gain) * errors[0]
    assert record.methods == (method.replace("_", " "),)
    assert record.calibration == {"name": "random"}
    with pytest.raises(BadInputError, match="need calibration tokens: give some"):
        compress(tmp_path / "fp32", tmp_path / "none", precision="int4", options=OpenVinoOptions(**{method: True}))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cache_precision_is_a_hint_that_the_runtime_takes(llama: Exported, tmp_path: Path, precision: str) -> None:
    options = OpenVinoOptions(kv_cache="u8" if precision == "fp32" else "f16")
    record = compress(llama.directory, tmp_path, precision=precision, options=options)
    assert record.kv_cache == options.kv_cache == asked_cache(tmp_path)
    core = openvino.Core()
    model = core.read_model(tmp_path / "openvino_model.xml")
    kept = {"ACTIVATIONS_SCALE_FACTOR": "8.0", "KV_CACHE_PRECISION": options.kv_cache}
    assert model.get_rt_info("runtime_options").value == kept
    compiled = core.compile_model(model, "CPU")
    assert compiled.get_property("KV_CACHE_PRECISION").get_type_name() == options.kv_cache
    assert asked_cache(llama.directory) == ""


def test_fp32_without_a_hint_is_the_very_export(llama: Exported, tmp_path: Path) -> None:
    compress(llama.directory, tmp_path, precision="fp32")
    for name in ("openvino_model.xml", "openvino_model.bin"):
        assert (tmp_path / name).read_bytes() == (llama.directory / name).read_bytes()
    assert json.loads((tmp_path / OPENVINO_RECORD).read_text())["precision"] == "fp32"


def test_folders_beside_the_model_come_along(llama: Exported, tmp_path: Path) -> None:
    """A tokenizer with several chat templates keeps them in one."""
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    export_openvino(make_model(make_shape("llama", (LayerShape(4, 2, 64),))), tokenizer, tmp_path / "fp32")
    compress(tmp_path / "fp32", tmp_path / "int8", precision="int8")
    folder = Path("additional_chat_templates") / "tool_use.jinja"
    assert (tmp_path / "int8" / folder).read_text() == "{{ tools }}"


def test_options_with_values_that_do_not_exist_are_refused() -> None:
    for settings, words in (
        ({"ratio": 0.0}, "ratio 0 of int4 layers must be above 0 and at most 1"),
        ({"backup": "fp8"}, 'backup precision "fp8" is not one of int8_asym, int8_sym, none'),
        ({"kv_cache": "u2"}, 'KV-cache precision "u2" is not one of f32, f16, bf16, u8'),
    ):
        with pytest.raises(BadInputError, match=words):
            OpenVinoOptions(**settings)  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="--ratio is for int4 weights, not for int8: leave it out"):
        OpenVinoOptions(ratio=0.5).check("int8")
    OpenVinoOptions(symmetric=True, kv_cache="u8").check("int8")
