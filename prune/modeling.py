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
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM


def layer_sizes(config: Any) -> list[tuple[int, int, int]]:
    """(query heads, KV heads, MLP width) of each layer; the dense ones when the configuration lists none."""
    if config.prune_layers is None:
        row = (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
        return [row] * config.num_hidden_layers
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


class PrunedLayerMixin:
    """A decoder layer that may lack its attention, its MLP, or both (then it is the identity)."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        heads, kv_heads, width = layer_sizes(config)[layer_idx]
        view = copy.copy(config)
        # Written down before the head count changes: some families derive it from hidden size / heads.
        view.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        view.num_attention_heads = heads or config.num_attention_heads
        view.num_key_value_heads = kv_heads or config.num_key_value_heads
        view.intermediate_size = width or config.intermediate_size
        super().__init__(view, layer_idx)  # type: ignore[call-arg]
        self.mlp: nn.Module | None = self.mlp if width else None
        self.self_attn: nn.Module | None = self.self_attn if kv_heads else None
        if self.self_attn is None:
            self.input_layernorm = None
        else:
            # The shared configuration, so that a change of the attention implementation reaches every layer.
            self.self_attn.config = config
            # A gap in the numbers would break the KV cache.
            self.self_attn.layer_idx = sum(1 for row in layer_sizes(config)[:layer_idx] if row[1])  # type: ignore[assignment]
        if self.mlp is None:
            self.post_attention_layernorm = None
        else:
            self.mlp.config = config

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


class PrunedCausalLMMixin:
    """A causal language model of the family whose decoder gets pruned layers."""

    layer_class: type[nn.Module]

    def __init__(self, config: Any) -> None:
        with no_layers(config):
            super().__init__(config)  # type: ignore[call-arg]
        decoder: Any = self.model  # type: ignore[attr-defined]
        decoder.layers = nn.ModuleList(self.layer_class(config, index) for index in range(config.num_hidden_layers))
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
