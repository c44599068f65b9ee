"""Uniform pruned models as stock ones: the family's own class and configuration, so that no code goes along."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from prune_export.errors import BadInputError
from prune_export.prune.families import FAMILIES, family_of, is_pruned, stock_classes
from prune_export.prune.loading import empty_model, fill
from prune_export.prune.shapes import model_shape
from prune_export.shape import LayerShape, ModelShape

# What a pruned configuration has beside or instead of its family's own settings.
_OWN = ("model_type", "architectures", "auto_map", "prune_layers", "_name_or_path")


def check_uniform(shape: ModelShape) -> None:
    """Refuses a family whose stock configuration ties the head width to the number of heads, or has no heads.

    Raises:
        BadInputError: lists the families that can.
    """
    if not FAMILIES[shape.family].uniform:
        able = ", ".join(family.name for family in FAMILIES.values() if family.uniform)
        raise BadInputError(
            f"--uniform: no stock configuration of family {shape.family} says its head width apart from its number of "
            f"heads; families that can: {able}; leave out --uniform"
        )


def heads_fit(config: Any, kv_heads: int) -> bool:
    """Whether the family's stock configuration accepts that many KV heads of the model's head width.

    Args:
        config: of the model before.
        kv_heads: K; its query heads come along.
    """
    shape = model_shape(config)
    dense = next(layer for layer in shape.layers if layer.kv_heads)
    layer = replace(dense, kv_heads=kv_heads, query_heads=kv_heads * (dense.query_heads // dense.kv_heads))
    try:
        _configuration(config, shape, layer, kept=range(len(shape.layers)))
    except (StrictDataclassError, ValueError):  # Llama's wants the hidden size to be a multiple of the query heads
        return False
    return True


def stock_model(model: Any) -> Any:
    """A uniform model in the family's own class, layers that are gone left out; any other model as it is.

    Tensors share their storage with the source.  What it computes does not change.

    Args:
        model: pruned or dense.

    Raises:
        BadInputError: the family has no such configuration, or its own does not take the number of heads.
    """
    if not is_pruned(model.config):
        return model
    shape, family = model_shape(model.config), family_of(model.config)
    layer = shape.common_layer
    if layer is None:
        return model
    check_uniform(shape)
    kept = shape.attention_layers
    try:
        config = _configuration(model.config, shape, layer, kept=kept)
    except (StrictDataclassError, ValueError) as error:
        raise BadInputError(
            f"no stock {family.name} configuration takes {layer.query_heads} query heads: "
            f"{' '.join(str(error).split())}"
        ) from None
    result = empty_model(config)
    fill(result, _renumbered(model.state_dict(), family.layers, kept))
    result.generation_config = copy.deepcopy(model.generation_config)
    return result


def _configuration(config: Any, shape: ModelShape, layer: LayerShape, *, kept: Any) -> Any:
    """The stock configuration of a model whose layers `kept` all have the shape of `layer`."""
    family = family_of(config)
    data = {key: value for key, value in config.to_dict().items() if key not in _OWN}
    data |= {
        "num_hidden_layers": len(kept),
        "num_attention_heads": layer.query_heads,
        "num_key_value_heads": layer.kv_heads,
        "head_dim": shape.head_dim,
        family.width_setting: layer.mlp_width,
    }
    if data.get("layer_types") is not None:
        data["layer_types"] = [data["layer_types"][index] for index in kept]
    made = stock_classes(family)[0](**data)
    made.architectures = [family.model_class]
    made._attn_implementation = config._attn_implementation
    return made


def _renumbered(state: dict[str, Any], layers: str, kept: tuple[int, ...]) -> dict[str, Any]:
    """The tensors with the layers that are left numbered from 0 on."""
    result = {}
    ranks = {str(index): rank for rank, index in enumerate(kept)}
    for name, tensor in state.items():
        if not name.startswith(f"{layers}."):
            result[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{layers}.").partition(".")
        result[f"{layers}.{ranks[number]}.{rest}"] = tensor
    return result
