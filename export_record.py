"""What is written beside an export: export.json, by which it can be verified without the checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from prune_export.errors import BadInputError
from prune_export.hashes import FileRecord, check_seal, write_sealed
from prune_export.manifest import ParityRecord
from prune_export.records import SPARSE, from_json, to_json
from prune_export.shape import ModelShape

EXPORT_FILE = "export.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExportRecord:
    """Everything about an export of one checkpoint in one format.

    Attributes:
        command: command line that made it; empty where it was made from Python.
        created: UTC, ISO 8601.
        source: checkpoint as the user named it.
        source_digest: sha256 over its configuration and weights.
        shape: of the model.
        format: "openvino", "onnx" or "decilm".
        precision: of the weights.
        parity: what the gate found, with the tokens and the NLL that torch gave.
        host: the machine that made it.
        versions: package name to version.
        rounding: method, group size, library and calibration text, where the integers were chosen before the export.
        departures: layer to what its weights are stored in where that is not the export's precision, or not in the
            groups that were asked for.
        together: the formats that were exported with this one, itself included, each in a folder of its name beside the
            others; empty for one alone.
        files: relative path to size and hash of every other file.
        content_digest: sha256 of this record as it was written.
    """

    command: str
    created: str
    source: str
    source_digest: str
    shape: ModelShape
    format: str
    precision: str
    parity: ParityRecord
    host: dict[str, str]
    versions: dict[str, str]
    rounding: dict[str, str] = field(default_factory=dict)
    departures: dict[str, str] = field(default_factory=dict)
    together: tuple[str, ...] = field(default=(), metadata=SPARSE)
    files: dict[str, FileRecord] = field(default_factory=dict)
    format_version: int = _FORMAT_VERSION
    content_digest: str = field(default="", compare=False, metadata=SPARSE)

    def save(self, directory: Path) -> None:
        """Writes export.json."""
        write_sealed(directory / EXPORT_FILE, to_json(self))

    @classmethod
    def load(cls, directory: Path) -> ExportRecord:
        """Reads export.json.

        Raises:
            BadInputError: missing, no JSON, or not a record of this format.
        """
        path = directory / EXPORT_FILE
        try:
            data = json.loads(path.read_text(encoding="utf8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
        if isinstance(data, dict) and data.get("format_version") != _FORMAT_VERSION:
            raise BadInputError(f"{path} has format {data.get('format_version')}, this version reads {_FORMAT_VERSION}")
        return from_json(cls, data, where=str(path))

    @classmethod
    def load_unedited(cls, directory: Path) -> ExportRecord:
        """Reads export.json and holds it against its digest.

        Raises:
            BadInputError: as `load`, or it was edited after it was written.
        """
        found = cls.load(directory)
        check_seal(directory / EXPORT_FILE)
        return found
