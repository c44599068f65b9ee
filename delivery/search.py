"""The search of one delivery: holds the model while plans are asked for, and journals what it evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prune_export.delivery.front import around, pareto_front, points
from prune_export.delivery.request import Job
from prune_export.delivery.resources import free_memory
from prune_export.delivery.searches import build_search
from prune_export.delivery.sparse import make_sparse, save_report
from prune_export.delivery.state import RunState
from prune_export.errors import BadInputError
from prune_export.files import release_pages
from prune_export.manifest import CHECKPOINT_FOLDER, PredictedPoint
from prune_export.plan import PrunePlan
from prune_export.prune.calibration import CalibrationTokens
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.fast import FastSearch
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.realise import realise, stored_dtype
from prune_export.prune.search_result import FrontPoint, SearchInfeasibleError, SearchResult
from prune_export.prune.searching import Search
from prune_export.prune.streams import DenseStreams
from prune_export.shape import ModelShape


class Searcher:
    """Plans for any budget of one cost.

    Args:
        job: the delivery at work.
        cost: of a shape, in `unit`.
        unit: "parameters", "seconds" or "bytes".
        state: keeps what was evaluated, while the model is released and when the run is killed.

    Attributes:
        front: what the last search traded for what, where it looks at several costs at once.
        streams: the dense model's residual streams, once a search has kept them.
    """

    def __init__(self, job: Job, cost: Callable[[ModelShape], float], unit: str, state: RunState) -> None:
        self._job = job
        self._cost = cost
        self._unit = unit
        self._search: Search | None = None
        self._state = state
        self._ready_once = False
        self._last: tuple[float, PrunePlan] | None = None
        self._predicted: list[PredictedPoint] = []
        self._took_s = 0.0
        self.streams: DenseStreams | None = None
        self.front: tuple[FrontPoint, ...] = ()

    def plan(self, budget: float) -> tuple[PrunePlan, float]:
        """The best plan within a budget, and its cost.

        A smaller budget than the last keeps the blocks that the last plan removed and goes on from there, which takes
        seconds; a larger one may give blocks back and searches anew, from what was evaluated before.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
        """
        search = self._ready()
        earlier = self._last[1] if self._last is not None and budget <= self._last[0] else None
        if earlier is None or not isinstance(search, MultiPruner):
            result = self.result(budget)
        else:
            with self._job.progress.phase("searching the plan") as phase:
                try:
                    result = search.run(budget, blocks_from=earlier, progress=phase.update)
                except SearchInfeasibleError:
                    result = search.run(budget, progress=phase.update)
        plan = self.made(result)
        self._last = (budget, plan)
        return plan, result.cost

    def result(self, budget: float) -> SearchResult:
        """What the search finds within a budget, whatever it was asked before.

        Raises:
            SearchInfeasibleError: nothing within the budget can be reached.
        """
        search = self._ready()
        begun = time.perf_counter()
        with self._job.progress.phase("searching the plan") as phase:
            result = search.run(budget, progress=phase.update)
        self._took_s = time.perf_counter() - begun
        return result

    def look_around(self, budget: float, *, at_most_s: float) -> None:
        """Notes what is predicted for other budgets, as far as that takes no more than about so many seconds.

        Only the fast search can do so: its one scoring serves every budget.  What the others tried on their way is
        noted as it is.
        """
        search, end = self._ready(), time.perf_counter() + at_most_s
        if not isinstance(search, FastSearch) or self._took_s > at_most_s:
            return
        with self._job.progress.phase("predicting other budgets") as phase:
            for other in around(budget, dense=self._cost(self._job.shape)):
                if time.perf_counter() + self._took_s > end:
                    return
                try:
                    self._predicted += points(search.run(other, progress=phase.update))
                except SearchInfeasibleError:
                    continue

    @property
    def predicted_front(self) -> tuple[PredictedPoint, ...]:
        """The best of what is known without building anything, the dense model first."""
        return pareto_front(self._predicted)

    def made(self, result: SearchResult) -> PrunePlan:
        """The plan of a result."""
        self.front = result.front
        self._predicted += points(result, alike=self._job.calibration.width_tokens is None)
        return make_plan(
            result,
            source=self._job.request.model,
            source_digest=self._job.source_digest,
            calibration_digest=self._job.calibration.digest,
            compensated=self._job.request.search.compensated,
            uniform=self._job.request.search.uniform,
        )

    def smallest(self) -> tuple[PrunePlan, float]:
        """The plan of least cost that the search can reach, and its cost."""
        search = self._ready()
        try:
            search.run(0.0)
        except SearchInfeasibleError as error:
            result = SearchResult(
                dense=self._job.shape,
                shape=error.shape,
                orders=search.orders,
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
            return self.made(result), error.lowest_cost
        raise AssertionError("a model of no cost was found")

    def pruned(self, plan: PrunePlan, name: str) -> tuple[Any, Any, ModelShape]:
        """The physically smaller model, its tokenizer and its shape; its checkpoint is kept for the delivery."""
        job = self._job
        title = f"{name}: fitting what stays to what goes" if plan.compensated else f"{name}: cutting"
        with job.progress.phase(title) as phase:
            model = realise(job.source, plan, job.calibration.tokens, streams=self.streams, progress=phase.update)
        tokenizer = self._keep(model, name, plan.digest())
        if note := unlike(plan, job.calibration):
            job.progress.note(note)
        return model, tokenizer, plan.target

    def sparse(self, name: str) -> tuple[Any, Any, ModelShape]:
        """The dense model with the zeros that the request asks for, as `pruned` gives a smaller one."""
        model = load_model(self._job.source)
        return model, self._keep(model, name, self._job.source_digest), self._job.shape

    def _keep(self, model: Any, name: str, key: str) -> Any:
        """Makes a model sparse if that is asked for, keeps its checkpoint and returns its tokenizer."""
        job, tokenizer = self._job, load_tokenizer(self._job.source)
        stored, report = stored_dtype(job.source), None
        if job.request.sparsity is not None:
            report = make_sparse(
                model,
                job.calibration.tokens,
                job.request.sparsity,
                stored=stored,
                progress=job.progress,
                journal=self._state.journal(job.work).parent / "sparse" / key[:24],
            )
        with job.progress.phase(f"{name}: keeping the checkpoint"):
            save_checkpoint(model, tokenizer, checkpoint_of(job, name), dtype=stored)
            if report is not None:
                save_report(report, checkpoint_of(job, name))
        return tokenizer

    def release(self) -> None:
        """Frees the model; the next plan loads it again."""
        self._search = None
        free_memory()

    def _ready(self) -> Search:
        if self._search is None:
            with self._job.progress.phase("preparing the search") as phase:
                self._search = build_search(
                    self._job, cost=self._cost, unit=self._unit, state=self._state, progress=phase.update
                )
                release_pages(self._job.source)
            if isinstance(self._search, FastSearch):
                self.streams = self._search.streams
                if not self._ready_once and self._search.scored == 0:
                    self._job.progress.note("the scores of an earlier run with this model and calibration are taken")
            self._ready_once = True
        return self._search


def checkpoint_of(job: Job, name: str) -> Path:
    """Where the checkpoint of a built plan is kept, beside its exports."""
    return job.work / name / CHECKPOINT_FOLDER


def unlike(plan: PrunePlan, calibration: CalibrationTokens) -> str:
    """A note when a plan is compensated on other text than it was made with, else empty."""
    if not plan.compensated or plan.calibration_digest == calibration.digest:
        return ""
    return (
        "note: this plan was made with other calibration text than it is compensated with, so its weights will differ: "
        "give the same --calibration, windows and length"
    )


def replayable(path: Path, source_digest: str, shape: ModelShape, *, uniform: bool = False) -> PrunePlan:
    """Reads a plan for a model.

    Args:
        path: of the plan.
        source_digest: sha256 of the model.
        shape: of the model.
        uniform: the plan must be.

    Raises:
        BadInputError: unreadable, made for another model, no attention is left, or not uniform.
    """
    plan = PrunePlan.load(path)
    if plan.source_digest != source_digest or plan.dense != shape:
        raise BadInputError(
            f"plan {path} was made for {plan.source} ({plan.source_digest[:12]}), "
            f"this model is {source_digest[:12]}: make a plan for this model"
        )
    if not plan.target.attention_layers:
        raise BadInputError(f"plan {path} leaves no attention: keep at least one KV group in one layer")
    if uniform and not plan.uniform:
        raise BadInputError(f"plan {path} is not uniform: make it with plan --uniform, or leave out --uniform")
    return plan
