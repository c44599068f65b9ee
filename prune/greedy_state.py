"""Where one run of a greedy search stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from prune_export.plan import PlanStep
from prune_export.prune.candidates import Change, Stage, Structure
from prune_export.prune.choosing import LastScores, Pick
from prune_export.prune.evaluator import exp_or_inf
from prune_export.prune.searching import Report


@dataclass
class GreedyState:
    """The current structure, how it came about, and what is remembered from step to step.

    Attributes:
        structure: layers as they are now.
        log_perplexity: of `structure`, on the tokens of `stage`.
        stage: the stage whose tokens were used last.
        cost: of `structure`.
        dense_cost: before the first step.
        budget: where the run ends.
        report: where progress goes.
        together: the stage whose tokens all candidates are scored on, where kinds compete.
        history: steps taken.
        block_price: price of the next best block when it was last asked.
        prices: last price of each candidate, for a lazy search.
        last: last score of each sub-block's candidate.
    """

    structure: Structure
    log_perplexity: float
    stage: Stage
    cost: float
    dense_cost: float
    budget: float
    report: Report | None
    together: Stage | None = None
    history: list[PlanStep] = field(default_factory=list)
    block_price: float = -math.inf
    prices: dict[Change, float] = field(default_factory=dict)
    last: LastScores = field(default_factory=dict)

    def tokens_of(self, change: Change) -> Stage:
        """The stage whose tokens a candidate is scored on."""
        return self.together or change.stage

    def take(self, pick: Pick) -> None:
        """Makes a pick the current structure."""
        self.structure, self.log_perplexity, self.cost = pick.structure, pick.log_perplexity, pick.cost
        change = pick.change
        self.stage = self.tokens_of(change)
        self.history.append(
            PlanStep(change.stage, change.layer, change.part, change.size, exp_or_inf(pick.log_perplexity), pick.cost)
        )

    def say(self, change: Change, share: float) -> None:
        """Reports that a share of the current step's candidates was visited."""
        if self.report is None:
            return
        total = max(self.dense_cost - self.budget, 1e-30)
        done = self.dense_cost - self.cost
        step = done / len(self.history) if self.history else 0.0
        detail = f"{change.stage}, perplexity {exp_or_inf(self.log_perplexity):.4g}"
        self.report(min(total, done + share * step), total, detail)
