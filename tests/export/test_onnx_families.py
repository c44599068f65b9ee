"""Families beside Llama's kind, dense and of stock classes, in `onnxruntime` against torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from prune_export.errors import BadInputError
from prune_export.export.checks import parity_checks
from prune_export.export.onnx_export import export_onnx
from prune_export.export.onnx_read import read_decoder
from prune_export.export.onnx_runner import OnnxRunner

VOCAB, CONTEXT = 96, 320
TOLERANCE = 1e-4
COMMON = {"vocab_size": VOCAB, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": CONTEXT,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {**SIZES, "num_key_value_heads": 2, "head_dim": 16}),
    "phi3": ("Phi3", {**SIZES, "num_key_value_heads": 2, "sliding_window": 24}),
    "gemma2": (
        "Gemma2",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "query_pre_attn_scalar": 20,
            "sliding_window": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gpt_neox": ("GPTNeoX", {**SIZES, "rotary_pct": 1.0, "use_parallel_residual": True}),
    "gpt_neox sequential": ("GPTNeoX", {**SIZES, "rotary_pct": 1.0, "use_parallel_residual": False}),
    "gpt_neox partial": ("GPTNeoX", {**SIZES, "hidden_size": 128, "rotary_pct": 0.5}),
    "opt": (
        "OPT",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 96,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 64,
        },
    ),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
}


def make(name: str) -> Any:
    prefix, settings = MODELS[name]
    config = getattr(transformers, f"{prefix}Config")(**COMMON, **settings)
    head = {"GPT2": "LMHeadModel"}.get(prefix, "ForCausalLM")
    torch.manual_seed(0)
    # The one attention in torch that applies Gemma's soft cap.
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{prefix}{head}")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape) * 0.1)
    return model


class Torch:
    """The model's own forward with its own cache."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, None

    def step(self, step: Any) -> np.ndarray:
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(step.ids),
                attention_mask=torch.from_numpy(step.mask),
                position_ids=torch.from_numpy(step.positions),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = output.past_key_values
        logits: np.ndarray = output.logits.numpy()
        return logits


def largest_error(model: Any, runner: OnnxRunner) -> float:
    errors = [0.0]
    for check in parity_checks(CONTEXT):
        runner.reset()
        reference = Torch(model)
        for step in check.steps(VOCAB):
            real = step.mask[:, -step.ids.shape[1] :] == 1
            theirs, ours = reference.step(step), runner.step(step)
            assert ours.shape == theirs.shape
            assert np.isfinite(ours).all()
            errors.append(float(np.abs(ours[real] - theirs[real]).max()))
    return max(errors)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_torchs(name: str, tmp_path: Path) -> None:
    model = make(name)
    export_onnx(model, None, tmp_path)
    assert largest_error(model, OnnxRunner(tmp_path, threads=1)) <= TOLERANCE


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "phi3"])
def test_int8_stays_close(name: str, tmp_path: Path) -> None:
    model = make(name)
    export_onnx(model, None, tmp_path, precision="int8")
    spread = float(np.ptp(Torch(model).step(next(parity_checks(CONTEXT)[0].steps(VOCAB)))))
    assert 1e-4 < largest_error(model, OnnxRunner(tmp_path, threads=1)) < spread / 10


@pytest.mark.parametrize("name", MODELS)
def test_genai_generates_torchs_tokens(name: str, tmp_path: Path) -> None:
    import onnxruntime_genai

    model = make(name)
    export_onnx(model, None, tmp_path)
    prompt = np.arange(5, 25, dtype=np.int64)
    ids = torch.from_numpy(prompt)[None]
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    never = next(token for token in range(VOCAB) if token not in expected[0])
    config = onnxruntime_genai.Config(str(tmp_path))
    config.overlay(json.dumps({"model": {"eos_token_id": never}}))
    runtime = onnxruntime_genai.Model(config)
    settings = onnxruntime_genai.GeneratorParams(runtime)
    settings.set_search_options(max_length=44, do_sample=False)
    generator = onnxruntime_genai.Generator(runtime, settings)
    generator.append_tokens(prompt[None].astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist() == expected[0].tolist()


def test_variants_without_a_graph_are_refused() -> None:
    model = make("opt")
    model.config.do_layer_norm_before = False
    with pytest.raises(BadInputError, match="opt with do_layer_norm_before=False has no ONNX export, only True has"):
        read_decoder(model)
