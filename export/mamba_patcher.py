"""Mamba's mixer in a form that can be traced, with its states as inputs and outputs.

optimum-intel has a patcher of its own, for transformers before 5.4.  It computes the recurrence through cumulative
products, which underflow within a few dozen tokens, and tells a prompt from a single token by the length of an extra
input.  Here the recurrence is a loop over tokens in the graph (`mamba_scan`), and the convolution reads the cached
inputs in front of the new ones, so any number of tokens may follow on a state of any age.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from openvino.frontend.pytorch import ConversionExtension, ModuleExtension
from optimum.exporters.openvino.patching_utils import ModelPatcher
from torch import nn
from transformers.models.mamba.modeling_mamba import MambaMixer

from prune_export.export.mamba_scan import OPERATION, SelectiveScan, convert_scan


class MambaPatcher(ModelPatcher):  # type: ignore[misc]
    """Puts the traceable mixers in place while the model is exported.

    Args:
        config: the export's configuration.
        model: stock or pruned Mamba.
        model_kwargs: passed on.
    """

    def __init__(self, config: Any, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(config, model, model_kwargs)
        forward = self.orig_forward

        def patched_forward(input_ids: Any, attention_mask: Any = None, cache_params: Any = None) -> dict[str, Any]:
            # The mask may cover the past as well, as for attention; what was padding there is no part of the states.
            mask = attention_mask[:, -input_ids.shape[1] :]
            states = _States(cache_params)
            result = forward(input_ids=input_ids, attention_mask=mask, cache_params=states, use_cache=True)
            return {"logits": result.logits, "cache_params_present": states.pairs}

        self.patched_forward = patched_forward
        self.module_extensions = {SelectiveScan: ModuleExtension(SelectiveScan, OPERATION)}
        self.conversion_extensions = [ConversionExtension(OPERATION, convert_scan)]

    def __enter__(self) -> None:
        super().__enter__()
        for mixer in self._mixers():
            mixer.scan = SelectiveScan()
            mixer.forward = types.MethodType(_mixer_forward, mixer)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        for mixer in self._mixers():
            del mixer.scan, mixer.forward

    def _mixers(self) -> list[Any]:
        return [module for module in self._model.modules() if isinstance(module, MambaMixer)]


class _States:
    """Stands in for the family's cache.

    Attributes:
        pairs: recurrent state [B, N, C] and last inputs of the convolution [B, C, K] of each mixer.
    """

    def __init__(self, pairs: Any) -> None:
        self.pairs = [(state, window) for state, window in pairs]


def _mixer_forward(
    self: Any, hidden_states: torch.Tensor, cache_params: Any = None, attention_mask: Any = None, **_: Any
) -> torch.Tensor:
    """hidden_states [B, T, D] to [B, T, D], with what `MambaMixer.slow_forward` computes (transformers 5.5)."""
    state, window = cache_params.pairs[self.layer_idx]
    inner, gate = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)  # [B, C, T]
    mask = attention_mask.unsqueeze(1).to(inner.dtype)
    window = torch.cat([window, inner * mask], dim=-1)  # [B, C, K + T]
    inner = nn.functional.conv1d(window[..., 1:], self.conv1d.weight, self.conv1d.bias, groups=self.intermediate_size)
    inner = (self.act(inner) * mask).transpose(1, 2)  # [B, T, C]
    sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
    step, to_state, from_state = torch.split(self.x_proj(inner), sizes, dim=-1)
    step = nn.functional.softplus(self.dt_proj(step))
    decay = -torch.exp(self.A_log.float()).transpose(0, 1)  # [N, C]
    scanned = self.scan(step, inner, to_state.transpose(1, 2), from_state.transpose(1, 2), decay, state)
    # The tokens' outputs, then the rows of the new state: see `SelectiveScan`.
    outputs, state = scanned[:, : -self.ssm_state_size], scanned[:, -self.ssm_state_size :]
    cache_params.pairs[self.layer_idx] = (state, window[..., -self.conv_kernel_size :])
    outputs = (outputs + inner * self.D) * self.act(gate.transpose(1, 2))
    result: torch.Tensor = self.out_proj(outputs)
    return result
