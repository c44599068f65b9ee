"""NNCF's weight compression of an IR, int8 per channel and int4 in groups, and what became of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.export.half_precision import float_matrices
from prune_export.export.openvino_options import GROUPS, OpenVinoOptions

QUANTIZED = ("int8", "int4")
_BITS = {"u8": 8, "i8": 8, "u4": 4, "i4": 4}


@dataclass(frozen=True)
class Calibration:
    """Text that weights are rounded with.

    Attributes:
        tokens: [N, T].
        described: where they come from.
    """

    tokens: NDArray[np.int64]
    described: dict[str, str]


def quantized(model: Any, precision: str, options: OpenVinoOptions, calibration: Calibration | None) -> tuple[Any, str]:
    """The model with integer weights, and NNCF's name of the scheme.

    Args:
        model: `openvino.Model` in fp32; used up.
        precision: "int8" or "int4".
        options: how; int8 knows `symmetric` alone.
        calibration: what int4 weights are rounded with, or None.
    """
    import nncf

    modes = nncf.CompressWeightsMode
    if precision == "int8":
        mode = modes.INT8_SYM if options.symmetric else modes.INT8_ASYM
        return nncf.compress_weights(model, mode=mode), str(mode.value)
    mode = modes.INT4_SYM if options.symmetric else modes.INT4_ASYM
    advanced = nncf.AdvancedCompressionParameters(
        # Takes the largest power of two that divides the width, down to the smallest group allowed.
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST,
        min_adjusted_group_size=min(GROUPS),
    )
    model = nncf.compress_weights(
        model,
        mode=mode,
        group_size=options.group_size,
        ratio=options.ratio,
        all_layers=options.all_layers,
        backup_mode=nncf.BackupMode(options.backup),
        awq=options.awq,
        scale_estimation=options.scale_estimation,
        gptq=options.gptq,
        dataset=None if calibration is None else nncf.Dataset(_samples(model, calibration.tokens)),
        subset_size=1 if calibration is None else len(calibration.tokens),
        advanced_parameters=advanced,
    )
    return model, str(mode.value)


def _samples(model: Any, tokens: NDArray[np.int64]) -> list[dict[str, NDArray[Any]]]:
    """The model's inputs for each window, from an empty cache."""
    names = {name for port in model.inputs for name in port.get_names()}
    positions = np.arange(tokens.shape[1], dtype=np.int64)[None]
    fixed: dict[str, NDArray[Any]] = {
        "attention_mask": np.ones_like(positions),
        "position_ids": positions,
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
    fixed = {name: value for name, value in fixed.items() if name in names}
    return [{"input_ids": window[None], **fixed} for window in tokens]


def _constants(model: Any) -> Iterator[tuple[str, Any]]:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            yield node.get_friendly_name(), node


def integer_weights(model: Any) -> Iterator[tuple[str, int, Any]]:
    """Name, bits and node of every compressed weight (not of their zero points, which have the same type)."""
    for name, node in _constants(model):
        bits = _BITS.get(node.get_element_type().get_type_name())
        if bits is not None and "zero_point" not in name and node.get_output_partial_shape(0).rank.get_length() >= 2:
            yield name, bits, node


def departures(model: Any, precision: str, group_size: int) -> dict[str, Any]:
    """Fields of the record: layers in smaller groups, and layers in other precisions than the one asked for."""
    if precision not in QUANTIZED:
        return {}
    weights = sorted(integer_weights(model), key=lambda found: found[0])
    kept = tuple(sorted(_layer(node.get_friendly_name()) for node in float_matrices(model)))
    if precision == "int8":
        return {"fp32_layers": kept}
    scales = {name: node for name, node in _constants(model) if name.endswith("/scale")}
    groups = {name: _group(node, scales[f"{name}/scale"]) for name, bits, node in weights if bits == 4}
    if not groups:
        raise BadInputError(
            f"int4 fits no layer of this model: none of their widths is a multiple of {min(GROUPS)}; use --precision "
            "int8"
        )
    return {
        "smaller_groups": {_layer(name): group for name, group in groups.items() if group < group_size},
        "int8_layers": tuple(_layer(name) for name, bits, _ in weights if bits == 8),
        "fp32_layers": kept,
    }


def _group(weight: Any, scale: Any) -> int:
    """Weights that share a scale: the product of the dimensions that the scale does not have."""
    pairs = zip(weight.get_output_shape(0), scale.get_output_shape(0), strict=True)
    return math.prod(ours for ours, theirs in pairs if theirs == 1)


def _layer(name: str) -> str:
    return name.removeprefix("self.").removesuffix(".weight")
