"""JSON round trip for frozen dataclasses.

`to_json` and `from_json` handle nested dataclasses, tuples, string-keyed dicts, optional values and primitives.
Unknown keys are rejected with the nearest known key named; every mistake in a document is reported at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from prune_export.errors import BadInputError, nearest

Record = TypeVar("Record")

# Metadata of a field that is written only when it differs from its default: a field that came later, so that documents
# without it, and their digests, stay as they were.
SPARSE: Mapping[str, bool] = types.MappingProxyType({"sparse": True})


def to_json(value: Any) -> Any:
    """`value` as plain JSON data: dataclasses become dicts (sparse fields at their default left out), tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not field.metadata.get("sparse") or getattr(value, field.name) != field.default
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[Record], data: Any, *, where: str) -> Record:
    """Builds the dataclass `kind` from plain data.

    Args:
        kind: a dataclass.
        data: what `json.load` or `tomllib.load` gave.
        where: names the document in messages, for instance "plan.json".

    Raises:
        BadInputError: unknown or missing keys, values of the wrong type; all of them in one message.
    """
    mistakes: list[str] = []
    value = _convert(kind, data, where, mistakes)
    if mistakes:
        raise BadInputError("; ".join(mistakes))
    return typing.cast(Record, value)


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON text of a record."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _convert(kind: Any, data: Any, where: str, mistakes: list[str]) -> Any:
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_optional(kind, data, where, mistakes)
    if origin is typing.Literal:
        return _expect(data in typing.get_args(kind), data, f"one of {list(typing.get_args(kind))}", where, mistakes)
    if origin is tuple:
        return _convert_tuple(typing.get_args(kind), data, where, mistakes)
    if origin in (dict, Mapping):
        if not isinstance(data, Mapping):
            return _expect(False, data, "a table", where, mistakes)
        item = typing.get_args(kind)[1]
        return {str(key): _convert(item, entry, f"{where}: {key}", mistakes) for key, entry in data.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_record(typing.cast(type, kind), data, where, mistakes)
    if kind is float:
        return float(data) if _is_number(data) else _expect(False, data, "a number", where, mistakes)
    return _expect(isinstance(data, kind) and (kind is bool or not isinstance(data, bool)), data, kind.__name__, where,
                   mistakes)  # fmt: skip


def _convert_optional(kind: Any, data: Any, where: str, mistakes: list[str]) -> Any:
    kinds = [item for item in typing.get_args(kind) if item is not type(None)]
    if data is None and len(kinds) < len(typing.get_args(kind)):
        return None
    return _convert(kinds[0], data, where, mistakes)


def _convert_tuple(kinds: tuple[Any, ...], data: Any, where: str, mistakes: list[str]) -> Any:
    if not isinstance(data, (list, tuple)):
        return _expect(False, data, "a list", where, mistakes)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_convert(kinds[0], item, f"{where}[{i}]", mistakes) for i, item in enumerate(data))
    if len(kinds) != len(data):
        return _expect(False, data, f"a list of {len(kinds)}", where, mistakes)
    return tuple(
        _convert(kind, item, f"{where}[{i}]", mistakes) for i, (kind, item) in enumerate(zip(kinds, data, strict=True))
    )


def _convert_record(kind: type, data: Any, where: str, mistakes: list[str]) -> Any:
    if not isinstance(data, Mapping):
        return _expect(False, data, "a table", where, mistakes)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    values = {}
    before = len(mistakes)
    mistakes.extend(f'{where}: unknown key "{key}"{nearest(str(key), fields)}' for key in data if key not in fields)
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}", mistakes)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            mistakes.append(f'{where}: missing key "{name}"')
    if len(mistakes) > before:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        mistakes.append(f"{where}: {error}")
        return None


def _is_number(data: Any) -> bool:
    return isinstance(data, (int, float)) and not isinstance(data, bool)


def _expect(good: bool, data: Any, wanted: str, where: str, mistakes: list[str]) -> Any:
    if not good:
        mistakes.append(f"{where}: expected {wanted}, got {json.dumps(data, default=str)[:60]}")
    return data
