"""The search of one delivery: holds the model while plans are asked for, and journals what it evaluated."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prune_export.delivery.request import Job
from prune_export.errors import BadInputError
from prune_export.plan import PrunePlan
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.journal import JournalFile
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.search_result import SearchInfeasibleError, SearchResult
from prune_export.prune.surgery import prune_model
from prune_export.records import digest
from prune_export.shape import ModelShape

_MLP_STEPS = 12  # groups that a whole MLP is cut into by default


class Searcher:
    """Plans for any budget of one cost.

    Args:
        job: the delivery at work.
        cost: of a shape, in `unit`.
        unit: "parameters", "seconds" or "bytes".
    """

    def __init__(self, job: Job, cost: Callable[[ModelShape], float], unit: str) -> None:
        self._job = job
        self._cost = cost
        self._unit = unit
        self._search: MultiPruner | None = None
        self._evaluator: Evaluator | None = None
        self._last: PrunePlan | None = None

    def plan(self, budget: float) -> tuple[PrunePlan, float]:
        """The best plan within a budget, and its cost.

        A later budget keeps the blocks that the first plan removed and continues from there, which takes seconds.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
        """
        search = self._ready()
        with self._job.progress.phase("searching the plan") as phase:
            try:
                result = search.run(budget, blocks_from=self._last, progress=phase.update)
            except SearchInfeasibleError:
                if self._last is None:
                    raise
                result = search.run(budget, progress=phase.update)
        plan = self._made(result)
        self._last = self._last or plan
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

    def replayed(self) -> tuple[PrunePlan, float]:
        """The plan that the request names, and its cost.

        Raises:
            BadInputError: unreadable, or made for another model.
        """
        path = self._job.request.plan
        assert path is not None
        plan = replayable(path, self._job.source_digest, self._job.shape)
        return plan, self._cost(plan.target)

    def pruned(self, plan: PrunePlan) -> tuple[Any, Any, ModelShape]:
        """The physically smaller model, its tokenizer and its shape."""
        model = prune_model(load_model(self._job.source), plan)
        return model, load_tokenizer(self._job.source), plan.target

    def release(self) -> None:
        """Frees the model; the next plan loads it again."""
        self._search = self._evaluator = None
        gc.collect()

    def finished(self) -> None:
        """Removes the journal: the artifact is out, nothing is left to resume."""
        self._journal_path().unlink(missing_ok=True)

    def _ready(self) -> MultiPruner:
        if self._search is None:
            job, settings = self._job, self._job.request.search
            with job.progress.phase("preparing the search"):
                self._evaluator = Evaluator(load_model(job.source), job.calibration.tokens)
                self._search = MultiPruner(
                    self._evaluator,
                    cost=self._cost,
                    cost_unit=self._unit,
                    distribution=settings.distribution,
                    mlp_group=settings.mlp_group or default_group(job.shape, job.profile.width_multiple),
                    kv_group=settings.kv_group,
                    rule="perplexity" if self._unit == "parameters" else "price",
                    lazy=self._unit != "parameters",
                    journal=JournalFile(self._journal_path(), job.source_digest, job.calibration.digest),
                )
        return self._search

    def _made(self, result: SearchResult) -> PrunePlan:
        return make_plan(
            result,
            source=self._job.request.model,
            source_digest=self._job.source_digest,
            calibration_digest=self._job.calibration.digest,
        )

    def _journal_path(self) -> Path:
        job = self._job
        key = digest([job.source_digest, job.calibration.digest, job.request.search, self._unit])
        directory = cache_directory() / "journals"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{key[:24]}.jsonl"


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


def cache_directory() -> Path:
    """Where journals of unfinished runs are kept: PRUNE_EXPORT_CACHE, else the user's cache directory."""
    named = os.environ.get("PRUNE_EXPORT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prune-export"
