"""The evolutionary variant of MultiPruner (Munoz, Yuan, Jain 2025, arXiv 2501.09949): half of the reduction by blocks,
the rest by NSGA-II (Deb et al. 2002) over all MLP widths and head counts jointly.

The two objectives are the calibration perplexity and the cost; of all points that it saw the one of lowest perplexity
within the budget is taken.  Every score is journalled: with the same seed a killed search goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.plan import PlanStep
from prune_export.prune.candidates import Change, Part, Stage, Structure, apply_change, smallest_structures
from prune_export.prune.evaluator import Evaluator, exp_or_inf
from prune_export.prune.genetic import minimise
from prune_export.prune.journal import Journal, JournalFile
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.reorder import LayerOrder
from prune_export.prune.search_result import FrontPoint, SearchResult
from prune_export.prune.searching import CostFunction, Costs, Report, Scorer
from prune_export.records import digest
from prune_export.shape import ModelShape

POPULATION = 24
GENERATIONS = 20


@dataclass(frozen=True)
class _Gene:
    """One width or head count: `sizes[n]` is what is left after n groups."""

    layer: int
    part: Part
    sizes: tuple[int, ...]


class EvolveSearch:
    """NSGA-II after a block stage; one of `prune.searching.Search`.

    Args:
        evaluator: scores structures.
        cost: cost of a shape; a pure function.
        cost_unit: "parameters", "seconds" or "bytes".
        mlp_group: channels in one step of a width.
        kv_group: KV groups in one step of a head count.
        population: points a generation.
        generations: of the genetic search, the first one included.
        seed: of everything random.
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
        mlp_group: int = 1024,
        kv_group: int = 1,
        population: int = POPULATION,
        generations: int = GENERATIONS,
        seed: int = 42,
        order_name: str = "L1",
        journal: JournalFile | None = None,
    ) -> None:
        if population < 4 or generations < 1:
            raise BadInputError(f"{population} points in {generations} generations: at least 4 and 1 are needed")
        if mlp_group < 1 or kv_group < 1:
            raise BadInputError(f"groups of {mlp_group} channels and {kv_group} KV heads: both must be at least 1")
        self._evaluator = evaluator
        self._dense: ModelShape = evaluator.shape
        self._costs = Costs(self._dense, cost, cost_unit)
        self._mlp_group, self._kv_group = mlp_group, kv_group
        self._population, self._generations, self._seed = population, generations, seed
        self._order_name = order_name
        self._blocks = MultiPruner(
            evaluator,
            cost=cost,
            cost_unit=cost_unit,
            rule="perplexity",
            blocks_only=True,
            journal=None if journal is None else replace(journal, path=journal.path.with_suffix(".blocks.jsonl")),
        )
        self._scorer = Scorer(evaluator, None, Journal(journal, self._settings()))

    @property
    def orders(self) -> tuple[LayerOrder, ...]:
        """Importance orders that the widths of its results count in."""
        return self._evaluator.orders

    def run(self, budget: float, *, progress: Report | None = None) -> SearchResult:
        """The structure of lowest calibration perplexity among those seen whose cost is at most `budget`.

        Args:
            budget: in the cost unit.
            progress: called with (done, total, detail), as `Progress.update`.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
        """
        dense_cost = self._costs.of(self._dense.layers)
        self._check_reachable(budget)
        work, evaluations = self._scorer.work, self._scorer.evaluations
        blocks = self._after_blocks(budget, dense_cost)
        seen: dict[Structure, float] = {}
        genes = self._genes(blocks.shape.layers)
        total = self._population * self._generations

        def objectives(points: NDArray[np.int64]) -> NDArray[np.float64]:
            rows = []
            for point in points:
                structure = self._decoded(blocks.shape.layers, genes, point.tolist())
                if structure not in seen:
                    seen[structure] = self._scorer.score(structure, None, structure).log_perplexity
                rows.append((min(seen[structure], 1e6), self._costs.of(structure) / dense_cost))
                if progress is not None:
                    best = self._best(seen, budget)
                    detail = f"perplexity {exp_or_inf(seen[best]):.4g}" if best is not None else ""
                    progress(min(len(seen), total), total, detail)
            return np.asarray(rows)

        first = self._first_points(blocks.shape.layers, genes, budget)
        if genes:
            most = np.array([len(gene.sizes) - 1 for gene in genes])
            minimise(objectives, first, most, generations=self._generations, seed=self._seed)
        else:
            objectives(first[:1])
        chosen = self._best(seen, budget)
        assert chosen is not None, "the first points reach the budget"
        spent = self._scorer.work - work
        return replace(
            blocks,
            shape=self._dense.with_layers(chosen),
            history=(*blocks.history, *self._steps(blocks.shape.layers, chosen, seen[chosen])),
            perplexity=exp_or_inf(seen[chosen]),
            cost=self._costs.of(chosen),
            method=self._method(),
            evaluations=blocks.evaluations + self._scorer.evaluations - evaluations,
            block_evaluations=spent.block_evaluations,
            plain_evaluations=spent.plain_evaluations,
            block_tokens=spent.block_tokens,
            head_tokens=spent.head_tokens,
            front=self._front(seen),
        )

    def _after_blocks(self, budget: float, dense_cost: float) -> SearchResult:
        """The block stage: half of the reduction, and more where the widths alone could not give the rest."""
        result = self._blocks.run(dense_cost - max(0.0, dense_cost - budget) / 2)
        while self._costs.of(self._narrowest(result.shape.layers)) > budget:
            result = self._blocks.run(math.nextafter(result.cost, -math.inf))
        return result

    def _check_reachable(self, budget: float) -> None:
        # Whole attentions: the block stage leaves one, and its heads may then go down to one group.
        left = smallest_structures(self._dense.layers, self._dense, max(item.kv_heads for item in self._dense.layers))
        smallest = min((self._narrowest(structure) for structure in left), key=self._costs.of)
        if self._costs.of(smallest) > budget:
            score = self._scorer.score(smallest, None, smallest)
            raise self._costs.infeasible(smallest, score.log_perplexity, budget)

    def _genes(self, structure: Structure) -> tuple[_Gene, ...]:
        """What may still vary, attention before MLP in layer order."""
        found = []
        for index, layer in enumerate(structure):
            found.append(_Gene(index, "attention", tuple(range(layer.kv_heads, 0, -self._kv_group))))
            found.append(_Gene(index, "mlp", tuple(range(layer.mlp_width, 0, -self._mlp_group))))
        return tuple(gene for gene in found if len(gene.sizes) > 1)

    def _narrowest(self, structure: Structure) -> Structure:
        genes = self._genes(structure)
        return self._decoded(structure, genes, [len(gene.sizes) - 1 for gene in genes])

    def _decoded(self, structure: Structure, genes: tuple[_Gene, ...], point: Sequence[int]) -> Structure:
        for gene, removed in zip(genes, point, strict=True):
            size = gene.sizes[int(removed)]
            change = Change("mlp" if gene.part == "mlp" else "attention", gene.layer, gene.part, size)
            structure = apply_change(structure, change, self._dense)
        return structure

    def _first_points(self, structure: Structure, genes: tuple[_Gene, ...], budget: float) -> NDArray[np.int64]:
        """The first generation: random removals until a goal between nothing and the budget, half of them the budget.

        Each point has its own preferences among the genes, so that points of one goal differ.
        """
        random = np.random.default_rng(self._seed)
        start = self._costs.of(structure)
        most = np.array([len(gene.sizes) - 1 for gene in genes])
        points = np.zeros((self._population, len(genes)), np.int64)
        for number, point in enumerate(points):
            share = min(1.0, 2 * number / self._population)
            goal, preferences = start - share * (start - budget), random.exponential(size=len(genes))
            while self._costs.of(self._decoded(structure, genes, point.tolist())) > goal:
                chances = np.where(point < most, preferences, 0.0)
                point[random.choice(len(genes), p=chances / chances.sum())] += 1
        return points

    def _best(self, seen: dict[Structure, float], budget: float) -> Structure | None:
        """The first one seen of lowest perplexity within the budget."""
        within = [structure for structure in seen if self._costs.of(structure) <= budget]
        return min(within, key=lambda structure: seen[structure], default=None)

    def _front(self, seen: dict[Structure, float]) -> tuple[FrontPoint, ...]:
        """The points that no other one beats in both objectives, by rising cost."""
        front: list[FrontPoint] = []
        for structure in sorted(seen, key=lambda item: (self._costs.of(item), seen[item])):
            perplexity = exp_or_inf(seen[structure])
            if math.isfinite(perplexity) and (not front or perplexity < front[-1].perplexity):
                front.append(FrontPoint(self._costs.of(structure), perplexity, structure))
        return tuple(front)

    def _steps(self, before: Structure, after: Structure, log_perplexity: float) -> Iterator[PlanStep]:
        """The widths as steps; they were chosen together, so each carries the perplexity of all."""
        structure = before
        for gene in self._genes(before):
            size = after[gene.layer].mlp_width if gene.part == "mlp" else after[gene.layer].kv_heads
            if size == gene.sizes[0]:
                continue
            stage: Stage = "mlp" if gene.part == "mlp" else "attention"
            structure = apply_change(structure, Change(stage, gene.layer, gene.part, size), self._dense)
            yield PlanStep(stage, gene.layer, gene.part, size, exp_or_inf(log_perplexity), self._costs.of(structure))

    def _settings(self) -> dict[str, object]:
        return {
            "search": "evolve",
            "cost_unit": self._costs.unit,
            "mlp_group": self._mlp_group,
            "kv_group": self._kv_group,
            "population": self._population,
            "generations": self._generations,
            "seed": self._seed,
            "orders": digest(self.orders),
        }

    def _method(self) -> str:
        order = "" if self._order_name == "L1" else f", order {self._order_name}"
        return (
            f"blocks, then NSGA-II ({self._population} points, {self._generations} generations, seed {self._seed}), "
            f"groups of {self._mlp_group} channels and {self._kv_group} KV heads{order}"
        )
