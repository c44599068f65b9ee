"""The per-layer layout of `DeciLMForCausalLM` (Nemotron-NAS), and which models fit it.

The rules are those of the two engines that read it, and a model has to keep both:

- vLLM (`model_executor/models/nemotron_nas.py`): every attention has the query heads of the whole model and
  num_attention_heads // n_heads_in_group KV heads; a layer whose `no_op` is set has neither the sub-block nor its norm;
  the residual stream begins at the first norm, which must be an attention's.
- llama.cpp (`DeciModel` in its converter, `models/deci.cpp`): the head width is hidden size / query heads; an attention
  in a layer without MLP is lost; only rotary embeddings of type default and llama3 are written; the MLP's activation is
  SiLU; the first layer's heads decide what the whole model is taken for.
- Both: an MLP's width is int(2 * ffn_mult * hidden size / 3) rounded up to a multiple of 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prune_export.errors import BadInputError
from prune_export.prune.shapes import model_shape
from prune_export.shape import ModelShape

WIDTH_MULTIPLE = 256
FAMILIES = ("llama", "mistral")
_ROPES = ("default", "llama3")


@dataclass(frozen=True)
class Block:
    """One layer of the layout.

    Attributes:
        attention: layer of the model whose attention it has, or None.
        mlp: layer of the model whose MLP it has.
    """

    attention: int | None
    mlp: int


def blocks_of(config: Any) -> tuple[Block, ...]:
    """The layers of the layout for a model: an attention goes with the next MLP, which may be another layer's.

    Residual sub-blocks follow each other, whatever layer they are counted to, so this changes nothing of what the model
    computes.

    Args:
        config: of the model, dense or pruned.

    Raises:
        BadInputError: the model does not fit the layout; says where and why.
    """
    shape = model_shape(config)
    _check_settings(config, shape)
    for index, layer in enumerate(shape.layers):
        _check_sizes(shape, index, layer.query_heads, layer.mlp_width)
    return _paired(shape)


def ffn_multiplier(width: int, hidden_size: int) -> float:
    """The `ffn_mult` that the readers turn into a width that is a multiple of 256."""
    return 3.0 * width / (2.0 * hidden_size)


def width_of(ffn_mult: float, hidden_size: int) -> int:
    """The readers' rule: the MLP width that a multiplier stands for."""
    return -(-int(2 * ffn_mult * hidden_size / 3) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def block_configs(blocks: Sequence[Block], shape: ModelShape) -> list[dict[str, Any]]:
    """`block_configs` of config.json, with every setting that the layout knows."""
    return [
        {
            "attention": {
                "no_op": block.attention is None,
                "replace_with_linear": False,
                "sparsify": None,
                "n_heads_in_group": None if block.attention is None else _group(shape, block.attention),
                "window_length": None,
                "num_sink_tokens": None,
                "use_prefill_window_in_sink_attention": False,
                "unshifted_sink": False,
            },
            "ffn": {
                "no_op": False,
                "replace_with_linear": False,
                "sparsify": None,
                "ffn_mult": ffn_multiplier(shape.layers[block.mlp].mlp_width, shape.hidden_size),
            },
        }
        for block in blocks
    ]


def _group(shape: ModelShape, index: int) -> int:
    """Query heads that share a KV head."""
    layer = shape.layers[index]
    return layer.query_heads // layer.kv_heads


def _paired(shape: ModelShape) -> tuple[Block, ...]:
    blocks: list[Block] = []
    waiting: int | None = None
    for index, layer in enumerate(shape.layers):
        if layer.kv_heads:
            if waiting is not None:
                raise _alone(waiting)
            waiting = index
        if layer.mlp_width:
            if waiting is None and not blocks:
                raise _unfit(
                    f"layer {index} has an MLP before any attention, and the readers need an attention first",
                    "keep the first attention",
                )
            blocks.append(Block(waiting, index))
            waiting = None
    if waiting is not None:
        raise _alone(waiting)
    return tuple(blocks)


def _alone(index: int) -> BadInputError:
    return _unfit(
        f"no MLP follows the attention of layer {index} before the next attention, and llama.cpp loses such a one",
        "keep an MLP there",
    )


def _check_sizes(shape: ModelShape, index: int, query_heads: int, width: int) -> None:
    whole = shape.hidden_size // shape.head_dim
    if query_heads and query_heads * shape.head_dim != shape.hidden_size:
        raise _unfit(
            f"the attention of layer {index} has {query_heads} query heads of {shape.head_dim}, and in this layout "
            f"each has hidden size / head width = {whole}",
            "remove whole attentions only, with --kv-group at the number of KV heads",
        )
    if width and width_of(ffn_multiplier(width, shape.hidden_size), shape.hidden_size) != width:
        raise _unfit(
            f"the MLP of layer {index} is {width} wide, and the readers round widths up to multiples of "
            f"{WIDTH_MULTIPLE}",
            f"plan with --mlp-group {WIDTH_MULTIPLE}",
        )


def _check_settings(config: Any, shape: ModelShape) -> None:
    if shape.family not in FAMILIES:
        raise BadInputError(
            f"format decilm is a layout of Llama's layers, family {shape.family} is built otherwise: use a model of "
            f"{' or '.join(FAMILIES)}"
        )
    window = getattr(config, "sliding_window", None)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    wrong = {
        f"its activation is {config.hidden_act}, not silu": config.hidden_act != "silu",
        f"its rotary embedding is of type {rope}, not {' or '.join(_ROPES)}": rope not in _ROPES,
        f"its attention sees a window of {window} tokens": window is not None,
        "no attention is left": not shape.attention_layers,
    }
    for reason, found in wrong.items():
        if found:
            raise _unfit(f"{reason}, which the readers do not know of", "use another format")


def _unfit(reason: str, remedy: str) -> BadInputError:
    return BadInputError(f"the model does not fit format decilm: {reason}; {remedy}, or plan with --uniform")
