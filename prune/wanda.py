"""Importance orders by weights and activations: the other reordering of MultiPruner's ablation.

Wanda (Sun et al. 2024, arXiv 2306.11695) scores a weight by |W_ij| * ||X_j||_2, X_j being its input over the
calibration tokens.  As with weights alone, an MLP channel's score is the sum over its gate and up rows and a KV group's
the mean over its query rows of q + k + v.
"""

from __future__ import annotations

from typing import Any

import torch

from prune_export.errors import BadInputError
from prune_export.prune.families import family_of
from prune_export.prune.reorder import LayerOrder, Projection, identity_orders, reordered_weights
from prune_export.prune.shapes import model_shape

_BATCH_TOKENS = 2048


def wanda_orders(model: Any, tokens: Any) -> tuple[LayerOrder, ...]:
    """The order of each layer by |W| ||X|| over tokens [N, T]; the model stays as it is.

    Raises:
        BadInputError: activations that are not finite (names the layer).
    """
    shape = model_shape(model.config)
    norms = input_norms(model, tokens)
    weights = reordered_weights(model, identity_orders(shape.layers))
    orders = []
    for layer, dims, (attention, mlp) in zip(weights, shape.layers, norms, strict=True):
        found = layer.projections
        channels = [_rows(found[name], mlp) for name in ("gate", "up") if name in found] if dims.mlp_width else []
        groups = (
            [_rows(found[name], attention).view(dims.kv_heads, -1).mean(1) for name in "qkv"] if dims.kv_heads else []
        )
        orders.append(LayerOrder(_descending(groups), _descending(channels)))
    return tuple(orders)


@torch.inference_mode()
def input_norms(model: Any, tokens: Any) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """For each layer the L2 norms [D] of what its attention and its MLP read, over all tokens, in float64."""
    family = family_of(model.config)
    layers = list(model.get_submodule(family.layers))
    squares = [[torch.zeros((), dtype=torch.float64) for _ in range(2)] for _ in layers]
    handles = []
    for index, layer in enumerate(layers):
        for part, name in enumerate((family.attention_norm, family.mlp_norm)):
            module = getattr(layer, name, None)
            if module is not None:
                handles.append(module.register_forward_hook(_adding(squares[index], part)))
    ids = torch.as_tensor(tokens).long()
    step = max(1, _BATCH_TOKENS // ids.shape[1])
    try:
        for start in range(0, len(ids), step):
            model(input_ids=ids[start : start + step], use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    for index, pair in enumerate(squares):
        for square, reader in zip(pair, ("attention", "MLP"), strict=True):
            if not bool(torch.isfinite(square).all()):
                raise BadInputError(
                    f"layer {index}: the input of its {reader} is not finite on the calibration text: "
                    "the weights are damaged or do not fit the configuration"
                )
    return tuple((attention.sqrt(), mlp.sqrt()) for attention, mlp in squares)


def _adding(sums: list[torch.Tensor], part: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        sums[part] = sums[part] + output.double().square().sum(dim=tuple(range(output.ndim - 1)))

    return hook


def _rows(projection: Projection, norms: torch.Tensor) -> torch.Tensor:
    return projection.weight.double().abs() @ norms


def _descending(scores: list[torch.Tensor]) -> tuple[int, ...]:
    if not scores:
        return ()
    return tuple(torch.sort(torch.stack(scores).sum(0), descending=True, stable=True).indices.tolist())
