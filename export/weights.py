"""The precisions of an exported IR: half-precision storage, and NNCF's int8 per channel and int4 in groups.

All of them are made from the fp32 export; nothing is traced again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.export.files import MODEL_BIN, MODEL_XML
from prune_export.export.half_precision import HALF, is_in_half, mark_conversions, store_in_half
from prune_export.export.integer_weights import QUANTIZED, Calibration, departures, integer_weights, quantized
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.openvino_rounded import take_over
from prune_export.export.quiet import quiet
from prune_export.export.rounded import RoundedWeights
from prune_export.manifest import MANIFEST, OPENVINO_RECORD

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
_CACHE_OPTION = "KV_CACHE_PRECISION"


@dataclass(frozen=True)
class CompressionRecord:
    """What became of the weights; written to `openvino_export.json`.

    Attributes:
        precision: of the weights.
        mode: NNCF's name of the scheme; empty where nothing is quantized.
        group_size: weights that share a scale, as asked for; 0 for int8, where a whole row shares one.
        smaller_groups: layer to its group size where the one asked for does not divide the layer's input width.
        int8_layers: layers in int8 of an int4 artifact: embeddings, head, widths that no group divides, and what
            `ratio` leaves out.
        weights_bytes: size of the new .bin file.
        fp32_layers: layers of an int8 or int4 artifact that stay in fp32.
        kv_cache: hint to the runtime that was asked for; empty for the precision's own.
        ratio: as asked for.
        methods: what the rounding was prepared with: "awq", "scale estimation", "gptq".
        calibration: name and digests of the text that they, or `ratio`, or `rounding`, went by; empty without one.
        rounding: Neural Compressor's method that chose the integers, taken over as they are; empty for NNCF's own.
    """

    precision: str
    mode: str = ""
    group_size: int = 0
    smaller_groups: dict[str, int] = field(default_factory=dict)
    int8_layers: tuple[str, ...] = ()
    weights_bytes: int = 0
    fp32_layers: tuple[str, ...] = ()
    kv_cache: str = ""
    ratio: float = 1.0
    methods: tuple[str, ...] = ()
    calibration: dict[str, str] = field(default_factory=dict)
    rounding: str = ""

    def departures(self) -> dict[str, str]:
        """Layer to what it is stored in, where that is not the precision, or the group size, that was asked for."""
        return {
            **{name: f"{self.precision} in groups of {group}" for name, group in self.smaller_groups.items()},
            **dict.fromkeys(self.int8_layers, "int8"),
            **dict.fromkeys(self.fp32_layers, "fp32"),
        }


def compress(
    source_directory: Path,
    directory: Path,
    *,
    precision: str,
    options: OpenVinoOptions | None = None,
    calibration: Calibration | None = None,
    rounded: RoundedWeights | None = None,
) -> CompressionRecord:
    """Writes a copy of an fp32 export with its weights in another precision; the files beside the IR are copied.

    int8 is asymmetric per output channel, embeddings and head included; int4 is asymmetric in groups, embeddings and
    head in int8: the defaults of optimum-intel's command line.  The 8-bit cache, the runtime's default for compressed
    models, takes the place of the fp16 one.  fp16 and bf16 hold the matrices in half precision.

    Args:
        source_directory: what `export_openvino` wrote.
        directory: where to write; made if missing.
        precision: of the weights; fp32 leaves them as they are.
        options: how, where it shall not be the default.
        calibration: what int4 weights are rounded with, where the options ask for that.
        rounded: int4 weights that were chosen before, whose values the source has: taken over as they are.

    Raises:
        BadInputError: unknown precision, no IR in the source, one that is compressed already, a weight beyond fp16's
            range, no layer that int4 fits, a cache hint for a model whose cache the runtime does not manage, options
            that need calibration tokens without any, or other weights in the source than those that were rounded.
    """
    if precision not in PRECISIONS:
        raise BadInputError(f'weights cannot be compressed to "{precision}": use one of {", ".join(PRECISIONS)}')
    if not (source_directory / MODEL_XML).is_file():
        raise BadInputError(f"{source_directory} has no {MODEL_XML}: export the model in fp32 first")
    options = options or OpenVinoOptions()
    if rounded is not None and precision != "int4":
        raise BadInputError(f"weights that were rounded to int4 cannot be exported in {precision}: use int4")
    if options.needs_text and calibration is None:
        raise BadInputError("scale estimation, GPTQ and calibrated choices need calibration tokens: give some")
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        import openvino

        # The file is mapped, not read: only the new weights take memory.
        model = openvino.Core().read_model(source_directory / MODEL_XML)
        if any(True for _ in integer_weights(model)) or is_in_half(model):
            raise BadInputError(f"{source_directory} has compressed weights already: give the fp32 export")
        record = _write_model(model, directory, precision, options, calibration, rounded, source=source_directory)
    _copy_companions(source_directory, directory)
    (directory / OPENVINO_RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf8")
    return record


def compress_graph(model: Any, directory: Path, *, precision: str, options: OpenVinoOptions) -> None:
    """Writes the IR alone of a graph in memory (`openvino_ir.graph_in_memory`) in another precision.

    Args:
        model: `openvino.Model` in fp32; used up.
        directory: where to write; made if missing.
        precision: of the weights, as in `compress`.
        options: how.

    Raises:
        BadInputError: a weight beyond fp16's range, or no layer that int4 fits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        _write_model(model, directory, precision, options, None, None)


def _write_model(
    model: Any,
    directory: Path,
    precision: str,
    options: OpenVinoOptions,
    calibration: Calibration | None,
    rounded: RoundedWeights | None,
    *,
    source: Path | None = None,
) -> CompressionRecord:
    """Compresses a graph and writes it; what stays fp32 is copied from its source where there is one."""
    import openvino

    mode = ""
    if rounded is not None:
        model, mode = take_over(model, rounded, backup=options.backup)
    elif precision in QUANTIZED:
        model, mode = quantized(model, precision, options, calibration)
    elif precision in HALF:
        store_in_half(model, precision)
    group_size = options.group_size if rounded is None else rounded.group_size
    departing = departures(model, precision, group_size)
    _set_cache_precision(model, precision, options.kv_cache)
    if source is not None and precision == "fp32" and not options.kv_cache:
        for name in (MODEL_XML, MODEL_BIN):
            shutil.copyfile(source / name, directory / name)
    else:
        openvino.save_model(model, directory / MODEL_XML, compress_to_fp16=False)
        if precision in HALF:
            mark_conversions(directory / MODEL_XML)
    return CompressionRecord(
        precision=precision,
        mode=mode,
        group_size=group_size if precision == "int4" else 0,
        **departing,
        weights_bytes=(directory / MODEL_BIN).stat().st_size,
        kv_cache=options.kv_cache,
        ratio=options.ratio,
        methods=options.methods,
        calibration=_described(calibration, rounded),
        rounding="" if rounded is None else rounded.method,
    )


def _described(calibration: Calibration | None, rounded: RoundedWeights | None) -> dict[str, str]:
    if rounded is not None:
        return rounded.calibration
    return {} if calibration is None else calibration.described


def _set_cache_precision(model: Any, precision: str, wanted: str) -> None:
    """The hint to the runtime; without one, compressed weights go with the runtime's own choice."""
    if wanted and not any(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ops()):
        raise BadInputError(
            f"no cache of this model can be kept in {wanted}: OpenVINO manages those of fused attention alone, and it "
            "has none; leave --kv-cache-precision out"
        )
    if not wanted and precision not in QUANTIZED:
        return
    options = dict(model.get_rt_info("runtime_options").value) if model.has_rt_info(["runtime_options"]) else {}
    options.pop(_CACHE_OPTION, None)
    if wanted:
        options[_CACHE_OPTION] = wanted
    model.set_rt_info(options, "runtime_options")


def _copy_companions(source: Path, directory: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.name in (MODEL_XML, MODEL_BIN, MANIFEST, OPENVINO_RECORD):
            continue
        if path.is_dir():  # further chat templates
            shutil.copytree(path, directory / path.name, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copyfile(path, directory / path.name)
