"""How much a search removes at once, so that what is left suits the device and the sparsity that comes on top."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prune_export.delivery.settings import SearchSettings
from prune_export.errors import BadInputError
from prune_export.shape import ModelShape
from prune_export.sparsity import Pattern, Sparsity

_STEPS = 12  # groups that a whole MLP or mixer is cut into by default
_FINE_STEPS = 64  # the same where a step is taken in every layer at once


@dataclass(frozen=True)
class Steps:
    """Units removed at once.

    Attributes:
        mlp: MLP channels; a greedy search takes the channels of a state-space mixer alike.
        kv: KV heads; a greedy search takes the heads of a state-space mixer alike.
        mixer: units of a mixer in the fast search, or None for its own choice.
    """

    mlp: int
    kv: int
    mixer: int | None = None


def search_steps(shape: ModelShape, settings: SearchSettings, multiple: int, sparsity: Sparsity | None = None) -> Steps:
    """The steps that were asked for, or the defaults; with sparsity, such that every width that can be left fits it.

    Args:
        shape: the dense model, whose own widths the pattern fits.
        settings: of the search.
        multiple: width that the device likes multiples of, or 0.
        sparsity: what comes on top, or None.

    Raises:
        BadInputError: a step that was asked for leaves widths that the pattern does not fit.
    """
    mlp = settings.mlp_group or default_group(shape, multiple, steps=_FINE_STEPS if settings.uniform else _STEPS)
    if sparsity is None or settings.search == "blockpruner":
        return Steps(mlp, settings.kv_group)
    pattern, layers = sparsity.pattern, shape.layers
    channels = {(layer.mlp_width, 1) for layer in layers}
    heads = {(item.kv_heads, item.query_heads // item.kv_heads * shape.head_dim) for item in layers if item.kv_heads}
    mixers = {(layer.mixer_width, shape.mixer.unit_columns) for layer in layers} if shape.mixer is not None else set()
    if settings.search == "multipruner" and shape.mixer is not None:
        (heads if shape.mixer.heads else channels).update(mixers)
    fitting = _fitting_step(channels, pattern, mlp)
    if settings.mlp_group:
        _refuse("--mlp-group", mlp, fitting, pattern)
    _refuse("--kv-group", settings.kv_group, _fitting_step(heads, pattern, settings.kv_group), pattern)
    units = max((size for size, _ in mixers), default=0)
    return Steps(fitting, settings.kv_group, _fitting_step(mixers, pattern, max(1, units // _STEPS)))


def check_plan(shape: ModelShape, pattern: Pattern) -> None:
    """Refuses a plan that leaves widths that the pattern does not fit.

    Raises:
        BadInputError: names the first of them.
    """
    columns = shape.mixer.unit_columns if shape.mixer is not None else 1
    for index, layer in enumerate(shape.layers):
        widths = {
            "attention": layer.query_heads * shape.head_dim,
            "MLP": layer.mlp_width,
            "mixer": layer.mixer_width * columns,
        }
        for part, width in widths.items():
            if width and not pattern.fits(width):
                step = f"a multiple of {pattern.group}" if pattern.group else "larger"
                raise BadInputError(
                    f"pattern {pattern} does not fit the plan: it leaves layer {index} an {part} of {width} columns; "
                    f"make a plan whose --mlp-group and --kv-group are {step}, or use another pattern"
                )


def default_group(shape: ModelShape, multiple: int, *, steps: int = _STEPS) -> int:
    """MLP channels removed at once: about the width's share of a step, in the device's multiple where that fits.

    Args:
        shape: the dense model.
        multiple: width that the device likes multiples of, or 0.
        steps: that the width is cut into, about; the device's multiple is kept while it allows twelve.
    """
    width = max(layer.mlp_width for layer in shape.layers)
    step = max(1, width // steps)
    if multiple and width // _STEPS >= multiple:
        return max(1, round(step / multiple)) * multiple
    unit = 1 << max(0, step.bit_length() - 1)
    return max(1, round(step / unit) * unit)


def _fitting_step(blocks: Iterable[tuple[int, int]], pattern: Pattern, wanted: int) -> int:
    """The least step from `wanted` on that leaves (units, columns of one) only widths that the pattern fits."""
    known = list(blocks)
    largest = max((units for units, _ in known), default=0)
    for step in range(wanted, largest):
        if all(pattern.fits(left * columns) for units, columns in known for left in _reachable(units, step)):
            return step
    return max(wanted, largest)  # nothing narrower than the whole


def _reachable(units: int, step: int) -> set[int]:
    """What may be left: searches count steps from the whole or from nothing."""
    return {*range(units, 0, -step), *range(step, units, step)}


def _refuse(option: str, given: int, fitting: int, pattern: Pattern) -> None:
    if given != fitting:
        raise BadInputError(
            f"{option} {given} leaves widths that pattern {pattern} does not fit: give {option} {fitting}, or use "
            "another pattern, or a share such as 50%"
        )
