"""How the next step is chosen among candidates: by scoring all of them, or lazily."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from prune_export.prune.candidates import Change, Structure


@dataclass(frozen=True)
class Pick:
    """A candidate with its score (lower is better) and what the model becomes with it."""

    change: Change
    score: float
    structure: Structure
    log_perplexity: float
    cost: float


Candidates: TypeAlias = list[tuple[Change, Structure]]
Evaluate: TypeAlias = Callable[[Change, Structure, float], Pick]


def full_scan(candidates: Candidates, evaluate: Evaluate) -> Pick | None:
    """The candidate with the lowest score; the first one of equals in the order given.  None if no score is finite.

    Args:
        candidates: changes and the structures that they lead to, in canonical order.
        evaluate: gives the pick; its third argument is the share of candidates done.
    """
    picks: dict[Change, Pick] = {}
    # Along the residual stream, so that recomputed states serve the next candidate.
    for done, (change, after) in enumerate(sorted(candidates, key=lambda item: item[0].block)):
        picks[change] = evaluate(change, after, done / len(candidates))
    best = None
    for change, _ in candidates:
        if math.isfinite(picks[change].score) and (best is None or picks[change].score < best.score):
            best = picks[change]
    return best


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
        pick = evaluate(change, after, 0.0)
        known[change] = pick.score
        if math.isfinite(pick.score) and (
            best is None or (pick.score, order[change]) < (best.score, order[best.change])
        ):
            best = pick
    return best
