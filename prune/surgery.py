"""Cuts a model down to a plan: smaller dense modules, nothing masked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep, PrunePlan
from prune_export.prune import modeling
from prune_export.prune.families import Family, family_of
from prune_export.prune.loading import empty_model, fill
from prune_export.prune.shapes import model_shape
from prune_export.shape import LayerShape, ModelShape

AUTO_MODULE = "modeling_prune_export"


def prune_model(model: Any, plan: PrunePlan) -> Any:
    """A physically smaller copy of a model; the source stays as it is.

    Precondition: the model has the shape `plan.dense`, and the plan leaves an attention.
    Postcondition: the result has the shape `plan.target` and exactly `plan.target.parameters()` parameters; layers that
    lose a sub-block have neither its weights nor its norm.
    Tensors that are not cut share their storage with the source.

    Args:
        model: a dense model of a supported family, or one that was pruned before.
        plan: what to keep.

    Raises:
        BadInputError: the plan belongs to another model, or leaves no attention.
    """
    shape = model_shape(model.config)
    _check_plan(shape, plan)
    result = empty_model(_pruned_config(model.config, plan))
    family = family_of(model.config)
    fill(result, _cut_state(model, family, shape, plan))
    result.generation_config = copy.deepcopy(model.generation_config)
    _check_result(result, plan.target)
    return result


def _check_plan(shape: ModelShape, plan: PrunePlan) -> None:
    if shape != plan.dense:
        raise BadInputError(
            f"the plan was made for another model ({plan.source}: {plan.dense.family}, "
            f"{len(plan.dense.layers)} layers, {plan.dense.parameters()} parameters); "
            f"this one is {shape.family} with {len(shape.layers)} layers and {shape.parameters()} parameters"
        )
    if not plan.target.attention_layers:
        raise BadInputError("the plan removes every attention: keep at least one KV group of one layer")


def _pruned_config(config: Any, plan: PrunePlan) -> Any:
    if plan.target == plan.dense:
        return copy.deepcopy(config)
    family = family_of(config)
    data = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    data["prune_layers"] = [[layer.query_heads, layer.kv_heads, layer.mlp_width] for layer in plan.target.layers]
    data["auto_map"] = {
        "AutoConfig": f"{AUTO_MODULE}.{family.pruned_config_class}",
        "AutoModelForCausalLM": f"{AUTO_MODULE}.{family.pruned_model_class}",
    }
    pruned = getattr(modeling, family.pruned_config_class)(**data)
    pruned.architectures = [family.pruned_model_class]
    pruned._attn_implementation = config._attn_implementation
    return pruned


def _cut_state(model: Any, family: Family, shape: ModelShape, plan: PrunePlan) -> dict[str, torch.Tensor]:
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{family.layers}.")}
    for index, layer in enumerate(model.get_submodule(family.layers)):
        prefix = f"{family.layers}.{index}."
        cut = _cut_layer(layer, family, shape.layers[index], shape.head_dim, plan.keep[index])
        state.update({prefix + name: tensor for name, tensor in cut.items()})
    return state


def _cut_layer(
    layer: Any, family: Family, dense: LayerShape, head_dim: int, keep: LayerKeep
) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    if keep.kv_groups:
        size = dense.query_heads // dense.kv_heads * head_dim
        query_rows, kv_rows = _rows(keep.kv_groups, size), _rows(keep.kv_groups, head_dim)
        block = getattr(layer, family.attention)
        for short, rows in (("q", query_rows), ("k", kv_rows), ("v", kv_rows)):
            _cut_projection(state, block, f"{family.attention}.", family.projections[short], rows=rows)
        _cut_projection(state, block, f"{family.attention}.", family.projections["o"], columns=query_rows)
        state[f"{family.attention_norm}.weight"] = getattr(layer, family.attention_norm).weight.detach()
    if keep.mlp_channels:
        block, channels = getattr(layer, family.mlp), torch.tensor(keep.mlp_channels)
        for short in ("gate", "up"):
            _cut_projection(state, block, f"{family.mlp}.", family.projections[short], rows=channels)
        _cut_projection(state, block, f"{family.mlp}.", family.projections["down"], columns=channels)
        state[f"{family.mlp_norm}.weight"] = getattr(layer, family.mlp_norm).weight.detach()
    return state


def _cut_projection(
    state: dict[str, torch.Tensor],
    block: Any,
    prefix: str,
    name: str,
    *,
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> None:
    linear = getattr(block, name)
    weight, bias = linear.weight.detach(), linear.bias
    if rows is not None:
        weight = _select(weight, 0, rows)
        bias = None if bias is None else _select(bias.detach(), 0, rows)
    if columns is not None:
        weight = _select(weight, 1, columns)
    state[f"{prefix}{name}.weight"] = weight
    if bias is not None:
        state[f"{prefix}{name}.bias"] = bias.detach()


def _select(tensor: torch.Tensor, dim: int, indices: torch.Tensor) -> torch.Tensor:
    return tensor if len(indices) == tensor.shape[dim] else tensor.index_select(dim, indices)


def _rows(groups: Sequence[int], size: int) -> torch.Tensor:
    return (torch.tensor(groups)[:, None] * size + torch.arange(size)).reshape(-1)


def _check_result(result: Any, target: ModelShape) -> None:
    shape = model_shape(result.config)
    counted = sum(parameter.numel() for parameter in result.parameters())
    if shape != target or counted != target.parameters():
        raise AssertionError(
            f"surgery gave {counted} parameters and {shape}, planned {target.parameters()} and {target}"
        )
