"""State-space mixers: what their parameters are made of, and which of them belong to which unit.

A unit of Mamba is a channel of the inner width.  A unit of Mamba-2 is the head at the same place in every group, since
the groups, which share B and C, must stay of one size; with one group, as in the published models, it is a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from prune_export.prune.cuts import Cut, expand
from prune_export.prune.family import Family
from prune_export.prune.modeling_ssm import dense_mixer
from prune_export.shape import LayerShape, MixerShape, ModelShape

# No position is learned or rotated.
_UNLIMITED = 1 << 20


def state_space_shape(family: Family, config: Any) -> ModelShape:
    """Dimensions of a state-space model, dense or pruned."""
    rows = getattr(config, "prune_layers", None) or [dense_mixer(config)] * int(config.num_hidden_layers)
    heads = family.mixer_units == "heads"
    return ModelShape(
        family=family.name,
        hidden_size=config.hidden_size,
        head_dim=config.head_dim if heads else 1,
        vocab_size=config.vocab_size,
        tied_embeddings=bool(config.tie_word_embeddings),
        layers=tuple(LayerShape(0, 0, 0, *row) for row in rows),
        context=_UNLIMITED,
        mixer=_head_mixer(config) if heads else _channel_mixer(config),
    )


def _channel_mixer(config: Any) -> MixerShape:
    hidden, rank, state = config.hidden_size, int(config.time_step_rank), config.state_size
    bias, conv = int(config.use_bias), config.conv_kernel + int(config.use_conv_bias)
    unit = 2 * (hidden + bias) + conv + (rank + 2 * state) + (rank + 1) + state + 1 + hidden
    return MixerShape(fixed=hidden + bias * hidden, unit=unit)


def _head_mixer(config: Any) -> MixerShape:
    hidden, groups, head_dim = config.hidden_size, config.n_groups, config.head_dim
    bias, conv = int(config.use_bias), config.conv_kernel + int(config.use_conv_bias)
    channel = 2 * (hidden + bias) + conv + 1 + hidden  # in_proj's gate and x, convolution, norm, out_proj
    return MixerShape(
        fixed=hidden + bias * hidden,
        unit=groups * (head_dim * channel + 1),  # and D
        state_fixed=2 * groups * config.state_size * (hidden + bias + conv),  # B and C
        state_unit=groups * (hidden + bias + 2),  # time step, its bias, A
        unit_columns=groups * head_dim,
        heads=True,
    )


def mixer_cuts(mixer: Any, family: Family, dims: LayerShape, units: Sequence[int], recurrence: bool) -> dict[str, Cut]:
    """The cuts of a mixer's parameters, by their names in the layer.

    Args:
        mixer: of the dense layer.
        family: its row.
        dims: of the dense layer.
        units: kept units, in the order that they get.
        recurrence: whether a recurrence that can go stays.
    """
    if family.mixer_units == "channels":
        cuts = _channel_cuts(mixer, dims, torch.tensor(units, dtype=torch.long))
    else:
        cuts = _head_cuts(mixer, dims, units, recurrence)
    present = dict(mixer.named_parameters())
    return {f"{family.mixer}.{name}": cut for name, cut in cuts.items() if name in present}


def unit_columns(mixer: Any, family: Family, dims: LayerShape) -> torch.Tensor:
    """Columns [units, columns of one] of the mixer's output projection (its inner channels) that each unit owns."""
    inner = torch.arange(mixer.out_proj.in_features)
    if family.mixer_units == "channels":
        return inner[:, None]
    return inner.view(mixer.n_groups, dims.mixer_width, mixer.head_dim).transpose(0, 1).reshape(dims.mixer_width, -1)


def unit_scores(mixer: Any, family: Family, dims: LayerShape) -> torch.Tensor:
    """Importance of each unit: L1 of its rows of the input projection's gate and x, averaged over its channels.

    The counterpart of MultiPruner's score of an MLP channel (gate row + up row).
    """
    norms = mixer.in_proj.weight.detach().abs().sum(1, dtype=torch.float64)
    rows = unit_columns(mixer, family, dims)
    scores: torch.Tensor = (norms[rows] + norms[mixer.out_proj.in_features + rows]).mean(1)
    return scores


def _channel_cuts(mixer: Any, dims: LayerShape, channels: torch.Tensor) -> dict[str, Cut]:
    rows = Cut(0, channels)
    both = Cut(0, torch.cat([channels, dims.mixer_width + channels]))
    names = ("conv1d.weight", "conv1d.bias", "dt_proj.weight", "dt_proj.bias", "A_log", "D")
    return {
        "in_proj.weight": both,
        "in_proj.bias": both,
        **dict.fromkeys(names, rows),
        "x_proj.weight": Cut(1, channels),
        "out_proj.weight": Cut(1, channels),
    }


def _head_cuts(mixer: Any, dims: LayerShape, units: Sequence[int], recurrence: bool) -> dict[str, Cut]:
    heads = _unit_heads(mixer, dims, units)
    channels, inner = expand(heads, mixer.head_dim), mixer.out_proj.in_features
    inputs, convolved = [channels, inner + channels], [channels]
    if dims.state_size and recurrence:
        shared = torch.arange(2 * mixer.n_groups * dims.state_size)
        inputs += [2 * inner + shared, 2 * inner + len(shared) + torch.tensor(heads)]
        convolved.append(inner + shared)
    rows, states = Cut(0, torch.cat(inputs)), Cut(0, torch.cat(convolved))
    own = Cut(0, torch.tensor(heads))
    return {
        "in_proj.weight": rows,
        "in_proj.bias": rows,
        "conv1d.weight": states,
        "conv1d.bias": states,
        **dict.fromkeys(("dt_bias", "A_log", "D"), own),
        # The norm's mean runs over fewer channels now; see `pruned_mamba2_block`.
        "norm.weight": Cut(0, channels, scale=math.sqrt(inner / len(channels))),
        "out_proj.weight": Cut(1, channels),
    }


def _unit_heads(mixer: Any, dims: LayerShape, units: Sequence[int]) -> list[int]:
    return [group * dims.mixer_width + unit for group in range(mixer.n_groups) for unit in units]
