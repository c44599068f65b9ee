"""What a search returns, and the error that it raises when no structure is small enough."""

from __future__ import annotations

from dataclasses import dataclass

from prune_export.errors import InfeasibleError
from prune_export.plan import PlanStep
from prune_export.prune.reorder import LayerOrder
from prune_export.shape import LayerShape, ModelShape


@dataclass(frozen=True)
class FrontPoint:
    """A structure that no other one beats both in cost and in calibration perplexity."""

    cost: float
    perplexity: float
    layers: tuple[LayerShape, ...]


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes:
        dense: shape before.
        shape: shape found; widths count from the head of `orders`.
        orders: importance orders, one a layer.
        history: steps taken, in order.
        perplexity: calibration perplexity of `shape`.
        dense_perplexity: the same before.
        cost: cost of `shape`.
        dense_cost: the same before.
        cost_unit: what costs count: "parameters" or "seconds".
        method: search and settings in words.
        evaluations: candidates evaluated in this run; those known from before do not count.
        block_evaluations: sub-blocks that were run over all tokens for them.
        plain_evaluations: sub-blocks that full runs would have taken for them.
        block_tokens: sub-blocks times the tokens that they were run on.
        head_tokens: tokens that went through the LM head.
        divergence: predicted KL of the output from the dense model's, in nats a token, where the search predicts it.
        front: what was traded for what, where the search looks at several costs at once.
    """

    dense: ModelShape
    shape: ModelShape
    orders: tuple[LayerOrder, ...]
    history: tuple[PlanStep, ...]
    perplexity: float
    dense_perplexity: float
    cost: float
    dense_cost: float
    cost_unit: str
    method: str
    evaluations: int
    block_evaluations: float
    plain_evaluations: int
    block_tokens: int = 0
    head_tokens: int = 0
    divergence: float | None = None
    front: tuple[FrontPoint, ...] = ()


class SearchInfeasibleError(InfeasibleError):
    """No structure that the search can reach is within the budget.

    Attributes:
        lowest_cost: lowest cost that can be reached, in the search's cost unit.
        perplexity: calibration perplexity there.
        shape: the structure with that cost.
    """

    def __init__(self, message: str, *, lowest_cost: float, perplexity: float, shape: ModelShape) -> None:
        super().__init__(message)
        self.lowest_cost = lowest_cost
        self.perplexity = perplexity
        self.shape = shape
