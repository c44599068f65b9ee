"""The allocation of a budget where all layers that stay share one MLP width and one number of KV heads.

Stands in for `allocation`: for each pair of width and KV heads, every layer stays in that shape or goes whole, which is
an allocation of its own with two options a layer, interactions included.  The pairs are few, so all are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.prune.allocation import Problem, allocate
from prune_export.prune.sub_blocks import SubBlock

_TRIED = 16  # pairs, best first by the plain choice of layers, whose layers are chosen with care
_MOST = 5  # choices that are returned


@dataclass(frozen=True)
class _Pair:
    """One shape of a layer.

    Attributes:
        kept: [L, 2] options of each layer's attention and MLP in that shape.
        gone: [L, 2] the options without them.
    """

    kept: NDArray[np.int64]
    gone: NDArray[np.int64]

    def chosen(self, stays: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Options of all sub-blocks, ascending, as `Problem` chooses them."""
        return np.sort(np.where(stays[:, None], self.kept, self.gone).reshape(-1))

    def layers(self, problem: Problem) -> Problem:
        """The allocation that is left: option 2 i keeps layer i, 2 i + 1 does without it."""
        rows = np.stack([self.kept, self.gone], axis=1).reshape(-1, 2)
        gram = sum(problem.gram[np.ix_(rows[:, one], rows[:, other])] for one in (0, 1) for other in (0, 1))
        return Problem(
            owner=np.repeat(np.arange(len(self.kept)), 2),
            cost=problem.cost[rows].sum(1),
            gram=np.asarray(gram),
            vital=np.tile([True, False], len(self.kept)),
        )


@dataclass(frozen=True)
class _Found:
    """A choice of options, the harm predicted of it, and how many layers stay in it."""

    harm: float
    layers: int
    choice: NDArray[np.int64]


class UniformAllocation:
    """`allocation`'s functions for uniform shapes.

    Args:
        options: (position of the sub-block, size) of every option of the search.
        blocks: the sub-blocks by position.
        fits: whether the stock configuration accepts so many KV heads.

    Raises:
        BadInputError: a layer that has one of both sub-blocks only, or no shape that all layers can take.
    """

    def __init__(
        self, options: Sequence[tuple[int, int]], blocks: Sequence[SubBlock], *, fits: Callable[[int], bool]
    ) -> None:
        rows = {option: row for row, option in enumerate(options)}
        layers = _layers(blocks)
        gone = np.asarray([[rows[position, 0] for position in pair] for pair in layers], dtype=np.int64)
        heads, widths = (
            sorted(set.intersection(*({size for one, size in options if one == pair[at]} for pair in layers)) - {0})
            for at in (0, 1)
        )
        self._pairs = [
            _Pair(np.asarray([[rows[one, count], rows[other, width]] for one, other in layers], dtype=np.int64), gone)
            for count in heads
            if fits(count)
            for width in widths
        ]
        if not self._pairs:
            raise BadInputError(
                "--uniform: there is no MLP width and number of KV heads that all layers of this model can have: "
                "use a smaller --mlp-group and --kv-group, or leave out --uniform"
            )

    def allocate(self, problem: Problem, budget: float) -> list[NDArray[np.int64]] | None:
        """Choices whose cost is at most `budget`, least predicted harm first; None when there is none."""
        ranked: list[tuple[float, int, _Pair, Problem]] = []
        for pair in self._pairs:
            layers = pair.layers(problem)
            stays = _plainly(layers, budget)
            if stays is not None:
                ranked.append((layers.harm(_rows(stays)), len(ranked), pair, layers))
        found: list[_Found] = []
        for _, _, pair, layers in sorted(ranked, key=lambda item: item[:2])[:_TRIED]:
            for rows in allocate(layers, budget) or []:
                stays = rows % 2 == 0
                found.append(_Found(problem.harm(pair.chosen(stays)), int(stays.sum()), pair.chosen(stays)))
        return [item.choice for item in _varied(found)] or None

    def exchanges(
        self, problem: Problem, chosen: NDArray[np.int64], budget: float, *, most: int
    ) -> list[NDArray[np.int64]]:
        """None: the neighbours of a choice are among what `allocate` returns."""
        return []

    def cheapest(self, problem: Problem) -> NDArray[np.int64]:
        """The choice of least cost: one layer, of the cheapest shape."""
        best: tuple[float, NDArray[np.int64]] | None = None
        for pair in self._pairs:
            layers = pair.layers(problem)
            extra = layers.cost[::2] - layers.cost[1::2]
            # Ties go to less harm.
            only = min(range(len(extra)), key=lambda layer: (extra[layer], _alone(layers, layer)))
            cost = float(layers.cost[1::2].sum() + extra[only])
            if best is None or cost < best[0]:
                best = cost, pair.chosen(np.arange(len(extra)) == only)
        assert best is not None, "there is a pair"
        return best[1]


def _varied(found: Sequence[_Found]) -> list[_Found]:
    """A few of the choices, least harm first: the best for each number of layers before the next ones of one number.

    What is predicted of whole layers and of narrow ones is off in different ways, so both should be evaluated.
    """
    ordered = sorted(found, key=lambda item: item.harm)
    best = [item for at, item in enumerate(ordered) if item.layers not in {other.layers for other in ordered[:at]}]
    others = [item for item in ordered if not any(item is other for other in best)]
    return sorted([*best, *others][:_MOST], key=lambda item: item.harm)


def _layers(blocks: Sequence[SubBlock]) -> list[tuple[int, int]]:
    """(position of the attention, position of the MLP) of each layer."""
    found: dict[int, dict[str, int]] = {}
    for position, block in enumerate(blocks):
        found.setdefault(block.layer, {})[block.part] = position
    for layer, parts in found.items():
        if parts.keys() != {"attention", "mlp"}:
            lacking = "MLP" if "attention" in parts else "attention"
            raise BadInputError(
                f"--uniform: layer {layer} of this model has no {lacking}, which no stock configuration can say: use "
                "the model before it was pruned, or leave out --uniform"
            )
    return [(parts["attention"], parts["mlp"]) for parts in found.values()]


def _plainly(layers: Problem, budget: float) -> NDArray[np.bool_] | None:
    """Which layers stay when those of least harm for what they save go until the budget holds, or None."""
    harm = layers.gram.diagonal()
    saved = layers.cost[::2] - layers.cost[1::2]
    order = np.argsort((harm[1::2] - harm[::2]) / np.maximum(saved, 1e-300), kind="stable")
    stays = np.ones(len(saved), dtype=bool)
    cost = float(layers.cost[::2].sum())
    for layer in order[:-1]:
        if cost <= budget:
            break
        stays[layer] = False
        cost -= float(saved[layer])
    return stays if float(layers.cost[_rows(stays)].sum()) <= budget else None


def _rows(stays: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The options of a layers' problem."""
    return 2 * np.arange(len(stays)) + np.where(stays, 0, 1)


def _alone(layers: Problem, layer: int) -> float:
    """Harm of a model of that layer alone, but for interactions."""
    harm = layers.gram.diagonal()
    return float(harm[1::2].sum() - harm[2 * layer + 1] + harm[2 * layer])
