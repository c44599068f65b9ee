"""The exported ONNX decoder in `onnxruntime` and `onnxruntime_genai`, against torch."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from tiny_exports import (
    BIASES,
    CONTEXT,
    DENSE_LAYER,
    PRUNED_LAYERS,
    SENTENCES,
    Exported,
    make_model,
    make_shape,
    make_tokenizer,
    with_exact_activations,
)

from prune_export import formats
from prune_export.api import export
from prune_export.errors import BadInputError, ParityError
from prune_export.export import onnx_read, onnx_runner
from prune_export.export.departures import departures_of
from prune_export.export.gate import Reference, check_against
from prune_export.export.onnx_export import export_onnx
from prune_export.export.onnx_limits import check_model
from prune_export.export.onnx_quantize import dequantize, quantize
from prune_export.export.onnx_runner import OnnxRunner
from prune_export.export.onnx_weights import ExternalData
from prune_export.export.parity import greedy_tokens_of, torch_reference
from prune_export.formats import FORMATS
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.shape import LayerShape, ModelShape

NEW_TOKENS = 24
NEVER = 319  # an id that none of the texts below reaches: generation goes on past the end of text
DENSE = (DENSE_LAYER,) * 2


def exported_onnx(directory: Path, family: str, layers: tuple[LayerShape, ...], *, precision: str = "fp32") -> Exported:
    shape = make_shape(family, layers, tied=family != "qwen2")
    model, tokenizer = make_model(shape), make_tokenizer()
    export_onnx(model, tokenizer, directory, precision=precision)
    return Exported(model, tokenizer, shape, directory)


@pytest.fixture(scope="module", params=sorted(BIASES))
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A pruned model of each family; Qwen2's has its own head, the others share the embedding."""
    return exported_onnx(tmp_path_factory.mktemp("onnx") / "fp32", str(request.param), PRUNED_LAYERS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_onnx(tmp_path_factory.mktemp("onnx") / "fp32", "llama", PRUNED_LAYERS)


def nodes(directory: Path) -> list[Any]:
    return list(onnx.load(directory / "model.onnx", load_external_data=False).graph.node)


def test_every_check_of_the_gate_holds(pruned: Exported) -> None:
    reference = torch_reference(pruned.model)
    errors, tolerance = check_against(reference, pruned.directory, threads=1)
    assert len(errors) == 8
    assert max(errors.values()) <= tolerance


@pytest.mark.parametrize("family", sorted(BIASES))
def test_a_dense_model_passes_too(family: str, tmp_path: Path) -> None:
    dense = exported_onnx(tmp_path, family, DENSE)
    errors, tolerance = check_against(torch_reference(dense.model), tmp_path, threads=1)
    assert max(errors.values()) <= tolerance


def test_a_sliding_window_is_kept(tmp_path: Path) -> None:
    model = make_model(make_shape("mistral", PRUNED_LAYERS))
    wide = torch_reference(model)
    model.config.sliding_window = 12
    for layer in model.model.layers:
        if layer.self_attn is not None:
            layer.self_attn.sliding_window = 12
    export_onnx(model, None, tmp_path)
    errors, tolerance = check_against(torch_reference(model), tmp_path, threads=1)
    assert max(errors.values()) <= tolerance
    with pytest.raises(ParityError, match="largest logit error"):
        check_against(wide, tmp_path, threads=1)


def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    model = make_model(make_shape("llama", DENSE))
    reference = torch_reference(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 0.5
    export_onnx(model, None, tmp_path)
    with pytest.raises(ParityError, match="largest logit error"):
        check_against(reference, tmp_path, threads=1)


def genai_tokens(directory: Path, prompts: list[np.ndarray], new_tokens: int) -> list[list[int]]:
    """Greedy continuations of prompts by ONNX Runtime GenAI, padded on the right, as its tokenizer does."""
    import onnxruntime_genai

    config = onnxruntime_genai.Config(str(directory))
    config.overlay(json.dumps({"model": {"eos_token_id": NEVER, "pad_token_id": NEVER}}))
    model = onnxruntime_genai.Model(config)
    width = max(map(len, prompts))
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=width + new_tokens, batch_size=len(prompts), do_sample=False)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(
        np.stack([np.pad(prompt, (0, width - len(prompt)), constant_values=NEVER) for prompt in prompts]).astype(
            np.int32
        )
    )
    tokens: list[list[int]] = [[] for _ in prompts]
    for _ in range(new_tokens):
        generator.generate_next_token()
        for row, token in zip(tokens, generator.get_next_tokens(), strict=True):
            row.append(int(token))
    return tokens


def test_genai_generates_torchs_tokens(pruned: Exported) -> None:
    expected = greedy_tokens_of(pruned.model, pruned.prompt(), new_tokens=NEW_TOKENS)
    assert NEVER not in expected
    assert genai_tokens(pruned.directory, [pruned.prompt()], NEW_TOKENS) == [expected]


def test_genai_takes_a_batch_padded_on_the_right(llama: Exported) -> None:
    prompts = [llama.prompt(0), llama.prompt(1)]
    assert len(prompts[0]) != len(prompts[1])
    expected = [greedy_tokens_of(llama.model, prompt, new_tokens=NEW_TOKENS) for prompt in prompts]
    assert genai_tokens(llama.directory, prompts, NEW_TOKENS) == expected


def test_genai_reads_and_writes_text_as_the_tokenizer_does(llama: Exported) -> None:
    import onnxruntime_genai

    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(llama.directory)))
    for text in SENTENCES:
        expected = llama.tokenizer(text)["input_ids"]
        assert tokenizer.encode(text).tolist() == expected
        assert tokenizer.decode(np.array(expected, dtype=np.int32)) == text


