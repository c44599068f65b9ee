"""The picture of what was kept of every layer, in real counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prune_export.delivery.drawing import Picture, canvas, colour
from prune_export.plan import PrunePlan
from prune_export.shape import ModelShape

_MOST_NUMBERED = 40  # layers; of more the numbers above the bars would run into each other
_UPRIGHT_DIGITS = 22  # digits side by side over the picture's width


@dataclass(frozen=True)
class Part:
    """One kind of sub-block over all layers.

    Attributes:
        title: with the unit that is counted.
        unit: the same in a word or two.
        kept, dense: counts of each layer.
        without_recurrence: layers whose mixer lost its recurrence alone.
    """

    title: str
    unit: str
    kept: tuple[int, ...]
    dense: tuple[int, ...]
    without_recurrence: tuple[int, ...] = ()

    @property
    def summary(self) -> str:
        """How much is left in all."""
        left, whole = sum(self.kept), sum(self.dense)
        gone = sum(1 for kept, dense in zip(self.kept, self.dense, strict=True) if dense and not kept)
        lost = f", the recurrence alone removed in {len(self.without_recurrence)}" if self.without_recurrence else ""
        none = f", none in {gone} of {len(self.kept)} layers" if gone else ""
        return f"{left:,} of {whole:,} {self.unit} kept{none}{lost}"


def parts_of(plan: PrunePlan) -> tuple[Part, ...]:
    """The kinds of sub-blocks that the dense model has."""
    dense, kept = plan.dense, plan.target
    lost = tuple(
        index
        for index, (before, after) in enumerate(zip(dense.layers, kept.layers, strict=True))
        if before.state_size and after.mixer_width and not after.state_size
    )
    units = "heads of each group" if dense.mixer is not None and dense.mixer.heads else "channels"
    found = (
        Part("attention: KV heads", "KV heads", _counts(kept, "kv_heads"), _counts(dense, "kv_heads")),
        Part("MLP: channels", "MLP channels", _counts(kept, "mlp_width"), _counts(dense, "mlp_width")),
        Part(
            f"state-space mixer: {units}",
            f"mixer {units}",
            _counts(kept, "mixer_width"),
            _counts(dense, "mixer_width"),
            lost,
        ),
    )
    return tuple(part for part in found if any(part.dense))


def layers(plan: PrunePlan) -> Picture:
    """A bar for each layer and kind of sub-block: what is left, before what there was."""
    parts = parts_of(plan)
    with canvas(0.5 + 1.75 * len(parts), panels=len(parts)) as (figure, panels):
        for axes, part in zip(panels, parts, strict=True):
            _draw(axes, part)
        for axes in panels[:-1]:
            axes.set_xticklabels([])
        panels[-1].set_xlabel("layer")
    text = f"What every layer keeps. {'; '.join(part.summary for part in parts)}."
    return Picture("layers", "What was kept of every layer", text, figure)


def rows(plan: PrunePlan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The same as a table: its head, and a row for each layer."""
    parts = parts_of(plan)
    head = ("layer", *(part.unit for part in parts))
    body = []
    for index in range(len(plan.keep)):
        cells = []
        for part in parts:
            lost = ", no recurrence" if index in part.without_recurrence else ""
            cells.append(f"{part.kept[index]:,} of {part.dense[index]:,}{lost}")
        body.append((str(index), *cells))
    return head, body


def _draw(axes: Any, part: Part) -> None:
    positions, tallest = range(len(part.kept)), max(part.dense)
    axes.bar(positions, part.dense, width=0.78, color=colour("dense"), alpha=0.22)
    axes.bar(positions, part.kept, width=0.78, color=colour("pruned"))
    if len(part.kept) <= _MOST_NUMBERED:
        turned = len(str(tallest)) * len(part.kept) > 2 * _UPRIGHT_DIGITS
        for index, (kept, dense) in enumerate(zip(part.kept, part.dense, strict=True)):
            if dense:
                _number(axes, index, kept, turned=turned and kept > 9, tallest=tallest)
    for index in part.without_recurrence:
        axes.annotate(
            "\u00d7", (index, part.kept[index] / 2), ha="center", va="center", color=colour("paper"), fontweight="bold"
        )
    axes.set_title(f"{part.title} ({tallest:,} in the dense model's layers)", loc="left")
    axes.set_ylim(0, tallest * 1.32)
    axes.set_yticks(_ticks(tallest))
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.6, len(part.kept) - 0.4)
    axes.set_xticks(list(positions)[:: max(1, -(-len(part.kept) // 16))])


def _number(axes: Any, index: int, kept: int, *, turned: bool, tallest: int) -> None:
    axes.annotate(
        str(kept),
        (index, max(kept, tallest * 0.01)),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        rotation=90 if turned else 0,
        fontsize=7,
        color=colour("ink" if kept else "limit"),
    )


def _ticks(tallest: int) -> Sequence[float]:
    return (0, tallest / 2, tallest) if tallest > 1 else (0, 1)


def _counts(shape: ModelShape, name: str) -> tuple[int, ...]:
    return tuple(int(getattr(layer, name)) for layer in shape.layers)
