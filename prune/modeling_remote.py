"""Pruned classes for model code that comes with a checkpoint: Baichuan's layout.

This file is copied beside a pruned checkpoint, together with the checkpoint's own code and two lines that make the
classes from it, and loaded by `AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)`; it needs torch
and transformers and nothing else.

The dense model is built and its layers are then made smaller, since nothing is known about their constructors.
`prune_layers` in config.json lists [query heads, KV heads, MLP width] of each layer; zeros mean that the sub-block is
gone together with its norm.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import nn


class NoAttentionBlock(nn.Module):
    """In place of a removed attention whose layer calls it."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, Any]:
        """A scalar zero, no weights, and the cache as it is."""
        return hidden_states.new_zeros(()), None, kwargs.get("past_key_value")


class NoBlock(nn.Module):
    """In place of a removed MLP whose layer calls it."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A scalar zero."""
        return hidden_states.new_zeros(())


def shrink_layer(layer: Any, row: tuple[int, int, int], cache_index: int) -> None:
    """Gives a dense layer the sizes of `row`; the new projections hold no weights yet.

    Args:
        layer: with `self_attn` (fused `W_pack`, `o_proj`), `mlp` and their norms; changed in place.
        row: query heads, KV heads, MLP width.
        cache_index: rank of the attention among the remaining ones.
    """
    heads, _, width = row
    if heads:
        attention = layer.self_attn
        inner, hidden = heads * attention.head_dim, attention.W_pack.in_features
        attention.W_pack, attention.o_proj = _linear(hidden, 3 * inner), _linear(inner, hidden)
        # What the attention takes for the width of the whole is the width of its heads.
        attention.num_heads, attention.hidden_size, attention.layer_idx = heads, inner, cache_index
    else:
        layer.self_attn, layer.input_layernorm = NoAttentionBlock(), nn.Identity()
    if width:
        hidden = layer.mlp.gate_proj.in_features
        layer.mlp.gate_proj, layer.mlp.up_proj = _linear(hidden, width), _linear(hidden, width)
        layer.mlp.down_proj = _linear(width, hidden)
    else:
        layer.mlp, layer.post_attention_layernorm = NoBlock(), nn.Identity()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


@cache
def pruned_classes(config_base: Any, model_base: Any) -> tuple[Any, Any]:
    """(configuration, model) class of a pruned model, from the checkpoint's own ones."""

    class PruneBaichuanConfig(config_base):  # type: ignore[misc]
        """With `prune_layers`."""

        model_type = "prune_baichuan"

        def __init__(self, prune_layers: Any = None, **kwargs: Any) -> None:
            self.prune_layers = prune_layers
            super().__init__(**kwargs)

        def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
            """The configuration; with `decoder`, a view that counts the remaining attentions only, for the cache."""
            if not decoder or self.prune_layers is None:
                return self
            view = copy.copy(self)
            view.prune_layers = None
            view.num_hidden_layers = sum(1 for _, kv_heads, _ in self.prune_layers if kv_heads)
            return view

    class PruneBaichuanForCausalLM(model_base):  # type: ignore[misc]
        """For causal language modelling, pruned."""

        config_class = PruneBaichuanConfig

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            count = 0
            for layer, row in zip(self.model.layers, config.prune_layers or (), strict=True):
                shrink_layer(layer, tuple(row), count)
                count += row[1] > 0

    PruneBaichuanConfig.model_class = PruneBaichuanForCausalLM
    return PruneBaichuanConfig, PruneBaichuanForCausalLM
