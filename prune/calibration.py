"""The calibration tokens and how many of them a search should take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.shape import ModelShape

_LENGTH = 512
_MIN_TOKENS = 512
_MAX_TOKENS = 16384
# Candidates that a lazy step scores, as observed on a trained 5M-parameter Llama, rounded up.
_LAZY_SCORES = 4
_ADVISABLE_PER_CHANNEL = 10
_FAST_LENGTH = 128
_FAST_PER_CHANNEL = 96
_FAST_LEAST, _FAST_MOST = 16384, 65536
_FIT_PER_CHANNEL = 96  # tokens, beyond which orders and fits hardly get better
_FIT_LEAST = 4096


@dataclass(frozen=True)
class CalibrationTokens:
    """What the search scores candidates on.

    Attributes:
        tokens: [N, T], N sequences of T tokens.
        digest: sha256 of `tokens`.
        description: where they come from, in words.
        width_tokens: [N, T] that widths are scored on, or None for the same.
    """

    tokens: NDArray[np.int64]
    digest: str
    description: str
    width_tokens: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class CalibrationSize:
    """N windows of `length` tokens."""

    windows: int
    length: int

    @property
    def tokens(self) -> int:
        """All tokens together."""
        return self.windows * self.length


def default_size(
    shape: ModelShape,
    *,
    flops: float = 5e13,
    ratio: float = 0.25,
    distribution: tuple[float, float, float] = (44, 52, 4),
    mlp_group: int | None = None,
    lazy: bool = False,
    evaluations: int = 0,
) -> CalibrationSize:
    """Calibration size with which a search costs about `flops`, between 512 and 16384 tokens.

    A function of its arguments alone, so that the same call gives the same tokens everywhere.

    Args:
        shape: the dense model.
        flops: floating-point operations that the whole search may take.
        ratio: removed share of parameters that is expected.
        distribution: shares of blocks, MLP channels and KV groups in what is removed.
        mlp_group: channels a step of the MLP stage; a twelfth of the width unless told.
        lazy: the search is lazy.
        evaluations: whole models that the search scores beside that.
    """
    each = search_flops(shape, ratio=ratio, distribution=distribution, mlp_group=mlp_group, lazy=lazy)
    wanted = flops / (each + evaluations * 2.0 * shape.parameters())
    tokens = int(min(_MAX_TOKENS, max(_MIN_TOKENS, wanted)))
    length = min(_LENGTH, shape.context, tokens)
    return CalibrationSize(windows=max(1, tokens // length), length=length)


def default_fast_size(shape: ModelShape, *, flops: float = 2.6e13) -> CalibrationSize:
    """Calibration size of the fast search with compensation.

    As many tokens as its fits profit from, fewer where that would cost more than about `flops`, in windows short enough
    that many places of the text are seen.

    Args:
        shape: the dense model.
        flops: floating-point operations that the passes may take: about six a parameter and token for each of the dense
            pass, the dense and the pruned walk.
    """
    affordable = int(flops / (12.0 * shape.parameters()))
    tokens = max(_FAST_LEAST, min(_FAST_PER_CHANNEL * widest_output(shape), _FAST_MOST, affordable))
    length = min(_FAST_LENGTH, shape.context)
    return CalibrationSize(windows=max(1, tokens // length), length=length)


def widest_output(shape: ModelShape) -> int:
    """Inputs of the widest output projection of an attention, MLP or mixer."""
    unit_columns = shape.mixer.unit_columns if shape.mixer is not None else 1
    return max(
        max(layer.mlp_width, layer.query_heads * shape.head_dim, layer.mixer_width * unit_columns)
        for layer in shape.layers
    )


def shortage(tokens: int, shape: ModelShape) -> str:
    """A warning when so many calibration tokens are few for fits to the output projections, else empty."""
    widest = widest_output(shape)
    wanted = _ADVISABLE_PER_CHANNEL * widest
    if tokens >= wanted:
        return ""
    return (
        f"warning: {tokens} calibration tokens for projections of up to {widest} inputs, {wanted} are advisable "
        "(ten a channel): compensation may overfit, give more with --calibration-windows"
    )


def search_flops(
    shape: ModelShape,
    *,
    ratio: float,
    distribution: tuple[float, float, float] = (44, 52, 4),
    mlp_group: int | None = None,
    lazy: bool = False,
) -> float:
    """Floating-point operations that MultiPruner's search takes for each calibration token, roughly.

    A step of a stage evaluates every remaining candidate, each on half the layers on average and on the LM head; the
    number of steps is the stage's share of the removed parameters over the size of one step.  A lazy search scores all
    candidates once and then a few a step.
    """
    if shape.mixer_layers:
        return _mixer_flops(shape, ratio)
    live = [layer for layer in shape.layers if layer.kv_heads and layer.mlp_width]
    if not live:
        return 2.0 * shape.vocab_size * shape.hidden_size
    sample = live[len(live) // 2]
    attention = shape.attention_parameters(sample.kv_heads, sample.query_heads)
    mlp = shape.mlp_parameters(sample.mlp_width)
    group = mlp_group or max(1, sample.mlp_width // 12)
    removed = [ratio * shape.parameters() * part / sum(distribution) for part in distribution]
    sizes = ((attention + mlp) / 2, mlp * group / sample.mlp_width, attention / sample.kv_heads)
    candidates = (2 * len(shape.layers), len(shape.layers), len(shape.layers))
    evaluations = 0.0
    for share, size, count in zip(removed, sizes, candidates, strict=True):
        steps = max(1.0, share / size) if share else 0.0
        evaluations += min(steps, 1.0) * count + max(0.0, steps - 1.0) * (min(count, _LAZY_SCORES) if lazy else count)
    head = shape.vocab_size * shape.hidden_size
    layers = len(shape.layers) * (attention + mlp)
    return evaluations * 2.0 * (layers / 2 + head)


def _mixer_flops(shape: ModelShape, ratio: float) -> float:
    """The same for a state-space model, as if whole mixers or their recurrences were removed."""
    mixers = [shape.layers[index] for index in shape.mixer_layers]
    layers = sum(shape.mixer_parameters(layer.mixer_width, layer.state_size) for layer in mixers)
    steps = max(1.0, ratio * shape.parameters() * len(mixers) / layers)
    return 2.0 * len(mixers) * steps * 2.0 * (layers / 2 + shape.vocab_size * shape.hidden_size)


def spread_windows(windows: torch.Tensor, wanted: int) -> torch.Tensor:
    """Whole windows of [N, T], evenly spread over them, that hold about `wanted` tokens; at least one.

    Raises:
        BadInputError: nothing to choose from.
    """
    count, length = windows.shape
    if count < 1 or length < 2:
        raise BadInputError(f"calibration tokens have shape {[count, length]}: a sequence of 2 tokens is needed")
    number = min(count, max(1, math.ceil(wanted / length)))
    return windows[torch.linspace(0, count - 1, number).round().long().unique()]


def fitting_windows(windows: torch.Tensor, widest: int) -> torch.Tensor:
    """The windows that moments and fits are made of: a spread of as many as help.

    Args:
        windows: [N, T].
        widest: inputs of the dense model's widest output projection.

    Raises:
        BadInputError: nothing to choose from.
    """
    return spread_windows(windows, max(_FIT_LEAST, _FIT_PER_CHANNEL * widest))
