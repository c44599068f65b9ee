"""Importance orders of MLP channels and KV groups, and weights laid out in that order.

MultiPruner (Munoz, Yuan, Jain 2025, arXiv 2501.09949): structures are sorted by weight magnitude, most important first,
so that a width is pruned by cutting its tail.  Sorting rows of the input projections and columns of the
output projection alike leaves the function of the layer as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prune_export.plan import LayerKeep
from prune_export.prune.families import Family, family_of
from prune_export.prune.layout import channel_pieces, head_pieces, row_matrix
from prune_export.prune.mixers import unit_scores
from prune_export.prune.shapes import model_shape
from prune_export.shape import LayerShape


@dataclass(frozen=True)
class LayerOrder:
    """Indices into the dense layer, most important first.

    Attributes:
        kv_groups: KV groups (a KV head with its query heads); empty without attention.
        mlp_channels: MLP channels; empty without MLP.
        mixer_units: units of a state-space mixer; empty without.
    """

    kv_groups: tuple[int, ...]
    mlp_channels: tuple[int, ...]
    mixer_units: tuple[int, ...] = ()

    def kept(self, layer: LayerShape, dense: LayerShape) -> LayerKeep:
        """What stays of a dense layer that is cut to the sizes of `layer`: the heads of the orders, ascending."""
        return LayerKeep(
            kv_groups=tuple(sorted(self.kv_groups[: layer.kv_heads])),
            mlp_channels=tuple(sorted(self.mlp_channels[: layer.mlp_width])),
            mixer_units=tuple(sorted(self.mixer_units[: layer.mixer_width])),
            recurrence=not layer.mixer_width or layer.state_size == dense.state_size,
        )


@dataclass(frozen=True)
class Projection:
    """A linear layer's weight [out, in] and bias [out] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class LayerWeights:
    """Projections of a layer, rows and columns in importance order; a width is a view of the first ones.

    Attributes:
        projections: by short name (q k v o gate up down); those of an absent sub-block are missing.
    """

    projections: dict[str, Projection]


def importance_orders(model: Any) -> tuple[LayerOrder, ...]:
    """The order of each layer; the model stays as it is.

    MLP channel score: L1 of its gate row (if there is a gate) + L1 of its up row.  KV group score: mean over its query
    rows of L1(q row) + L1(k row, repeated) + L1(v row, repeated).  Equal scores keep the original order.
    """
    family, shape = family_of(model.config), model_shape(model.config)
    return tuple(
        LayerOrder(
            _kv_order(layer, family, dims, shape.head_dim),
            _mlp_order(layer, family, dims),
            _mixer_order(layer, family, dims),
        )
        for layer, dims in zip(model.get_submodule(family.layers), shape.layers, strict=True)
    )


def identity_orders(layers: tuple[LayerShape, ...]) -> tuple[LayerOrder, ...]:
    """The orders that move nothing."""
    return tuple(
        LayerOrder(tuple(range(layer.kv_heads)), tuple(range(layer.mlp_width)), tuple(range(layer.mixer_width)))
        for layer in layers
    )


def reordered_weights(model: Any, orders: tuple[LayerOrder, ...]) -> tuple[LayerWeights, ...]:
    """The projections of every layer as copies in importance order; the model stays as it is.

    Takes memory for all layers once more (not for embeddings and head); an order that moves nothing costs none.
    """
    family, shape = family_of(model.config), model_shape(model.config)
    return tuple(
        LayerWeights(_ordered_projections(layer, family, dims, shape.head_dim, order))
        for layer, dims, order in zip(model.get_submodule(family.layers), shape.layers, orders, strict=True)
    )


def group_rows(groups: tuple[int, ...], size: int) -> torch.Tensor:
    """Row indices of whole groups of `size` rows, in the order of `groups`."""
    return (torch.tensor(groups, dtype=torch.long)[:, None] * size + torch.arange(size)).reshape(-1)


def _ordered_projections(
    layer: Any, family: Family, dims: LayerShape, head_dim: int, order: LayerOrder
) -> dict[str, Projection]:
    found = {}
    if dims.kv_heads:
        block = getattr(layer, family.attention)
        query_rows = group_rows(order.kv_groups, dims.query_heads // dims.kv_heads * head_dim)
        kv_rows = group_rows(order.kv_groups, head_dim)
        for name, rows in (("q", query_rows), ("k", kv_rows), ("v", kv_rows)):
            found[name] = _select(getattr(block, family.projections[name]), rows, None)
        found["o"] = _select(getattr(block, family.projections["o"]), None, query_rows)
    if dims.mlp_width:
        block, channels = getattr(layer, family.mlp), torch.tensor(order.mlp_channels)
        for name in ("gate", "up"):
            found[name] = _select(getattr(block, family.projections[name]), channels, None)
        found["down"] = _select(getattr(block, family.projections["down"]), None, channels)
    return found


def _select(linear: Any, rows: torch.Tensor | None, columns: torch.Tensor | None) -> Projection:
    weight = linear.weight.detach()
    bias = None if linear.bias is None else linear.bias.detach()
    if rows is not None and not _is_identity(rows):
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None and not _is_identity(columns):
        weight = weight[:, columns].contiguous()
    return Projection(weight, bias)


def _is_identity(indices: torch.Tensor) -> bool:
    return bool(torch.equal(indices, torch.arange(len(indices))))


def _mlp_order(layer: Any, family: Family, dims: LayerShape) -> tuple[int, ...]:
    if not dims.mlp_width:
        return ()
    pieces = channel_pieces(family, dims)
    return _descending(sum(_row_norms(layer, family.path("mlp", short))[rows] for short, rows in pieces))


def _kv_order(layer: Any, family: Family, dims: LayerShape, head_dim: int) -> tuple[int, ...]:
    if not dims.kv_heads:
        return ()
    # Repeating the k and v rows for each query head does not change their mean.
    pieces = head_pieces(family, dims, head_dim)
    return _descending(sum(_row_norms(layer, family.path("attention", short))[rows].mean(1) for short, rows in pieces))


def _mixer_order(layer: Any, family: Family, dims: LayerShape) -> tuple[int, ...]:
    return _descending(unit_scores(layer.get_submodule(family.mixer), family, dims)) if dims.mixer_width else ()


def _row_norms(layer: Any, path: str) -> torch.Tensor:
    norms: torch.Tensor = row_matrix(layer.get_submodule(path)).abs().sum(1, dtype=torch.float64)
    return norms


def _descending(scores: Any) -> tuple[int, ...]:
    return tuple(torch.sort(scores, descending=True, stable=True).indices.tolist())
