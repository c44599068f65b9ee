"""From the settings to the search that they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prune_export.delivery.request import Job
from prune_export.delivery.state import RunState
from prune_export.delivery.steps import Steps, search_steps
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.evolve import EvolveSearch
from prune_export.prune.fast import FastSearch
from prune_export.prune.journal import JournalFile
from prune_export.prune.loading import load_model
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.reorder import LayerOrder, identity_orders, importance_orders
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.searching import CostFunction, Report, Search
from prune_export.prune.stock import heads_fit
from prune_export.prune.wanda import wanda_orders

_ORDER_NAMES = {"l1": "L1", "wanda": "Wanda", "none": "as they are"}


@dataclass(frozen=True)
class _Ingredients:
    """What every search is made of."""

    job: Job
    model: Any
    cost: CostFunction
    unit: str
    journal: JournalFile
    scores: Callable[[], Path]
    steps: Steps
    progress: Report | None

    @property
    def tokens(self) -> Any:
        return self.job.calibration.tokens

    def evaluator(self) -> Evaluator:
        return Evaluator(self.model, self.tokens, orders=self.orders())

    def orders(self) -> tuple[LayerOrder, ...]:
        order = self.job.request.search.order
        if order == "wanda":
            return wanda_orders(self.model, self.tokens)
        return identity_orders(self.job.shape.layers) if order == "none" else importance_orders(self.model)


def build_search(job: Job, *, cost: CostFunction, unit: str, state: RunState, progress: Report | None = None) -> Search:
    """The search that the request names, ready to run for any budget.

    Args:
        job: the delivery at work.
        cost: of a shape, in `unit`.
        unit: "parameters", "seconds" or "bytes".
        state: keeps what was evaluated.
        progress: called with (done, total, detail) by searches that prepare for long.

    Raises:
        BadInputError: settings that do not fit the model, or a search that cannot do what is asked.
    """
    settings = job.request.search
    made = _Ingredients(
        job=job,
        model=load_model(job.source),
        cost=cost,
        unit=unit,
        journal=JournalFile(state.journal(job.work), job.source_digest, job.calibration.digest),
        scores=partial(state.scores, job.work, job.source_digest, job.calibration.digest),
        steps=search_steps(job.shape, settings, job.profile.width_multiple, job.request.sparsity),
        progress=progress,
    )
    return _BUILDERS[settings.search](made)


def _fast(made: _Ingredients) -> Search:
    belong = {"source": made.journal.source_digest, "calibration": made.journal.calibration_digest}
    return FastSearch(
        made.model,
        made.tokens,
        cost=made.cost,
        cost_unit=made.unit,
        mlp_group=made.steps.mlp,
        kv_group=made.steps.kv,
        mixer_group=made.steps.mixer,
        uniform=partial(heads_fit, made.model.config) if made.job.request.search.uniform else None,
        folder=ScoreFolder(made.scores(), belong),
        progress=made.progress,
    )


def _multipruner(made: _Ingredients) -> Search:
    return _greedy(made, blocks_only=False)


def _blockpruner(made: _Ingredients) -> Search:
    return _greedy(made, blocks_only=True)


def _greedy(made: _Ingredients, *, blocks_only: bool) -> Search:
    settings = made.job.request.search
    by_perplexity = settings.exact or made.unit == "parameters"
    return MultiPruner(
        made.evaluator(),
        cost=made.cost,
        cost_unit=made.unit,
        distribution=settings.distribution,
        mlp_group=made.steps.mlp,
        kv_group=made.steps.kv,
        rule="perplexity" if by_perplexity else "price",
        lazy=not by_perplexity,
        blocks_only=blocks_only,
        width_tokens=made.job.calibration.width_tokens,
        order_name=_ORDER_NAMES[settings.order],
        journal=made.journal,
    )


def _evolve(made: _Ingredients) -> Search:
    settings = made.job.request.search
    return EvolveSearch(
        made.evaluator(),
        cost=made.cost,
        cost_unit=made.unit,
        mlp_group=made.steps.mlp,
        kv_group=made.steps.kv,
        seed=made.job.request.seed,
        order_name=_ORDER_NAMES[settings.order],
        journal=made.journal,
    )


_BUILDERS: dict[str, Callable[[_Ingredients], Search]] = {
    "fast": _fast,
    "multipruner": _multipruner,
    "blockpruner": _blockpruner,
    "evolve": _evolve,
}
