"""Compensation of a chosen plan: the output projections that remain are fitted again, in order, to the dense model.

The pruned model is walked beside the dense one.  With X the pruned model's input of a projection and R the dense
stream behind its sub-block (and behind removed ones that follow, which are thus absorbed) minus the pruned one,

    W' = W + R X^T (X X^T + lambda I)^-1

so each fit also makes up for what those before it left.  Tokens count by the inverse square of their stream, as the
norm behind it will see them.  lambda is chosen for each projection on windows held out from the fit; no update, which
is lambda -> infinity, wins ties.  At last the gains of the norm before the head are fitted to the dense model's
predictions (`final_norm`), and all output projections move a step towards them (`natural_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from prune_export.prune.calibration import fitting_windows
from prune_export.prune.families import family_of
from prune_export.prune.final_norm import fit_gains
from prune_export.prune.fitting import Sums, Update, best_update
from prune_export.prune.layer_runner import LayerRunner
from prune_export.prune.natural_step import Step, natural_step
from prune_export.prune.reorder import identity_orders
from prune_export.prune.shapes import model_shape
from prune_export.prune.streams import DenseStreams
from prune_export.prune.sub_blocks import (
    SubBlock,
    all_recorded,
    is_finite,
    matrix,
    not_finite,
    set_matrix,
    set_parameter,
    sub_blocks,
)

_BATCH_TOKENS = 2048
_HOLD_OUT = 5  # every fifth window
_HEAD_SHARE = 0.1  # of the pruned model's operations in the walk that the gains before the head may take
_STEP_TOKENS, _FEWEST_STEP_TOKENS = 8192, 2048
_STEP_FLOPS = 2e13  # of the step; ten operations a parameter and token, about


@dataclass(frozen=True)
class Fit:
    """What became of one projection.

    Attributes:
        block: name of the sub-block.
        ridge: share of the moment's mean diagonal, or None where no update was better.
        error_before: mean squared error of the stream on held-out tokens, relative to the stream.
        error_after: the same with the update.
    """

    block: str
    ridge: float | None
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Refit:
    """Outcome of a walk.

    Attributes:
        fits: one a remaining sub-block, in order.
        layer_tokens: layers run times tokens, dense and pruned ones together; a layer is two sub-blocks.
        head_tokens: tokens through the LM head; a gradient counts as another pass.
        gains_ridge: of the gains before the head, or None where no change of them was better.
        step: towards the dense model's predictions.
    """

    fits: tuple[Fit, ...]
    layer_tokens: float
    head_tokens: int
    gains_ridge: float | None
    step: Step


@dataclass
class _Batch:
    """Some windows on their way through both models.

    Attributes:
        rows: which windows.
        dense: residual stream [B, T, D] of the dense model.
        pruned: of the pruned one.
        held: [B] windows that are held out from the fits.
        before: the pruned stream in front of the sub-blocks at work.
        inputs: [B, T, n] of each projection at work.
        missing: [B, T, D] what each projection should add to its output.
    """

    rows: slice
    dense: torch.Tensor
    pruned: torch.Tensor
    held: torch.Tensor
    before: torch.Tensor
    inputs: list[torch.Tensor]
    missing: list[torch.Tensor]


class _Walk:
    """Both models side by side.

    Args:
        dense, pruned: models; projections of the latter are replaced.
        windows: [N, T].
        stored: precision that fitted weights are rounded to.
        streams: the dense model's on these windows, if they are known.
    """

    def __init__(
        self, dense: Any, pruned: Any, windows: torch.Tensor, stored: torch.dtype, streams: DenseStreams | None
    ) -> None:
        family = family_of(dense.config)
        self._stored = stored
        self._family, self._models = family, (dense, pruned)
        self._parallel = family.parallel is not None and bool(getattr(dense.config, family.parallel))
        # A norm behind the projections leaves no linear way to the stream: then their own outputs are the target.
        self._additive = family.attention_post_norm is None and family.mlp_post_norm is None
        self._dense_blocks = {block.index: block for block in sub_blocks(dense)}
        self._blocks = sub_blocks(pruned)
        self._dense, self._pruned = _runner(dense), _runner(pruned)
        self._at = 0
        # A parallel layer's stream is the same in front of both its sub-blocks; a norm needs the dense outputs anyway.
        first = 2 if self._parallel else 1
        every = set(range(first, 2 * len(self._dense.shape.layers) + 1, first))
        self._streams = streams if streams is not None and self._additive and streams.holds(every) else None
        step = max(1, _BATCH_TOKENS // windows.shape[1])
        self._windows = windows
        self._held = torch.arange(len(windows)) % _HOLD_OUT == _HOLD_OUT - 1
        self._batches = []
        for at in range(0, len(windows), step):
            rows = slice(at, min(at + step, len(windows)))
            stream = self._pruned.embed(windows[rows])
            self._batches.append(
                _Batch(rows, self._dense.embed(windows[rows]), stream, self._held[rows], stream, [], [])
            )
        self.evaluations = 0

    def stages(self) -> list[tuple[list[SubBlock], int]]:
        """(sub-blocks that are fitted together, where the next ones begin), along the stream."""
        groups: list[list[SubBlock]] = []
        for block in self._blocks:
            if groups and self._parallel and groups[-1][0].layer == block.layer:
                groups[-1].append(block)
            else:
                groups.append([block])
        ends = [2 * group[0].layer if self._parallel else group[0].index for group in groups[1:]]
        return list(zip(groups, [*ends, 2 * len(self._dense.shape.layers)], strict=True))

    def fit(self, group: list[SubBlock], end: int) -> list[Fit]:
        """Fits the projections of a stage, so that the pruned stream gets close to the dense one at `end`."""
        self._adapt(group)
        for batch in self._batches:
            self._pass(batch, group, end)
        self.evaluations += len(group)
        self._at = end
        fits = [self._fit(block, position) for position, block in enumerate(group)]
        if not self._additive:
            for batch in self._batches:
                batch.pruned = self._advance(self._pruned, batch.before, group)
            self.evaluations += len(group)
        return fits

    def fit_gains(self) -> tuple[Update | None, int]:
        """Fits the gains before the head on as many windows as cost a share of a walk; (update, tokens through it)."""
        shape = self._dense.shape
        tables = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
        layers = (shape.parameters() - tables) / len(shape.layers)
        length = self._windows.shape[1]
        head = 2.0 * shape.vocab_size * shape.hidden_size * length  # a window's logits and their gradient
        walked = layers * len(self._blocks) / 2 * self._windows.numel()
        chosen = _spread(self._held, int(_HEAD_SHARE * walked / head))
        return fit_gains(*self._models, self._last_rows(chosen), stored=self._stored), 2 * int(chosen.sum()) * length

    def _last_rows(self, chosen: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
        """Last streams [R, D] of both models in some windows, and whether these are held out from fits."""
        for batch in self._batches:
            for held_out in (False, True):
                some = chosen[batch.rows] & (batch.held == held_out)
                if bool(some.any()):
                    yield batch.dense[some].flatten(0, 1), batch.pruned[some].flatten(0, 1), held_out

    def step_windows(self) -> torch.Tensor:
        """Positions of as many windows as help in `step` or are affordable."""
        affordable = int(_STEP_FLOPS / (10 * self._dense.shape.parameters()))
        tokens = max(_FEWEST_STEP_TOKENS, min(_STEP_TOKENS, affordable))
        return _spread(self._held, tokens // self._windows.shape[1]).nonzero()[:, 0]

    def step(self, chosen: torch.Tensor, passed: Callable[[int], None]) -> Step:
        """Moves the output projections towards the dense predictions, on some windows."""
        last = torch.cat([batch.dense for batch in self._batches])[chosen]
        self._batches = []  # streams of windows that are not needed any more
        return natural_step(
            self._models[1],
            self._windows[chosen],
            self._held[chosen],
            lambda position: self._dense.logits(last[position]),
            stored=self._stored,
            passed=passed,
        )

    def _advance_dense(self, batch: _Batch, end: int) -> None:
        """The dense stream up to sub-block `end`."""
        if self._at >= end:
            return
        if self._streams is not None:
            batch.dense = self._streams.get(end, batch.rows)
            return
        for index in range(self._at, end):
            batch.dense = self._dense.run_block(batch.dense, index, self._dense.shape.layers)
        if batch is self._batches[0]:
            self.evaluations += sum(self._at <= index < end for index in self._dense_blocks)

    def _adapt(self, group: list[SubBlock]) -> None:
        """Fits the input projections to the dense model's inputs: the pruned stream is not the one that they know."""
        first = group[0].layer * 2 if self._parallel else group[0].index
        for batch in self._batches:
            self._advance_dense(batch, first)
        self._at = first
        for block in group:
            norm = self._family.norms(block.part)[0]
            ours, theirs = (self._layer(model, block).get_submodule(norm) for model in self._models)
            width = self._dense.shape.hidden_size
            fitted, held = Sums(width, width), Sums(width, width)
            for batch in self._batches:
                x = theirs(batch.pruned)
                _add(fitted, held, batch.held, x, ours(batch.dense) - x, torch.ones_like(x[..., :1]))
            update = best_update(fitted, held, bias=False) if held.count else None
            if update is not None:
                for module in self._readers(block):
                    old = matrix(module).double()
                    set_matrix(module, (old + old @ update.weight).to(self._stored))

    def _layer(self, model: Any, block: SubBlock) -> Any:
        return model.get_submodule(self._family.layers)[block.layer]

    def _readers(self, block: SubBlock) -> list[Any]:
        """The pruned model's projections that read the normed stream."""
        family = self._family
        names: dict[str, tuple[str, ...]] = {
            "attention": ("q", "k", "v") if family.heads == "separate" else ("qkv",),
            "mlp": family.in_modules,
            "mixer": ("in",),
        }
        layer = self._layer(self._models[1], block)
        return [layer.get_submodule(family.path(block.part, name)) for name in names[block.part]]

    def _pass(self, batch: _Batch, group: list[SubBlock], end: int) -> None:
        own = [self._dense_blocks[block.index] for block in group]
        with all_recorded(own) as wanted:
            self._advance_dense(batch, end)
        batch.before = batch.pruned
        with all_recorded(group) as seen:
            batch.pruned = self._advance(self._pruned, batch.before, group)
        batch.inputs = [calls[-1][0] for calls in seen]
        if not all(is_finite(part) for part in (*batch.inputs, batch.dense, batch.pruned)):
            raise not_finite(group[-1].name)
        if self._additive:
            batch.missing = [batch.dense - batch.pruned] * len(group)
        else:
            batch.missing = [ours[-1][1] - theirs[-1][1] for ours, theirs in zip(wanted, seen, strict=True)]

    def _advance(self, runner: LayerRunner, stream: torch.Tensor, group: list[SubBlock]) -> torch.Tensor:
        first = group[0].layer * 2 if self._parallel else group[0].index
        last = first + 1 if self._parallel else first
        for index in range(first, last + 1):
            stream = runner.run_block(stream, index, runner.shape.layers)
        return stream

    def _fit(self, block: SubBlock, position: int) -> Fit:
        outputs, inputs = matrix(block.module).shape
        fitted, held = Sums(inputs, outputs), Sums(inputs, outputs)
        size = 0.0
        for batch in self._batches:
            scale = batch.dense.square().mean(-1, keepdim=True).clamp_min(1e-12).reciprocal()
            size += float((batch.dense.square() * scale)[batch.held].sum(dtype=torch.float64))
            _add(fitted, held, batch.held, batch.inputs[position], batch.missing[position], scale)
        update = best_update(fitted, held, bias=block.module.bias is not None)
        if update is not None:
            self._update(block, position, update)
        whole, gain = max(size, 1e-30), update.gain if update is not None else 0.0
        return Fit(block.name, update.ridge if update else None, held.rr / whole, (held.rr - gain) / whole)

    def _update(self, block: SubBlock, position: int, update: Update) -> None:
        """Changes a projection, and the streams with it."""
        module = block.module
        old = matrix(module)
        set_matrix(module, (old.double() + update.weight).to(self._stored))
        change = matrix(module) - old
        moved = torch.zeros(len(old), dtype=old.dtype)
        if module.bias is not None:
            before = module.bias
            set_parameter(module, "bias", (before.double() + update.bias).to(self._stored))
            moved = module.bias - before
        if self._additive:
            for batch in self._batches:
                batch.pruned = batch.pruned + batch.inputs[position] @ change.T + moved
                batch.missing = [batch.dense - batch.pruned] * len(batch.missing)


