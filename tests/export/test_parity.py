"""The parity gate lets a faithful export through and nothing else."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_exports import CONTEXT, DENSE_LAYER, Exported, make_model, make_shape

from prune_export.errors import ParityError
from prune_export.export.checks import Step
from prune_export.export.gate import TOLERANCE, ir_greedy_agreement, parity_record
from prune_export.export.openvino_ir import export_graph_only
from prune_export.export.parity import check_parity, greedy_agreement, greedy_tokens_of, torch_agreement, unchecked
from prune_export.export.runner import open_runner
from prune_export.manifest import OPENVINO_RECORD
from prune_export.shape import ModelShape


def changed_copy(exported: Exported, directory: Path, name: str, value: float) -> Path:
    """A copy of the IR in which one number of one weight, found by its bytes, is another."""
    shutil.copytree(exported.directory, directory)
    weight = dict(exported.model.named_parameters())[name].detach().numpy()
    path = directory / "openvino_model.bin"
    content = bytearray(path.read_bytes())
    begin = content.find(weight.tobytes())
    assert begin >= 0, "the weight lies in the file as it is in torch"
    content[begin : begin + 4] = np.float32(value).tobytes()
    path.write_bytes(content)
    return directory


def test_a_faithful_export_passes_every_check(exported: Exported) -> None:
    errors, tolerance = check_parity(exported.model, exported.directory)
    assert tolerance == TOLERANCE == 1e-4
    assert len(errors) == 8
    assert any("batch 3, left padding" in name for name in errors)
    assert f"last positions, up to {CONTEXT - 1}" in errors
    # Exactly nothing would mean that something was compared with itself.
    assert all(0 < error < TOLERANCE / 4 for error in errors.values()), errors


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.v_proj.weight", "model.layers.4.mlp.up_proj.weight", "model.embed_tokens.weight"]
)
def test_one_wrong_weight_fails(llama: Exported, tmp_path: Path, name: str) -> None:
    weight = dict(llama.model.named_parameters())[name].detach().flatten()[0]
    broken = changed_copy(llama, tmp_path / "broken", name, float(weight) + 0.5)
    with pytest.raises(ParityError, match=r'parity check "[a-z].*": largest logit error .* is over the limit 1e-04'):
        check_parity(llama.model, broken)


def test_a_nan_fails_and_is_named(llama: Exported, tmp_path: Path) -> None:
    broken = changed_copy(llama, tmp_path / "broken", "model.layers.1.self_attn.o_proj.weight", float("nan"))
    with pytest.raises(ParityError, match=r"logits of the exported model are not finite"):
        check_parity(llama.model, broken)
    sick = copy.deepcopy(llama.model)
    with torch.no_grad():
        sick.model.norm.weight[0] = float("nan")
    with pytest.raises(ParityError, match=r"logits of the torch model are not finite"):
        check_parity(sick, llama.directory)


def test_another_number_of_logits_fails(llama: Exported) -> None:
    smaller = make_model(ModelShape("llama", 64, 16, 300, True, llama.shape.layers, (), CONTEXT))
    with pytest.raises(ParityError, match=r"gives logits of shape \[1, 17, 320\], torch \[1, 17, 300\]"):
        check_parity(smaller, llama.directory)


def test_another_rotary_base_fails(llama: Exported) -> None:
    """Nothing but the positions differs: a check that began at position 0 alone would miss half of it."""
    model = copy.deepcopy(llama.model)
    model.model.rotary_emb.inv_freq.mul_(1.001)
    with pytest.raises(ParityError, match="over the limit"):
        check_parity(model, llama.directory)


def test_an_asked_for_cache_has_no_part_in_the_comparison_of_logits(llama: Exported, tmp_path: Path) -> None:
    directory = tmp_path / "u8"
    shutil.copytree(llama.directory, directory)
    (directory / OPENVINO_RECORD).write_text(json.dumps({"kv_cache": "u8"}))
    _, tolerance = check_parity(llama.model, directory)
    ids = np.resize(llama.prompt(), 33)[None]
    logits = []
    for exact in (True, False):
        runner = open_runner(directory, precision="fp32", threads=1, exact=exact)
        for begin, end in ((0, 32), (32, 33)):
            positions = np.arange(begin, end)[None]
            logits.append(runner.step(Step(ids[:, begin:end], np.ones((1, end), np.int64), positions)))
    assert np.abs(logits[1] - logits[3]).max() > tolerance  # what it would have been compared with


def test_large_logits_are_judged_by_their_size(tmp_path: Path) -> None:
    """The same model with a thousandfold norm: errors grow with the logits and are no sign of a fault."""
    model = make_model(make_shape("llama", (DENSE_LAYER,) * 2))
    with torch.no_grad():
        model.model.norm.weight.mul_(1000)
    export_graph_only(model, tmp_path / "openvino_model.xml")
    errors, _ = check_parity(model, tmp_path)
    assert 0 < max(errors.values()) < TOLERANCE


@pytest.mark.parametrize("context", [16, 40])
def test_a_short_context_is_not_exceeded(tmp_path: Path, context: int) -> None:
    model = make_model(ModelShape("llama", 64, 16, 320, True, (DENSE_LAYER,), (), context))
    seen: list[int] = []
    model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    export_graph_only(model, tmp_path / "openvino_model.xml")
    seen.clear()
    errors, _ = check_parity(model, tmp_path)
    assert max(seen) == context - 1
    assert f"long prompt, {context} tokens" in errors


def test_the_last_positions_of_a_long_context_are_reached(tmp_path: Path) -> None:
    context = 131072
    model = make_model(ModelShape("llama", 64, 16, 320, True, (DENSE_LAYER,), (), context))
    export_graph_only(model, tmp_path / "openvino_model.xml")
    errors, _ = check_parity(model, tmp_path)
    assert errors[f"last positions, up to {context - 1}"] > 0


@pytest.mark.parametrize(
    ("window", "kinds", "named"),
    [
        (255, None, False),  # within the longest sequence
        (256, None, True),
        (CONTEXT - 1, ["sliding_attention", "full_attention"], True),
        (CONTEXT - 1, ["full_attention"] * 2, False),
        (CONTEXT, None, False),  # what the context never exceeds
        (None, None, False),
    ],
)
def test_a_window_that_no_check_exceeds_is_named(window: int | None, kinds: list[str] | None, named: bool) -> None:
    model = make_model(make_shape("mistral", (DENSE_LAYER,)))
    model.config.sliding_window, model.config.layer_types = window, kinds
    assert unchecked(model) == ((f"a sliding window of {window} tokens, since sequences end at 256",) if named else ())


def test_greedy_tokens_are_those_of_generate(exported: Exported) -> None:
    prompt = exported.prompt()
    expected = exported.model.generate(
        torch.from_numpy(prompt)[None, :], max_new_tokens=16, do_sample=False, eos_token_id=10**6, pad_token_id=1
    )
    assert greedy_tokens_of(exported.model, prompt, new_tokens=16) == expected[0, len(prompt) :].tolist()


def test_agreement_is_of_each_token_after_the_expected_ones(llama: Exported) -> None:
    """Counted by hand from whole prefixes, without a cache: what follows a different token is compared as well."""
    prompt = llama.prompt()
    tokens = greedy_tokens_of(llama.model, prompt, new_tokens=16)
    assert ir_greedy_agreement(llama.directory, prompt, tokens, precision="fp32") == 1.0
    wrong = [*tokens[:4], (tokens[4] + 1) % 320, *tokens[5:]]
    whole = torch.tensor([[*prompt.tolist(), *wrong]])
    with torch.inference_mode():
        chosen = llama.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    expected = sum(ours == theirs for ours, theirs in zip(chosen, wrong, strict=True)) / 16
    assert 4 / 16 < expected < 1
    assert ir_greedy_agreement(llama.directory, prompt, wrong, precision="fp32") == expected
    assert torch_agreement(llama.model, prompt, wrong) == expected


def test_agreement_ends_where_the_context_ends(llama: Exported) -> None:
    prompt = np.resize(llama.prompt(), CONTEXT - 2)
    assert greedy_agreement(llama.model, llama.directory, precision="fp32", prompt_ids=prompt) == 1.0


def test_the_record_holds_the_worst_check() -> None:
    record = parity_record({"a": 1e-6, "b": 3e-6}, 1e-4, greedy_tokens=16, greedy_agreement=0.5)
    assert record.max_logit_error == 3e-6
    assert record.checks == {"a": 1e-6, "b": 3e-6}
    assert (record.greedy_tokens, record.greedy_agreement, record.tolerance) == (16, 0.5, 1e-4)


def test_the_message_is_one_line(llama: Exported, tmp_path: Path) -> None:
    broken = changed_copy(llama, tmp_path / "broken", "model.norm.weight", 7.0)
    with pytest.raises(ParityError) as caught:
        check_parity(llama.model, broken)
    assert not re.search(r"\n", str(caught.value))
    assert caught.value.exit_code == 4
