"""What a checkpoint's files say by themselves: whether they are there, how large, in which type. Needs no torch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.export_record import EXPORT_FILE

CONFIG_NAME = "config.json"
_TYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
_LONGEST_HEADER = 100 << 20  # the safetensors format's own limit


def check_checkpoint(config: Path) -> None:
    """Refuses a folder without safetensors weights.

    Raises:
        BadInputError: there are none.
    """
    if not _weights(config) and (config.parent / EXPORT_FILE).is_file():
        raise BadInputError(f"{config.parent} is an export whose model file is missing: copy or export it again")
    if not _weights(config):
        raise BadInputError(f"{config.parent} has no safetensors weights: give a checkpoint, or export it first")


def checkpoint_bytes(config: Path) -> int:
    """Size of the weight files."""
    return sum(path.stat().st_size for path in _weights(config))


def checkpoint_precision(config: Path) -> str:
    """The type of most of its weights: "fp32", "bf16" or "fp16".

    Raises:
        BadInputError: a damaged file, or weights of another type.
    """
    sizes: Counter[str] = Counter()
    for path in _weights(config):
        for name, entry in _header(path).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sizes[entry["dtype"]] += end - begin
    kind = sizes.most_common(1)[0][0] if sizes else "none"
    if kind not in _TYPES:
        raise BadInputError(
            f"{config.parent} has weights of type {kind}: torch is timed in {', '.join(_TYPES.values())}"
        )
    return _TYPES[kind]


def _weights(config: Path) -> list[Path]:
    return sorted(config.parent.glob("*.safetensors"))


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """The JSON header: eight bytes of its length, then itself."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            found: dict[str, dict[str, Any]] = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} is truncated or damaged: {error}") from None
    return found
