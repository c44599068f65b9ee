"""Reads what is known of an ONNX model from the files beside it. Needs no runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError

MODEL_NAME = "model.onnx"
RECORD_NAME = "onnx_export.json"
GENAI_NAME = "genai_config.json"
# The graph alone is far smaller; a larger file holds weights too and is not searched.
_GRAPH_BYTES = 64 << 20


def data_file(model: Path) -> Path:
    """The file that holds the weights."""
    return model.with_name(f"{model.name}.data")


def check_files(model: Path) -> None:
    """Refuses links: what they point to may lie anywhere, and change.

    Raises:
        BadInputError: the model or its data is a symbolic link or has several names, or the data is missing.
    """
    for path in (model, data_file(model)):
        if path.is_symlink():
            raise BadInputError(f"{path} is a symbolic link, which ONNX data may not be: copy the file itself there")
        if path.is_file() and path.stat().st_nlink > 1:
            raise BadInputError(
                f"{path} is hard-linked ({path.stat().st_nlink} names), which ONNX data may not be: copy the file there"
            )
    if not data_file(model).is_file() and data_file(model).name.encode() in _graph(model):
        raise BadInputError(f"{model} has no weights beside it ({data_file(model).name} is missing)")


def onnx_weights_bytes(model: Path) -> int:
    """Size of graph and data."""
    data = data_file(model)
    return model.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def onnx_precision(model: Path) -> str:
    """Weight precision by the record beside the model; a foreign model with blocks of integers counts as int4."""
    record = _json(model.with_name(RECORD_NAME))
    if isinstance(record.get("precision"), str):
        return str(record["precision"])
    return "int4" if b"MatMulNBits" in _graph(model) else "fp32"


def computes_last_token(model: Path, initializer: str) -> bool:
    """Whether the graph has the initializer that limits the logits to the last token."""
    return initializer.encode() in _graph(model)


def head_size(model: Path) -> int | None:
    """Width of a head by the configuration beside the model, for graphs that leave it open."""
    decoder = _json(model.with_name(GENAI_NAME)).get("model", {})
    size = decoder.get("decoder", {}).get("head_size") if isinstance(decoder, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def _graph(model: Path) -> bytes:
    return model.read_bytes() if model.stat().st_size <= _GRAPH_BYTES else b""


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
    return data if isinstance(data, dict) else {}
