"""Decoders whose layers differ in KV heads and MLP width, or lack a sub-block.

This file is copied beside a pruned checkpoint and loaded by `AutoModelForCausalLM.from_pretrained(directory,
trust_remote_code=True)`; it needs torch and transformers and nothing else.

Each class is the family's own one with smaller sub-modules put in place.  `prune_layers` in config.json lists
[query heads, KV heads, MLP width] of each layer; zeros mean that the sub-block is gone together with its norm.  All
other fields are those of the dense model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2ForCausalLM
from transformers.models.gpt2.modeling_gpt2 import GPT2Block, GPT2LMHeadModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralForCausalLM
from transformers.models.opt.modeling_opt import OPTDecoderLayer, OPTForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM
from transformers.pytorch_utils import Conv1D


def dense_sizes(config: Any) -> tuple[int, int, int]:
    """(query heads, KV heads, MLP width) of every layer of the dense model."""
    heads = config.num_attention_heads
    widths = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    width = next((width for width in widths if width), 4 * config.hidden_size)
    return heads, getattr(config, "num_key_value_heads", None) or heads, width


def layer_sizes(config: Any) -> list[tuple[int, int, int]]:
    """(query heads, KV heads, MLP width) of each layer; the dense ones when the configuration lists none."""
    if config.prune_layers is None:
        return [dense_sizes(config)] * config.num_hidden_layers
    return [(heads, kv_heads, width) for heads, kv_heads, width in config.prune_layers]


@contextmanager
def no_layers(config: Any) -> Iterator[None]:
    """Lets a family's constructor build no layers: it would build dense ones, which are thrown away at once."""
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = layers


class PrunedConfigMixin:
    """What the pruned configurations add: a check of `prune_layers`, and the KV cache's view of the layers."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        rows: Any = self.prune_layers  # type: ignore[attr-defined]
        layers: int = self.num_hidden_layers  # type: ignore[attr-defined]
        if rows is None:
            return
        if len(rows) != layers or any(len(row) != 3 or min(row) < 0 for row in rows):
            raise ValueError(f"prune_layers needs {layers} rows of [query heads, KV heads, MLP width], got {rows}")
        if not any(row[1] for row in rows):
            raise ValueError("prune_layers leaves no attention; at least one must remain")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The configuration; with `decoder`, a view that counts the remaining attentions only.

        `DynamicCache` and `generate` ask for that view to lay out the cache: one entry per remaining attention, with
        its own kind (full or sliding window).
        """
        if not decoder or self.prune_layers is None:  # type: ignore[attr-defined]
            return self
        view: Any = copy.copy(self)
        kept = [index for index, (_, kv_heads, _) in enumerate(layer_sizes(self)) if kv_heads]
        kinds = getattr(self, "layer_types", None)
        view.prune_layers = None
        view.num_hidden_layers = len(kept)
        if kinds is not None:
            view.layer_types = [kinds[index] for index in kept]
        return view


class PruneLlamaConfig(PrunedConfigMixin, LlamaConfig):  # type: ignore[misc]
    """Llama with `prune_layers`."""

    model_type = "prune_llama"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneMistralConfig(PrunedConfigMixin, MistralConfig):  # type: ignore[misc]
    """Mistral with `prune_layers`."""

    model_type = "prune_mistral"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneQwen2Config(PrunedConfigMixin, Qwen2Config):  # type: ignore[misc]
    """Qwen2 with `prune_layers`."""

    model_type = "prune_qwen2"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneQwen3Config(PrunedConfigMixin, Qwen3Config):  # type: ignore[misc]
    """Qwen3 with `prune_layers`."""

    model_type = "prune_qwen3"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PrunePhi3Config(PrunedConfigMixin, Phi3Config):  # type: ignore[misc]
    """Phi-3 with `prune_layers`."""

    model_type = "prune_phi3"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneGemma2Config(PrunedConfigMixin, Gemma2Config):  # type: ignore[misc]
    """Gemma-2 with `prune_layers`."""

    model_type = "prune_gemma2"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneGPTNeoXConfig(PrunedConfigMixin, GPTNeoXConfig):  # type: ignore[misc]
    """GPT-NeoX with `prune_layers`."""

    model_type = "prune_gpt_neox"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneOPTConfig(PrunedConfigMixin, OPTConfig):  # type: ignore[misc]
    """OPT with `prune_layers`."""

    model_type = "prune_opt"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneGPT2Config(PrunedConfigMixin, GPT2Config):  # type: ignore[misc]
    """GPT-2 with `prune_layers`."""

    model_type = "prune_gpt2"
    prune_layers: list | None = None  # type: ignore[type-arg]


