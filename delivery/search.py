"""The search of one delivery: holds the model while plans are asked for, and journals what it evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prune_export.delivery.request import Job
from prune_export.delivery.resources import free_memory
from prune_export.errors import BadInputError
from prune_export.files import release_pages
from prune_export.plan import PrunePlan
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.journal import JournalFile
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.prune.surgery import prune_model
from prune_export.shape import ModelShape

_MLP_STEPS = 12  # groups that a whole MLP is cut into by default


class Searcher:
    """Plans for any budget of one cost.

    Args:
        job: the delivery at work.
        cost: of a shape, in `unit`.
        unit: "parameters", "seconds" or "bytes".
        journal: file that keeps what was evaluated, while the model is released and when the run is killed.
    """

    def __init__(self, job: Job, cost: Callable[[ModelShape], float], unit: str, journal: Path) -> None:
        self._job = job
        self._cost = cost
        self._unit = unit
        self._search: MultiPruner | None = None
        self._evaluator: Evaluator | None = None
        self._journal = journal
        self._last: tuple[float, PrunePlan] | None = None

    def plan(self, budget: float) -> tuple[PrunePlan, float]:
        """The best plan within a budget, and its cost.

        A smaller budget than the last keeps the blocks that the last plan removed and goes on from there, which takes
        seconds; a larger one may give blocks back and searches anew, from what was evaluated before.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
        """
        search = self._ready()
        earlier = self._last[1] if self._last is not None and budget <= self._last[0] else None
        with self._job.progress.phase("searching the plan") as phase:
            try:
                result = search.run(budget, blocks_from=earlier, progress=phase.update)
            except SearchInfeasibleError:
                if earlier is None:
                    raise
                result = search.run(budget, progress=phase.update)
        plan = self._made(result)
        self._last = (budget, plan)
        return plan, result.cost

    def smallest(self) -> tuple[PrunePlan, float]:
        """The plan of least cost that the search can reach, and its cost."""
        search = self._ready()
        try:
            search.run(0.0)
        except SearchInfeasibleError as error:
            assert self._evaluator is not None
            result = SearchResult(
                dense=self._job.shape,
                shape=error.shape,
                orders=self._evaluator.orders,
                history=(),
                perplexity=error.perplexity,
                dense_perplexity=0.0,
                cost=error.lowest_cost,
                dense_cost=self._cost(self._job.shape),
                cost_unit=self._unit,
                method="smallest structure",
                evaluations=0,
                block_evaluations=0,
                plain_evaluations=0,
            )
            return self._made(result), error.lowest_cost
        raise AssertionError("a model of no cost was found")

    def pruned(self, plan: PrunePlan) -> tuple[Any, Any, ModelShape]:
        """The physically smaller model, its tokenizer and its shape."""
        model = prune_model(load_model(self._job.source), plan)
        return model, load_tokenizer(self._job.source), plan.target

    def release(self) -> None:
        """Frees the model; the next plan loads it again."""
        self._search = self._evaluator = None
        free_memory()

    def _ready(self) -> MultiPruner:
        if self._search is None:
            job, settings = self._job, self._job.request.search
            with job.progress.phase("preparing the search"):
                self._evaluator = Evaluator(load_model(job.source), job.calibration.tokens)
                release_pages(job.source)  # the layers' weights are in use as copies in order of importance
                self._search = MultiPruner(
                    self._evaluator,
                    cost=self._cost,
                    cost_unit=self._unit,
                    distribution=settings.distribution,
                    mlp_group=settings.mlp_group or default_group(job.shape, job.profile.width_multiple),
                    kv_group=settings.kv_group,
                    rule="perplexity" if self._unit == "parameters" else "price",
                    lazy=self._unit != "parameters",
                    journal=JournalFile(self._journal, job.source_digest, job.calibration.digest),
                )
        return self._search

    def _made(self, result: SearchResult) -> PrunePlan:
        return make_plan(
            result,
            source=self._job.request.model,
            source_digest=self._job.source_digest,
            calibration_digest=self._job.calibration.digest,
        )


def replayable(path: Path, source_digest: str, shape: ModelShape) -> PrunePlan:
    """Reads a plan for a model.

    Raises:
        BadInputError: unreadable, made for another model, or no attention is left.
    """
    plan = PrunePlan.load(path)
    if plan.source_digest != source_digest or plan.dense != shape:
        raise BadInputError(
            f"plan {path} was made for {plan.source} ({plan.source_digest[:12]}), "
            f"this model is {source_digest[:12]}: make a plan for this model"
        )
    if not plan.target.attention_layers:
        raise BadInputError(f"plan {path} leaves no attention: keep at least one KV group in one layer")
    return plan


def default_group(shape: ModelShape, multiple: int) -> int:
    """MLP channels removed at once: about a twelfth of the width, in the device's multiple where that fits."""
    width = max(layer.mlp_width for layer in shape.layers)
    step = max(1, width // _MLP_STEPS)
    unit = multiple if multiple and step >= multiple else 1 << max(0, step.bit_length() - 1)
    return max(1, round(step / unit) * unit)