def test_names_and_sizes_are_those_that_people_know(llama: Exported) -> None:
    session = onnxruntime.InferenceSession(llama.directory / "model.onnx")
    ports = {port.name: port.shape for port in session.get_inputs()}
    heads = [layer.kv_heads for layer in PRUNED_LAYERS if layer.kv_heads]
    assert list(ports) == [
        "input_ids",
        "attention_mask",
        *(f"past_key_values.{index}.{part}" for index in range(len(heads)) for part in ("key", "value")),
    ]
    for index, count in enumerate(heads):
        assert ports[f"past_key_values.{index}.key"] == ["batch_size", count, "past_sequence_length", 16]
    outputs = [port.name for port in session.get_outputs()]
    assert sorted(outputs) == sorted(
        ["logits", *(f"present.{index}.{part}" for index in range(len(heads)) for part in ("key", "value"))]
    )


def test_the_graph_has_the_fused_operators_only(llama: Exported) -> None:
    counts = Counter(node.op_type for node in nodes(llama.directory))
    attentions = sum(1 for layer in PRUNED_LAYERS if layer.kv_heads)
    mlps = sum(1 for layer in PRUNED_LAYERS if layer.mlp_width)
    assert counts["GroupQueryAttention"] == attentions
    assert counts["MatMul"] == 2 * attentions + 3 * mlps + 1
    assert counts["SkipSimplifiedLayerNormalization"] == attentions + mlps
    assert counts["SimplifiedLayerNormalization"] == 1
    assert counts["QuickGelu"] == counts["Mul"] == mlps
    assert not {"Softmax", "RotaryEmbedding", "Sigmoid", "Pow", "ReduceMean"} & counts.keys()


def test_the_tied_table_is_turned_when_it_is_loaded_not_in_each_run(llama: Exported, tmp_path: Path) -> None:
    assert Counter(node.op_type for node in nodes(llama.directory))["Transpose"] == 1
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.onnx")
    onnxruntime.InferenceSession(llama.directory / "model.onnx", options, providers=["CPUExecutionProvider"])
    assert not any(node.op_type in ("Transpose", "FusedMatMul") for node in nodes(tmp_path))


def test_all_weights_lie_in_the_data_file_once(llama: Exported) -> None:
    model = onnx.load(llama.directory / "model.onnx", load_external_data=False)
    inside = [item for item in model.graph.initializer if not item.external_data]
    assert all(int(np.prod(item.dims)) <= 4 for item in inside)
    size = (llama.directory / "model.onnx.data").stat().st_size
    tables = 2 * CONTEXT * 8 * 4
    # Each tensor begins on a page of its own.
    assert (
        4 * llama.shape.parameters()
        <= size
        <= 4 * llama.shape.parameters() + tables + 4096 * len(model.graph.initializer)
    )
    assert all(
        int(entry.value) % 4096 == 0
        for item in model.graph.initializer
        for entry in item.external_data
        if entry.key == "offset"
    )


