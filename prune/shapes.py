"""From a configuration to the dimensions of its model, without touching weights."""

from __future__ import annotations

from typing import Any

from prune_export.errors import BadInputError
from prune_export.prune.families import Family, family_of, is_pruned
from prune_export.shape import LayerShape, ModelShape


def model_shape(config: Any) -> ModelShape:
    """Dimensions of the model that a configuration describes, dense or pruned.

    Args:
        config: a `transformers` configuration of a supported family.

    Raises:
        BadInputError: unsupported architecture, or dimensions that do not fit together.
    """
    family = family_of(config)
    try:
        return ModelShape(
            family=family.name,
            hidden_size=config.hidden_size,
            head_dim=head_dim(config),
            vocab_size=config.vocab_size,
            tied_embeddings=bool(config.tie_word_embeddings),
            layers=_layers(config),
            biases=_biases(family, config),
            context=config.max_position_embeddings,
        )
    except ValueError as error:
        raise BadInputError(f"config.json describes no usable {family.name} model: {error}") from None


def head_dim(config: Any) -> int:
    """Width of one attention head: the configured one, or hidden size / query heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _layers(config: Any) -> tuple[LayerShape, ...]:
    if is_pruned(config) and config.prune_layers is not None:
        return tuple(LayerShape(*row) for row in config.prune_layers)
    layer = LayerShape(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    return (layer,) * int(config.num_hidden_layers)


def _biases(family: Family, config: Any) -> tuple[str, ...]:
    flagged = [name for flag, names in family.bias_flags.items() if getattr(config, flag, False) for name in names]
    return tuple(name for name in family.projections if name in {*family.fixed_biases, *flagged})
