"""One pass over the dense model that scores what every sub-block's removal and narrowing would do.

For each sub-block: moments of its output projection's input, the order in which its units go (structured OBS), and the
effect on the predictions of a few sizes, the rest of the projection compensating (`closed_form.shared_update`) and a
removed sub-block absorbed by the projection before it.  Sizes in between follow from the losses of the elimination.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.prune.calibration import spread_windows
from prune_export.prune.closed_form import mean_diagonal, regression, shared_update
from prune_export.prune.divergence import Divergence, Effect
from prune_export.prune.elimination import eliminate
from prune_export.prune.families import family_of
from prune_export.prune.layer_runner import LayerRunner
from prune_export.prune.reorder import LayerOrder, identity_orders
from prune_export.prune.sensitivity import PROBE_TOKENS, output_sensitivity
from prune_export.prune.shapes import model_shape
from prune_export.prune.streams import DenseStreams
from prune_export.prune.sub_blocks import (
    SubBlock,
    all_recorded,
    is_finite,
    matrix,
    matrix_replaced,
    not_finite,
    sub_blocks,
)

RIDGE = 1e-3  # of the mean diagonal; keeps the solves regular and takes next to nothing from the fit
ABSORB_RIDGE = 1e-2  # a removed block's output is a weak function of its neighbour's input: easily overfitted
_BATCH_TOKENS = 2048
_PROBE_FLOPS, _FEWEST_PROBES = 3e12, 2048  # of all gradients, six operations a parameter and token
_MLP_ANCHORS = (0.125, 0.3, 0.6)
_CARRIED_BYTES = 64 << 20  # more is kept in half the precision
_FEW_UNITS = 4  # so many sizes or fewer are all scored


@dataclass(frozen=True)
class BlockScores:
    """What is known of one sub-block.

    Attributes:
        index: of the sub-block along the residual stream.
        part: "attention", "mlp" or "mixer".
        order: its units, most important first.
        losses: [units + 1] loss of the elimination by number of kept units.
        sizes: scored sizes, ascending, the whole one left out.
        divergences: of those sizes.
        sketches: [sizes, S] effects of those sizes on the predictions.
    """

    index: int
    part: str
    order: NDArray[np.int64]
    losses: NDArray[np.float64]
    sizes: NDArray[np.int64]
    divergences: NDArray[np.float64]
    sketches: NDArray[np.float32]

    @property
    def units(self) -> int:
        """Units of the dense sub-block."""
        return len(self.order)

    def divergence(self, size: int) -> float:
        """Divergence at any size: log-linear in the loss between scored sizes, proportional to it beyond them."""
        if size >= self.units:
            return 0.0
        if size in self.sizes:
            return float(self.divergences[self.sizes == size][0])
        tiny = 1e-300
        known = np.log(np.maximum(self.losses[self.sizes], tiny))[::-1]
        values = np.log(np.clip(self.divergences, tiny, 1.0 / tiny))[::-1]
        wanted = float(np.log(max(self.losses[size], tiny)))
        if wanted <= known[0]:
            return float(np.exp(values[0] + wanted - known[0]))
        return float(np.exp(np.interp(wanted, known, values)))

    def nearest(self, size: int) -> int:
        """Position of the scored size whose effect points where that of `size` does, by the losses."""
        distance = np.abs(np.sqrt(self.losses[self.sizes]) - np.sqrt(self.losses[size]))
        return int(distance.argmin())


class Scoring:
    """Walks the model once; call `score` for each of `blocks` in order.

    Args:
        model: dense, of a supported family, in evaluation mode; its weights are replaced for a moment and put back.
        scoring: [N, T] tokens that effects are measured on.
        calibration: [M, T] tokens of the moments.
        keep: called with "moment", each sub-block's index and its moment [n, n], and with "cross", the index and the
            mean of its output times the input of the sub-block that takes over when it is removed, [D, n'].
        streams: where the calibration tokens' residual streams are kept.

    Attributes:
        blocks: the model's sub-blocks.
        dense_nll: mean NLL of the dense model on the scoring tokens.
        moment_evaluations: sub-blocks run over all calibration tokens so far.
        sensitivity_tokens: tokens that a gradient was taken of.
    """

    def __init__(
        self,
        model: Any,
        scoring: torch.Tensor,
        calibration: torch.Tensor,
        *,
        keep: Callable[[str, int, torch.Tensor], None] | None = None,
        streams: DenseStreams | None = None,
    ) -> None:
        self.shape = model_shape(model.config)
        self.blocks = sub_blocks(model)
        family = family_of(model.config)
        self._parallel = family.parallel is not None and bool(getattr(model.config, family.parallel))
        self._linear = family.attention_post_norm is None and family.mlp_post_norm is None
        self._runner = LayerRunner(model, identity_orders(self.shape.layers))
        self.divergence = Divergence(self._runner, scoring)
        self.dense_nll = self.divergence.learn_dense()
        self._keep, self._streams = keep, streams
        self._model, self._calibration = model, calibration
        self.sensitivity_tokens = 0
        step = max(1, _BATCH_TOKENS // calibration.shape[1])
        with torch.inference_mode():
            self._states = [self._runner.embed(rows) for rows in calibration.split(step)]
        self._carried: list[torch.Tensor] = []  # a batch each: what entered the last projection of the layer before
        self._moments: dict[int, torch.Tensor] = {}
        self._cross: dict[int, torch.Tensor] = {}
        self._layer = -1
        self.moment_evaluations = 0

    @functools.cached_property
    def _roots(self) -> dict[int, torch.Tensor]:
        """Roots of the sub-blocks' Fisher information; an interrupted run that has all scores never asks for them."""
        affordable = int(_PROBE_FLOPS / (6 * self.shape.parameters()))
        probes = spread_windows(self._calibration, max(_FEWEST_PROBES, min(PROBE_TOKENS, affordable)))
        self.sensitivity_tokens = probes.numel()
        with torch.inference_mode(False):
            return output_sensitivity(self._model, self.blocks, probes)

    @torch.inference_mode()
    def score(self, block: SubBlock) -> BlockScores:
        """Scores one sub-block; those before it must have been passed with `score` or `skip`."""
        self._reach(block.layer)
        moment = self._moments[block.index]
        weights = matrix(block.module)
        seen = self._roots[block.index].to(weights.dtype) @ weights
        found = eliminate(seen, moment, block.columns, ridge=RIDGE)
        self.set_order(block, found.order)
        effects = {size: self._effect(block, size, weights, moment, found.order) for size in self._sizes(block)}
        return BlockScores(
            index=block.index,
            part=block.part,
            order=np.asarray(found.order, dtype=np.int64),
            losses=np.asarray(found.losses, dtype=np.float64),
            sizes=np.asarray(list(effects), dtype=np.int64),
            divergences=np.asarray([effect.divergence for effect in effects.values()], dtype=np.float64),
            sketches=np.stack([effect.sketch.numpy() for effect in effects.values()]).astype(np.float32),
        )

    def skip(self, block: SubBlock) -> None:
        """Passes a sub-block whose scores are known from an earlier run."""
        with torch.inference_mode():
            self._reach(block.layer)

    def _reach(self, layer: int) -> None:
        """Runs the calibration tokens through the layers up to `layer`, keeping what its sub-blocks need."""
        while self._layer < layer:
            self._layer += 1
            self._pass_layer(self._layer)

    def _pass_layer(self, layer: int) -> None:
        own = [block for block in self.blocks if block.layer == layer]
        before = max((block.index for block in self.blocks if block.layer < layer), default=-1)
        self._moments = {index: moment for index, moment in self._moments.items() if index == before}
        sums = {block.index: Sum() for block in own}
        crosses = {block.index: Sum() for block in own}
        between: list[torch.Tensor] = []
        for at, state in enumerate(self._states):
            calls: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
            for index in (2 * layer, 2 * layer + 1):
                turn = 2 * layer + 1 if self._parallel else None  # a parallel layer runs whole in the MLP's place
                mine = [block for block in own if (turn or block.index) == index]
                state = self._run(state, index, mine, calls)
                if self._streams is not None and index % 2 == 0:
                    between.append(state)
            self._states[at] = state
            for block in own:
                inputs, outputs = calls[block.index]
                sums[block.index].add(inputs, inputs)
                helper = self.helper(block)
                if helper is not None:
                    near = calls[helper.index][0] if helper.index in calls else self._carried[at].to(inputs.dtype)
                    crosses[block.index].add(outputs, near)
            if own:
                last = calls[own[-1].index][0]
                large = last.nbytes * len(self._states) > _CARRIED_BYTES
                self._carried[at : at + 1] = [last.to(torch.bfloat16) if large else last]  # enough for a cross moment
        if self._streams is not None:
            self._streams.put(2 * layer + 1, between)
            self._streams.put(2 * layer + 2, self._states)
        self.moment_evaluations += len(own)
        for block in own:
            self._learn(block, sums[block.index].mean(), crosses[block.index])

    def _learn(self, block: SubBlock, moment: torch.Tensor, cross: Sum) -> None:
        if not is_finite(moment):
            raise not_finite(block.name)
        self._moments[block.index] = moment
        if self._keep is not None:
            self._keep("moment", block.index, moment)
        if cross.count:
            self._cross[block.index] = cross.mean()
            if self._keep is not None:
                self._keep("cross", block.index, self._cross[block.index])

    def _run(
        self,
        state: torch.Tensor,
        index: int,
        blocks: list[SubBlock],
        calls: dict[int, tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """One batch through a sub-block; `calls` gets what entered and left the output projections in it."""
        if not blocks:
            return self._runner.run_block(state, index, self.shape.layers)
        with all_recorded(blocks) as seen:
            state = self._runner.run_block(state, index, self.shape.layers)
        if not is_finite(state):
            raise not_finite(blocks[-1].name)
        for block, its_calls in zip(blocks, seen, strict=True):
            calls[block.index] = its_calls[-1]  # an earlier call may have been made to learn the arguments
        return state

    def _sizes(self, block: SubBlock) -> list[int]:
        if block.units <= _FEW_UNITS:
            return list(range(block.units))
        shares = _MLP_ANCHORS if block.part != "attention" else (0.25, 0.5, 0.75)
        return sorted({0, *(max(1, round(share * block.units)) for share in shares)})

    def _effect(
        self, block: SubBlock, size: int, weights: torch.Tensor, moment: torch.Tensor, order: tuple[int, ...]
    ) -> Effect:
        self.divergence.keep_state(block.index)
        if size == 0:
            return self._removal(block)
        structure = self.shape.layers
        if block.part == "mixer":  # a narrower mixer mixes other things than a masked one
            structure = self._resized(block, size)
        with matrix_replaced(block.module, cut_matrix(block, weights, moment, order[:size])):
            return self.divergence.of(self._start(block), structure)

    def _removal(self, block: SubBlock) -> Effect:
        helper = self.helper(block)
        structure = self._resized(block, 0)
        if helper is None:
            return self.divergence.of(self._start(block), structure)
        cross = self._cross.pop(block.index)
        moment = self._moments[helper.index]
        extra = regression(moment, cross, ridge=ABSORB_RIDGE, scale=mean_diagonal(moment))
        with matrix_replaced(helper.module, matrix(helper.module).double() + extra):
            return self.divergence.of(min(self._start(helper), self._start(block)), structure)

    def helper(self, block: SubBlock) -> SubBlock | None:
        """The sub-block whose output projection takes over for a removed one."""
        if not self._linear:
            return None  # a norm after the projection: no linear map can stand in
        if self._parallel:  # both write to the same stream; one before would change what the MLP reads
            others = [other for other in self.blocks if other.layer == block.layer and other.index != block.index]
        else:
            others = [other for other in self.blocks if other.index < block.index][-1:]
        return others[0] if others else None

    def _start(self, block: SubBlock) -> int:
        """First sub-block that has to be run again: in a parallel layer the whole layer runs in the MLP's place."""
        return 2 * block.layer if self._parallel else block.index

    def _resized(self, block: SubBlock, size: int) -> tuple[Any, ...]:
        layers = list(self.shape.layers)
        dense = layers[block.layer]
        layers[block.layer] = block.resized(dense, dense, size)
        return tuple(layers)

    def set_order(self, block: SubBlock, order: tuple[int, ...]) -> None:
        """Tells the runner in which order a mixer's units count; those of other parts are silenced by their weights."""
        if block.part == "mixer":
            self._runner.orders[block.layer] = LayerOrder((), (), order)


class Sum:
    """A sum of y x^T over tokens, kept in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._total: torch.Tensor | None = None

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """y [..., R] and x [..., n] of the same tokens."""
        rows = x.reshape(-1, x.shape[-1]).float()
        part = y.reshape(-1, y.shape[-1]).float().T @ rows
        self._total = part.double() if self._total is None else self._total.add_(part)
        self.count += len(rows)

    def mean(self) -> torch.Tensor:
        """[R, n] float64."""
        assert self._total is not None, "nothing was added"
        return self._total / self.count


def cut_matrix(
    block: SubBlock, weights: torch.Tensor, moment: torch.Tensor, units: tuple[int, ...] | NDArray[np.int64]
) -> torch.Tensor:
    """The block's output projection [out, n] with all units but some at zero, these compensating."""
    columns = block.columns[torch.as_tensor(np.asarray(units), dtype=torch.long)].reshape(-1)
    result = torch.zeros_like(weights)
    result[:, columns] = shared_update(weights, moment, columns, ridge=RIDGE).to(weights.dtype)
    return result
