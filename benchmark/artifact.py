"""Finds the OpenVINO IR in an artifact directory and reads what is written beside it. Needs no runtime."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prune_export.errors import BadInputError

IR_NAME = "openvino_model.xml"


def find_ir(directory: Path) -> Path:
    """Path of the model's XML: in `directory`, else in the one sub-folder that has it.

    Raises:
        BadInputError: no such directory, no IR, several IRs, or weights missing beside it.
    """
    if not directory.is_dir():
        raise BadInputError(f"artifact {directory} is not a directory: give one that holds {IR_NAME}")
    found = [directory / IR_NAME] if (directory / IR_NAME).is_file() else sorted(directory.glob(f"*/{IR_NAME}"))
    if not found:
        raise BadInputError(f"artifact {directory} holds no {IR_NAME}: export the model to OpenVINO first")
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise BadInputError(f"artifact {directory} holds several models ({names}): give one of these folders")
    if not found[0].with_suffix(".bin").is_file():
        raise BadInputError(f"{found[0]} has no weights beside it ({found[0].with_suffix('.bin').name} is missing)")
    return found[0]


def weights_bytes(ir: Path) -> int:
    """Size of the weight file."""
    return ir.with_suffix(".bin").stat().st_size


def weight_precision(ir: Path) -> str:
    """The narrowest weight type in the IR's constants: "int4", "int8", "fp16", "bf16" or "fp32"."""
    text = ir.read_text(encoding="utf8", errors="replace")
    kinds = set(re.findall(r'<data\b[^>]*\belement_type="(\w+)"', text))
    for precision, names in (("int4", {"u4", "i4"}), ("int8", {"u8", "i8"}), ("fp16", {"f16"}), ("bf16", {"bf16"})):
        if kinds & names:
            return precision
    return "fp32"


def context_length(ir: Path) -> int | None:
    """Longest sequence by the config.json beside the IR, or None where it is not stated."""
    path = ir.parent / "config.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
    value = data.get("max_position_embeddings") if isinstance(data, dict) else None
    return value if isinstance(value, int) and value > 0 else None
