"""How the next step is chosen among candidates: by scoring all of them, or lazily."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from prune_export.prune.candidates import Change, Part, Structure


@dataclass(frozen=True)
class Pick:
    """A candidate with its score (lower is better) and what the model becomes with it.

    `exact` is False where scoring stopped early, since a better candidate was known; `score` is then a lower bound.
    """

    change: Change
    score: float
    structure: Structure
    log_perplexity: float
    cost: float
    exact: bool = True


Candidates: TypeAlias = list[tuple[Change, Structure]]
# Change, structure after it, share of the candidates done, best pick so far (which the candidate may be dropped for).
Evaluate: TypeAlias = Callable[[Change, Structure, float, Pick | None], Pick]
LastScores: TypeAlias = dict[tuple[int, Part], float]


def full_scan(
    candidates: Candidates, evaluate: Evaluate, *, last: LastScores | None = None, any_order: bool = True
) -> Pick | None:
    """The candidate with the lowest score; the first one of equals in the order given.  None if no score is finite.

    The order of visits does not change the choice, only how early hopeless candidates can be dropped.

    Args:
        candidates: changes and the structures that they lead to, in canonical order.
        evaluate: gives the pick.
        last: score of each sub-block's candidate in the step before; updated.  The best of them is visited first.
        any_order: whether jumping along the residual stream costs nothing; if not, only the best comes out of turn.
    """
    last = {} if last is None else last
    canonical = {change: index for index, (change, _) in enumerate(candidates)}
    best: Pick | None = None
    for done, (change, after) in enumerate(_visits(candidates, last, any_order)):
        pick = evaluate(change, after, done / len(candidates), best)
        last[change.layer, change.part] = pick.score
        if not pick.exact or not math.isfinite(pick.score):
            continue
        if best is None or (pick.score, canonical[change]) < (best.score, canonical[best.change]):
            best = pick
    return best


def _visits(candidates: Candidates, last: LastScores, any_order: bool) -> Candidates:
    """Promising candidates first; those without a last score from the end, where their evaluation is shortest."""

    def hope(item: tuple[Change, Structure]) -> tuple[float, int]:
        change = item[0]
        return last.get((change.layer, change.part), -math.inf), -change.block

    if any_order or not candidates:
        return sorted(candidates, key=hope)
    first = min(candidates, key=hope)
    # Along the residual stream, so that recomputed states serve the next candidate.
    return [first, *sorted((item for item in candidates if item is not first), key=lambda item: item[0].block)]


def lazy_scan(candidates: Candidates, evaluate: Evaluate, known: dict[Change, float]) -> Pick | None:
    """The candidate with the lowest score, if no candidate's score has fallen since it was last computed.

    Candidates are scored again in the order of their last scores, those without one first, until the best new score is
    below every last score left (lazy greedy, Minoux 1978).  The choice is that of `full_scan` as long as removing
    structures makes the others dearer, never cheaper.

    Args:
        candidates: as in `full_scan`.
        evaluate: as in `full_scan`.
        known: last score of each candidate; updated.
    """
    order = {change: index for index, (change, _) in enumerate(candidates)}
    best = None
    for change, after in sorted(candidates, key=lambda item: (known.get(item[0], -math.inf), item[0].block)):
        if best is not None and known.get(change, -math.inf) > best.score:
            break
        pick = evaluate(change, after, 0.0, None)
        known[change] = pick.score
        if math.isfinite(pick.score) and (
            best is None or (pick.score, order[change]) < (best.score, order[best.change])
        ):
            best = pick
    return best
