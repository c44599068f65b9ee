"""MultiPruner: blocks, then MLP channels, then attention heads, each by greedy search (Munoz, Yuan, Jain 2025, arXiv
2501.09949; the first stage alone is BlockPruner, Zhong et al. 2024, arXiv 2406.10594).

Cost is a function of the shape: parameters, as in the papers, or predicted seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from prune_export.errors import BadInputError
from prune_export.plan import PlanStep, PrunePlan
from prune_export.prune.candidates import (
    Change,
    Part,
    Structure,
    apply_change,
    block_changes,
    kv_changes,
    mixer_changes,
    mlp_changes,
    smallest_structures,
)
from prune_export.prune.choosing import Pick, full_scan, lazy_scan
from prune_export.prune.evaluator import Evaluator, exp_or_inf
from prune_export.prune.journal import Journal, JournalFile
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.shape import ModelShape

Rule: TypeAlias = Literal["perplexity", "price"]
Report: TypeAlias = Callable[[float, float, str], None]


@dataclass
class _State:
    """Where one run stands."""

    structure: Structure
    log_perplexity: float
    cost: float
    dense_cost: float
    budget: float
    report: Report | None
    history: list[PlanStep] = field(default_factory=list)
    evaluations: int = 0
    block_price: float = -math.inf
    prices: dict[Change, float] = field(default_factory=dict)

    def take(self, pick: Pick) -> None:
        self.structure, self.log_perplexity, self.cost = pick.structure, pick.log_perplexity, pick.cost
        change = pick.change
        self.history.append(
            PlanStep(change.stage, change.layer, change.part, change.size, exp_or_inf(pick.log_perplexity), pick.cost)
        )


class MultiPruner:
    """Searches the structure of least perplexity within a cost.

    With the rule "perplexity", the papers' one, a stage takes the candidate with the lowest calibration perplexity
    until its share of the reduction is reached: with b : m : a normalised and r the whole share to remove, stage 1
    (blocks) ends at r b, stage 2 (MLP channels) at r (b + m), stage 3 (KV groups) at r.  With "price", candidates are
    ranked by the rise of the log perplexity per unit of cost saved, those that save nothing are never taken, and
    stages 2 and 3 end early when their best price exceeds that of the next best block.  A closing pass over candidates
    of all three kinds goes on where the stages ended above the budget.  Ties go to the first candidate in canonical
    order.  Everything evaluated is remembered, so another run with a similar budget costs little.

    Args:
        evaluator: scores structures.
        cost: cost of a shape; a pure function.
        cost_unit: "parameters" or "seconds".
        distribution: b : m : a.
        mlp_group: channels a step.
        kv_group: KV groups a step.
        rule: "perplexity" or "price"; by default the former for parameters and the latter for seconds.
        lazy: with "price", candidates are scored again only when their last price could win (`lazy_scan`): several
            times fewer evaluations, and now and then another choice than that of a full scan.
        journal: file that makes a killed search go on where it was.

    Raises:
        BadInputError: settings out of range, or a journal of another search.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        cost: Callable[[ModelShape], float],
        cost_unit: str = "parameters",
        distribution: tuple[float, float, float] = (44, 52, 4),
        mlp_group: int = 1024,
        kv_group: int = 1,
        rule: Rule | None = None,
        lazy: bool = False,
        journal: JournalFile | None = None,
    ) -> None:
        _check_settings(distribution, mlp_group, kv_group)
        self._evaluator = evaluator
        self._dense = evaluator.shape
        self._cost_of = cost
        self._costs: dict[Structure, float] = {}
        self._cost_unit = cost_unit
        self._distribution = distribution
        self._mlp_group, self._kv_group = mlp_group, kv_group
        self._rule: Rule = rule or ("price" if cost_unit == "seconds" else "perplexity")
        self._lazy = lazy
        if lazy and self._rule != "price":
            raise BadInputError(f'a lazy search needs the rule "price", not "{self._rule}"')
        self._journal = Journal(journal, self._settings())

    def run(
        self, budget: float, *, blocks_from: PrunePlan | None = None, progress: Report | None = None
    ) -> SearchResult:
        """Searches a structure whose cost is at most `budget`.

        Args:
            budget: in the cost unit.
            blocks_from: a plan of an earlier run whose first stage is kept as it is.
            progress: called with (done, total, detail), as `Progress.update`.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
            BadInputError: the plan belongs to another model.
        """
        blocks, plain = self._evaluator.block_evaluations, self._evaluator.plain_evaluations
        state = self._start(budget, progress)
        dense_log_perplexity = state.log_perplexity
        self._check_reachable(state)
        goals = self._goals(state)
        if blocks_from is not None:
            self._keep_blocks(state, blocks_from)
        else:
            self._stage(state, goals[0], block_changes)
        self._stage(state, goals[1], self._mlp, limited=True)
        self._stage(state, goals[2], self._kv, limited=True)
        self._stage(state, budget, self._all)
        if state.cost > budget:
            raise self._infeasible(state.structure, state.log_perplexity, budget)
        return SearchResult(
            dense=self._dense,
            shape=self._dense.with_layers(state.structure),
            orders=self._evaluator.orders,
            history=tuple(state.history),
            perplexity=exp_or_inf(state.log_perplexity),
            dense_perplexity=exp_or_inf(dense_log_perplexity),
            cost=state.cost,
            dense_cost=state.dense_cost,
            cost_unit=self._cost_unit,
            method=self._method(),
            evaluations=state.evaluations,
            block_evaluations=self._evaluator.block_evaluations - blocks,
            plain_evaluations=self._evaluator.plain_evaluations - plain,
        )

    def _start(self, budget: float, report: Report | None) -> _State:
        dense = self._dense.layers
        cost = self._cost(dense)
        state = _State(dense, math.nan, cost, cost, budget, report)
        state.log_perplexity = self._score(state, dense, None)
        return state

    def _goals(self, state: _State) -> tuple[float, float, float]:
        """Costs at which the stages end."""
        blocks, mlp, _ = self._distribution
        whole = sum(self._distribution)
        reduction = state.dense_cost - state.budget
        return (
            state.dense_cost - reduction * (blocks / whole),
            state.dense_cost - reduction * ((blocks + mlp) / whole),
            state.budget,
        )

    def _stage(
        self,
        state: _State,
        goal: float,
        changes: Callable[[Structure], list[Change]],
        *,
        limited: bool = False,
    ) -> None:
        while state.cost > goal:
            pick = self._best(state, changes(state.structure))
            if pick is None or (limited and self._rule == "price" and self._too_dear(state, pick)):
                return
            state.take(pick)

    def _too_dear(self, state: _State, pick: Pick) -> bool:
        """Whether the next best block is the better buy; its price is renewed when the pick exceeds the old one."""
        if pick.score <= state.block_price:
            return False
        block = self._best(state, block_changes(state.structure))
        state.block_price = math.inf if block is None else block.score
        return pick.score > state.block_price

    def _best(self, state: _State, changes: list[Change]) -> Pick | None:
        candidates = [(change, apply_change(state.structure, change, self._dense)) for change in changes]
        if self._rule == "price":
            candidates = [(change, after) for change, after in candidates if self._cost(after) < state.cost]

        def evaluate(change: Change, after: Structure, share: float) -> Pick:
            self._report(state, change, share)
            return self._pick(state, change, after, self._score(state, after, change))

        return lazy_scan(candidates, evaluate, state.prices) if self._lazy else full_scan(candidates, evaluate)

    def _pick(self, state: _State, change: Change, after: Structure, log_perplexity: float) -> Pick:
        cost = self._cost(after)
        score = log_perplexity
        if self._rule == "price":
            score = (log_perplexity - state.log_perplexity) / (state.cost - cost)
        return Pick(change, score, after, log_perplexity, cost)

    def _score(self, state: _State, after: Structure, change: Change | None) -> float:
        known = self._journal.get(after)
        if known is not None:
            return known
        # The states in the evaluator follow only when something has to be computed.
        self._evaluator.move_to(after if change is None else state.structure)
        score = self._evaluator.log_perplexity(change)
        state.evaluations += 1
        self._journal.put(after, score)
        return score

    def _keep_blocks(self, state: _State, plan: PrunePlan) -> None:
        if plan.dense != self._dense:
            raise BadInputError(f"the plan whose blocks are to be kept is of another model: {plan.source}")
        for step in plan.history:
            if step.stage != "blocks":
                return
            change = Change("blocks", step.layer, _part(step.part), 0)
            after = apply_change(state.structure, change, self._dense)
            log_perplexity = self._score(state, after, change)
            state.take(Pick(change, 0.0, after, log_perplexity, self._cost(after)))

    def _check_reachable(self, state: _State) -> None:
        smallest = min(
            smallest_structures(self._dense.layers, self._dense, self._kv_group, self._mixer_group), key=self._cost
        )
        if self._cost(smallest) > state.budget:
            raise self._infeasible(smallest, self._score(state, smallest, None), state.budget)

    def _infeasible(self, structure: Structure, log_perplexity: float, budget: float) -> SearchInfeasibleError:
        cost, perplexity = self._cost(structure), exp_or_inf(log_perplexity)
        return SearchInfeasibleError(
            f"no plan reaches {budget:.6g} {self._cost_unit}: the lowest reachable is {cost:.6g} {self._cost_unit}, "
            f"at a calibration perplexity of {perplexity:.4g}",
            lowest_cost=cost,
            perplexity=perplexity,
            shape=self._dense.with_layers(structure),
        )

    def _cost(self, structure: Structure) -> float:
        if structure not in self._costs:
            self._costs[structure] = float(self._cost_of(self._dense.with_layers(structure)))
        return self._costs[structure]

    def _mlp(self, structure: Structure) -> list[Change]:
        """MLP channels; the channels of a state-space mixer count as such."""
        mixers = [] if self._by_heads else mixer_changes(structure, self._mixer_group, "mlp")
        return [*mlp_changes(structure, self._mlp_group), *mixers]

    def _kv(self, structure: Structure) -> list[Change]:
        """KV groups; the heads of a state-space mixer count as such."""
        mixers = mixer_changes(structure, self._mixer_group, "attention") if self._by_heads else []
        return [*kv_changes(structure, self._kv_group), *mixers]

    @property
    def _by_heads(self) -> bool:
        return self._dense.mixer is not None and self._dense.mixer.heads

    @property
    def _mixer_group(self) -> int:
        return self._kv_group if self._by_heads else self._mlp_group

    def _all(self, structure: Structure) -> list[Change]:
        return [*block_changes(structure), *self._mlp(structure), *self._kv(structure)]

    def _report(self, state: _State, change: Change, share: float) -> None:
        if state.report is None:
            return
        total = max(state.dense_cost - state.budget, 1e-30)
        done = state.dense_cost - state.cost
        step = done / len(state.history) if state.history else 0.0
        detail = f"{change.stage}, perplexity {exp_or_inf(state.log_perplexity):.4g}"
        state.report(min(total, done + share * step), total, detail)

    def _settings(self) -> dict[str, object]:
        return {
            "cost_unit": self._cost_unit,
            "distribution": list(self._distribution),
            "mlp_group": self._mlp_group,
            "kv_group": self._kv_group,
            "rule": self._rule,
            "lazy": self._lazy,
        }

    def _method(self) -> str:
        shares = ":".join(f"{share:g}" for share in self._distribution)
        groups = f"groups of {self._mlp_group} channels and {self._kv_group} KV heads"
        return f"MultiPruner {shares}, {groups}, by {self._rule}{', lazily' if self._lazy else ''}"


def _part(name: str) -> Part:
    parts: tuple[Part, ...] = ("attention", "mlp", "mixer", "recurrence")
    return next(part for part in parts if part == name)


def _check_settings(distribution: tuple[float, float, float], mlp_group: int, kv_group: int) -> None:
    if min(distribution) < 0 or sum(distribution) <= 0:
        raise BadInputError(f"distribution {distribution} needs three shares, none negative, one above zero")
    if mlp_group < 1 or kv_group < 1:
        raise BadInputError(f"groups of {mlp_group} channels and {kv_group} KV heads: both must be at least 1")
