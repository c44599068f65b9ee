"""Mamba and Mamba-2 models whose blocks differ in width, lack the recurrence, or are gone.

This file is copied beside a pruned checkpoint and loaded by `AutoModelForCausalLM.from_pretrained(directory,
trust_remote_code=True)`; it needs torch and transformers and nothing else.

`prune_layers` in config.json lists [mixer width, state size] of each block.  The width counts channels (Mamba), or
heads of a group (Mamba-2: one unit is the head at the same place in every group); zero means that the block is gone
with its norm.  The state size is that of a recurrence that can go alone (Mamba-2); at zero, what is left of the mixer
is convolution, skip connection D x, gate and norm (Mamba-Shedder, Munoz et al. 2025).  All other fields are those of
the dense model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from transformers import Mamba2Config, MambaConfig
from transformers.activations import ACT2FN
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaForCausalLM
from transformers.models.mamba2.modeling_mamba2 import (
    Mamba2Block,
    Mamba2ForCausalLM,
    MambaRMSNormGated,
    apply_mask_to_padding_states,
)


def dense_mixer(config: Any) -> tuple[int, int]:
    """(mixer width, state size) of every block of the dense model."""
    groups = getattr(config, "n_groups", None)
    return (config.intermediate_size, 0) if groups is None else (config.num_heads // groups, config.state_size)


def mixer_sizes(config: Any) -> list[tuple[int, int]]:
    """(mixer width, state size) of each block; the dense ones when the configuration lists none."""
    if config.prune_layers is None:
        return [dense_mixer(config)] * config.num_hidden_layers
    return [(width, state) for width, state in config.prune_layers]


@contextmanager
def no_layers(config: Any) -> Iterator[None]:
    """Lets a family's constructor build no blocks: it would build dense ones, which are thrown away at once."""
    layers = config.num_hidden_layers
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = layers


class ConfigView:
    """A configuration with some values of its own; the others are read from it, as they are at the time."""

    def __init__(self, config: Any, **own: Any) -> None:
        self.__dict__.update(own, _config=config)

    def __getattr__(self, name: str) -> Any:
        if name == "_config" or name.startswith("__"):  # asked for by `copy` before there is one
            raise AttributeError(name)
        return getattr(self._config, name)


class PrunedMixerConfigMixin:
    """What the pruned configurations add: a check of `prune_layers`, and the cache's view of the blocks."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        rows: Any = self.prune_layers  # type: ignore[attr-defined]
        layers: int = self.num_hidden_layers  # type: ignore[attr-defined]
        if rows is None:
            return
        if len(rows) != layers or any(len(row) != 2 or min(row) < 0 for row in rows):
            raise ValueError(f"prune_layers needs {layers} rows of [mixer width, state size], got {rows}")
        if not any(row[0] for row in rows):
            raise ValueError("prune_layers leaves no mixer; at least one must remain")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The configuration; with `decoder`, a view that counts the remaining mixers only, for the cache."""
        if not decoder or self.prune_layers is None:  # type: ignore[attr-defined]
            return self
        view: Any = copy.copy(self)
        view.prune_layers = None
        view.num_hidden_layers = sum(1 for width, _ in mixer_sizes(self) if width)
        return view


class PruneMambaConfig(PrunedMixerConfigMixin, MambaConfig):  # type: ignore[misc]
    """Mamba with `prune_layers`."""

    model_type = "prune_mamba"
    prune_layers: list | None = None  # type: ignore[type-arg]


class PruneMamba2Config(PrunedMixerConfigMixin, Mamba2Config):  # type: ignore[misc]
    """Mamba-2 with `prune_layers`."""

    model_type = "prune_mamba2"
    prune_layers: list | None = None  # type: ignore[type-arg]


