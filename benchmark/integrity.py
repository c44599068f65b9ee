"""Whether the model about to be measured is the one that its manifest or export record names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prune_export.benchmark.runtimes import Found
from prune_export.errors import BadInputError
from prune_export.export_record import EXPORT_FILE, ExportRecord
from prune_export.files import sha256
from prune_export.hashes import FileRecord
from prune_export.manifest import CHECKPOINT_FOLDER, MANIFEST, Manifest


def check_model_files(found: Found) -> bool:
    """Compares a model's files with their hashes, where a manifest or an export record has them.

    See `check_folder`.
    """
    return check_folder(found.path.parent, format=found.runtime.format)


def check_folder(folder: Path, *, format: str) -> bool:
    """Compares the files in a model's folder with their hashes, where a manifest or an export record has them.

    A figure is of the artifact that it is reported for, or of none.  What the record does not name, and what lies
    beside the model's folder, is not looked at: a box may hold the model alone; `verify` checks everything.

    Args:
        folder: of the model.
        format: "openvino", "onnx" or "checkpoint", which a delivery's folders are named after.

    Returns:
        Whether there is one.

    Raises:
        BadInputError: a file is missing or changed, all of them named in one line; or the manifest or record itself was
            edited.
    """
    folder = folder.absolute()  # "." has a parent too
    # Checkpoints lie anywhere, beside manifests of other programs too; a delivery's has a name of its own.
    delivered = format != CHECKPOINT_FOLDER or folder.name == CHECKPOINT_FOLDER
    if delivered and (folder.parent / MANIFEST).is_file():
        files = Manifest.load_unedited(folder.parent).files
        check_listed(folder.parent, files, document=MANIFEST, prefix=f"{folder.name}/")
        return True
    if (folder / EXPORT_FILE).is_file():
        check_listed(folder, ExportRecord.load_unedited(folder).files, document=EXPORT_FILE)
        return True
    return False


def check_listed(directory: Path, files: Mapping[str, FileRecord], *, document: str, prefix: str = "") -> None:
    """Compares the files that a document lists with their hashes; what else lies there is not looked at.

    Args:
        directory: where the document lies.
        files: relative path to record.
        document: its name, for messages.
        prefix: of the paths that are looked at.

    Raises:
        BadInputError: a file is missing or changed; names them all in one line.
    """
    listed = {name: record for name, record in files.items() if name.startswith(prefix)}
    missing = [name for name in listed if not (directory / name).is_file()]
    changed = [
        name for name, record in listed.items() if name not in missing and sha256(directory / name) != record.sha256
    ]
    text = "; ".join(
        f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("changed", changed)) if names
    )
    if text:
        raise BadInputError(f"{directory} is not as its {document} says ({text}): copy or make it again")
