"""Calibration perplexity of pruned variants of a model, without building them.

Sub-blocks are numbered along the residual stream: 2 i is the attention (or state-space mixer) of layer i, 2 i + 1 its
MLP.  The state (residual stream) at the input of every sub-block is cached, so a variant that differs from the current
structure in one sub-block only runs from there on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from prune_export.errors import BadInputError
from prune_export.prune.candidates import Change, Structure, apply_change
from prune_export.prune.reorder import LayerOrder, importance_orders
from prune_export.prune.runners import make_runner

_BATCH_TOKENS = 2048
# A hopeless candidate is dropped between batches: this many make that worthwhile.
_FEWEST_BATCHES = 16
_HEAD_BYTES = 64 << 20


@dataclass(frozen=True)
class Score:
    """What scoring one structure gave.

    Attributes:
        log_perplexity: mean over sequences of the mean token NLL.
        exact: False where scoring stopped early: the true value is at least `log_perplexity`.
    """

    log_perplexity: float
    exact: bool = True


@dataclass(frozen=True)
class Work:
    """What scoring took.

    Attributes:
        block_evaluations: sub-blocks run over all tokens; a share of the tokens counts as that share.
        plain_evaluations: sub-blocks that full runs of the same candidates would have taken.
        block_tokens: sub-blocks times the tokens they were run on.
        head_tokens: tokens that went through the LM head.
    """

    block_evaluations: float = 0.0
    plain_evaluations: int = 0
    block_tokens: int = 0
    head_tokens: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.block_evaluations + other.block_evaluations,
            self.plain_evaluations + other.plain_evaluations,
            self.block_tokens + other.block_tokens,
            self.head_tokens + other.head_tokens,
        )

    def __sub__(self, other: Work) -> Work:
        return self + Work(-other.block_evaluations, -other.plain_evaluations, -other.block_tokens, -other.head_tokens)


class Evaluator:
    """Scores structures of one model on fixed tokens.

    Args:
        model: a dense (or already pruned) model of a supported family, in evaluation mode; it is not changed, but its
            layers are copied once in importance order.
        tokens: [N, T] token ids.
        orders: importance orders; MultiPruner's unless told.
        cache_bytes: memory for cached states; when all 2 L + 1 of them do not fit, every m-th is kept and the ones
            between are recomputed.

    Attributes:
        orders: the importance orders in force.
        shape: the dense model's.
        structure: the current one, which changes start from.

    Raises:
        BadInputError: tokens out of range or too short, or activations that are not finite (names the layer).
    """

    def __init__(
        self,
        model: Any,
        tokens: NDArray[Any] | torch.Tensor,
        *,
        orders: tuple[LayerOrder, ...] | None = None,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.orders = importance_orders(model) if orders is None else orders
        self._decoder = make_runner(model, self.orders)
        self.shape = self._decoder.shape
        self._cache_bytes = cache_bytes
        self._begin(tokens)

    def _begin(self, tokens: NDArray[Any] | torch.Tensor) -> None:
        self._tokens = _checked(torch.as_tensor(tokens), self.shape.vocab_size, self.shape.context)
        self.structure: Structure = self.shape.layers
        self._blocks = 2 * len(self.structure)
        self._stride = self._choose_stride(self._cache_bytes)
        self._states: dict[int, torch.Tensor] = {}
        self._rolling: tuple[int, torch.Tensor] | None = None
        self._block_tokens = self._head_tokens = self._plain = 0

    def on(self, tokens: NDArray[Any] | torch.Tensor) -> Evaluator:
        """The same model on other tokens [N, T]; the weights are shared, states and counts are its own."""
        other = copy.copy(self)
        other._begin(tokens)
        return other

    @property
    def random_access(self) -> bool:
        """Whether all states are kept, so that candidates may be visited in any order at the same cost."""
        return self._stride == 1

    @property
    def work(self) -> Work:
        """What was computed so far."""
        return Work(self._block_tokens / self._tokens.numel(), self._plain, self._block_tokens, self._head_tokens)

    @torch.inference_mode()
    def score(self, change: Change | None = None, hopeless: Callable[[float], bool] | None = None) -> Score:
        """Mean over sequences of the mean token NLL, of the current structure or with one change to it.

        Its exponential is the calibration perplexity.  A change that makes activations overflow scores infinity.

        Args:
            change: or None for the current structure.
            hopeless: told a lower bound of the result, answers whether the change is already out of the running.  The
                sum over the sequences so far is such a bound: an NLL is never negative.
        """
        structure = self.structure if change is None else apply_change(self.structure, change, self.shape)
        start = 0 if change is None else change.block
        if change is None and self._states:
            start = max(self._states)
        state = self._state(start)
        live = sum(_live(structure, block) for block in range(start, self._blocks))
        self._plain += sum(_live(structure, block) for block in range(self._blocks))
        total, count = 0.0, len(self._tokens)
        for rows in self._batches():
            hidden = state[rows]
            for block in range(start, self._blocks):
                hidden = self._decoder.run_block(hidden, block, structure)
            total += float(self._sequence_nll(hidden, self._tokens[rows]).sum())
            self._block_tokens += live * self._tokens[rows].numel()
            self._head_tokens += self._tokens[rows, 1:].numel()
            if rows.stop < count and hopeless is not None and hopeless(total / count):
                return Score(total / count, exact=False)
        mean = total / count
        return Score(mean if math.isfinite(mean) else math.inf)

    def log_perplexity(self, change: Change | None = None) -> float:
        """The score of the current structure, or with one change to it, without dropping."""
        return self.score(change).log_perplexity

    def perplexity(self, change: Change | None = None) -> float:
        """exp of `log_perplexity`."""
        return exp_or_inf(self.log_perplexity(change))

    @torch.inference_mode()
    def refuse_overflow(self) -> None:
        """To be called where the current structure's score is not finite.

        Raises:
            BadInputError: always; it names the first layer whose activations are not finite.
        """
        self.release()
        self._state(self._blocks)
        raise BadInputError(
            "the last norm or the LM head gives no finite loss on the calibration text: "
            "the weights are damaged or do not fit the configuration"
        )

    def move_to(self, structure: Structure) -> None:
        """Makes `structure` the current one; cached states after the first difference are dropped."""
        changed = [block for block in range(self._blocks) if _size(structure, block) != _size(self.structure, block)]
        self.structure = structure
        if not changed:
            return
        first = changed[0]
        self._states = {block: state for block, state in self._states.items() if block <= first}
        if self._rolling is not None and self._rolling[0] > first:
            self._rolling = None

    def release(self) -> None:
        """Frees the cached states; they are computed again when needed."""
        self._states, self._rolling = {}, None

    def _state(self, block: int) -> torch.Tensor:
        """Residual stream [N, T, D] at the input of a sub-block of the current structure."""
        known = max((index for index in self._states if index <= block), default=-1)
        state = self._states.get(known)
        if self._rolling is not None and known < self._rolling[0] <= block:
            known, state = self._rolling
        if state is None:
            known, state = 0, self._decoder.embed(self._tokens)
            self._states[0] = state
        for index in range(known, block):
            state = self._advance(state, index)
            if (index + 1) % self._stride == 0:
                self._states[index + 1] = state
        if block not in self._states:
            self._rolling = (block, state)
        return state

    def _advance(self, state: torch.Tensor, block: int) -> torch.Tensor:
        if not self._decoder.changes(block, self.structure):
            return state
        result = torch.empty_like(state)
        for rows in self._batches():
            result[rows] = self._decoder.run_block(state[rows], block, self.structure)
        self._block_tokens += self._tokens.numel()
        if not bool(torch.isfinite(result.sum(dtype=torch.float64))):
            part = "MLP" if block % 2 else "attention" if self.structure[block // 2].kv_heads else "mixer"
            raise BadInputError(
                f"layer {block // 2}: its {part} gives activations that are not finite on the calibration text: "
                "the weights are damaged or do not fit the configuration"
            )
        return result

    def _sequence_nll(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean NLL [B] of tokens [B, T] given the last residual stream [B, T, D]; logits never exist all at once."""
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        targets = tokens[:, 1:].reshape(-1)
        step = max(1, _HEAD_BYTES // (4 * self.shape.vocab_size))
        losses = [
            F.cross_entropy(self._decoder.logits(rows[at : at + step]), targets[at : at + step], reduction="none")
            for at in range(0, len(rows), step)
        ]
        return torch.cat(losses).view(len(tokens), -1).mean(1, dtype=torch.float64)

    def _batches(self) -> list[slice]:
        count, length = self._tokens.shape
        step = max(1, min(_BATCH_TOKENS, self._tokens.numel() // _FEWEST_BATCHES) // length)
        return [slice(at, min(at + step, count)) for at in range(0, count, step)]

    def _choose_stride(self, cache_bytes: int) -> int:
        state_bytes = self._tokens.numel() * self.shape.hidden_size * self._decoder.dtype.itemsize
        # One state is in the making and one rolls along between the kept ones.
        fit = max(1, cache_bytes // state_bytes - 2)
        return max(1, math.ceil(self._blocks / fit))


def exp_or_inf(value: float) -> float:
    """exp without an overflow error."""
    return math.exp(value) if value < 700.0 else math.inf


def _size(structure: Structure, block: int) -> tuple[int, ...]:
    layer = structure[block // 2]
    return (layer.mlp_width,) if block % 2 else (layer.kv_heads, layer.mixer_width, layer.state_size)


def _live(structure: Structure, block: int) -> bool:
    return any(_size(structure, block))


def _checked(tokens: torch.Tensor, vocab_size: int, context: int) -> torch.Tensor:
    if tokens.ndim != 2 or tokens.shape[0] < 1 or not 2 <= tokens.shape[1] <= context:
        raise BadInputError(
            f"calibration tokens have shape {list(tokens.shape)}: "
            f"at least one sequence of 2 to {context} tokens is needed"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise BadInputError(
            f"calibration tokens reach from {low} to {high}, the model knows 0 to {vocab_size - 1}: "
            "tokenizer and model do not belong together"
        )
    return tokens.long()