class ConfigView:
    """A configuration with some values of its own; the others are read from it, as they are at the time."""

    def __init__(self, config: Any, **own: Any) -> None:
        self.__dict__.update(own, _config=config)

    def __getattr__(self, name: str) -> Any:
        if name == "_config" or name.startswith("__"):  # asked for by `copy` before there is one
            raise AttributeError(name)
        return getattr(self._config, name)


def size_view(config: Any, heads: int, kv_heads: int, width: int) -> ConfigView:
    """The configuration as a layer with these sizes has to see it; zeros stand for the dense ones."""
    dense_heads, dense_kv_heads, dense_width = dense_sizes(config)
    return ConfigView(
        config,
        # Some families derive it from hidden size / heads.
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // dense_heads,
        num_attention_heads=heads or dense_heads,
        num_key_value_heads=kv_heads or dense_kv_heads,
        intermediate_size=width or dense_width,
    )


def cache_index(config: Any, layer_idx: int) -> int:
    """Rank of a layer's attention among the remaining ones: a gap in the numbers would break the KV cache."""
    return sum(1 for row in layer_sizes(config)[:layer_idx] if row[1])


class PrunedLayerMixin:
    """A decoder layer that may lack its attention, its MLP, or both (then it is the identity)."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        heads, kv_heads, width = layer_sizes(config)[layer_idx]
        super().__init__(size_view(config, heads, kv_heads, width), layer_idx)  # type: ignore[call-arg]
        self.mlp: nn.Module | None = self.mlp if width else None
        self.self_attn: nn.Module | None = self.self_attn if kv_heads else None
        if self.self_attn is None:
            self.input_layernorm = None
        else:
            self.self_attn.layer_idx = cache_index(config, layer_idx)  # type: ignore[assignment]
        if self.mlp is None:
            self.post_attention_layernorm = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden_states [B, T, D] to [B, T, D], with the arguments of the family's own layer."""
        if self.self_attn is not None:
            attended, _ = self.self_attn(
                hidden_states=self.input_layernorm(hidden_states),  # type: ignore[misc]
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            hidden_states = hidden_states + attended
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))  # type: ignore[misc]
        return hidden_states


class PruneLlamaDecoderLayer(PrunedLayerMixin, LlamaDecoderLayer):  # type: ignore[misc]
    """Llama's layer, pruned."""


class PruneMistralDecoderLayer(PrunedLayerMixin, MistralDecoderLayer):  # type: ignore[misc]
    """Mistral's layer, pruned."""


class PruneQwen2DecoderLayer(PrunedLayerMixin, Qwen2DecoderLayer):  # type: ignore[misc]
    """Qwen2's layer, pruned."""


class PruneQwen3DecoderLayer(PrunedLayerMixin, Qwen3DecoderLayer):  # type: ignore[misc]
    """Qwen3's layer, pruned."""


class PrunePhi3DecoderLayer(PrunedLayerMixin, Phi3DecoderLayer):  # type: ignore[misc]
    """Phi-3's layer, pruned."""


class NoAttentionBlock(nn.Module):  # `transformers` takes a name ending in "Attention" here for a model's own one
    """In place of a removed attention whose layer calls it."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """A scalar zero."""
        return hidden_states.new_zeros(()), None


class NoBlock(nn.Module):
    """In place of a removed MLP, or of its last projection, whose layer calls it."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A scalar zero."""
        return hidden_states.new_zeros(())


class PruneGemma2DecoderLayer(Gemma2DecoderLayer):  # type: ignore[misc]
    """Gemma-2's layer, pruned; what is removed adds a zero."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        heads, kv_heads, width = layer_sizes(config)[layer_idx]
        super().__init__(size_view(config, heads, kv_heads, width), layer_idx)
        attention: Any = self.get_submodule("self_attn")
        attention.layer_idx = cache_index(config, layer_idx)
        if not kv_heads:
            self.self_attn = NoAttentionBlock()
            self.input_layernorm, self.post_attention_layernorm = nn.Identity(), nn.Identity()
        if not width:
            self.mlp = NoBlock()
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = nn.Identity(), nn.Identity()


class PruneGPTNeoXLayer(GPTNeoXLayer):  # type: ignore[misc]
    """GPT-NeoX's layer, pruned; what is removed adds a zero."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        heads, kv_heads, width = layer_sizes(config)[layer_idx]
        super().__init__(ConfigView(config, intermediate_size=width or config.intermediate_size), layer_idx)
        attention: Any = self.get_submodule("attention")
        rows = heads * attention.head_size
        attention.layer_idx = cache_index(config, layer_idx)
        if not kv_heads:
            self.attention, self.input_layernorm = NoAttentionBlock(), nn.Identity()
        else:
            attention.query_key_value = nn.Linear(config.hidden_size, 3 * rows, bias=config.attention_bias)
            attention.dense = nn.Linear(rows, config.hidden_size, bias=config.attention_bias)
        if not width:
            self.mlp, self.post_attention_layernorm = NoBlock(), nn.Identity()


