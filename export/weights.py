"""Weight compression of an exported fp32 IR with NNCF: int8 per channel, int4 in groups.  Nothing is traced again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.export.files import MODEL_BIN, MODEL_XML
from prune_export.export.quiet import quiet
from prune_export.manifest import MANIFEST

# Tried in this order for each layer; NNCF raises an error for a width that the group does not divide.
_GROUPS = (128, 64, 32)
_BITS = {"u8": 8, "i8": 8, "u4": 4, "i4": 4}


@dataclass(frozen=True)
class CompressionRecord:
    """What became of the weights.

    Attributes:
        precision: "int8" or "int4".
        mode: NNCF's name of the scheme.
        group_size: weights that share a scale, as asked for; 0 for int8, where a whole row shares one.
        smaller_groups: layer to its group size where the one asked for does not divide the layer's input width.
        int8_layers: layers in int8 of an int4 artifact: embeddings, head, widths that no group divides.
        weights_bytes: size of the new .bin file.
    """

    precision: str
    mode: str
    group_size: int
    smaller_groups: dict[str, int]
    int8_layers: tuple[str, ...]
    weights_bytes: int


def compress(source_directory: Path, directory: Path, *, precision: str, group_size: int = 128) -> CompressionRecord:
    """Writes a copy of an fp32 export with compressed weights; the tokenizer and configuration files are copied.

    int8 is asymmetric per output channel, embeddings and head included; int4 is asymmetric in groups, embeddings and
    head in int8: the defaults of optimum-intel's command line.  The 8-bit cache, the runtime's default for compressed
    models, takes the place of the fp16 one.

    Args:
        source_directory: what `export_openvino` wrote.
        directory: where to write; made if missing.
        precision: of the weights.
        group_size: for int4: 128, 64 or 32; smaller ones are used for the layers that it does not fit.

    Raises:
        BadInputError: unknown precision or group size, no IR in the source, or it is compressed already.
    """
    if precision not in ("int8", "int4"):
        raise BadInputError(f'weights cannot be compressed to "{precision}": use int8 or int4')
    if group_size not in _GROUPS:
        raise BadInputError(f"int4 group size {group_size} is not supported: use one of {', '.join(map(str, _GROUPS))}")
    if not (source_directory / MODEL_XML).is_file():
        raise BadInputError(f"{source_directory} has no {MODEL_XML}: export the model in fp32 first")
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        model, mode = _compressed(source_directory / MODEL_XML, precision, group_size)
        import openvino

        openvino.save_model(model, directory / MODEL_XML, compress_to_fp16=False)
        small, int8 = _departures(model, precision, group_size)
    _copy_companions(source_directory, directory)
    return CompressionRecord(
        precision=precision,
        mode=mode,
        group_size=group_size if precision == "int4" else 0,
        smaller_groups=small,
        int8_layers=int8,
        weights_bytes=(directory / MODEL_BIN).stat().st_size,
    )


def _compressed(path: Path, precision: str, group_size: int) -> tuple[Any, str]:
    import nncf
    import openvino

    # The file is mapped, not read: only the compressed weights take memory.
    model = openvino.Core().read_model(path)
    if any(True for _ in _integer_weights(model)):
        raise BadInputError(f"{path.parent} has compressed weights already: give the fp32 export")
    if precision == "int8":
        mode = nncf.CompressWeightsMode.INT8_ASYM
        model = nncf.compress_weights(model, mode=mode)
    else:
        mode = nncf.CompressWeightsMode.INT4_ASYM
        advanced = nncf.AdvancedCompressionParameters(
            # Takes the largest power of two that divides the width, down to the smallest group allowed.
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST,
            min_adjusted_group_size=min(_GROUPS),
        )
        model = nncf.compress_weights(model, mode=mode, group_size=group_size, ratio=1.0, advanced_parameters=advanced)
    _forget_cache_precision(model)
    return model, str(mode.value)


def _forget_cache_precision(model: Any) -> None:
    if model.has_rt_info(["runtime_options", "KV_CACHE_PRECISION"]):
        options = model.get_rt_info("runtime_options").value
        options.pop("KV_CACHE_PRECISION")
        model.set_rt_info(options, "runtime_options")


def _integer_weights(model: Any) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Name, bits and shape of every compressed weight (not of their zero points, which have the same type)."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant":
            continue
        bits = _BITS.get(node.get_element_type().get_type_name())
        name = node.get_friendly_name().removeprefix("self.").removesuffix(".weight")
        if bits is not None and "zero_point" not in name and node.get_output_partial_shape(0).rank.get_length() >= 2:
            yield name, bits, tuple(node.get_output_shape(0))


def _departures(model: Any, precision: str, group_size: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """Layers in smaller groups, and layers in int8, of an int4 model.  A grouped weight is [out, groups, group]."""
    if precision == "int8":
        return {}, ()
    weights = sorted(_integer_weights(model))
    small = {name: shape[-1] for name, bits, shape in weights if bits == 4 and shape[-1] < group_size}
    return small, tuple(name for name, bits, _ in weights if bits == 8)


def _copy_companions(source: Path, directory: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in (MODEL_XML, MODEL_BIN, MANIFEST):
            shutil.copyfile(path, directory / path.name)