class RemovedBlock(nn.Module):
    """In place of a removed block."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """hidden_states as they are."""
        return hidden_states


class SkipMixer(nn.Module):
    """Mamba-2's mixer without its recurrence: y = D x, so B, C and the time step are gone.

    Args:
        config: with the `num_heads` that are left.
        layer_idx: of its convolution's state in the cache.
    """

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads, self.head_dim, self.n_groups = config.num_heads, config.head_dim, config.n_groups
        self.intermediate_size = channels = self.num_heads * self.head_dim
        self.conv_kernel_size = config.conv_kernel
        self.act = ACT2FN[config.hidden_act]
        self.in_proj = nn.Linear(config.hidden_size, 2 * channels, bias=config.use_bias)
        self.conv1d = nn.Conv1d(
            channels,
            channels,
            config.conv_kernel,
            groups=channels,
            padding=config.conv_kernel - 1,
            bias=config.use_conv_bias,
        )
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = MambaRMSNormGated(channels, eps=config.layer_norm_epsilon)
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=config.use_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        cache_params: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden_states [B, T, D] to [B, T, D]."""
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        gate, inner = self.in_proj(hidden_states).chunk(2, dim=-1)
        inner = apply_mask_to_padding_states(self._convolve(inner.transpose(1, 2), cache_params), attention_mask)
        skipped = inner * self.D.repeat_interleave(self.head_dim)
        result: torch.Tensor = self.out_proj(self.norm(skipped, gate).to(hidden_states.dtype))
        return result

    def _convolve(self, inner: torch.Tensor, cache: Any) -> torch.Tensor:
        """inner [B, channels, T] to [B, T, channels]; the cache gets the last inputs."""
        length = inner.shape[-1]
        if cache is not None and cache.has_previous_state(self.layer_idx):
            state = cache.update_conv_state(inner, layer_idx=self.layer_idx)
            convolved = torch.sum(state * self.conv1d.weight.squeeze(1), dim=-1)
            if self.conv1d.bias is not None:
                convolved = convolved + self.conv1d.bias
            return torch.as_tensor(self.act(convolved)[:, None])
        if cache is not None:
            state = nn.functional.pad(inner, (self.conv_kernel_size - length, 0))
            cache.update_conv_state(state, layer_idx=self.layer_idx)
        return torch.as_tensor(self.act(self.conv1d(inner)[..., :length].transpose(1, 2)))


def pruned_mamba_block(config: Any, layer_idx: int) -> Any:
    """Mamba's block at its width."""
    width, _ = mixer_sizes(config)[layer_idx]
    if not width:
        return RemovedBlock()
    return MambaBlock(ConfigView(config, intermediate_size=width), cache_index(config, layer_idx))


def pruned_mamba2_block(config: Any, layer_idx: int) -> Any:
    """Mamba-2's block at its width, with or without its recurrence."""
    width, state = mixer_sizes(config)[layer_idx]
    if not width:
        return RemovedBlock()
    heads, index = width * config.n_groups, cache_index(config, layer_idx)
    # Exact whatever the width: the family takes int(expand x hidden size).
    view = ConfigView(config, num_heads=heads, expand=Fraction(heads * config.head_dim, config.hidden_size))
    block = Mamba2Block(view, index)
    if not state:
        block.mixer = SkipMixer(view, index)
    # The mean of squares is over the remaining channels; together with the weights that surgery scales, the norm gives
    # what it gives in the dense model when the others are zero.
    block.mixer.norm.variance_epsilon = config.layer_norm_epsilon * config.num_heads / heads
    return block


def cache_index(config: Any, layer_idx: int) -> int:
    """Rank of a block among the remaining ones: a gap in the numbers would break the cache."""
    return sum(1 for width, _ in mixer_sizes(config)[:layer_idx] if width)


class PrunedMixerLMMixin:
    """A causal language model of the family whose decoder gets pruned blocks."""

    block_of: Any

    def __init__(self, config: Any) -> None:
        with no_layers(config):
            super().__init__(config)  # type: ignore[call-arg]
        blocks = (type(self).block_of(config, index) for index in range(config.num_hidden_layers))
        self.backbone.layers = nn.ModuleList(blocks)  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]


class PruneMambaForCausalLM(PrunedMixerLMMixin, MambaForCausalLM):  # type: ignore[misc]
    """Mamba for causal language modelling, pruned."""

    config_class = PruneMambaConfig
    block_of = staticmethod(pruned_mamba_block)


class PruneMamba2ForCausalLM(PrunedMixerLMMixin, Mamba2ForCausalLM):  # type: ignore[misc]
    """Mamba-2 for causal language modelling, pruned."""

    config_class = PruneMamba2Config
    block_of = staticmethod(pruned_mamba2_block)