def test_configuration_and_tokenizer_come_along(llama: Exported) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(llama.directory)
    assert (config.model_type, config.head_dim, config.vocab_size) == ("llama", 16, 320)
    assert GenerationConfig.from_pretrained(llama.directory).eos_token_id == 1
    tokenizer = AutoTokenizer.from_pretrained(llama.directory)
    assert tokenizer(SENTENCES[2])["input_ids"] == llama.prompt(2).tolist()
    genai = json.loads((llama.directory / "genai_config.json").read_text())
    decoder = genai["model"]["decoder"]
    assert (decoder["num_hidden_layers"], decoder["head_size"], genai["model"]["type"]) == (3, 16, "llama")
    assert (genai["model"]["context_length"], genai["model"]["vocab_size"]) == (CONTEXT, 320)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_round_to_the_nearest_step(bits: int) -> None:
    """Against the definition: each block's range in 2^bits - 1 steps, and no value further than half a step off."""
    weight = torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, bits=bits, block=64)
    restored = dequantize(quantized)
    blocks = weight.numpy().reshape(40, 3, 64)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    step = (high - low) / (2**bits - 1)
    np.testing.assert_allclose(quantized.scales, step, rtol=1e-5)
    # The zero point is rounded as well: another half step at the ends of the range.
    assert (np.abs(restored.reshape(40, 3, 64) - blocks) <= 1.01 * step[:, :, None]).all()
    assert (np.abs(restored.reshape(40, 3, 64) - blocks) <= 0.51 * step[:, :, None]).mean() > 0.97


