"""Which rows and columns of a layer's parameters belong to which unit (KV group, MLP channel, mixer unit).

The one place that knows how fused, interleaved and transposed projections are laid out; surgery, importance orders and
masks are made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from prune_export.plan import LayerKeep
from prune_export.prune.cuts import Cut, expand
from prune_export.prune.family import Family
from prune_export.prune.mixers import mixer_cuts, unit_columns
from prune_export.shape import LayerShape, ModelShape


def layer_cuts(layer: Any, family: Family, shape: ModelShape, index: int, keep: LayerKeep) -> dict[str, Cut]:
    """The cuts of a layer's parameters by name; parameters that no width touches are missing.

    Args:
        layer: the dense layer.
        family: its row.
        shape: of the dense model.
        index: of the layer.
        keep: what stays of it.
    """
    dims = shape.layers[index]
    cuts: dict[str, Cut] = {}
    if keep.kv_groups:
        for short, rows in attention_rows(family, dims, shape.head_dim, keep.kv_groups).items():
            cuts |= _row_cuts(layer, family.path("attention", short), rows)
        columns = attention_columns(dims, shape.head_dim, keep.kv_groups)
        cuts |= _column_cut(layer, family.path("attention", "o"), columns)
    if keep.mlp_channels:
        for short, rows in mlp_rows(family, dims, keep.mlp_channels).items():
            cuts |= _row_cuts(layer, family.path("mlp", short), rows)
        cuts |= _column_cut(layer, family.path("mlp", "down"), torch.tensor(keep.mlp_channels))
    if keep.mixer_units:
        cuts |= mixer_cuts(layer.get_submodule(family.mixer), family, dims, keep.mixer_units, keep.recurrence)
    return cuts


def output_units(layer: Any, family: Family, shape: ModelShape, index: int, part: str) -> tuple[str, torch.Tensor]:
    """Where the units of a sub-block leave it.

    Silencing a unit's columns removes it exactly, but for state-space mixers, which mix units before: `LayerRunner`
    says where they have to be silenced.

    Args:
        layer: a dense layer.
        family: its row.
        shape: of the dense model.
        index: of the layer.
        part: "attention", "mlp" or "mixer"; the layer must have it.

    Returns:
        Path in the layer of the output projection (a Linear, or GPT-2's Conv1D; `row_matrix` gives [out, in] of both),
        and its input columns [units, columns of one], in the order of the dense layer.
    """
    dims = shape.layers[index]
    if part == "mixer":
        return family.path(part, "out"), unit_columns(layer.get_submodule(family.mixer), family, dims)
    if part == "mlp":
        return family.path(part, "down"), torch.arange(dims.mlp_width)[:, None]
    columns = attention_columns(dims, shape.head_dim, range(dims.kv_heads))
    return family.path(part, "o"), columns.view(dims.kv_heads, -1)


def head_pieces(family: Family, dims: LayerShape, head_dim: int) -> list[tuple[str, torch.Tensor]]:
    """Where q, k and v of every KV group lie: projection by short name, and rows [K, rows of a group]."""
    heads, kv_heads = dims.query_heads, dims.kv_heads
    if family.heads == "interleaved":
        rows = torch.arange(3 * heads * head_dim).view(kv_heads, 3, -1)
        return [("qkv", rows[:, part]) for part in range(3)]
    sizes = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    pieces, start = [], 0
    for short, size in sizes.items():
        rows = torch.arange(size).view(kv_heads, -1)
        pieces.append((short, rows) if family.heads == "separate" else ("qkv", start + rows))
        start += size
    return pieces


def channel_pieces(family: Family, dims: LayerShape) -> list[tuple[str, torch.Tensor]]:
    """The same for the MLP: projection by short name, and rows [F]."""
    rows = torch.arange(dims.mlp_width)
    if family.mlp_layout == "concatenated":
        return [("gate_up", rows), ("gate_up", dims.mlp_width + rows)]
    return [(short, rows) for short in family.in_modules]


def attention_rows(family: Family, dims: LayerShape, head_dim: int, groups: Sequence[int]) -> dict[str, torch.Tensor]:
    """Rows of the attention's input projections, by short name, that KV groups own, in the order that they get."""
    chosen = torch.tensor(groups, dtype=torch.long)
    pieces = head_pieces(family, dims, head_dim)
    if family.heads == "interleaved":
        return {"qkv": torch.cat([rows for _, rows in pieces], 1)[chosen].reshape(-1)}
    return _joined([(short, rows[chosen].reshape(-1)) for short, rows in pieces])


def attention_columns(dims: LayerShape, head_dim: int, groups: Sequence[int]) -> torch.Tensor:
    """Columns of the attention's output projection that KV groups own."""
    return expand(groups, dims.query_heads // dims.kv_heads * head_dim)


def mlp_rows(family: Family, dims: LayerShape, channels: Sequence[int]) -> dict[str, torch.Tensor]:
    """Rows of the MLP's input projections, by short name, that channels own, in the order that they get."""
    chosen = torch.tensor(channels, dtype=torch.long)
    return _joined([(short, rows[chosen]) for short, rows in channel_pieces(family, dims)])


def row_matrix(module: Any) -> torch.Tensor:
    """Weight [out, in] of a Linear or of GPT-2's transposed Conv1D, as a view."""
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def _joined(pieces: list[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(short for short, _ in pieces)
    return {name: torch.cat([rows for short, rows in pieces if short == name]) for name in names}


def _row_cuts(layer: Any, path: str, rows: torch.Tensor) -> dict[str, Cut]:
    module = layer.get_submodule(path)
    cuts = {f"{path}.weight": Cut(1 if isinstance(module, Conv1D) else 0, rows)}
    if module.bias is not None:
        cuts[f"{path}.bias"] = Cut(0, rows)
    return cuts


def _column_cut(layer: Any, path: str, columns: torch.Tensor) -> dict[str, Cut]:
    return {f"{path}.weight": Cut(0 if isinstance(layer.get_submodule(path), Conv1D) else 1, columns)}
