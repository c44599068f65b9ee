"""Parsing and printing of quantities: "40ms", "1.5x", "2GiB", "22%".

The only place that turns such strings into numbers.  Times are seconds, sizes bytes, shares fractions.
"""

from __future__ import annotations

import math
import re

from prune_export.errors import BadInputError

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*")


def parse_duration(text: str, *, what: str = "duration") -> float:
    """Seconds from "40ms", "0.5s", "800us".

    Raises:
        BadInputError: no number, no unit, an unknown unit, or not above zero.
    """
    return _parse(text, _SECONDS, what=what, example="40ms")


def parse_bytes(text: str, *, what: str = "size") -> int:
    """Bytes from "2GiB", "512MB".

    Raises:
        BadInputError: no number, no unit, an unknown unit, or not above zero.
    """
    return round(_parse(text, _BYTES, what=what, example="2GiB"))


def parse_speedup(text: str, *, what: str = "speed-up") -> float:
    """A factor from "1.5x".

    Raises:
        BadInputError: malformed, or not above zero.
    """
    return _parse(text, {"x": 1.0}, what=what, example="1.5x")


def parse_share(text: str, *, what: str = "share", below: float = 1.0) -> float:
    """A fraction in (0, below) from "22%" or "0.22".

    Raises:
        BadInputError: malformed or out of range.
    """
    value = _parse(text, {"%": 0.01, "": 1.0}, what=what, example="22%")
    if value >= below:
        raise BadInputError(f'{what} "{text}" is out of range: above 0% and below {below:.0%} is possible, e.g. 22%')
    return value


def format_duration(seconds: float) -> str:
    """Three significant digits with the fitting unit: "38.2 ms", "950 us", "1.24 s"."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= factor or unit == "us":
            return f"{_three_digits(seconds / factor)} {unit}"
    raise AssertionError


def format_bytes(size: float) -> str:
    """Three significant digits with a binary unit: "1.21 GiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        if abs(size) >= _BYTES[unit]:
            return f"{_three_digits(size / _BYTES[unit])} {unit}"
    return f"{size:.0f} B"


def format_clock(seconds: float) -> str:
    """Minutes and seconds for progress lines: "3:07", "1:02:45"."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _three_digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _parse(text: str, units: dict[str, float] | dict[str, int], *, what: str, example: str) -> float:
    match = _QUANTITY.fullmatch(text)
    known = ", ".join(unit or "none" for unit in units)
    if match is None:
        raise BadInputError(f'{what} "{text}" is not a number with a unit ({known}), e.g. {example}')
    number, unit = float(match[1]), match[2]
    if unit not in units:
        problem = f'has an unknown unit "{unit}"' if unit else "has no unit"
        raise BadInputError(f'{what} "{text}" {problem}: use one of {known}, e.g. {example}')
    if not number > 0 or not math.isfinite(number):
        raise BadInputError(f'{what} "{text}" must be above zero, e.g. {example}')
    return number * units[unit]
