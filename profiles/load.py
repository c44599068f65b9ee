"""Reads profiles: built-in ones by name, others by path."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.profiles.device import DeviceProfile, range_mistakes
from prune_export.profiles.host import host_profile
from prune_export.records import from_json

HOST = "host"
_SUFFIX = ".toml"
_BUILT_IN = Path(__file__).parent
# A table that a profile gives replaces its base's table: a device without bf16 must not inherit a bf16 peak.
_REPLACED = ("peak_flops",)


def list_profiles() -> tuple[str, ...]:
    """Names that `load_profile` knows, "host" first."""
    return (HOST, *sorted(path.stem for path in _BUILT_IN.glob(f"*{_SUFFIX}")))


def built_in_profiles() -> tuple[DeviceProfile, ...]:
    """The profiles that come with the package."""
    return tuple(load_profile(name) for name in list_profiles() if name != HOST)


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """A profile by name ("host", "cpu-xeon") or by the path of a TOML file.

    `extends = "NAME"` (or a path beside the file) starts from another profile: its tables are merged key by key,
    except `peak_flops`, and every other value is replaced.

    Raises:
        BadInputError: unknown name (near misses and the list are given), unreadable file, no TOML, or mistakes in
            it, all of them in one message, unknown keys with the nearest known key.
    """
    text = str(name_or_path)
    if text == HOST:
        return host_profile(built_in_profiles())
    path = _BUILT_IN / f"{text}{_SUFFIX}" if text in list_profiles() else Path(name_or_path)
    if not text.endswith(_SUFFIX) and not path.is_file():
        raise BadInputError(_unknown(text))
    return _build(_merged(path, ()), str(path) if text.endswith(_SUFFIX) else f"profile {text}")


def _unknown(name: str) -> str:
    names = list_profiles()
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f'unknown device "{name}"{hint}: use one of {", ".join(names)}, or the path of a {_SUFFIX} file'


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise BadInputError(
            f"profile {path} does not exist: use a file, or one of {', '.join(list_profiles())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"profile {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"profile {path} is not valid TOML: {error}") from None


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(item.name for item in (*seen, resolved))
        raise BadInputError(f"profile {path} extends itself: {chain}")
    data = _read(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise BadInputError(f"profile {path}: extends must be the name or path of a profile, got {base!r}")
    if base == HOST:
        raise BadInputError(f'profile {path}: extends = "{HOST}" would differ on each machine: name a built-in profile')
    parent = _BUILT_IN / f"{base}{_SUFFIX}" if base in list_profiles() else path.parent / base
    if not parent.is_file():
        raise BadInputError(f"profile {path}: extends: {_unknown(base)}")
    return _override(_merged(parent, (*seen, resolved)), data)


def _override(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in data.items():
        old = base.get(key)
        both_tables = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = {**old, **value} if both_tables and old and key not in _REPLACED else value
    return merged


def _build(data: dict[str, Any], where: str) -> DeviceProfile:
    try:
        return from_json(DeviceProfile, data, where=where)
    except BadInputError as error:
        text = str(error)
    missed = [f"{where}: {mistake}" for mistake in range_mistakes(data) if mistake not in text]
    raise BadInputError("; ".join([text, *missed]))
