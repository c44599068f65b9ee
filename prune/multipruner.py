"""MultiPruner: blocks, then MLP channels, then attention heads, each by greedy search (Munoz, Yuan, Jain 2025, arXiv
2501.09949; the first stage alone is BlockPruner, Zhong et al. 2024, arXiv 2406.10594).

Cost is a function of the shape: parameters, as in the papers, or predicted seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from prune_export.errors import BadInputError
from prune_export.plan import PrunePlan
from prune_export.prune.candidates import (
    Change,
    Part,
    Stage,
    Structure,
    apply_change,
    block_changes,
    kv_changes,
    mixer_changes,
    mlp_changes,
    smallest_structures,
)
from prune_export.prune.choosing import Pick, full_scan, lazy_scan
from prune_export.prune.evaluator import Evaluator, Work, exp_or_inf
from prune_export.prune.greedy_state import GreedyState
from prune_export.prune.journal import Journal, JournalFile
from prune_export.prune.reorder import LayerOrder
from prune_export.prune.search_result import SearchResult
from prune_export.prune.searching import CostFunction, Costs, Report, Scorer
from prune_export.records import digest
from prune_export.shape import ModelShape

Rule: TypeAlias = Literal["perplexity", "price"]


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
        blocks_only: BlockPruner: nothing but whole sub-blocks goes, and the distribution does not matter.
        width_tokens: [N, T] tokens that stages 2 and 3 are scored on; the evaluator's unless told.
        order_name: what the evaluator's orders are called in the plan.
        journal: file that makes a killed search go on where it was.

    Raises:
        BadInputError: settings out of range, or a journal of another search.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        cost: CostFunction,
        cost_unit: str = "parameters",
        distribution: tuple[float, float, float] = (44, 52, 4),
        mlp_group: int = 1024,
        kv_group: int = 1,
        rule: Rule | None = None,
        lazy: bool = False,
        blocks_only: bool = False,
        width_tokens: Any = None,
        order_name: str = "L1",
        journal: JournalFile | None = None,
    ) -> None:
        _check_settings(distribution, mlp_group, kv_group)
        self._evaluator = evaluator
        self._dense: ModelShape = evaluator.shape
        self._costs = Costs(self._dense, cost, cost_unit)
        self._distribution = (1.0, 0.0, 0.0) if blocks_only else distribution
        self._mlp_group, self._kv_group = mlp_group, kv_group
        self._rule: Rule = rule or ("price" if cost_unit == "seconds" else "perplexity")
        self._lazy = lazy
        self._blocks_only = blocks_only
        self._order_name = order_name
        if lazy and self._rule != "price":
            raise BadInputError(f'a lazy search needs the rule "price", not "{self._rule}"')
        widths = None if width_tokens is None or blocks_only else evaluator.on(width_tokens)
        self._scorer = Scorer(evaluator, widths, Journal(journal, self._settings()))

    @property
    def orders(self) -> tuple[LayerOrder, ...]:
        """Importance orders that the widths of its results count in."""
        return self._evaluator.orders

    def run(
        self, budget: float, *, progress: Report | None = None, blocks_from: PrunePlan | None = None
    ) -> SearchResult:
        """Searches a structure whose cost is at most `budget`.

        Args:
            budget: in the cost unit.
            progress: called with (done, total, detail), as `Progress.update`.
            blocks_from: a plan of an earlier run whose first stage is kept as it is.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
            BadInputError: the plan belongs to another model.
        """
        work, evaluations = self._scorer.work, self._scorer.evaluations
        state = self._start(budget, progress)
        self._check_reachable(state)
        goals = self._goals(state)
        if blocks_from is not None:
            self._keep_blocks(state, blocks_from)
        else:
            self._stage(state, goals[0], block_changes)
        if not self._blocks_only:
            if self._rule == "perplexity":
                self._scorer.release_blocks()
            self._stage(state, goals[1], self._mlp, limited=True)
            self._stage(state, goals[2], self._kv, limited=True)
        # Candidates of all kinds compete from here on: on the same tokens.
        state.together = "blocks" if self._blocks_only else "mlp"
        self._stage(state, budget, self._all)
        if state.cost > budget:
            raise self._costs.infeasible(state.structure, state.log_perplexity, budget)
        return self._result(state, self._scorer.work - work, evaluations)

    def _result(self, state: GreedyState, work: Work, evaluations: int) -> SearchResult:
        final: Stage = "blocks" if self._blocks_only else "mlp"
        log_perplexity = self._current(state, final)
        dense = self._scorer.score(self._dense.layers, None, self._dense.layers, stage=final)
        return SearchResult(
            dense=self._dense,
            shape=self._dense.with_layers(state.structure),
            orders=self.orders,
            history=tuple(state.history),
            perplexity=exp_or_inf(log_perplexity),
            dense_perplexity=exp_or_inf(dense.log_perplexity),
            cost=state.cost,
            dense_cost=state.dense_cost,
            cost_unit=self._costs.unit,
            method=self._method(),
            evaluations=self._scorer.evaluations - evaluations,
            block_evaluations=work.block_evaluations,
            plain_evaluations=work.plain_evaluations,
            block_tokens=work.block_tokens,
            head_tokens=work.head_tokens,
        )

    def _start(self, budget: float, report: Report | None) -> GreedyState:
        dense = self._dense.layers
        cost = self._costs.of(dense)
        score = self._scorer.score(dense, None, dense, stage="blocks")
        if not math.isfinite(score.log_perplexity):
            self._evaluator.move_to(dense)
            self._evaluator.refuse_overflow()
        return GreedyState(dense, score.log_perplexity, "blocks", cost, cost, budget, report)

    def _current(self, state: GreedyState, stage: Stage) -> float:
        """Log perplexity of where the run stands, on the tokens of a stage."""
        if self._scorer.same_tokens(stage, state.stage):
            return state.log_perplexity
        return self._scorer.score(state.structure, None, state.structure, stage=stage).log_perplexity

    def _goals(self, state: GreedyState) -> tuple[float, float, float]:
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
        state: GreedyState,
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

    def _too_dear(self, state: GreedyState, pick: Pick) -> bool:
        """Whether the next best block is the better buy; its price is renewed when the pick exceeds the old one."""
        if pick.score <= state.block_price:
            return False
        block = self._best(state, block_changes(state.structure))
        state.block_price = math.inf if block is None else block.score
        return pick.score > state.block_price

    def _best(self, state: GreedyState, changes: list[Change]) -> Pick | None:
        candidates = [(change, apply_change(state.structure, change, self._dense)) for change in changes]
        if self._rule == "price":
            candidates = [(change, after) for change, after in candidates if self._costs.of(after) < state.cost]
        if not candidates:
            return None

        def evaluate(change: Change, after: Structure, share: float, best: Pick | None) -> Pick:
            state.say(change, share)
            return self._pick(state, change, after, best)

        if self._lazy:
            return lazy_scan(candidates, evaluate, state.prices)
        anywhere = all(self._scorer.random_access(change.stage) for change, _ in candidates)
        return full_scan(candidates, evaluate, last=state.last, any_order=anywhere)

    def _pick(self, state: GreedyState, change: Change, after: Structure, best: Pick | None) -> Pick:
        cost = self._costs.of(after)
        stage = state.tokens_of(change)
        base = self._current(state, stage) if self._rule == "price" else 0.0
        saved = state.cost - cost if self._rule == "price" else 1.0

        def score(log_perplexity: float) -> float:
            return (log_perplexity - base) / saved

        def hopeless(at_least: float) -> bool:
            # The same formula as the score's and no tie, so that dropping cannot change a choice.
            return best is not None and score(at_least) > best.score

        found = self._scorer.score(state.structure, change, after, stage=stage, hopeless=hopeless)
        return Pick(change, score(found.log_perplexity), after, found.log_perplexity, cost, found.exact)

    def _keep_blocks(self, state: GreedyState, plan: PrunePlan) -> None:
        if plan.dense != self._dense:
            raise BadInputError(f"the plan whose blocks are to be kept is of another model: {plan.source}")
        for step in plan.history:
            if step.stage != "blocks":
                return
            change = Change("blocks", step.layer, _part(step.part), 0)
            after = apply_change(state.structure, change, self._dense)
            score = self._scorer.score(state.structure, change, after)
            state.take(Pick(change, 0.0, after, score.log_perplexity, self._costs.of(after)))

    def _check_reachable(self, state: GreedyState) -> None:
        smallest = min(self._smallest(), key=self._costs.of)
        if self._costs.of(smallest) > state.budget:
            score = self._scorer.score(smallest, None, smallest, stage="blocks" if self._blocks_only else "mlp")
            raise self._costs.infeasible(smallest, score.log_perplexity, state.budget)

    def _smallest(self) -> list[Structure]:
        layers = self._dense.layers
        if self._blocks_only:  # nothing gets narrower: groups as wide as what there is
            kv_group = max(1, *(layer.kv_heads for layer in layers))
            return smallest_structures(layers, self._dense, kv_group, max(1, *(layer.mixer_width for layer in layers)))
        return smallest_structures(layers, self._dense, self._kv_group, self._mixer_group)

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
        if self._blocks_only:
            return block_changes(structure)
        return [*block_changes(structure), *self._mlp(structure), *self._kv(structure)]

    def _settings(self) -> dict[str, object]:
        return {
            "cost_unit": self._costs.unit,
            "distribution": list(self._distribution),
            "mlp_group": self._mlp_group,
            "kv_group": self._kv_group,
            "rule": self._rule,
            "lazy": self._lazy,
            "blocks_only": self._blocks_only,
            "orders": digest(self.orders),
        }

    def _method(self) -> str:
        how = f"by {self._rule}{', lazily' if self._lazy else ''}"
        if self._blocks_only:
            return f"BlockPruner, {how}"
        shares = ":".join(f"{share:g}" for share in self._distribution)
        groups = f"groups of {self._mlp_group} channels and {self._kv_group} KV heads"
        order = "" if self._order_name == "L1" else f", order {self._order_name}"
        return f"MultiPruner {shares}, {groups}{order}, {how}"


def _part(name: str) -> Part:
    parts: tuple[Part, ...] = ("attention", "mlp", "mixer", "recurrence")
    return next(part for part in parts if part == name)


def _check_settings(distribution: tuple[float, float, float], mlp_group: int, kv_group: int) -> None:
    if min(distribution) < 0 or sum(distribution) <= 0:
        raise BadInputError(f"distribution {distribution} needs three shares, none negative, one above zero")
    if mlp_group < 1 or kv_group < 1:
        raise BadInputError(f"groups of {mlp_group} channels and {kv_group} KV heads: both must be at least 1")
