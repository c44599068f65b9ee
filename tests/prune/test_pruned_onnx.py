"""Every family from plan to ONNX: pruned models with layers of all kinds, in each runtime against torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import generated, plan_of, tiny_model, varied_plan

from prune_export.errors import BadInputError, ParityError
from prune_export.export.checks import parity_checks
from prune_export.export.gate import check_against, ir_greedy_agreement
from prune_export.export.onnx_export import export_onnx
from prune_export.export.onnx_families import ROWS
from prune_export.export.onnx_read import read_decoder
from prune_export.export.onnx_runner import OnnxRunner
from prune_export.export.parity import greedy_tokens_of, torch_reference
from prune_export.plan import LayerKeep
from prune_export.prune.families import family_of
from prune_export.prune.surgery import prune_model

NEW_TOKENS = 24
VOCAB = 320
HALF_ROTATED = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
# The gate looks at 256 tokens, and at the last positions where the context is longer.  ONNX Runtime rotates multiples
# of 16 dimensions, of heads that are a multiple of 16 wide; blocks of weights are 32 wide at least.
SIZES = {"hidden_size": 64, "vocab_size": VOCAB, "max_position_embeddings": 384}
WIDE = {**SIZES, "head_dim": 16}
TWICE = {**SIZES, "hidden_size": 128}
# Random models with a tied head repeat one token for ever.
UNTIED = {**SIZES, "tie_word_embeddings": False}
# Variant of the tiny models to the settings in which it differs from them here.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "llama-biases-tied": SIZES,
    "mistral-window": SIZES,
    "qwen2-mixed-windows": SIZES,
    "qwen3": WIDE,
    "qwen3-biases-tied": WIDE,
    "phi3": SIZES,
    "phi3-mha-window": TWICE,
    "gemma2": {**WIDE, "attn_logit_softcapping": 2.0},
    "gpt_neox": TWICE,
    "gpt_neox-sequential": {**TWICE, "rope_parameters": HALF_ROTATED},
    "opt": UNTIED,
    "opt-bare": SIZES,
    "gpt2": UNTIED,
    "gpt2-inverse-scale": SIZES,
}
FAST = ("gemma2", "gpt2")
EACH = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in VARIANTS]


def pruned_model(variant: str) -> Any:
    dense = tiny_model(variant, **VARIANTS[variant])
    return prune_model(dense, varied_plan(dense))


def genai_tokens(directory: Path, prompt: np.ndarray, never: int) -> list[int]:
    """GenAI's greedy tokens; `never` is an id that does not come up, as the end of text."""
    import onnxruntime_genai

    config = onnxruntime_genai.Config(str(directory))
    config.overlay(json.dumps({"model": {"eos_token_id": never}}))
    runtime = onnxruntime_genai.Model(config)
    settings = onnxruntime_genai.GeneratorParams(runtime)
    settings.set_search_options(max_length=len(prompt) + NEW_TOKENS, do_sample=False)
    generator = onnxruntime_genai.Generator(runtime, settings)
    generator.append_tokens(prompt[None].astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens: list[int] = generator.get_sequence(0)[len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pruned_model_runs_as_in_torch(variant: str, tmp_path: Path, word_tokenizer: Any) -> None:
    model = pruned_model(variant)
    layers = read_decoder(model).layers
    # Layer 0 is without attention, 2 without MLP, 3 without both; 1 and 4 are narrower, each in its own way.
    assert [layer.attention is not None for layer in layers] == [False, True, True, False, True]
    assert [layer.mlp is not None for layer in layers] == [True, True, False, False, True]
    assert len({layer.mlp.up.weight.shape[0] for layer in layers if layer.mlp is not None}) == 3
    assert len({layer.attention.heads for layer in layers if layer.attention is not None}) == 2
    export_onnx(model, word_tokenizer, tmp_path)
    errors, tolerance = check_against(torch_reference(model), tmp_path, threads=1)
    assert "last positions, up to 383" in errors
    assert max(errors.values()) <= tolerance
    prompt = np.asarray(word_tokenizer("the model reads a word and writes")["input_ids"], dtype=np.int64)
    expected = generated(model, prompt, NEW_TOKENS)
    assert len(set(expected)) > 1 or model.config.tie_word_embeddings
    assert greedy_tokens_of(model, prompt, new_tokens=NEW_TOKENS) == expected
    assert ir_greedy_agreement(tmp_path, prompt, expected, precision="fp32", threads=1) == 1.0
    never = next(token for token in range(VOCAB) if token not in (*prompt.tolist(), *expected))
    assert genai_tokens(tmp_path, prompt, never) == expected


def without_a_block(model: Any) -> set[str]:
    """Products whose inputs 32 does not divide: MLPs with 24, 8 or 5 channels, an attention with one head of 16."""
    found = set()
    for index, layer in enumerate(read_decoder(model).layers):
        if layer.attention is not None and layer.attention.o.weight.shape[1] % 32:
            found.add(f"model.layers.{index}.attn.o_proj")
        if layer.mlp is not None and layer.mlp.down.weight.shape[1] % 32:
            found.add(f"model.layers.{index}.mlp.down_proj")
    return found


@pytest.mark.parametrize("variant", EACH)
def test_int8_and_int4_stay_close_and_generate(variant: str, tmp_path: Path, word_tokenizer: Any) -> None:
    model = pruned_model(variant)
    check = parity_checks(64)[0]
    (step,) = check.steps(VOCAB)
    (expected,) = torch_reference(model).logits[check.name]
    spread = float(np.ptp(expected))
    prompt = np.asarray(word_tokenizer("the model reads")["input_ids"], dtype=np.int64)
    errors = {}
    kept = without_a_block(model)
    assert {"model.layers.1.mlp.down_proj", "model.layers.4.mlp.down_proj"} <= kept
    for precision in ("int8", "int4"):
        directory = tmp_path / precision
        record = export_onnx(model, word_tokenizer, directory, precision=precision)
        runner = OnnxRunner(directory, threads=1)
        errors[precision] = float(np.abs(runner.step(step)[:, -expected.shape[1] :] - expected).max())
        assert set(record.fp32_layers) == kept
        # Both runtimes compute the same with the same integers.
        tokens = genai_tokens(directory, prompt, VOCAB - 1)
        assert ir_greedy_agreement(directory, prompt, tokens, precision=precision, threads=1) == 1.0
    assert 1e-4 < errors["int8"] < spread / 5
    assert errors["int8"] < errors["int4"] < spread


def test_every_family_of_the_table_has_a_variant() -> None:
    assert {family_of(tiny_model(variant, layers=1).config).name for variant in VARIANTS} == set(ROWS)


def test_another_cut_is_found(tmp_path: Path) -> None:
    dense = tiny_model("gpt2", layers=2)
    whole = tuple(range(24))
    one, other = (
        prune_model(tiny_model("gpt2", layers=2), plan_of(dense, {0: LayerKeep(groups, whole)}))
        for groups in ((0, 1), (0, 2))
    )
    export_onnx(one, None, tmp_path)
    with pytest.raises(ParityError, match="largest logit error"):
        check_against(torch_reference(other), tmp_path, threads=1)


def test_rotations_that_the_runtime_has_not_are_refused() -> None:
    model = tiny_model("gpt_neox", layers=1, hidden_size=64)
    with pytest.raises(BadInputError, match="heads of which 8 dimensions are rotated have no ONNX export"):
        read_decoder(model)
