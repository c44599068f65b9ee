"""The fast search: score each sub-block's options once, allocate any budget, check the best plans for real.

One scoring (`scoring.Scoring`) serves every budget and cost; `allocation` finds the plan of least predicted harm with
interactions, and a few plans around it are evaluated with everything compensated at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.plan import PlanStep
from prune_export.prune import allocation
from prune_export.prune.allocation import Allocator, Problem
from prune_export.prune.calibration import fitting_windows, spread_windows
from prune_export.prune.compensated import CompensatedPlan
from prune_export.prune.divergence import Effect
from prune_export.prune.reorder import LayerOrder
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.scoring import BlockScores, Scoring
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.prune.shapes import model_shape
from prune_export.prune.streams import DenseStreams
from prune_export.prune.sub_blocks import SubBlock, sub_blocks
from prune_export.prune.uniform import UniformAllocation
from prune_export.shape import LayerShape, ModelShape

_SCORING_TOKENS, _FEWEST_SCORING = 2048, 512
_SCORING_FLOPS = 2.5e13
_OPTIONS = 7  # scored of a layer, about
_LEAST_BYTES = 64 << 20
_EXCHANGES = 4  # plans around the best predicted one that are evaluated too
_TIGHTER = 5
_MOST_OPTIONS = 2048  # of all sub-blocks together, about: their pairs are compared
_FEWEST_SIZES = 16  # of a sub-block, where its group allows
_WORST = 1e6  # nats; stands for a divergence that overflowed


class FastSearch:
    """Finds structures of least divergence within budgets.

    Args:
        model: dense, of a supported family, in evaluation mode.
        tokens: [N, T] calibration tokens.
        cost: cost of a shape; the sum of its sub-blocks' costs and a constant.
        cost_unit: what it counts.
        mlp_group: step of the MLP widths that may be chosen.
        kv_group: step of the KV-head counts.
        mixer_group: step of the units of state-space mixers; a twelfth of them unless told.
        uniform: where all layers that stay are to have one shape: whether its configuration takes so many KV heads.
        folder: keeps the scores.
        progress: called with (done, total, detail) while scoring.

    Attributes:
        streams: the dense model's, for the refit of a result.
        scored: sub-blocks that were scored here; the others were in the folder.

    Raises:
        BadInputError: no usable tokens, activations that are not finite, or no uniform shape of the model's layers.
    """

    def __init__(
        self,
        model: Any,
        tokens: NDArray[Any],
        *,
        cost: Callable[[ModelShape], float],
        cost_unit: str = "parameters",
        mlp_group: int = 1,
        kv_group: int = 1,
        mixer_group: int | None = None,
        uniform: Callable[[int], bool] | None = None,
        folder: ScoreFolder,
        progress: Callable[[float, float, str], None] | None = None,
    ) -> None:
        windows = torch.as_tensor(np.asarray(tokens)).long()
        self._model = model
        self._cost_of, self._unit = cost, cost_unit
        self._groups = {"mlp": mlp_group, "attention": kv_group, "mixer": mixer_group}
        self._folder = folder
        widest = max(block.columns.numel() for block in sub_blocks(model))
        scoring = spread_windows(windows, _scoring_tokens(model_shape(model.config)))
        calibration = fitting_windows(windows, widest)
        self.streams = DenseStreams(folder.path, calibration)
        self._scoring = Scoring(model, scoring, calibration, keep=self._keep, streams=self.streams)
        self._dense = self._scoring.shape
        self._scores = self._score_all(progress)
        self.orders = self._orders()
        self._plan = CompensatedPlan(self._scoring, self._scores, folder)
        self._tokens = {"scoring": scoring.numel(), "calibration": calibration.numel()}
        self._options = self._make_options()
        self._allocator: Allocator = allocation
        if uniform is not None:
            self._allocator = UniformAllocation(self._options, self._scoring.blocks, fits=uniform)
        self._evaluations = 0

    @property
    def work(self) -> tuple[float, float]:
        """(layers times tokens, tokens through the LM head) so far; a gradient counts as two more passes."""
        divergence = self._scoring.divergence
        blocks = divergence.block_evaluations * self._tokens["scoring"]
        blocks += self._scoring.moment_evaluations * self._tokens["calibration"]
        probed = 3 * self._scoring.sensitivity_tokens
        heads = divergence.evaluations * self._tokens["scoring"] + probed
        return (blocks + probed * len(self._scoring.blocks)) / 2, float(heads)

    def run(self, budget: float, *, progress: Callable[[float, float, str], None] | None = None) -> SearchResult:
        """The structure of least divergence found whose cost is at most `budget`.

        Args:
            budget: in the cost unit.
            progress: called with (done, total, detail).

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
        """
        before, known = self._scoring.divergence.block_evaluations, self._evaluations
        problem = self._problem()
        dense_cost = self._cost(self._dense.layers)
        found = self._within(problem, budget, dense_cost)
        if found is None:
            raise self._infeasible(problem, budget)
        best, effect = self._check(problem, found, budget - dense_cost, progress)
        self._plan.keep_only(self._sizes(best))
        layers = self._layers(best)
        return SearchResult(
            dense=self._dense,
            shape=self._dense.with_layers(layers),
            orders=self.orders,
            history=self._history(best, effect),
            perplexity=math.exp(min(700.0, self._scoring.dense_nll + effect.divergence)),
            dense_perplexity=math.exp(self._scoring.dense_nll),
            cost=self._cost(layers),
            dense_cost=dense_cost,
            cost_unit=self._unit,
            method=self._method(),
            evaluations=self._evaluations - known,
            block_evaluations=self._scoring.divergence.block_evaluations - before,
            plain_evaluations=self._scoring.divergence.block_evaluations - before,
            divergence=effect.divergence,
        )

    def _score_all(self, progress: Callable[[float, float, str], None] | None) -> list[BlockScores]:
        """Scores of all sub-blocks; those in the folder are taken from there."""
        blocks = self._scoring.blocks
        known = {block.index: self._known(block) for block in blocks}
        last = max((block.index for block in blocks if known[block.index] is None), default=-1)
        self.scored = sum(found is None for found in known.values())
        scores = []
        for done, block in enumerate(blocks):
            if progress is not None:
                progress(done, len(blocks), block.name.replace(": its", ""))
            found = known[block.index]
            if found is None:
                found = self._scoring.score(block)
                self._folder.put(found)
            elif block.index < last:
                self._scoring.skip(block)
            scores.append(found)
        return scores

    def _known(self, block: SubBlock) -> BlockScores | None:
        """A sub-block's scores, if all that belongs to them is in the folder."""
        needed = ["moment"] if self._scoring.helper(block) is None else ["moment", "cross"]
        whole = all(self._folder.matrix(name, block.index) is not None for name in needed)
        return self._folder.get(block.index) if whole else None

    def _keep(self, name: str, index: int, values: torch.Tensor) -> None:
        self._folder.put_matrix(name, index, values.float().numpy())

    def _orders(self) -> tuple[LayerOrder, ...]:
        parts: dict[tuple[int, str], tuple[int, ...]] = {
            (scores.index // 2, scores.part): tuple(scores.order.tolist()) for scores in self._scores
        }
        return tuple(
            LayerOrder(*(parts.get((layer, part), ()) for part in ("attention", "mlp", "mixer")))
            for layer in range(len(self._dense.layers))
        )

    def _make_options(self) -> list[tuple[int, int]]:
        """(position of the sub-block, size) of every option, by sub-block, sizes ascending."""
        options = []
        most = max(_FEWEST_SIZES, _MOST_OPTIONS // len(self._scores))
        for position, scores in enumerate(self._scores):
            step = self._groups[scores.part] or max(1, scores.units // 12)
            step *= math.ceil(scores.units / (step * most))
            sizes = sorted({0, scores.units, *range(step, scores.units, step)})
            options += [(position, size) for size in sizes]
        return options

    def _problem(self) -> Problem:
        effects = np.zeros((len(self._options), self._scores[0].sketches.shape[1]), dtype=np.float32)
        alone = np.zeros(len(self._options))
        for row, (position, size) in enumerate(self._options):
            scores = self._scores[position]
            if size < scores.units:
                alone[row] = min(scores.divergence(size), _WORST)
                direction = scores.sketches[scores.nearest(size)]
                length = float(np.linalg.norm(direction))
                if length > 0.0 and math.isfinite(length):  # what overflowed points nowhere
                    effects[row] = direction * (math.sqrt(alone[row]) / length)
        gram = (effects @ effects.T).astype(np.float64)
        np.fill_diagonal(gram, alone)
        dense_cost = self._cost(self._dense.layers)
        costs = [self._cost(self._with(position, size)) - dense_cost for position, size in self._options]
        keeping = [size > 0 and self._scores[position].part != "mlp" for position, size in self._options]
        return Problem(
            owner=np.asarray([position for position, _ in self._options], dtype=np.int64),
            cost=np.asarray(costs),
            gram=gram,
            vital=np.asarray(keeping),
        )

    def _within(self, problem: Problem, budget: float, dense_cost: float) -> list[NDArray[np.int64]] | None:
        """Choices whose real cost is within the budget, should it not quite be the sum of its parts."""
        allowed = budget - dense_cost
        for _ in range(_TIGHTER):
            found = self._allocator.allocate(problem, allowed)
            if found is None:
                return None
            over = max(self._cost(self._layers(choice)) for choice in found) - budget
            if over <= 0:
                return found
            allowed -= over * 1.01 + 1e-9 * abs(budget)
        return None

    def _check(
        self,
        problem: Problem,
        found: list[NDArray[np.int64]],
        allowed: float,
        progress: Callable[[float, float, str], None] | None,
    ) -> tuple[NDArray[np.int64], Effect]:
        """The best of a few choices by real evaluations; another than the predicted one only beyond its noise."""
        around = [
            choice
            for choice in self._allocator.exchanges(problem, found[0], allowed, most=_EXCHANGES)
            if self._cost(self._layers(choice)) <= allowed + self._cost(self._dense.layers)
        ]
        best, effect = found[0], self._evaluate(found[0])
        candidates = [*found[1:], *around]
        for done, choice in enumerate(candidates):
            if progress is not None:
                progress(done + 1, len(candidates) + 1, f"divergence {effect.divergence:.4f}")
            other = self._better(choice, effect)
            if other is not None:
                best, effect = choice, other
            if isinstance(self._allocator, UniformAllocation):  # its choices have no matrix in common
                self._plan.keep_only(self._sizes(best))
        return best, effect

    def _evaluate(self, choice: NDArray[np.int64]) -> Effect:
        self._evaluations += 1
        effect = self._plan.effect(self._sizes(choice))
        assert effect is not None, "everything is within infinity"
        return effect

    def _better(self, choice: NDArray[np.int64], known: Effect) -> Effect | None:
        """The effect of a choice if it is clearly better than a known one; dropped as soon as it cannot be."""
        self._evaluations += 1
        effect = self._plan.effect(self._sizes(choice), limit=known.divergence)
        return effect if effect is not None and clearly_better(effect, known) else None

    def _sizes(self, choice: NDArray[np.int64]) -> dict[int, int]:
        """Units of each sub-block by its index."""
        return {self._scores[position].index: size for position, size in (self._options[at] for at in choice)}

    def _infeasible(self, problem: Problem, budget: float) -> SearchInfeasibleError:
        smallest = self._allocator.cheapest(problem)
        layers, effect = self._layers(smallest), self._evaluate(smallest)
        cost = self._cost(layers)
        perplexity = math.exp(min(700.0, self._scoring.dense_nll + effect.divergence))
        return SearchInfeasibleError(
            f"no plan reaches {budget:.6g} {self._unit}: the lowest reachable is {cost:.6g} {self._unit}, "
            f"at a calibration perplexity of about {perplexity:.4g}",
            lowest_cost=cost,
            perplexity=perplexity,
            shape=self._dense.with_layers(layers),
        )

    def _layers(self, choice: NDArray[np.int64]) -> tuple[LayerShape, ...]:
        layers = list(self._dense.layers)
        for position, size in (self._options[at] for at in choice):
            block = self._scoring.blocks[position]
            layers[block.layer] = block.resized(layers[block.layer], self._dense.layers[block.layer], size)
        return tuple(layers)

    def _with(self, position: int, size: int) -> tuple[LayerShape, ...]:
        layers = list(self._dense.layers)
        block = self._scoring.blocks[position]
        layers[block.layer] = block.resized(layers[block.layer], layers[block.layer], size)
        return tuple(layers)

    def _cost(self, layers: tuple[LayerShape, ...]) -> float:
        return float(self._cost_of(self._dense.with_layers(layers)))

    def _history(self, choice: NDArray[np.int64], effect: Effect) -> tuple[PlanStep, ...]:
        """One step a changed sub-block, in the order of the stream; all were chosen at once."""
        perplexity = math.exp(min(700.0, self._scoring.dense_nll + effect.divergence))
        cost = self._cost(self._layers(choice))
        steps = []
        for position, size in (self._options[at] for at in choice):
            block = self._scoring.blocks[position]
            if size < block.units:
                stage = "blocks" if size == 0 else block.part
                steps.append(PlanStep(stage, block.layer, block.part, size, perplexity, cost))
        return tuple(steps)

    def _method(self) -> str:
        groups = f"MLP widths in steps of {self._groups['mlp']}, KV heads of {self._groups['attention']}"
        groups += ", one shape for all layers" if isinstance(self._allocator, UniformAllocation) else ""
        return (
            f"fast search: divergence on {self._tokens['scoring']} tokens, moments of {self._tokens['calibration']}, "
            f"{groups}"
        )


def clearly_better(effect: Effect, other: Effect) -> bool:
    """Whether an effect is less than another by more than the noise of their difference, sequence by sequence."""
    if not math.isfinite(other.divergence):
        return math.isfinite(effect.divergence)
    gain = other.per_sequence - effect.per_sequence
    noise = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return float(gain.mean()) > noise


def _scoring_tokens(shape: ModelShape) -> int:
    """As many as help, unless they cost too much.

    Their log-probabilities, which are kept, are to take no more than half of the weights, and a few options of every
    sub-block, each through half of the layers and the LM head, no more than about `_SCORING_FLOPS`.
    """
    room = max(_LEAST_BYTES, 2 * shape.parameters()) // (4 * shape.vocab_size)
    head = shape.vocab_size * shape.hidden_size
    evaluations = _OPTIONS * len(shape.layers)
    affordable = int(_SCORING_FLOPS / (evaluations * (shape.parameters() + head)))
    return max(_FEWEST_SCORING, min(_SCORING_TOKENS, room, affordable))
