"""The exported IR in its three runtimes, against torch."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from tiny_exports import BIASES, DENSE_LAYER, PRUNED_LAYERS, SENTENCES, Exported, make_model, make_shape

from prune_export.errors import BadInputError
from prune_export.export import openvino_ir
from prune_export.export.openvino_ir import export_graph_only, export_openvino
from prune_export.export.parity import greedy_agreement, greedy_tokens_of
from prune_export.export.quiet import quiet
from prune_export.shape import LayerShape

NEW_TOKENS = 24
NEVER = 10**6
FP32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
DENSE = (DENSE_LAYER,) * 3


def load_optimum(directory: Path) -> Any:
    with quiet():
        from optimum.intel import OVModelForCausalLM

        return OVModelForCausalLM.from_pretrained(directory, ov_config=FP32)


def runtime_ops(path: Path) -> Counter[str]:
    compiled = openvino.Core().compile_model(path, "CPU", {**FP32, "INFERENCE_NUM_THREADS": 1})
    return Counter(str(op.get_rt_info()["layerType"].value) for op in compiled.get_runtime_model().get_ops())


def test_openvino_core_generates_torchs_tokens(exported: Exported) -> None:
    agreement = greedy_agreement(
        exported.model, exported.directory, precision="fp32", prompt_ids=exported.prompt(), new_tokens=NEW_TOKENS
    )
    assert agreement == 1.0


def test_optimum_generates_torchs_tokens(exported: Exported) -> None:
    runtime = load_optimum(exported.directory)
    prompts = [exported.prompt(0), exported.prompt(1)]
    width = max(map(len, prompts))
    ids = np.stack([np.pad(prompt, (width - len(prompt), 0), constant_values=1) for prompt in prompts])
    mask = np.stack([np.arange(width) >= width - len(prompt) for prompt in prompts]).astype(np.int64)
    with quiet():
        tokens = runtime.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=NEVER,
            pad_token_id=1,
        )
    for row, prompt in zip(tokens[:, width:].tolist(), prompts, strict=True):
        expected = greedy_tokens_of(exported.model, prompt, new_tokens=NEW_TOKENS)
        assert row == expected


@pytest.mark.parametrize("backend", ["PA", "SDPA"])
def test_genai_generates_torchs_tokens(exported: Exported, backend: str) -> None:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(exported.directory), "CPU", ATTENTION_BACKEND=backend, **FP32)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = NEW_TOKENS
    config.ignore_eos = True
    result = pipeline.generate(openvino.Tensor(exported.prompt()[None, :]), config)
    assert list(result.tokens[0]) == greedy_tokens_of(exported.model, exported.prompt(), new_tokens=NEW_TOKENS)


def test_genai_reads_and_writes_text_as_the_tokenizer_does(llama: Exported) -> None:
    import openvino_genai

    tokenizer = openvino_genai.Tokenizer(str(llama.directory))
    for text in SENTENCES:
        expected = llama.tokenizer(text)["input_ids"]
        assert tokenizer.encode(text).input_ids.data[0].tolist() == expected
        assert tokenizer.decode(expected) == text
    assert tokenizer.get_eos_token_id() == llama.tokenizer.eos_token_id


@pytest.mark.parametrize("family", sorted(BIASES))
def test_every_attention_is_fused_with_its_cache_and_rotation(family: str, tmp_path: Path) -> None:
    """What the compiled graph gains when every layer comes twice: an unfused cache would show as concatenations."""
    counts = []
    for repeat in (1, 2):
        path = tmp_path / str(repeat) / "openvino_model.xml"
        export_graph_only(make_model(make_shape(family, PRUNED_LAYERS * repeat)), path)
        counts.append(runtime_ops(path))
    gained = counts[1] - counts[0]
    assert not counts[0] - counts[1]
    attentions = sum(1 for layer in PRUNED_LAYERS if layer.kv_heads)
    assert gained["ScaledDotProductAttention"] == attentions
    assert gained["MemoryInput"] == gained["MemoryOutput"] == gained["RoPE"] == 2 * attentions
    assert gained["RMS"] == sum((layer.kv_heads > 0) + (layer.mlp_width > 0) for layer in PRUNED_LAYERS)
    assert not {"Concatenation", "Broadcast", "Gather", "ShapeOf", "Tile", "MatMul", "Softmax"} & gained.keys()


def test_a_dense_export_runs_as_optimums_own(tmp_path: Path) -> None:
    model = make_model(make_shape("llama", DENSE))
    export_graph_only(model, tmp_path / "ours" / "openvino_model.xml")
    with quiet():
        from optimum.exporters.openvino.convert import export_from_model

        export_from_model(model, tmp_path / "stock", task="text-generation-with-past", stateful=True)
    ours, stock = (runtime_ops(tmp_path / name / "openvino_model.xml") for name in ("ours", "stock"))
    assert ours == stock
    options = [
        openvino.Core().read_model(tmp_path / name / "openvino_model.xml").get_rt_info("runtime_options").value
        for name in ("ours", "stock")
    ]
    assert options[0] == options[1]


def test_weights_are_stored_once_in_fp32(exported: Exported) -> None:
    model = openvino.Core().read_model(exported.directory / "openvino_model.xml")
    types = {op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert "f32" in types
    assert not types & {"f16", "bf16", "u8", "i8", "u4", "i4"}
    # The rest of the file is the shape arithmetic's constants; a second copy of the tied table would add 27%.
    size = (exported.directory / "openvino_model.bin").stat().st_size
    assert 1.0 <= size / (4 * exported.shape.parameters()) < 1.05


def test_the_configuration_needs_no_remote_code(exported: Exported) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    data = json.loads((exported.directory / "config.json").read_text())
    assert data["model_type"] == exported.shape.family
    assert "auto_map" not in data
    config = AutoConfig.from_pretrained(exported.directory)
    assert (config.head_dim, config.vocab_size, config.max_position_embeddings) == (16, 320, 384)
    assert config.prune_layers == [[layer.query_heads, layer.kv_heads, layer.mlp_width] for layer in PRUNED_LAYERS]
    assert GenerationConfig.from_pretrained(exported.directory).eos_token_id == 1
    tokenizer = AutoTokenizer.from_pretrained(exported.directory)
    assert tokenizer(SENTENCES[2])["input_ids"] == exported.prompt(2).tolist()


def test_the_model_is_left_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(make_shape("mistral", PRUNED_LAYERS))
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    model.train()
    settings = copy.deepcopy(model.config.to_dict())
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    attributes = set(model.__dict__)
    side = tokenizer.padding_side
    export_openvino(model, tokenizer, tmp_path)
    assert model.config.to_dict() == settings
    assert model.config._attn_implementation == "eager"
    assert model.training
    assert set(model.__dict__) == attributes
    assert tokenizer.padding_side == side
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_a_chat_template_and_odd_generation_settings_come_along(tmp_path: Path, tokenizer: Any) -> None:
    import openvino_genai

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    model = make_model(make_shape("llama", DENSE[:1]))
    # Published models carry such pairs; `save_pretrained` refuses to write them.
    model.generation_config.do_sample = False
    model.generation_config.temperature = 0.6
    export_openvino(model, tokenizer, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.6
    text = openvino_genai.Tokenizer(str(tmp_path)).apply_chat_template([{"role": "user", "content": "hi"}], True)
    assert text == "[user] hi"


def test_two_exports_have_the_same_weights_and_layers(llama: Exported, tmp_path: Path) -> None:
    export_graph_only(llama.model, tmp_path / "openvino_model.xml")
    assert (tmp_path / "openvino_model.bin").read_bytes() == (llama.directory / "openvino_model.bin").read_bytes()
    # The converter numbers nameless nodes through the process; nothing else may differ.
    texts = [
        re.sub(r'name="\w*?\d+"', "", (directory / "openvino_model.xml").read_text())
        for directory in (tmp_path, llama.directory)
    ]
    assert texts[0] == texts[1]


def test_nothing_is_printed(llama: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_openvino(llama.model, llama.tokenizer, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_model_without_attention_is_refused(llama: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = llama.shape.with_layers((LayerShape(0, 0, 64),) * 2)
    monkeypatch.setattr(openvino_ir, "model_shape", lambda config: shape)
    with pytest.raises(BadInputError, match=r"2 layers have no attention left.*at least 1"):
        export_graph_only(llama.model, tmp_path / "openvino_model.xml")


def test_a_bf16_model_is_refused(tmp_path: Path) -> None:
    model = make_model(make_shape("llama", DENSE[:1])).to(torch.bfloat16)
    with pytest.raises(BadInputError, match=r"weights in torch\.bfloat16.*needs float32: load it in fp32"):
        export_graph_only(model, tmp_path / "openvino_model.xml")


def test_a_tokenizer_without_openvino_form_is_refused(tmp_path: Path) -> None:
    from transformers import PythonBackend

    class Spelling(PythonBackend):  # type: ignore[misc]
        """A tokenizer in Python, which nothing can convert."""

        @property
        def vocab_size(self) -> int:
            return 26

        def get_vocab(self) -> dict[str, int]:
            return {chr(97 + index): index for index in range(26)}

        def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[()]:
            return ()

    with pytest.raises(BadInputError, match=r"tokenizer Spelling has no OpenVINO form"):
        openvino_ir.export_tokenizer(Spelling(), tmp_path)
