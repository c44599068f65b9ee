"""What an export's record says of the layers that are stored otherwise than asked for, whatever the format."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from prune_export.export.files import ONNX_RECORD
from prune_export.export.onnx_export import OnnxRecord
from prune_export.export.weights import CompressionRecord
from prune_export.manifest import OPENVINO_RECORD
from prune_export.records import from_json

_RECORDS: tuple[tuple[str, type[CompressionRecord] | type[OnnxRecord]], ...] = (
    (OPENVINO_RECORD, CompressionRecord),
    (ONNX_RECORD, OnnxRecord),
)


def departures_of(directory: Path) -> dict[str, str]:
    """`departures` of the record beside an exported model; none without a record: uncompressed IRs and checkpoints."""
    for name, kind in _RECORDS:
        path = directory / name
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf8"))
            known = {item.name for item in fields(kind)}  # the gate adds what it found
            return from_json(kind, {key: data[key] for key in known & data.keys()}, where=str(path)).departures()
    return {}
