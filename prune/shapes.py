"""From a configuration to the dimensions of its model, without touching weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prune_export.errors import BadInputError
from prune_export.prune.families import Family, check_supported, family_of, is_pruned
from prune_export.prune.mixers import state_space_shape
from prune_export.prune.modeling import dense_sizes
from prune_export.shape import LayerShape, ModelShape

# Fused projections by the ones that they hold.
_PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


def model_shape(config: Any) -> ModelShape:
    """Dimensions of the model that a configuration describes, dense or pruned.

    Args:
        config: a `transformers` configuration of a supported family.

    Raises:
        BadInputError: unsupported architecture, or dimensions that do not fit together.
    """
    family = family_of(config)
    check_supported(config)
    try:
        return state_space_shape(family, config) if family.mixer else _decoder_shape(family, config)
    except ValueError as error:
        raise BadInputError(f"config.json describes no usable {family.name} model: {error}") from None


def layer_rows(shape: ModelShape) -> list[list[int]]:
    """`prune_layers` of a pruned configuration, one row a layer."""
    if shape.mixer is not None:
        return [[layer.mixer_width, layer.state_size] for layer in shape.layers]
    return [[layer.query_heads, layer.kv_heads, layer.mlp_width] for layer in shape.layers]


def single_projections(names: Iterable[str]) -> tuple[str, ...]:
    """Projections by the short names that a `ModelShape` uses: fused ones by what they hold."""
    return tuple(part for name in names for part in _PARTS.get(name, (name,)))


def head_dim(config: Any) -> int:
    """Width of one attention head: the configured one, or hidden size / query heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _decoder_shape(family: Family, config: Any) -> ModelShape:
    if getattr(config, "max_position_embeddings", None) is None:
        raise ValueError("it has no max_position_embeddings, and models with ALiBi (Baichuan2-13B) are not supported")
    norm = _norm_parameters(family, config)
    head_norms = family.head_norms * head_dim(config)
    return ModelShape(
        family=family.name,
        hidden_size=config.hidden_size,
        head_dim=head_dim(config),
        vocab_size=config.vocab_size,
        tied_embeddings=bool(config.tie_word_embeddings),
        layers=_layers(config),
        biases=_biases(family, config),
        context=config.max_position_embeddings,
        gated=family.mlp_layout != "plain",
        attention_fixed=_unless(config.hidden_size, len(family.norms("attention")) * norm + head_norms),
        mlp_fixed=_unless(config.hidden_size, len(family.norms("mlp")) * norm),
        other=_unless(config.hidden_size, norm + _position_parameters(family, config)),
    )


def _layers(config: Any) -> tuple[LayerShape, ...]:
    if is_pruned(config) and config.prune_layers is not None:
        return tuple(LayerShape(*row) for row in config.prune_layers)
    return (LayerShape(*dense_sizes(config)),) * int(config.num_hidden_layers)


def _norm_parameters(family: Family, config: Any) -> int:
    affine = family.norm_flag is None or getattr(config, family.norm_flag)
    return family.norm_vectors * int(config.hidden_size) if affine else 0


def _position_parameters(family: Family, config: Any) -> int:
    if family.positions is None:
        return 0
    return (int(config.max_position_embeddings) + family.position_offset) * int(config.hidden_size)


def _unless(default: int, count: int) -> int | None:
    """None for the default, so that a shape equals one that leaves it out."""
    return None if count == default else count


def _biases(family: Family, config: Any) -> tuple[str, ...]:
    flagged = [name for flag, names in family.bias_flags.items() if getattr(config, flag, False) for name in names]
    return single_projections(name for name in family.projections if name in {*family.fixed_biases, *flagged})
