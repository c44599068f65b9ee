"""From a model's modules to the parts of a decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prune_export.errors import BadInputError
from prune_export.export.onnx_families import PRUNED_PREFIX, ROWS, Row, row_of
from prune_export.export.onnx_limits import check_rotation
from prune_export.export.onnx_spec import Attention, Decoder, Layer, Linear, Mlp, Norm
from prune_export.export.rounded import RoundedMatrix, RoundedWeights
from prune_export.prune.shapes import head_dim

# Rotations that do not depend on the sequence's length: a table of them is exact.
_ROTATIONS = ("default", "linear", "llama3", "yarn", "proportional")


@dataclass(frozen=True)
class _Source:
    """What the parts of a decoder are read with.

    Attributes:
        row: the family's names.
        config: the model's.
        rounded: integers of the linear layers that were rounded.
    """

    row: Row
    config: Any
    rounded: Mapping[nn.Module, RoundedMatrix]

    def linear(self, module: Any) -> Linear:
        """GPT-2's `Conv1D` holds its matrix the other way round."""
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()
        bias = None if module.bias is None else module.bias.detach()
        return Linear(weight.detach(), bias, self.rounded.get(module))


def read_decoder(model: Any, rounded: RoundedWeights | None = None) -> Decoder:
    """The parts of a causal language model; its tensors are shared, not copied.

    Args:
        model: stock or pruned, in evaluation mode.
        rounded: what its weights are the values of, where they were rounded.

    Raises:
        BadInputError: an unsupported architecture or variant of it, or no attention left.
    """
    config = model.config
    family, row = row_of(str(config.model_type))
    for name, value in row.unsupported:
        if getattr(config, name, value) != value:
            raise BadInputError(f"{family} with {name}={getattr(config, name)} has no ONNX export, only {value} has")
    embeddings: torch.Tensor = model.get_submodule(row.embeddings).weight
    if embeddings.shape[1] != config.hidden_size:
        raise BadInputError(
            f"{family} with embeddings of {embeddings.shape[1]} for a hidden size of {config.hidden_size} has no ONNX "
            "export: the two must be equal"
        )
    matrices = {} if rounded is None else rounded.matrices
    source = _Source(row, config, {model.get_submodule(name): matrix for name, matrix in matrices.items()})
    head = model.get_submodule(row.head)
    tied = head.weight.data_ptr() == embeddings.data_ptr() and getattr(head, "bias", None) is None
    decoder = Decoder(
        family=family,
        embeddings=embeddings,
        embedding_scale=math.sqrt(config.hidden_size) if row.scaled_embeddings else 1.0,
        positions=_positions(model, row),
        rotary=_rotary(model, row, config.max_position_embeddings),
        layers=tuple(_layer(layer, source, index) for index, layer in enumerate(model.get_submodule(row.layers))),
        final_norm=_norm(model.get_submodule(row.final_norm), row.norm_offset),
        head=None if tied else source.linear(head),
        head_softcap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
        context=int(config.max_position_embeddings),
    )
    _check_attentions(decoder)
    return decoder


def _check_attentions(decoder: Decoder) -> None:
    if not decoder.attentions:
        raise BadInputError(
            f"the model's {len(decoder.layers)} layers have no attention left; ONNX text models need at least 1: keep "
            "one in the plan"
        )
    if decoder.rotary is not None:
        check_rotation(decoder.attentions[0].head_dim, 2 * decoder.rotary[0].shape[1])


def _layer(module: nn.Module, source: _Source, index: int) -> Layer:
    row, config = source.row, source.config
    attention = getattr(module, row.attention, None)
    if not _has_weight(attention, row.o):
        attention = None
    mlp = getattr(module, row.mlp, None) if row.mlp else module
    if not _has_weight(mlp, row.down):
        mlp = None
    return Layer(
        attention=None if attention is None else _attention(attention, source, index),
        attention_norm=_optional_norm(module, row.attention_norm, row),
        mlp=None if mlp is None else _mlp(mlp, source),
        mlp_norm=_optional_norm(module, row.mlp_norm, row),
        after_attention=_optional_norm(module, row.after_attention, row),
        after_mlp=_optional_norm(module, row.after_mlp, row),
        parallel=bool(row.parallel and getattr(config, row.parallel)),
    )


def _has_weight(block: Any, name: str) -> bool:
    """Pruned layers have None or a module without weights where a part was."""
    return hasattr(getattr(block, name, None), "weight")


def _attention(module: nn.Module, source: _Source, index: int) -> Attention:
    row, config = source.row, source.config
    width = head_dim(config)
    o = source.linear(getattr(module, row.o))
    heads = o.weight.shape[1] // width
    q, k, v = _projections(module, source, width, heads)
    scale = getattr(module, "scaling", None)
    return Attention(
        q=q,
        k=k,
        v=v,
        o=o,
        heads=heads,
        kv_heads=k.weight.shape[0] // width,
        head_dim=width,
        scale=float(scale) if scale is not None else width**-0.5,
        window=_window(config, index),
        softcap=float(getattr(config, "attn_logit_softcapping", None) or 0.0),
        q_norm=_optional_norm(module, row.q_norm, row),
        k_norm=_optional_norm(module, row.k_norm, row),
    )


