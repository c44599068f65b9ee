"""Writes profiles as TOML that `load_profile` reads back to the same profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prune_export.profiles.device import DeviceProfile
from prune_export.records import to_json


def to_toml(profile: DeviceProfile) -> str:
    """The whole profile, whatever it extended written out."""
    data = {key: value for key, value in to_json(profile).items() if value is not None}
    lines: list[str] = []
    _write_table(data, (), lines)
    return "\n".join(lines).strip() + "\n"


def _write_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    """Plain values first, then sub-tables: a plain value after a table's header would belong to that table."""
    lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not _nested(value)]
    for key, value in table.items():
        inner = (*path, _key(key))
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join(inner)}]"]
            _write_table(value, inner, lines)
        elif _nested(value):
            for item in value:
                lines += ["", f"[[{'.'.join(inner)}]]"]
                _write_table(item, inner, lines)


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, str):
        # JSON's string escapes are a subset of TOML's, but for surrogates, which ensure_ascii=False avoids, and DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value).lower() if isinstance(value, bool) else repr(value)