def refit(
    dense: Any,
    pruned: Any,
    windows: torch.Tensor,
    *,
    stored: torch.dtype = torch.float32,
    streams: DenseStreams | None = None,
    progress: Callable[[float, float, str], None] | None = None,
) -> Refit:
    """Fits the output projections of a pruned model to the dense one it was cut from, in place.

    Weights of the pruned model are replaced, never written to, so tensors that it shares with the dense one are safe.

    Args:
        dense: model before surgery.
        pruned: after it (`surgery.prune_model`).
        windows: [N, T] calibration tokens, at least ten for each input (`calibration.shortage`); a spread of as many as
            help is used.
        stored: precision in which the weights will be stored: they are rounded to it at once, so that later fits make
            up for that too.
        streams: what a search has kept of the dense model's residual streams; the others are computed.
        progress: called with (done, total, detail).

    Raises:
        BadInputError: activations that are not finite; names the layer.
    """
    fits: list[Fit] = []
    windows = fitting_windows(windows, max(matrix(block.module).shape[1] for block in sub_blocks(dense)))
    with torch.inference_mode():
        walk = _Walk(dense, pruned, windows, stored, streams)
        stages, chosen = walk.stages(), walk.step_windows()
        # A window costs the step about four passes, the walk about one and its moments.
        total = len(stages) * (1.0 + 2.0 * len(chosen) / len(windows))

        def passed(count: int) -> None:
            if progress is not None:
                done = len(stages) * (1.0 + 2.0 * count / len(windows))
                progress(min(done, total), total, "towards the dense predictions")

        for done, (group, end) in enumerate(stages):
            if progress is not None:
                progress(done, total, group[0].name.replace(": its", ""))
            fits += walk.fit(group, end)
        layer_tokens = walk.evaluations / 2 * windows.numel()
        gains, head_tokens = walk.fit_gains()
        passed(0)
        step = walk.step(chosen, passed)
    layer_tokens += step.layer_tokens
    return Refit(tuple(fits), layer_tokens, head_tokens + step.head_tokens, gains.ridge if gains else None, step)


def _runner(model: Any) -> LayerRunner:
    return LayerRunner(model, identity_orders(model_shape(model.config).layers))


def _spread(marks: torch.Tensor, most: int) -> torch.Tensor:
    """[N] at most about `most` windows, evenly spread, with the same share of held-out ones; two at least."""
    chosen = torch.zeros(len(marks), dtype=torch.bool)
    for part in (marks, ~marks):
        places = part.nonzero()[:, 0]
        if not len(places):
            continue
        count = min(len(places), max(1, round(most * len(places) / len(marks))))
        chosen[places[torch.arange(count) * len(places) // count]] = True
    return chosen


def _add(fitted: Sums, held: Sums, marks: torch.Tensor, x: torch.Tensor, r: torch.Tensor, weight: torch.Tensor) -> None:
    """Adds a batch [B, T, ...] to the moments, its windows in `marks` to those held out."""
    for sums, chosen in ((fitted, ~marks), (held, marks)):
        sums.add(*(part[chosen].reshape(-1, part.shape[-1]).float() for part in (x, r, weight)))