def _projections(module: nn.Module, source: _Source, width: int, heads: int) -> tuple[Linear, Linear, Linear]:
    row = source.row
    if not row.qkv:
        q, k, v = (source.linear(getattr(module, name)) for name in (row.q, row.k, row.v))
        return q, k, v
    whole = source.linear(getattr(module, row.qkv))
    if row.qkv_by_head:
        kinds = [_head_rows(whole, heads, kind, width) for kind in range(3)]
        return kinds[0], kinds[1], kinds[2]
    first, rows = heads * width, whole.weight.shape[0]
    second = (first + rows) // 2
    return _rows(whole, slice(first)), _rows(whole, slice(first, second)), _rows(whole, slice(second, rows))


def _head_rows(whole: Linear, heads: int, kind: int, width: int) -> Linear:
    """Query, key or value (kind 0, 1, 2) rows of a projection that lists all three of each head in turn."""
    return _rows(whole, np.arange(heads * 3 * width).reshape(heads, 3, width)[:, kind].reshape(-1))


def _mlp(module: nn.Module, source: _Source) -> Mlp:
    row = source.row
    down, activation = source.linear(getattr(module, row.down)), str(getattr(source.config, row.activation))
    if row.gate_up:
        both = source.linear(getattr(module, row.gate_up))
        half = both.weight.shape[0] // 2
        return Mlp(_rows(both, slice(half)), _rows(both, slice(half, 2 * half)), down, activation)
    gate = source.linear(getattr(module, row.gate)) if row.gate else None
    return Mlp(gate, source.linear(getattr(module, row.up)), down, activation)


def _rows(whole: Linear, chosen: slice | NDArray[np.int64]) -> Linear:
    """Some of the outputs of a product; a slice of them shares its memory."""
    at = chosen if isinstance(chosen, slice) else torch.from_numpy(chosen)
    return Linear(
        whole.weight[at],
        None if whole.bias is None else whole.bias[at],
        None if whole.rounded is None else whole.rounded.rows(chosen),
    )


def _optional_norm(module: nn.Module, name: str, row: Row) -> Norm | None:
    norm = getattr(module, name) if name else None
    return None if norm is None or isinstance(norm, nn.Identity) else _norm(norm, row.norm_offset)


def _norm(module: Any, offset: float) -> Norm:
    bias = getattr(module, "bias", None)
    # The families' classes name it differently.
    named = (getattr(module, name, None) for name in ("variance_epsilon", "eps"))
    epsilon = next(float(value) for value in named if value is not None)
    if module.weight is None:  # a layer normalization without parameters
        size = module.normalized_shape
        return Norm(torch.ones(size), torch.zeros(size), epsilon)
    weight = module.weight.detach().float()
    return Norm(weight + offset if offset else weight, None if bias is None else bias.detach().float(), epsilon)


def _window(config: Any, index: int) -> int:
    """Sliding window of a layer, 0 for none or for one that the context never exceeds."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or 0
    if kinds is not None and kinds[index] != "sliding_attention":
        return 0
    return int(window) if window < config.max_position_embeddings else 0


def _positions(model: Any, row: Row) -> torch.Tensor | None:
    if not row.positions:
        return None
    table: torch.Tensor = model.get_submodule(row.positions).weight.detach()
    return table[row.position_offset :]


def rotary_rows(model: Any, begin: int, end: int) -> NDArray[np.float32] | None:
    """Cosines and sines [2, T, d / 2] of these positions as the model computes them.

    None for one without rotary positions, without ONNX form, or whose rotations depend on the sequence's length.
    """
    row = ROWS.get(str(model.config.model_type).removeprefix(PRUNED_PREFIX))
    if row is None or not row.rotary:
        return None
    module = model.get_submodule(row.rotary)
    if getattr(module, "rope_type", "default") not in _ROTATIONS:
        return None
    return np.stack([part.numpy() for part in _rotations(module, torch.arange(begin, end))])


def _rotary(model: Any, row: Row, context: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not row.rotary:
        return None
    module = model.get_submodule(row.rotary)
    kind = getattr(module, "rope_type", "default")
    if kind not in _ROTATIONS:
        raise BadInputError(
            f'rotary positions of type "{kind}" have no ONNX export: supported are {", ".join(_ROTATIONS)}'
        )
    return _rotations(module, torch.arange(context))


def _rotations(module: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        cosines, sines = module(torch.zeros(1), positions[None])
    half = cosines.shape[-1] // 2
    return cosines[0, :, :half].float().clone(), sines[0, :, :half].float().clone()
