"""What every search has in common: the protocol, costs that are remembered, scores that are journalled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from prune_export.prune.candidates import Change, Stage, Structure
from prune_export.prune.evaluator import Evaluator, Score, Work, exp_or_inf
from prune_export.prune.journal import Journal
from prune_export.prune.reorder import LayerOrder
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.shape import ModelShape

Report: TypeAlias = Callable[[float, float, str], None]
CostFunction: TypeAlias = Callable[[ModelShape], float]


class Search(Protocol):
    """Finds structures within budgets; one object serves any number of them, from what it already knows."""

    @property
    def orders(self) -> tuple[LayerOrder, ...]:
        """Importance orders that the widths of its results count in."""
        ...

    def run(self, budget: float, *, progress: Report | None = None) -> SearchResult:
        """The best structure whose cost is at most `budget`.

        Args:
            budget: in the search's cost unit.
            progress: called with (done, total, detail), as `Progress.update`.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached; it says what can.
        """
        ...


class Costs:
    """Cost of structures of one model, each computed once.

    Args:
        dense: the model before.
        cost: cost of a shape; a pure function.
        unit: what costs count.
    """

    def __init__(self, dense: ModelShape, cost: CostFunction, unit: str) -> None:
        self._dense = dense
        self._cost = cost
        self._known: dict[Structure, float] = {}
        self.unit = unit

    def of(self, structure: Structure) -> float:
        """The cost of the model with these layers."""
        if structure not in self._known:
            self._known[structure] = float(self._cost(self._dense.with_layers(structure)))
        return self._known[structure]

    def infeasible(self, smallest: Structure, log_perplexity: float, budget: float) -> SearchInfeasibleError:
        """The error that says how far a search can go."""
        cost, perplexity = self.of(smallest), exp_or_inf(log_perplexity)
        return SearchInfeasibleError(
            f"no plan reaches {budget:.6g} {self.unit}: the lowest reachable is {cost:.6g} {self.unit}, "
            f"at a calibration perplexity of {perplexity:.4g}",
            lowest_cost=cost,
            perplexity=perplexity,
            shape=self._dense.with_layers(smallest),
        )


class Scorer:
    """Scores of structures, remembered in the journal; blocks and widths may be scored on different tokens.

    Args:
        evaluator: scores structures.
        widths: scores those of the stages after the blocks; the same unless told.
        journal: what is known already.

    Attributes:
        evaluations: structures scored, those known from before not counted.
    """

    def __init__(self, evaluator: Evaluator, widths: Evaluator | None, journal: Journal) -> None:
        self._evaluators = {"blocks": evaluator, "widths": evaluator if widths is None else widths}
        self._same = widths is None
        self._journal = journal
        self.evaluations = 0

    def score(
        self,
        structure: Structure,
        change: Change | None,
        after: Structure,
        *,
        stage: Stage | None = None,
        hopeless: Callable[[float], bool] | None = None,
    ) -> Score:
        """The score of `after`, which `change` makes of `structure`.

        Args:
            structure: where the search stands; the evaluator's states follow only when something has to be computed.
            change: or None to make `after` the current structure and score it whole.
            after: what is scored.
            stage: whose tokens to score on; the change's own unless told.
            hopeless: lets the evaluator stop early.
        """
        name = self._name(stage or (change.stage if change is not None else "mlp"))
        label = "" if self._same or name == "blocks" else name
        known = self._journal.get(after, label)
        if known is not None and (known.exact or (hopeless is not None and hopeless(known.log_perplexity))):
            return known
        evaluator = self._evaluators[name]
        evaluator.move_to(after if change is None else structure)
        score = evaluator.score(change, hopeless)
        self.evaluations += 1
        self._journal.put(after, score, label)
        return score

    def same_tokens(self, one: Stage, other: Stage) -> bool:
        """Whether scores of two stages can be compared."""
        return self._same or self._name(one) == self._name(other)

    def random_access(self, stage: Stage) -> bool:
        """Whether the stage's candidates may be visited in any order at the same cost."""
        return self._evaluators[self._name(stage)].random_access

    def release_blocks(self) -> None:
        """Frees the states of the first stage where it has its own."""
        if not self._same:
            self._evaluators["blocks"].release()

    @property
    def work(self) -> Work:
        """What was computed so far."""
        blocks = self._evaluators["blocks"].work
        return blocks if self._same else blocks + self._evaluators["widths"].work

    @staticmethod
    def _name(stage: Stage) -> str:
        return "blocks" if stage == "blocks" else "widths"
