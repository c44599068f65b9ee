"""Randomly initialised models of given dimensions: for timing, where the values of the weights do not matter."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from prune_export.errors import BadInputError
from prune_export.prune.families import FAMILIES, Family, pruned_classes, stock_classes
from prune_export.prune.quiet import quiet
from prune_export.prune.shapes import layer_rows, model_shape, single_projections
from prune_export.shape import LayerShape, ModelShape

KNOWN_SHAPES = {
    "smollm2-135m": ModelShape("llama", 576, 64, 49152, True, (LayerShape(9, 3, 1536),) * 30, context=8192),
    "llama-3.2-1b": ModelShape("llama", 2048, 64, 128256, True, (LayerShape(32, 8, 8192),) * 16, context=8192),
}


def random_model(shape: ModelShape, *, seed: int) -> PreTrainedModel:
    """A model of `shape` with the family's own random initialisation, in fp32 and evaluation mode.

    A shape whose layers are all alike gives the family's stock class, any other the pruned class.  The global random
    state is left as it was.

    Args:
        shape: dimensions; its family must be in the family table.
        seed: of the weights.

    Raises:
        BadInputError: unknown family, no attention, or biases that the family cannot have.
    """
    names = [name for name, row in FAMILIES.items() if row.config_class and not row.mixer]
    if shape.family not in names:
        raise BadInputError(f'no random model of family "{shape.family}": use one of {", ".join(names)}')
    if not shape.attention_layers:
        raise BadInputError("no random model without attention: at least one layer needs KV heads")
    family = FAMILIES[shape.family]
    settings = _settings(family, shape)
    dense = _is_dense(family, shape)
    if not dense:
        settings["prune_layers"] = layer_rows(shape)
    config_class, model_class = stock_classes(family) if dense else pruned_classes(family)
    config = config_class(**settings)
    if config.pad_token_id is not None and config.pad_token_id >= shape.vocab_size:
        config.pad_token_id = 0
    if model_shape(config) != shape:
        raise BadInputError(f"family {family.name} has no model with {shape}; nearest: {model_shape(config)}")
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        # As from a checkpoint that lacks every tensor: the constructor initialises torch's way first and then again, in
        # more than twice the time.
        model: PreTrainedModel = model_class.from_pretrained(None, config=config, state_dict={}, dtype=torch.float32)
    model.name_or_path = model.config.name_or_path = ""  # there is no such checkpoint
    model.eval()
    return model


def _is_dense(family: Family, shape: ModelShape) -> bool:
    """Whether the family's stock class can have the shape."""
    first = shape.layers[0]
    if not first.kv_heads or not first.mlp_width or set(shape.layers) != {first}:
        return False
    if family.one_kv_head_each:
        return first.query_heads * shape.head_dim == shape.hidden_size
    # The stock configurations refuse head counts that do not divide the hidden size.
    return shape.hidden_size % first.query_heads == 0


def _settings(family: Family, shape: ModelShape) -> dict[str, Any]:
    settings = {
        **_flags(family, shape),
        **_head_settings(family, shape),
        "hidden_size": shape.hidden_size,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied_embeddings,
        "max_position_embeddings": shape.context,
        "num_hidden_layers": len(shape.layers),
        family.width_setting: max(layer.mlp_width for layer in shape.layers) or shape.hidden_size,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    if family.norm_flag is not None:
        settings[family.norm_flag] = shape.attention_fixed != 0
    return settings


def _flags(family: Family, shape: ModelShape) -> dict[str, bool]:
    """The flags that give the projections of `shape` their biases."""
    fixed = set(single_projections(family.fixed_biases))
    biases = set(shape.biases) - fixed
    given = {flag: set(single_projections(names)) for flag, names in family.bias_flags.items()}
    flags = {flag: names <= biases for flag, names in given.items()}
    possible = fixed.union(*(given[flag] for flag in flags if flags[flag]))
    if set(shape.biases) != possible:
        raise BadInputError(
            f"family {family.name} has no model with biases {', '.join(shape.biases) or 'nowhere'}; nearest: "
            f"{', '.join(sorted(possible)) or 'nowhere'}"
        )
    return flags


def _head_settings(family: Family, shape: ModelShape) -> dict[str, int]:
    if family.one_kv_head_each:
        return {"num_attention_heads": shape.hidden_size // shape.head_dim}
    # Of no effect beside prune_layers, but checked.
    heads, kv_heads = next(
        ((x.query_heads, x.kv_heads) for x in shape.layers if x.kv_heads and shape.hidden_size % x.query_heads == 0),
        (1, 1),
    )
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": shape.head_dim}