class PruneOPTDecoderLayer(OPTDecoderLayer):  # type: ignore[misc]
    """OPT's layer, pruned; what is removed adds a zero."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        heads, kv_heads, width = layer_sizes(config)[layer_idx]
        super().__init__(ConfigView(config, ffn_dim=width or config.ffn_dim), layer_idx)
        attention: Any = self.get_submodule("self_attn")
        rows = heads * attention.head_dim
        attention.layer_idx, attention.num_heads = cache_index(config, layer_idx), heads
        if not kv_heads:
            self.self_attn, self.self_attn_layer_norm = NoAttentionBlock(), nn.Identity()
        else:
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(attention, name, nn.Linear(config.hidden_size, rows, bias=config.enable_bias))
            attention.out_proj = nn.Linear(rows, config.hidden_size, bias=config.enable_bias)
        if not width:
            self.fc1, self.activation_fn, self.fc2 = nn.Identity(), nn.Identity(), NoBlock()
            self.final_layer_norm = nn.Identity()


class PruneGPT2Block(GPT2Block):  # type: ignore[misc]
    """GPT-2's layer, pruned; what is removed adds a zero."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        heads, kv_heads, width = layer_sizes(config)[layer_idx]
        super().__init__(ConfigView(config, n_inner=width or None), layer_idx)
        attention: Any = self.get_submodule("attn")
        rows = heads * attention.head_dim
        attention.layer_idx, attention.num_heads, attention.split_size = cache_index(config, layer_idx), heads, rows
        if not kv_heads:
            self.attn, self.ln_1 = NoAttentionBlock(), nn.Identity()
        else:
            attention.c_attn = Conv1D(3 * rows, config.hidden_size)
            attention.c_proj = Conv1D(config.hidden_size, rows)
        if not width:
            self.mlp, self.ln_2 = NoBlock(), nn.Identity()


class PrunedCausalLMMixin:
    """A causal language model of the family whose decoder gets pruned layers."""

    layer_class: type[nn.Module]
    layers_path = "model.layers"

    def __init__(self, config: Any) -> None:
        with no_layers(config):
            super().__init__(config)  # type: ignore[call-arg]
        layers = nn.ModuleList(self.layer_class(config, index) for index in range(config.num_hidden_layers))
        self.set_submodule(self.layers_path, layers)  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]


class PruneLlamaForCausalLM(PrunedCausalLMMixin, LlamaForCausalLM):  # type: ignore[misc]
    """Llama for causal language modelling, pruned."""

    config_class = PruneLlamaConfig
    layer_class = PruneLlamaDecoderLayer


class PruneMistralForCausalLM(PrunedCausalLMMixin, MistralForCausalLM):  # type: ignore[misc]
    """Mistral for causal language modelling, pruned."""

    config_class = PruneMistralConfig
    layer_class = PruneMistralDecoderLayer


class PruneQwen2ForCausalLM(PrunedCausalLMMixin, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2 for causal language modelling, pruned."""

    config_class = PruneQwen2Config
    layer_class = PruneQwen2DecoderLayer


class PruneQwen3ForCausalLM(PrunedCausalLMMixin, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3 for causal language modelling, pruned."""

    config_class = PruneQwen3Config
    layer_class = PruneQwen3DecoderLayer


class PrunePhi3ForCausalLM(PrunedCausalLMMixin, Phi3ForCausalLM):  # type: ignore[misc]
    """Phi-3 for causal language modelling, pruned."""

    config_class = PrunePhi3Config
    layer_class = PrunePhi3DecoderLayer


class PruneGemma2ForCausalLM(PrunedCausalLMMixin, Gemma2ForCausalLM):  # type: ignore[misc]
    """Gemma-2 for causal language modelling, pruned."""

    config_class = PruneGemma2Config
    layer_class = PruneGemma2DecoderLayer


class PruneGPTNeoXForCausalLM(PrunedCausalLMMixin, GPTNeoXForCausalLM):  # type: ignore[misc]
    """GPT-NeoX for causal language modelling, pruned."""

    config_class = PruneGPTNeoXConfig
    layer_class = PruneGPTNeoXLayer
    layers_path = "gpt_neox.layers"


class PruneOPTForCausalLM(PrunedCausalLMMixin, OPTForCausalLM):  # type: ignore[misc]
    """OPT for causal language modelling, pruned."""

    config_class = PruneOPTConfig
    layer_class = PruneOPTDecoderLayer
    layers_path = "model.decoder.layers"


class PruneGPT2LMHeadModel(PrunedCausalLMMixin, GPT2LMHeadModel):  # type: ignore[misc]
    """GPT-2 for causal language modelling, pruned."""

    config_class = PruneGPT2Config
    layer_class = PruneGPT2Block
    layers_path = "transformer.h"
