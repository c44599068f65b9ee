"""The layout of Nemotron-NAS models, read by an independent reader that follows the engines' published rules."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_exports import make_model, make_tokenizer  # type: ignore[import-not-found]
from torch.nn import functional as F
from transformers import dynamic_module_utils

from prune_export import api
from prune_export.errors import BadInputError, ParityError
from prune_export.export.decilm import check_decilm, write_decilm
from prune_export.export.decilm_layout import Block, blocks_of, ffn_multiplier, width_of
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape
from prune_export.verify import verify

WHOLE = LayerShape(4, 2, 512)
# Attention and MLP; an MLP alone; an attention whose MLP is the next layer's; nothing.
FITTING = (
    WHOLE,
    LayerShape(0, 0, 256),
    LayerShape(4, 2, 0),
    LayerShape(0, 0, 512),
    LayerShape(0, 0, 0),
    LayerShape(4, 2, 256),
)
CONTEXT = 96


def shape_of(*layers: LayerShape, **changes: Any) -> ModelShape:
    return replace(ModelShape("llama", 64, 16, 320, True, layers, (), CONTEXT), **changes)


class Reader:
    """Runs a directory by the rules of vLLM's `nemotron_nas` and llama.cpp's `deci`, from config.json and tensors only.

    Layer i has an attention unless its `no_op`, with num_attention_heads query heads and num_attention_heads //
    n_heads_in_group KV heads of hidden size / num_attention_heads; an MLP of int(2 ffn_mult D / 3) rounded up to 256.
    """

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tensors = {name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()}
        assert self.config["architectures"] == ["DeciLMForCausalLM"]
        assert self.config["num_hidden_layers"] == len(self.config["block_configs"])
        self.width, self.heads = self.config["hidden_size"], self.config["num_attention_heads"]
        self.head = self.width // self.heads
        expected = {name: shape for at in range(len(self.config["block_configs"])) for name, shape in self.shapes(at)}
        expected |= {
            "model.embed_tokens.weight": (self.config["vocab_size"], self.width),
            "model.norm.weight": (self.width,),
        }
        if not self.config["tie_word_embeddings"]:
            expected["lm_head.weight"] = (self.config["vocab_size"], self.width)
        assert {name: tuple(tensor.shape) for name, tensor in self.tensors.items()} == expected

    def kv_heads(self, at: int) -> int:
        group = self.config["block_configs"][at]["attention"]["n_heads_in_group"]
        return 0 if group is None else self.heads // group

    def shapes(self, at: int) -> list[tuple[str, tuple[int, ...]]]:
        block, begin = self.config["block_configs"][at], f"model.layers.{at}."
        found: list[tuple[str, tuple[int, ...]]] = []
        assert block["attention"]["no_op"] == (self.kv_heads(at) == 0)
        if self.kv_heads(at):
            rows = {"q": self.heads * self.head, "k": self.kv_heads(at) * self.head, "v": self.kv_heads(at) * self.head}
            found += [(f"{begin}self_attn.{name}_proj.weight", (size, self.width)) for name, size in rows.items()]
            found += [(f"{begin}self_attn.o_proj.weight", (self.width, rows["q"]))]
            found += [(f"{begin}input_layernorm.weight", (self.width,))]
            if self.config["attention_bias"]:
                found += [(f"{begin}self_attn.{name}_proj.bias", (size,)) for name, size in rows.items()]
                found += [(f"{begin}self_attn.o_proj.bias", (self.width,))]
        assert isinstance(block["ffn"]["ffn_mult"], float)
        inner = int(2 * block["ffn"]["ffn_mult"] * self.width / 3)
        inner = inner if inner % 256 == 0 else inner + 256 - inner % 256
        found += [(f"{begin}mlp.{name}_proj.weight", (inner, self.width)) for name in ("gate", "up")]
        found += [(f"{begin}mlp.down_proj.weight", (self.width, inner))]
        found += [(f"{begin}post_attention_layernorm.weight", (self.width,))]
        if self.config["mlp_bias"]:
            found += [(f"{begin}mlp.{name}_proj.bias", (inner,)) for name in ("gate", "up")]
            found += [(f"{begin}mlp.down_proj.bias", (self.width,))]
        return found

    def norm(self, stream: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(stream.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return stream * scale * self.tensors[f"{name}.weight"]

    def linear(self, stream: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(stream, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def rotate(self, vectors: torch.Tensor) -> torch.Tensor:
        """vectors [B, H, T, d]: the two halves of a head are a rotated pair."""
        half = self.head // 2
        angles = torch.arange(vectors.shape[2])[:, None] * self.frequencies()
        one, other = vectors[..., :half], vectors[..., half:]
        return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], -1)

    def frequencies(self) -> torch.Tensor:
        rope = self.config["rope_parameters"]
        plain = self.config["rope_theta"] ** -(torch.arange(0, self.head, 2).float() / self.head)
        if rope["rope_type"] == "default":
            return plain
        factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
        context = self.config["original_max_position_embeddings"]
        lengths = 2 * math.pi / plain
        share = ((context / lengths - low) / (high - low)).clamp(0, 1)
        return plain * ((1 - share) / factor + share)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        stream = self.tensors["model.embed_tokens.weight"][ids]
        batch, length, _ = stream.shape
        for at, block in enumerate(self.config["block_configs"]):
            begin = f"model.layers.{at}."
            if not block["attention"]["no_op"]:
                normed = self.norm(stream, f"{begin}input_layernorm")
                query, key, value = (
                    self.linear(normed, f"{begin}self_attn.{name}_proj")
                    .view(batch, length, -1, self.head)
                    .transpose(1, 2)
                    for name in "qkv"
                )
                group = block["attention"]["n_heads_in_group"]
                key, value = self.rotate(key).repeat_interleave(group, 1), value.repeat_interleave(group, 1)
                scores = self.rotate(query) @ key.transpose(2, 3) / math.sqrt(self.head)
                scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
                mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, -1)
                stream = stream + self.linear(mixed, f"{begin}self_attn.o_proj")
            normed = self.norm(stream, f"{begin}post_attention_layernorm")
            inner = F.silu(self.linear(normed, f"{begin}mlp.gate_proj")) * self.linear(normed, f"{begin}mlp.up_proj")
            stream = stream + self.linear(inner, f"{begin}mlp.down_proj")
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        return F.linear(self.norm(stream, "model.norm"), head)


def noisy(shape: ModelShape, **settings: Any) -> Any:
    model = random_model(shape, seed=3)
    for name, value in settings.items():
        setattr(model.config, name, value)
    if "rope_parameters" in settings:
        rotary = model.model.rotary_emb
        model.model.rotary_emb = type(rotary)(config=model.config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


IDS = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "shape",
    [
        shape_of(*FITTING),
        shape_of(*FITTING, tied_embeddings=False, biases=("q", "k", "v", "o", "gate", "up", "down")),
        shape_of(WHOLE, WHOLE),
        shape_of(*FITTING, family="mistral"),
    ],
    ids=["pruned", "biases and head", "dense", "mistral"],
)
def test_the_engines_rules_give_the_models_logits(shape: ModelShape, tmp_path: Path) -> None:
    model = noisy(shape, sliding_window=None) if shape.family == "mistral" else noisy(shape)
    write_decilm(model, None, tmp_path, dtype=torch.float32)
    reader = Reader(tmp_path)
    with torch.no_grad():
        assert (reader.logits(IDS) - model(IDS).logits).abs().max() <= 1e-5
    if len(shape.layers) == 6:
        assert [reader.kv_heads(at) for at in range(4)] == [2, 0, 2, 2]
        assert sum(tensor.numel() for tensor in reader.tensors.values()) == shape.parameters()


def test_llama3s_rotary_scaling_is_where_both_engines_look(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    model = noisy(shape_of(*FITTING), rope_parameters=rope)
    write_decilm(model, None, tmp_path, dtype=torch.float32)
    reader = Reader(tmp_path)
    assert reader.config["rope_theta"] == 5000.0
    with torch.no_grad():
        assert (reader.logits(IDS) - model(IDS).logits).abs().max() <= 1e-5


def test_widths_come_back_exactly() -> None:
    for hidden in (64, 192, 576, 960, 2048, 4096, 5120, 8192):
        for width in range(256, 8 * hidden, 256):
            assert width_of(ffn_multiplier(width, hidden), hidden) == width
            # As a JSON file keeps it.
            assert width_of(json.loads(json.dumps(ffn_multiplier(width, hidden))), hidden) == width


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            shape_of(WHOLE, LayerShape(4, 2, 384)),
            r"the MLP of layer 1 is 384 wide, .* multiples of 256; plan with --mlp",
        ),
        (shape_of(WHOLE, LayerShape(2, 1, 512)), "attention of layer 1 has 2 query heads of 16, .* head width = 4"),
        (shape_of(LayerShape(0, 0, 256), WHOLE), "layer 0 has an MLP before any attention"),
        (shape_of(WHOLE, LayerShape(4, 2, 0), WHOLE), "no MLP follows the attention of layer 1 before the next"),
        (shape_of(WHOLE, LayerShape(4, 2, 0)), "no MLP follows the attention of layer 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_layer_and_reason(shape: ModelShape, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        blocks_of(random_model(shape, seed=0).config)


def test_settings_that_the_engines_do_not_know_are_refused() -> None:
    model = random_model(shape_of(WHOLE, LayerShape(0, 0, 512)), seed=0)
    assert blocks_of(model.config) == (Block(0, 0), Block(None, 1))
    for name, value, words in (
        ("hidden_act", "gelu", "its activation is gelu, not silu"),
        ("rope_parameters", {"rope_type": "yarn"}, "its rotary embedding is of type yarn"),
        ("sliding_window", 7, "its attention sees a window of 7 tokens"),
    ):
        config = copy.deepcopy(model.config)
        setattr(config, name, value)
        with pytest.raises(BadInputError, match=words):
            blocks_of(config)
    qwen = random_model(shape_of(WHOLE, family="qwen2", biases=("q", "k", "v")), seed=0)
    with pytest.raises(BadInputError, match="family qwen2 is built otherwise: use a model of llama or mistral"):
        blocks_of(qwen.config)


def test_the_gate_sees_a_wrong_tensor(tmp_path: Path) -> None:
    model = noisy(shape_of(*FITTING))
    write_decilm(model, None, tmp_path, dtype=torch.float32)
    errors, tolerance, agreement = check_decilm(model, tmp_path, prompt=range(1, 9), new_tokens=8)
    assert max(errors.values()) <= tolerance
    assert agreement == 1.0
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
    with pytest.raises(ParityError, match="differs from the checkpoint"):
        check_decilm(model, tmp_path, prompt=range(1, 9), new_tokens=8)


def test_the_command_writes_what_was_stored_and_engines_get_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "pruned"
    save_checkpoint(make_model(shape_of(*FITTING)), make_tokenizer(), source, dtype=torch.bfloat16)
    parity = api.export(str(source), tmp_path / "out", format="decilm")
    assert 0.0 <= parity.max_logit_error <= parity.tolerance
    assert parity.greedy_agreement == 1.0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    blocks = copy.deepcopy(config).block_configs
    assert [block.attention.no_op for block in blocks] == [False, True, False, False]
    assert [block.ffn.no_op for block in blocks] == [False] * 4
    assert blocks[0].attention.n_heads_in_group == 2
    assert not hasattr(blocks[0].ffn, "hidden_act")
    assert json.loads(config.to_json_string(use_diff=False))["block_configs"][1]["attention"]["no_op"] is True
    assert "files as in export.json" in verify(tmp_path / "out")
    assert "largest logit error 0.0e+00" in verify(tmp_path / "out", checkpoint=str(source))
    with pytest.raises(BadInputError, match="format decilm has no precision int8: use one of fp32, fp16, bf16"):
        api.export(str(source), tmp_path / "no", format="decilm", precision="int8")
    assert not (tmp_path / "no").exists()
