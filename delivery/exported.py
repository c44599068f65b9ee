"""What `export` writes beside an export once its gate is passed: the model card, and last export.json."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

from prune_export.delivery.card import export_card, write_card
from prune_export.export.departures import departures_of
from prune_export.export.versions import package_versions
from prune_export.export_record import EXPORT_FILE, ExportRecord
from prune_export.hashes import file_records
from prune_export.manifest import ParityRecord
from prune_export.profiles.host import host_fingerprint
from prune_export.prune.loading import load_config, source_digest
from prune_export.prune.shapes import model_shape


def describe_export(
    folder: Path,
    checkpoint: Path,
    parity: ParityRecord,
    *,
    source: str,
    format: str,
    precision: str,
    command: str,
    rounding: dict[str, str] | None = None,
    together: tuple[str, ...] = (),
) -> ExportRecord:
    """Writes README.md and export.json.

    Args:
        folder: of the export.
        checkpoint: directory that was exported.
        parity: what the gate found.
        source: the checkpoint as the user named it.
        format: of the export.
        precision: of its weights.
        command: command line, or empty.
        rounding: how its integers were chosen before the export, if they were.
        together: the formats that are exported at once, each to a folder of its name; empty for one alone.
    """
    record = ExportRecord(
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=source,
        source_digest=source_digest(checkpoint),
        shape=model_shape(load_config(checkpoint)),
        format=format,
        precision=precision,
        parity=parity,
        host=host_fingerprint(),
        versions=package_versions(),
        rounding=rounding or {},
        departures=departures_of(folder),
        together=together,
    )
    write_card(folder, export_card(record))
    record = replace(record, files=file_records(folder, besides=EXPORT_FILE))
    record.save(folder)
    return record
