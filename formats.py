"""The formats that checkpoints are exported to: one row each, its gate included.

Everything heavy is imported inside the functions, so that the command line can name the formats at once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.manifest import ParityRecord
from prune_export.progress import Progress
from prune_export.records import to_json

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
_PROMPT = tuple(range(1, 17))
_GREEDY_TOKENS = 64


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: as the user says it.
        precisions: weight precisions that it has.
        write: exports the checkpoint in the first directory to the second one in a precision, behind the parity gate;
            what it raises leaves nothing published.
    """

    name: str
    precisions: tuple[str, ...]
    write: Callable[[Path, Path, str, Progress], ParityRecord]


def formats_of(text: str, *, precision: str) -> tuple[Format, ...]:
    """The rows for "openvino", "onnx" or "both".

    Raises:
        BadInputError: unknown, or the precision does not exist in it.
    """
    names = tuple(FORMATS) if text == BOTH else (text,)
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise BadInputError(f'format "{text}" is not one of {", ".join((*FORMATS, BOTH))}')
    for name in names:
        if precision not in FORMATS[name].precisions:
            raise BadInputError(
                f"format {name} has no precision {precision}: use one of {', '.join(FORMATS[name].precisions)}"
            )
    return tuple(FORMATS[name] for name in names)


@dataclass(frozen=True)
class _Expected:
    """Torch's side of the gate, so that the model can be released before a runtime loads its export."""

    reference: Any
    tokens: tuple[int, ...]
    window: Any
    nll: float


def _expected(checkpoint: Any) -> _Expected:
    import numpy as np

    from prune_export.evaluate import torch_nll
    from prune_export.export.parity import greedy_tokens_of, torch_reference

    tokens = greedy_tokens_of(checkpoint, _PROMPT, new_tokens=_GREEDY_TOKENS)
    window = np.asarray([[*_PROMPT, *tokens]], dtype=np.int64)
    (nll,) = torch_nll(checkpoint, window)
    return _Expected(torch_reference(checkpoint), tuple(tokens), window, nll)


def _checked_nll(directory: Path, expected: _Expected, *, precision: str, name: str, progress: Progress) -> None:
    from prune_export.delivery.variants import check_nll
    from prune_export.evaluate import ir_nll

    (nll,) = ir_nll(directory, expected.window, precision=precision, threads=0, progress=progress)
    check_nll(nll - expected.nll, precision=precision, name=name)


def _openvino(source: Path, stage: Path, precision: str, report: Progress) -> ParityRecord:
    from prune_export.export.openvino_ir import export_openvino
    from prune_export.export.parity import check_against, ir_greedy_agreement, parity_record
    from prune_export.export.weights import compress
    from prune_export.prune.checkpoint import load
    from prune_export.prune.loading import load_tokenizer

    checkpoint, tokenizer = load(source), load_tokenizer(source)
    with _beside(stage) as plain:
        with report.phase("exporting to OpenVINO"):
            export_openvino(checkpoint, tokenizer, plain)
        with report.phase("parity with torch"):
            expected = _expected(checkpoint)
            errors, tolerance = check_against(expected.reference, plain)
        with report.phase(f"writing {precision}"):
            if precision == "fp32":
                shutil.copytree(plain, stage, dirs_exist_ok=True)
            else:
                compress(plain, stage, precision=precision)
        agreement = ir_greedy_agreement(stage, _PROMPT, expected.tokens, precision=precision)
        _checked_nll(stage, expected, precision=precision, name=source.name, progress=report)
    return parity_record(errors, tolerance, greedy_tokens=len(expected.tokens), greedy_agreement=agreement)


def _onnx(source: Path, stage: Path, precision: str, report: Progress) -> ParityRecord:
    from prune_export.delivery.resources import free_memory
    from prune_export.export.files import ONNX_RECORD
    from prune_export.export.onnx_runner import OnnxRunner
    from prune_export.export.parity import check_against, ir_greedy_agreement, parity_record
    from prune_export.export.versions import package_versions

    with _beside(stage) as plain:
        # The model is gone when this returns: it and a runtime's copy of it are never in memory together, and neither
        # are two sessions.
        expected = _written_onnx(source, plain, stage, precision, report)
        free_memory()
        with report.phase("parity with torch"):
            fp32 = stage if precision == "fp32" else plain
            errors, tolerance = check_against(expected.reference, fp32, runner=OnnxRunner(fp32))
            free_memory()
            agreement = ir_greedy_agreement(
                stage, _PROMPT, expected.tokens, precision=precision, runner=OnnxRunner(stage)
            )
            free_memory()
            _checked_nll(stage, expected, precision=precision, name=source.name, progress=report)
    parity = parity_record(errors, tolerance, greedy_tokens=len(expected.tokens), greedy_agreement=agreement)
    record = json.loads((stage / ONNX_RECORD).read_text(encoding="utf8"))
    record |= {"parity": to_json(parity), "versions": package_versions()}
    (stage / ONNX_RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    return parity


def _written_onnx(source: Path, plain: Path, stage: Path, precision: str, report: Progress) -> _Expected:
    from prune_export.export.onnx_export import export_onnx
    from prune_export.prune.checkpoint import load
    from prune_export.prune.loading import load_tokenizer

    checkpoint, tokenizer = load(source), load_tokenizer(source)
    if precision != "fp32":
        export_onnx(checkpoint, None, plain, progress=report)
    export_onnx(checkpoint, tokenizer, stage, precision=precision, progress=report)
    with report.phase("running the checkpoint in torch"):
        return _expected(checkpoint)


@contextmanager
def _beside(stage: Path) -> Iterator[Path]:
    """A folder for the fp32 export, on the same disk as the result, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=stage.parent, prefix=".fp32-") as folder:
        yield Path(folder)


BOTH = "both"
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("openvino", ("fp32", "int8", "int4"), _openvino),
        Format("onnx", PRECISIONS, _onnx),
    )
}
