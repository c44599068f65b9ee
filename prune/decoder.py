"""A Llama-like decoder's sub-blocks as functions of the residual stream, at any width.

Widths are slices of sorted weights, so a smaller one takes less time.  `LayerRunner` does the same for every family.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from prune_export.prune.candidates import Structure
from prune_export.prune.families import family_of
from prune_export.prune.reorder import LayerOrder, Projection, reordered_weights
from prune_export.prune.shapes import model_shape


class Decoder:
    """Runs single sub-blocks; sequences have no padding and start at position 0.

    Args:
        model: of a supported family; its norms, rotary embedding, activation and head are used as they are.
        orders: importance orders that widths are counted in.
    """

    def __init__(self, model: Any, orders: tuple[LayerOrder, ...]) -> None:
        self._family = family_of(model.config)
        self.shape = model_shape(model.config)
        self.dtype: torch.dtype = model.dtype
        self._model = model
        self._layers = list(model.get_submodule(self._family.layers))
        self._weights = reordered_weights(model, orders)
        self._windows = [_window(model.config, index) for index in range(len(self._layers))]
        self._rotations: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [N, T] to the first residual stream [N, T, D]."""
        state: torch.Tensor = self._model.get_submodule(self._family.embeddings)(tokens)
        return state

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Last residual stream [R, D] to logits [R, V] in fp32."""
        normed = self._model.get_submodule(self._family.final_norm)(rows)
        scores: torch.Tensor = self._model.get_submodule(self._family.head)(normed).float()
        return scores

    def changes(self, block: int, structure: Structure) -> bool:
        """Whether `run_block` returns anything else than its input."""
        layer = structure[block // 2]
        return bool(layer.mlp_width if block % 2 else layer.kv_heads)

    def run_block(self, hidden: torch.Tensor, block: int, structure: Structure) -> torch.Tensor:
        """hidden [B, T, D] through sub-block `block` (2 i: attention, 2 i + 1: MLP of layer i) at its width."""
        layer = structure[block // 2]
        if block % 2:
            return hidden if not layer.mlp_width else hidden + self._mlp(hidden, block // 2, layer.mlp_width)
        return hidden if not layer.kv_heads else hidden + self._attention(hidden, block // 2, layer.kv_heads)

    def _mlp(self, hidden: torch.Tensor, index: int, width: int) -> torch.Tensor:
        layer, projections = self._layers[index], self._weights[index].projections
        normed = getattr(layer, self._family.mlp_norm)(hidden)
        activation = getattr(layer, self._family.mlp).act_fn
        inner = activation(_rows(normed, projections["gate"], width)) * _rows(normed, projections["up"], width)
        return _columns(inner, projections["down"], width)

    def _attention(self, hidden: torch.Tensor, index: int, kv_heads: int) -> torch.Tensor:
        layer, projections = self._layers[index], self._weights[index].projections
        normed = getattr(layer, self._family.attention_norm)(hidden)
        batch, length, _ = hidden.shape
        head_dim, dense = self.shape.head_dim, self.shape.layers[index]
        heads = kv_heads * (dense.query_heads // dense.kv_heads)
        query, key, value = (
            _rows(normed, projections[name], count * head_dim).view(batch, length, count, head_dim).transpose(1, 2)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        query, key = apply_rotary_pos_emb(query, key, *self._rotation(hidden))
        mask = self._mask(length, self._windows[index])
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=heads != kv_heads
        )
        return _columns(attended.transpose(1, 2).reshape(batch, length, -1), projections["o"], heads * head_dim)

    def _rotation(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = hidden.shape[1]
        if length not in self._rotations:
            rotary = self._model.get_submodule(self._family.rotary)
            self._rotations[length] = rotary(hidden, torch.arange(length)[None])
        return self._rotations[length]

    def _mask(self, length: int, window: int | None) -> torch.Tensor | None:
        if window is None or window >= length:
            return None
        if (length, window) not in self._masks:
            distance = torch.arange(length)[:, None] - torch.arange(length)[None]
            self._masks[length, window] = (distance >= 0) & (distance < window)
        return self._masks[length, window]


def _window(config: Any, index: int) -> int | None:
    """Sliding window of a layer's attention in tokens, or None for full attention."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or kinds[index] == "sliding_attention" else None


def _rows(hidden: torch.Tensor, projection: Projection, count: int) -> torch.Tensor:
    bias = None if projection.bias is None else projection.bias[:count]
    return F.linear(hidden, projection.weight[:count], bias)


def _columns(hidden: torch.Tensor, projection: Projection, count: int) -> torch.Tensor:
    return F.linear(hidden, projection.weight[:, :count], projection.bias)