def test_what_a_made_up_cache_does_not_reach_is_named_and_its_table_compared(
    llama: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = torch_reference(llama.model)
    assert f"last positions, up to {CONTEXT - 1}" in check_against(reference, llama.directory, threads=1)[0]
    row = sum(layer.kv_heads * 16 * 2 * 4 for layer in PRUNED_LAYERS)
    monkeypatch.setattr(onnx_runner, "_MADE_UP_BYTES", 100 * row + 1)
    errors, _ = check_against(reference, llama.directory, threads=1)
    table = f"table of rotations, last positions, up to {CONTEXT - 1}"
    assert list(errors)[-2:] == [table, f"late positions, up to 107 of {CONTEXT - 1}"]
    assert errors[table] < 1e-6
    # One wrong number in the last row of the sines: at a position that is not reached.
    damaged = tmp_path / "damaged"
    shutil.copytree(llama.directory, damaged)
    graph = onnx.load(damaged / "model.onnx", load_external_data=False).graph
    (sines,) = (item for item in graph.initializer if item.name == "sin_cache")
    assert list(sines.dims) == [CONTEXT, 8]
    place = {entry.key: entry.value for entry in sines.external_data}
    with (damaged / "model.onnx.data").open("r+b") as file:
        file.seek(int(place["offset"]) + int(place["length"]) - 4)
        file.write(np.float32(0.5).tobytes())
    with pytest.raises(ParityError, match=rf'parity check "{table}": largest table error .* is over the limit'):
        check_against(reference, damaged, threads=1)
    without = Reference(reference.context, reference.vocab_size, reference.logits)
    assert table not in check_against(without, damaged, threads=1)[0]


def test_rotations_are_compared_with_those_of_the_models_own_module(llama: Exported) -> None:
    found = torch_reference(llama.model).rotary
    ours = onnx_runner.OnnxRunner(llama.directory, threads=1).rotary_rows(CONTEXT - 8, CONTEXT)
    assert found is not None
    assert ours is not None
    assert found.shape == ours.shape == (2, 8, 8)
    angles = np.arange(CONTEXT - 8, CONTEXT)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(ours, [np.cos(angles), np.sin(angles)], atol=1e-4)


def with_rounded_weights(model: Any, bits: int, *, embeddings: int, head: int) -> Any:
    """The torch model with each matrix replaced by what its integers stand for."""
    special = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                block = next(size for size in (128, 64, 32) if weight.shape[1] % size == 0)
                rounded = quantize(weight, bits=special.get(name, bits), block=block)
                weight.copy_(torch.from_numpy(dequantize(rounded)))
    return model


def check_with_exact_activations(reference: Reference, directory: Path) -> None:
    """Without the rounding of activations the graph must equal torch."""
    with_exact_activations(directory)
    errors, tolerance = check_against(reference, directory, threads=1)
    assert max(errors.values()) <= tolerance


@pytest.mark.parametrize(("family", "precision"), [("llama", "int4"), ("qwen2", "int8"), ("qwen2", "int4")])
def test_a_quantized_export_computes_with_its_integers(family: str, precision: str, tmp_path: Path) -> None:
    made = exported_onnx(tmp_path, family, PRUNED_LAYERS, precision=precision)
    bits = 4 if precision == "int4" else 8
    # Untied embeddings keep 8 bits; tied ones are the head and have the head's.
    embeddings = bits if family == "llama" else 8
    check_with_exact_activations(
        torch_reference(with_rounded_weights(made.model, bits, embeddings=embeddings, head=bits)), tmp_path
    )


def test_widths_that_no_large_block_divides_are_named(tmp_path: Path) -> None:
    layers = (LayerShape(4, 2, 128), LayerShape(2, 1, 96), LayerShape(4, 4, 72))
    model = make_model(make_shape("llama", layers))
    record = export_onnx(model, None, tmp_path, precision="int4")
    assert record.block_size == 128
    assert record.smaller_blocks["model.layers.1.mlp.down_proj"] == 32
    assert record.smaller_blocks["model.layers.0.attn.qkv_proj"] == 64
    assert "model.layers.0.mlp.down_proj" not in record.smaller_blocks
    assert record.fp32_layers == ("model.layers.2.mlp.down_proj",)
    saved = json.loads((tmp_path / "onnx_export.json").read_text())
    assert saved["fp32_layers"] == ["model.layers.2.mlp.down_proj"]
    assert OnnxRunner(tmp_path, threads=1)


def test_what_departs_from_the_precision_is_told_layer_by_layer(llama: Exported, tmp_path: Path) -> None:
    layers = (LayerShape(4, 2, 128), LayerShape(2, 1, 96), LayerShape(4, 4, 72))
    model = make_model(make_shape("llama", layers, tied=False))
    for precision in ("int4", "int8"):
        export_onnx(model, None, tmp_path / precision, precision=precision)
        found = departures_of(tmp_path / precision)
        assert found["model.embed_tokens"] == "int8 in groups of 64"
        assert found["model.layers.0.attn.qkv_proj"] == f"{precision} in groups of 64"
        assert found["model.layers.1.mlp.down_proj"] == f"{precision} in groups of 32"
        assert found["model.layers.2.mlp.down_proj"] == "fp32"
        assert "model.layers.0.mlp.down_proj" not in found  # 128 wide
    export_onnx(model, None, tmp_path / "small", precision="int4", block=32)
    assert departures_of(tmp_path / "small") == {"model.embed_tokens": "int8", "model.layers.2.mlp.down_proj": "fp32"}
    assert departures_of(llama.directory) == {}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_rounded_storage_computed_in_fp32(precision: str, tmp_path: Path) -> None:
    made = exported_onnx(tmp_path, "qwen2", PRUNED_LAYERS, precision=precision)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.ndim == 2:
                weight.copy_(weight.to(dtype).float())
    errors, tolerance = check_against(torch_reference(made.model), tmp_path, threads=1)
    assert max(errors.values()) <= tolerance
    assert (tmp_path / "model.onnx.data").stat().st_size < 3 * made.shape.parameters()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_integers_that_fit_no_layer_are_refused(precision: str, tmp_path: Path) -> None:
    model = make_model(ModelShape("llama", 48, 16, 96, True, (LayerShape(3, 3, 40),), (), 64))
    remedy = "use --precision fp32, fp16 or bf16"
    with pytest.raises(BadInputError, match=rf"^{precision} fits no layer .* multiple of 32; {remedy}$"):
        export_onnx(model, None, tmp_path, precision=precision)
    assert list(tmp_path.iterdir()) == []
    # One layer that they fit is enough.
    model = make_model(ModelShape("llama", 48, 16, 96, True, (LayerShape(3, 3, 64),), (), 64))
    record = export_onnx(model, None, tmp_path, precision=precision)
    assert record.smaller_blocks == {"model.layers.0.mlp.down_proj": 64}
    assert len(record.fp32_layers) == 4


def test_what_the_operators_cannot_do_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the whole OpenVINO export that comes first."""
    ran: list[str] = []

    def write(*_: Any) -> Any:
        ran.append("written")

    monkeypatch.setattr(formats, "FORMATS", {name: replace(row, write=write) for name, row in FORMATS.items()})
    narrow = ModelShape("llama", 32, 8, 96, True, (LayerShape(4, 2, 64),), (), 64)
    odd = ModelShape("llama", 48, 16, 96, True, (LayerShape(3, 3, 40),), (), 64)
    for shape, precision, words in (
        (narrow, "fp32", "heads of width 8 have no ONNX export"),
        (odd, "int8", "int8 fits no layer"),
    ):
        source = tmp_path / precision
        source.mkdir()
        save_checkpoint(make_model(shape), make_tokenizer(), source)
        with pytest.raises(BadInputError, match=words):
            export(str(source), tmp_path / "out", format="both", precision=precision)
    assert ran == []


def test_partial_rotations_are_told_from_the_configuration() -> None:
    for share, fits in ((0.25, False), (0.5, True), (1.0, True)):
        rotation = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
        config = transformers.GPTNeoXConfig(
            hidden_size=64, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64, rope_parameters=rotation
        )
        model = transformers.GPTNeoXForCausalLM(config)
        for check in (partial(check_model, config, "fp32"), partial(onnx_read.read_decoder, model)):
            if fits:
                check()
            else:
                with pytest.raises(BadInputError, match="heads of which 8 dimensions are rotated have no ONNX export"):
                    check()


def test_weights_beyond_fp16_are_refused(tmp_path: Path) -> None:
    model = make_model(make_shape("llama", DENSE))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = -70000.0
    words = r"^model\.layers\.0\.mlp\.up_proj\.weight has a weight of size 70000, fp16 holds 65504 .*--precision bf16$"
    with pytest.raises(BadInputError, match=words):
        export_onnx(model, None, tmp_path / "fp16", precision="fp16")
    assert not (tmp_path / "fp16" / "model.onnx").exists()
    assert export_onnx(model, None, tmp_path / "bf16", precision="bf16").precision == "bf16"


def test_an_int4_head_can_keep_8_bits(tmp_path: Path) -> None:
    model = make_model(make_shape("qwen2", DENSE, tied=False))
    record = export_onnx(model, None, tmp_path, precision="int4", head_bits=8)
    assert record.int8_layers == ("model.embed_tokens", "lm_head")
    check_with_exact_activations(torch_reference(with_rounded_weights(model, 4, embeddings=8, head=8)), tmp_path)


def test_the_model_is_left_as_it_was_and_two_exports_are_equal(llama: Exported, tmp_path: Path) -> None:
    weights = {name: weight.clone() for name, weight in llama.model.state_dict().items()}
    export_onnx(llama.model, llama.tokenizer, tmp_path)
    for name, weight in llama.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    for path in llama.directory.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_nothing_is_printed(llama: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(llama.model, llama.tokenizer, tmp_path, precision="int8")
    onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(make_shape("llama", DENSE))
    with pytest.raises(BadInputError, match=r'no precision "int44" \(did you mean "int4"\?\): use one of fp32, fp16'):
        export_onnx(model, None, tmp_path, precision="int44")
    with pytest.raises(BadInputError, match=r"block size 48 is not supported: use one of 128, 64, 32"):
        export_onnx(model, None, tmp_path, precision="int4", block=48)
    model.config.model_type = "mamba"
    with pytest.raises(BadInputError, match=r'architecture "mamba" has no ONNX export: use one of llama'):
        export_onnx(model, None, tmp_path)
    model.config.model_type = "llama"
    model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(BadInputError, match=r'rotary positions of type "dynamic" have no ONNX export'):
        export_onnx(model, None, tmp_path)
    for layer in model.model.layers:
        layer.self_attn = None
    model.model.rotary_emb.rope_type = "default"
    with pytest.raises(BadInputError, match=r"2 layers have no attention left.*at least 1"):
        onnx_read.read_decoder(model)
    assert not (tmp_path / "model.onnx").exists()


def test_a_full_disk_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prune_export.errors import PruneExportError

    def full(self: ExternalData, name: str, parts: Any, shape: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ExternalData, "add_parts", full)
    with pytest.raises(PruneExportError, match=r"No space left on device: .* nothing was left there"):
        export("reference", tmp_path / "out", format="onnx", precision="int4")
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_data_is_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx.data").symlink_to(victim)
    with pytest.raises(BadInputError, match=r"model\.onnx\.data exists already: export to an empty directory"):
        export_onnx(make_model(make_shape("llama", DENSE)), None, tmp_path / "out")
    assert victim.read_text() == "kept"


def test_heads_that_the_operator_does_not_rotate_are_refused() -> None:
    from prune_export.prune.synthetic import random_model

    model = random_model(ModelShape("llama", 32, 8, 96, True, (LayerShape(4, 2, 64),)), seed=0)
    with pytest.raises(BadInputError, match=r"heads of width 8 have no ONNX export: .* multiple of 16"):
        onnx_read.read_decoder(model)
