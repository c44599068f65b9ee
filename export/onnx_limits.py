"""What ONNX Runtime's operators ask of a model's dimensions, told before any work from its configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prune_export.errors import BadInputError
from prune_export.export.onnx_families import row_of
from prune_export.export.onnx_quantize import BLOCKS, block_for
from prune_export.prune.shapes import model_shape

# What GroupQueryAttention asks of a head that it rotates.
_HEAD_MULTIPLE = 16


def check_model(config: Any, precision: str) -> None:
    """Refuses a model that has no ONNX form in a precision.

    Args:
        config: a `transformers` configuration, dense or pruned.
        precision: of the weights.

    Raises:
        BadInputError: its architecture, its heads, or widths that no block divides.
    """
    _, row = row_of(str(config.model_type))
    shape = model_shape(config)
    if row.rotary:
        check_rotation(shape.head_dim, _rotated(config, shape.head_dim))
    inner = (width for layer in shape.layers for width in (layer.query_heads * shape.head_dim, layer.mlp_width))
    check_widths((shape.hidden_size, *inner), precision)


def check_rotation(width: int, rotated: int) -> None:
    """Refuses heads that the operator cannot rotate.

    Args:
        width: of a head.
        rotated: dimensions of it that are rotated.

    Raises:
        BadInputError: 16 divides one of them not.
    """
    if width % _HEAD_MULTIPLE:
        raise BadInputError(
            f"heads of width {width} have no ONNX export: ONNX Runtime rotates widths that are a multiple of "
            f"{_HEAD_MULTIPLE}"
        )
    if rotated % _HEAD_MULTIPLE:
        raise BadInputError(
            f"heads of which {rotated} dimensions are rotated have no ONNX export: ONNX Runtime rotates multiples of "
            f"{_HEAD_MULTIPLE}"
        )


def check_widths(widths: Iterable[int], precision: str) -> None:
    """Refuses integer weights where all layers would stay in fp32.

    Args:
        widths: of the inputs of all products; 0 for one that was removed.
        precision: of the weights.

    Raises:
        BadInputError: no block divides any of them.
    """
    if precision in ("int8", "int4") and not any(width and block_for(width, BLOCKS[0]) for width in widths):
        raise BadInputError(
            f"{precision} fits no layer of this model: none of their widths is a multiple of {min(BLOCKS)}; use "
            "--precision fp32, fp16 or bf16"
        )


def _rotated(config: Any, width: int) -> int:
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    return int(width * share)
