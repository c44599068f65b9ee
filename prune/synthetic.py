"""Randomly initialised models of given dimensions: for timing, where the values of the weights do not matter."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from prune_export.errors import BadInputError
from prune_export.prune import modeling
from prune_export.prune.families import FAMILIES, Family
from prune_export.shape import ModelShape


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
    if shape.family not in FAMILIES:
        raise BadInputError(f'no random model of family "{shape.family}": use one of {", ".join(FAMILIES)}')
    if not shape.attention_layers:
        raise BadInputError("no random model without attention: at least one layer needs KV heads")
    family = FAMILIES[shape.family]
    first = shape.layers[0]
    dense = first.kv_heads > 0 and first.mlp_width > 0 and set(shape.layers) == {first}
    # The stock configurations refuse head counts that do not divide the hidden size.
    dense = dense and shape.hidden_size % first.query_heads == 0
    source: Any = transformers if dense else modeling
    config_class = getattr(source, family.config_class if dense else family.pruned_config_class)
    model_class = getattr(source, family.model_class if dense else family.pruned_model_class)
    settings = _settings(family, shape)
    if not dense:
        settings["prune_layers"] = [[layer.query_heads, layer.kv_heads, layer.mlp_width] for layer in shape.layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config_class(**settings))
    model.eval()
    return model


def _settings(family: Family, shape: ModelShape) -> dict[str, Any]:
    biases = set(shape.biases) - set(family.fixed_biases)
    flags = {flag: set(names) <= biases for flag, names in family.bias_flags.items()}
    possible = {*family.fixed_biases, *(name for flag in flags if flags[flag] for name in family.bias_flags[flag])}
    if set(shape.biases) != possible:
        raise BadInputError(
            f"family {family.name} has no model with biases {', '.join(shape.biases) or 'nowhere'}; nearest: "
            f"{', '.join(sorted(possible)) or 'nowhere'}"
        )
    # Of no effect beside prune_layers, but checked.
    heads, kv_heads = next(
        ((x.query_heads, x.kv_heads) for x in shape.layers if x.kv_heads and shape.hidden_size % x.query_heads == 0),
        (1, 1),
    )
    return {
        **flags,
        "hidden_size": shape.hidden_size,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied_embeddings,
        "max_position_embeddings": shape.context,
        "num_hidden_layers": len(shape.layers),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": max(layer.mlp_width for layer in shape.layers) or shape.hidden_size,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }
