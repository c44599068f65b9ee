"""The formats that checkpoints are exported to: one row each, its gate included.

Everything heavy is imported inside the functions, so that the command line can name the formats at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_export.errors import BadInputError
from prune_export.export import openvino_families
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export_gate import PROMPT, Expected, compared, expected_of, new_tokens, scored
from prune_export.files import full_disk_explained, scratch_folder
from prune_export.manifest import OPENVINO_RECORD, ParityRecord
from prune_export.progress import Progress
from prune_export.records import to_json
from prune_export.rounding import Rounder, calibration

if TYPE_CHECKING:
    from prune_export.export.rounded import RoundedWeights

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
STORED = "stored"  # the precision that most of the checkpoint's weights have


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: as the user says it.
        precisions: weight precisions that it has.
        default: precision where none is asked for, or `STORED`.
        check: raises BadInputError for a configuration that it has no form for in a precision, before any work.
        write: exports the checkpoint in the first directory to the second one in a precision, behind the parity gate;
            what it raises leaves nothing published.
    """

    name: str
    precisions: tuple[str, ...]
    default: str
    check: Callable[[Any, str], object]
    write: Callable[[Path, Path, str, Progress], ParityRecord]


def formats_of(
    text: str, *, precision: str | None, openvino: OpenVinoOptions | None = None, rounder: Rounder | None = None
) -> tuple[Format, ...]:
    """The rows for "openvino", "onnx", "both" of these, or "decilm".

    Args:
        text: what the user said.
        precision: of the weights.
        openvino: options for the OpenVINO part of what is written; their group size is ONNX's, too.
        rounder: chooses int4 weights before they are exported, the same for all formats.

    Raises:
        BadInputError: unknown, the precision does not exist in it, or options that have no meaning there.
    """
    names = ("openvino", "onnx") if text == BOTH else (text,)
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise BadInputError(f'format "{text}" is not one of {", ".join((*FORMATS, BOTH))}')
    for name in names:
        if precision is not None and precision not in FORMATS[name].precisions:
            raise BadInputError(
                f"format {name} has no precision {precision}: use one of {', '.join(FORMATS[name].precisions)}"
            )
    rows = tuple(FORMATS[name] for name in names)
    if openvino is not None and openvino.changed:
        foreign = openvino.openvino_alone if _ONNX in names else openvino.given
        if foreign and _OPENVINO not in names:
            raise BadInputError(
                f"--format {text} has no {', '.join(foreign)}: leave it out, or use --format {_OPENVINO}"
            )
        openvino.check(precision or rows[0].default)
        rows = tuple(_with_options(row, openvino) for row in rows)
    if rounder is not None:
        rounder.check(precision, openvino)
        rows = tuple(replace(row, write=_with_rounder(row.write, rounder)) for row in rows)
    return rows


def unheeded(text: str, openvino: OpenVinoOptions | None) -> str:
    """What the user must know of options that hold for the OpenVINO part of "both" alone; empty without any."""
    if text != BOTH or openvino is None or not openvino.openvino_alone:
        return ""
    return f"note: {', '.join(openvino.openvino_alone)}: for the OpenVINO export alone, ONNX goes without it"


def _with_options(row: Format, options: OpenVinoOptions) -> Format:
    if row.name == _OPENVINO:
        return replace(row, write=partial(_openvino, options=options))
    return replace(row, write=partial(_onnx, block=options.group_size)) if "group_size" in options.changed else row


def _with_rounder(
    write: Callable[..., ParityRecord], rounder: Rounder
) -> Callable[[Path, Path, str, Progress], ParityRecord]:
    return partial(write, rounder=rounder)


def _openvino_has(config: Any, precision: str) -> None:
    openvino_families.row_of(str(config.model_type))


def _openvino(
    source: Path,
    stage: Path,
    precision: str,
    report: Progress,
    options: OpenVinoOptions | None = None,
    rounder: Rounder | None = None,
) -> ParityRecord:
    from prune_export.export.weights import compress

    needs_text = options is not None and options.needs_text
    text = calibration(source, options.calibration, samples=options.samples) if options and needs_text else None
    rounded = rounder.of(source, report) if rounder is not None else None
    with _beside(stage) as scratch:
        plain = scratch / "fp32"
        expected = _written_openvino(source, plain, scratch, report, rounded)
        with report.phase("parity with torch"):
            errors = compared(expected, plain)
        with report.phase(f"writing {precision}"):
            compress(plain, stage, precision=precision, options=options, calibration=text, rounded=rounded)
        parity = scored(
            stage, expected, errors, precision=precision, name=source.name, scratch=scratch, progress=report
        )
    _note(stage / OPENVINO_RECORD, parity)
    return parity


def _note(record: Path, parity: ParityRecord) -> None:
    """Adds what the gate found, and with which versions, to the record that lies beside a model."""
    from prune_export.export.versions import package_versions

    data = json.loads(record.read_text(encoding="utf8"))
    data |= {"parity": to_json(parity), "versions": package_versions()}
    record.write_text(json.dumps(data, indent=1) + "\n", encoding="utf8")


def _written_openvino(
    source: Path, plain: Path, scratch: Path, report: Progress, rounded: RoundedWeights | None
) -> Expected:
    """The model is gone when this returns: it and a runtime's copy of it are never in memory together."""
    from prune_export.export.openvino_ir import export_openvino
    from prune_export.prune.checkpoint import load
    from prune_export.prune.loading import load_tokenizer

    checkpoint, tokenizer = load(source), load_tokenizer(source)
    with report.phase("running the checkpoint in torch"):
        expected = expected_of(checkpoint, tokenizer, scratch, rounded)
    with report.phase("exporting to OpenVINO"):
        export_openvino(checkpoint, tokenizer, plain)
    return expected


def _onnx_has(config: Any, precision: str) -> None:
    from prune_export.export.onnx_limits import check_model

    check_model(config, precision)


def _onnx(
    source: Path,
    stage: Path,
    precision: str,
    report: Progress,
    block: int | None = None,
    rounder: Rounder | None = None,
) -> ParityRecord:
    from prune_export.export.files import ONNX_RECORD

    rounded = rounder.of(source, report) if rounder is not None else None
    with _beside(stage) as scratch:
        plain = stage if precision == "fp32" else scratch / "fp32"
        expected = _written_onnx(source, plain, stage, precision, scratch, report, block, rounded)
        with report.phase("parity with torch"):
            parity = scored(
                stage,
                expected,
                compared(expected, plain),
                precision=precision,
                name=source.name,
                scratch=scratch,
                progress=report,
            )
    _note(stage / ONNX_RECORD, parity)
    return parity


def _written_onnx(
    source: Path,
    plain: Path,
    stage: Path,
    precision: str,
    scratch: Path,
    report: Progress,
    block: int | None,
    rounded: RoundedWeights | None,
) -> Expected:
    """The model is gone when this returns."""
    from prune_export.export.onnx_export import export_onnx
    from prune_export.export.onnx_quantize import BLOCKS
    from prune_export.prune.checkpoint import load
    from prune_export.prune.loading import load_tokenizer

    checkpoint, tokenizer = load(source), load_tokenizer(source)
    with report.phase("running the checkpoint in torch"):
        expected = expected_of(checkpoint, tokenizer, scratch, rounded)
    if precision != "fp32":
        export_onnx(checkpoint, None, plain, progress=report)
    block = block or BLOCKS[0]
    export_onnx(checkpoint, tokenizer, stage, precision=precision, block=block, rounded=rounded, progress=report)
    return expected


def _decilm_has(config: Any, precision: str) -> None:
    from prune_export.export.decilm_layout import FAMILIES

    model_type = str(config.model_type)
    if model_type.removeprefix("prune_") not in FAMILIES:
        raise BadInputError(
            f"format decilm is a layout of Llama's layers, {model_type} is built otherwise: use a model of "
            f"{' or '.join(FAMILIES)}"
        )


def _decilm(source: Path, stage: Path, precision: str, report: Progress) -> ParityRecord:
    from prune_export.export.decilm import DTYPES, check_decilm, round_weights, write_decilm
    from prune_export.export.gate import parity_record
    from prune_export.export.parity import greedy_tokens_of, unchecked
    from prune_export.prune.checkpoint import load
    from prune_export.prune.loading import load_tokenizer

    checkpoint, tokenizer, dtype = load(source), load_tokenizer(source), DTYPES[precision]
    with report.phase("writing the layout"):
        write_decilm(checkpoint, tokenizer, stage, dtype=dtype)
    with report.phase("parity of what was written"):
        round_weights(checkpoint, dtype)
        count = new_tokens(checkpoint)
        errors, tolerance, agreement = check_decilm(checkpoint, stage, prompt=PROMPT, new_tokens=count)
        tokens = greedy_tokens_of(checkpoint, PROMPT, new_tokens=count)
    found = parity_record(
        errors, tolerance, greedy_tokens=count, greedy_agreement=agreement, unchecked=unchecked(checkpoint)
    )
    return replace(found, prompt=PROMPT, continuation=tuple(tokens))


@contextmanager
def _beside(stage: Path) -> Iterator[Path]:
    """A folder for what the gate needs, on the same disk as the result, gone afterwards.

    A full disk is found while the folder still takes its space.
    """
    with scratch_folder(stage.parent, ".fp32-") as folder, full_disk_explained(folder):
        yield folder


BOTH = "both"
_OPENVINO = "openvino"
_ONNX = "onnx"
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(_OPENVINO, PRECISIONS, "int8", _openvino_has, _openvino),
        Format(_ONNX, PRECISIONS, "int8", _onnx_has, _onnx),
        Format("decilm", ("fp32", "fp16", "bf16"), STORED, _decilm_has, _decilm),
    )
}
