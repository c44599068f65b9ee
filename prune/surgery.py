"""Cuts a model down to a plan: smaller dense modules, nothing masked."""

from __future__ import annotations

import copy
from typing import Any

import torch

from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep, PrunePlan
from prune_export.prune.families import Family, family_of
from prune_export.prune.layout import layer_cuts
from prune_export.prune.loading import empty_model, fill
from prune_export.prune.remote import pruned_config_class
from prune_export.prune.shapes import layer_rows, model_shape
from prune_export.shape import ModelShape

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
    result = empty_model(_pruned_config(model, plan))
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
    if plan.dense.mixer is None and not plan.target.attention_layers:
        raise BadInputError("the plan removes every attention: keep at least one KV group of one layer")
    if plan.dense.mixer is not None and not plan.target.mixer_layers:
        raise BadInputError("the plan removes every mixer: keep at least one unit of one layer")


def _pruned_config(model: Any, plan: PrunePlan) -> Any:
    config = model.config
    if plan.target == plan.dense:
        return copy.deepcopy(config)
    family = family_of(config)
    data = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    data["prune_layers"] = layer_rows(plan.target)
    data["auto_map"] = {
        "AutoConfig": f"{AUTO_MODULE}.{family.pruned_config_class}",
        "AutoModelForCausalLM": f"{AUTO_MODULE}.{family.pruned_model_class}",
    }
    pruned = pruned_config_class(model, family)(**data)
    pruned.architectures = [family.pruned_model_class]
    pruned._attn_implementation = config._attn_implementation
    return pruned


def _cut_state(model: Any, family: Family, shape: ModelShape, plan: PrunePlan) -> dict[str, torch.Tensor]:
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{family.layers}.")}
    for index, layer in enumerate(model.get_submodule(family.layers)):
        cut = _cut_layer(layer, family, shape, index, plan.keep[index])
        state.update({f"{family.layers}.{index}.{name}": tensor for name, tensor in cut.items()})
    return state


def _cut_layer(layer: Any, family: Family, shape: ModelShape, index: int, keep: LayerKeep) -> dict[str, torch.Tensor]:
    gone, cuts = _gone(family, keep), layer_cuts(layer, family, shape, index, keep)
    state = {}
    for name, tensor in layer.state_dict().items():
        if not f"{name}.".startswith(gone):
            state[name] = cuts[name].of(tensor) if name in cuts else tensor
    return state


def _gone(family: Family, keep: LayerKeep) -> tuple[str, ...]:
    """Beginnings of the names of a layer's parameters that go with its removed sub-blocks."""
    paths: list[str] = []
    if family.mixer:
        if not keep.mixer_units:
            paths += [family.mixer, *family.norms("mixer")]
        elif not keep.recurrence:
            paths += [f"{family.mixer}.{name}" for name in family.recurrence]
    else:
        if not keep.kv_groups:
            paths += [family.attention, *family.norms("attention")]
        if not keep.mlp_channels:
            inner = [family.path("mlp", short) for short in (*family.in_modules, "down")]
            paths += [*([family.mlp] if family.mlp else inner), *family.norms("mlp")]
    return tuple(f"{path}." for path in paths)


def _check_result(result: Any, target: ModelShape) -> None:
    shape = model_shape(result.config)
    counted = sum(parameter.numel() for parameter in result.parameters())
    if shape != target or counted != target.parameters():
        raise AssertionError(
            f"surgery gave {counted} parameters and {shape}, planned {target.parameters()} and {target}"
        )
