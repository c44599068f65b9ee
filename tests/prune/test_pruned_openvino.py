"""Every family from plan to OpenVINO: pruned models with layers of all kinds, in each runtime against torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from tiny_models import generated, plan_of, tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.benchmark.genai_session import OpenVINOPipeline
from prune_export.errors import BadInputError, ParityError
from prune_export.export.checks import parity_checks
from prune_export.export.gate import TOLERANCE, check_against, ir_greedy_agreement
from prune_export.export.openvino_families import ROWS
from prune_export.export.openvino_ir import export_graph_only, export_openvino
from prune_export.export.parity import check_parity, greedy_tokens_of, torch_reference
from prune_export.export.quiet import quiet
from prune_export.export.runner import IrRunner
from prune_export.export.weights import compress
from prune_export.plan import LayerKeep
from prune_export.prune.families import family_of
from prune_export.prune.surgery import prune_model

NEW_TOKENS = 24
# One thread: more of them wait for each other where other work runs.
FP32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}
SIZES = {"hidden_size": 64, "vocab_size": 320}
# The gate looks at 256 tokens, and at the last positions where the context is longer.
CONTEXT = {**SIZES, "max_position_embeddings": 384}
# Random models with a tied head repeat one token for ever.
UNTIED = {**CONTEXT, "tie_word_embeddings": False}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [float(index) for index in range(2, 10)],
    "original_max_position_embeddings": 64,
}
# Variant of the tiny models to the settings in which it differs from them here.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": CONTEXT,
    "llama-biases-tied": CONTEXT,
    "mistral-window": CONTEXT,
    "qwen2-mixed-windows": CONTEXT,
    "qwen3": CONTEXT,
    "qwen3-biases-tied": CONTEXT,
    "phi3": {**CONTEXT, "rope_parameters": LONG_ROPE, "original_max_position_embeddings": 64},
    "phi3-mha-window": CONTEXT,
    "gemma2": {**CONTEXT, "attn_logit_softcapping": 2.0},
    "gpt_neox": CONTEXT,
    "gpt_neox-sequential": CONTEXT,
    "opt": UNTIED,
    "opt-bare": CONTEXT,
    "gpt2": UNTIED,
    "gpt2-inverse-scale": CONTEXT,
    "mamba": {**SIZES, "tie_word_embeddings": False},
    "mamba-biases": SIZES,
}
FAST = ("gpt2", "mamba")
ONE_OF_EACH = ("qwen3", "phi3", "gemma2", "gpt_neox", "opt", "gpt2", "mamba")
EACH = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in VARIANTS]
# The runtime fuses plain attention alone, and GenAI's paged attention takes the place of fused attention alone.
UNFUSED = ("gemma2", "mamba", "mamba-biases")


def pruned_model(variant: str) -> Any:
    dense = tiny_model(variant, **VARIANTS[variant])
    return prune_model(dense, varied_plan(dense))


def genai_tokens(directory: Path, prompt: np.ndarray, backend: str) -> list[int]:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(directory), "CPU", ATTENTION_BACKEND=backend, **FP32)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = NEW_TOKENS
    config.ignore_eos = True
    return list(pipeline.generate(openvino.Tensor(prompt[None]), config).tokens[0])


def fused_attentions(directory: Path) -> int:
    model = openvino.Core().read_model(directory / "openvino_model.xml")
    return sum(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ops())


@pytest.mark.parametrize("variant", EACH)
def test_a_pruned_model_runs_as_in_torch(
    variant: str, tmp_path: Path, word_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = pruned_model(variant)
    caplog.clear()
    export_openvino(model, word_tokenizer, tmp_path)
    assert caplog.messages == []
    errors, _ = check_parity(model, tmp_path)
    assert max(errors.values()) <= TOLERANCE
    assert ("last positions, up to 383" in errors) == ("max_position_embeddings" in VARIANTS[variant])
    fused = variant not in UNFUSED
    assert fused_attentions(tmp_path) == (3 if fused else 0)
    prompt = np.asarray(word_tokenizer("the model reads a word and writes")["input_ids"], dtype=np.int64)
    expected = generated(model, prompt, NEW_TOKENS)
    assert len(set(expected)) > 1 or model.config.tie_word_embeddings
    assert greedy_tokens_of(model, prompt, new_tokens=NEW_TOKENS) == expected
    assert ir_greedy_agreement(tmp_path, prompt, expected, precision="fp32", threads=1) == 1.0
    for backend in ("PA", "SDPA") if fused else ("SDPA",):
        assert genai_tokens(tmp_path, prompt, backend) == expected, backend
    pipeline = OpenVINOPipeline(tmp_path, precision="fp32", threads=1)  # as `benchmark --through genai` runs it
    pipeline.load()
    assert len(pipeline.generate(prompt[None], 4)) == 5


@pytest.mark.parametrize("variant", EACH)
def test_int8_and_int4_stay_close(variant: str, tmp_path: Path) -> None:
    model = pruned_model(variant)
    export_graph_only(model, tmp_path / "fp32" / "openvino_model.xml")
    check = parity_checks(64)[0]
    (step,) = check.steps(SIZES["vocab_size"])
    (expected,) = torch_reference(model).logits[check.name]
    spread = float(np.ptp(expected))
    errors = {}
    for precision in ("int8", "int4"):
        record = compress(tmp_path / "fp32", tmp_path / precision, precision=precision)
        logits = IrRunner(tmp_path / precision, precision="fp32", threads=1).step(step)
        errors[precision] = float(np.abs(logits - expected).max())
    assert 1e-4 < errors["int8"] < spread / 5
    assert errors["int8"] < errors["int4"] < spread
    # Inputs of 64 channels take one group of 64; the narrowed MLPs have 8, 5 and 24 channels, which no group divides.
    assert set(record.smaller_groups.values()) <= {64, 32}
    assert record.int8_layers


def test_every_family_of_the_table_has_a_variant() -> None:
    assert {family_of(tiny_model(variant, layers=1).config).name for variant in VARIANTS} == set(ROWS)


@pytest.mark.parametrize("variant", [param for param in EACH if param.values[0] in ONE_OF_EACH])
def test_optimum_generates_torchs_tokens(variant: str, tmp_path: Path, word_tokenizer: Any) -> None:
    model = pruned_model(variant)
    export_openvino(model, word_tokenizer, tmp_path)
    prompt = tokens(1, 9)[0].numpy()
    with quiet():
        from optimum.intel import OVModelForCausalLM

        runtime = OVModelForCausalLM.from_pretrained(tmp_path, ov_config=FP32)
        ids = torch.from_numpy(prompt)[None]
        found = runtime.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=10**6, pad_token_id=1,
        )  # fmt: skip
    assert found[0, len(prompt) :].tolist() == generated(model, prompt, NEW_TOKENS)


def runtime_operations(directory: Path) -> Counter[str]:
    """What the compiled graph executes; constants aside."""
    compiled = openvino.Core().compile_model(directory / "openvino_model.xml", "CPU", FP32)
    kinds = (str(op.get_rt_info()["layerType"].value) for op in compiled.get_runtime_model().get_ops())
    return Counter(kind for kind in kinds if kind != "Const")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mistral", "qwen2", "qwen3", "phi3-mha-window", "gpt_neox", "opt", "gpt2"])
def test_a_dense_export_runs_as_optimums_own(variant: str, tmp_path: Path) -> None:
    model = tiny_model(variant, layers=2, **CONTEXT)
    export_graph_only(model, tmp_path / "ours" / "openvino_model.xml")
    with quiet():
        from optimum.exporters.openvino.convert import export_from_model

        export_from_model(model, tmp_path / "stock", task="text-generation-with-past", stateful=True)
    assert runtime_operations(tmp_path / "ours") == runtime_operations(tmp_path / "stock")


def test_a_long_recurrence_does_not_underflow(tmp_path: Path) -> None:
    """Strong decay: products of it over a prompt are far below what fp32 holds; one step after another is exact."""
    model = tiny_model("mamba", layers=2, **SIZES)
    for layer in model.backbone.layers:
        layer.mixer.A_log += 2.0
        layer.mixer.dt_proj.bias += 3.0
    export_graph_only(model, tmp_path / "openvino_model.xml")
    errors, _ = check_parity(model, tmp_path)
    assert max(errors.values()) <= TOLERANCE


def test_another_cut_is_found(tmp_path: Path) -> None:
    dense = tiny_model("mamba", layers=2)
    whole = tuple(range(64))
    one, other = (
        prune_model(tiny_model("mamba", layers=2), plan_of(dense, {0: LayerKeep((), (), units)}))
        for units in (whole[:40], whole[24:])
    )
    export_graph_only(one, tmp_path / "openvino_model.xml")
    with pytest.raises(ParityError, match="largest logit error"):
        check_against(torch_reference(other), tmp_path, threads=1)


def test_soft_caps_are_part_of_the_graph(tmp_path: Path) -> None:
    """Whatever attention the model runs with at the time: the fused one of torch leaves them out without a word."""
    model = tiny_model("gemma2", layers=2, attn_logit_softcapping=0.5, **SIZES)
    model.set_attn_implementation("sdpa")
    export_graph_only(model, tmp_path / "openvino_model.xml")
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ParityError):
        check_parity(model, tmp_path)
    model.set_attn_implementation("eager")
    errors, _ = check_parity(model, tmp_path)
    assert max(errors.values()) <= TOLERANCE


def test_a_mamba_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = pruned_model("mamba")
    names = [name for name, _ in model.named_modules()]
    ids = tokens(2, 7)
    before, kind = model(ids).logits, model.config.model_type
    export_graph_only(model, tmp_path / "openvino_model.xml")
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(model(ids).logits, before)
    assert model.config.model_type == kind == "prune_mamba"


def test_families_without_an_export_are_refused_with_those_that_have_one(tmp_path: Path) -> None:
    words = 'architecture "mamba2" has no OpenVINO export: use one of llama, .*, gpt2, mamba$'
    with pytest.raises(BadInputError, match=words):
        export_graph_only(tiny_model("mamba2", layers=1), tmp_path / "openvino_model.xml")
