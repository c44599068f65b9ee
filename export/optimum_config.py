"""optimum-intel's export configurations for models whose layers differ.

The stock configurations read one KV-head count, or one mixer width, for all layers from config.json.  Here every
remaining attention or mixer has its own, and a layer that lost it keeps no state at all.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from optimum.exporters.openvino.config import TextDecoderOpenVINOConfig, TextDecoderWithPositionIdsOpenVINOConfig
from optimum.exporters.openvino.model_patcher import OVDecoderModelPatcher
from optimum.utils import NormalizedTextConfig
from transformers import PretrainedConfig

from prune_export.export.mamba_patcher import MambaPatcher

# Example inputs for the tracer.  No dimension may be 0 or 1 (the tracer would take it for a broadcast) and the two
# lengths differ, so that a length is never mistaken for another.
_BATCH, _TOKENS, _PAST = 2, 5, 7
_INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values")

# What optimum writes into every uncompressed text model, so that ours behave alike: the runtime's own default would
# be a cache in 8 bits, and fp16 GPUs would overflow without the scale.
_SCALE = {"ACTIVATIONS_SCALE_FACTOR": "8.0"}
_RUNTIME_OPTIONS = {**_SCALE, "KV_CACHE_PRECISION": "f16"}


class DecoderPatcher(OVDecoderModelPatcher):  # type: ignore[misc]
    """optimum's patcher, with the example inputs in front of the other parameters of `forward`.

    Where they are not (GPT-2, GPT-NeoX, OPT), OpenVINO's converter writes a wrapper from the text of the annotations,
    fails to compile it, says so on the screen and goes on without it.
    """

    def __init__(self, config: Any, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(config, model, model_kwargs)
        parameters = list(inspect.signature(self.orig_forward).parameters.values())
        parameters.sort(key=lambda parameter: parameter.name not in _INPUTS)  # stable
        self.patched_forward.__signature__ = inspect.Signature(parameters)


class DecoderExportConfig(TextDecoderWithPositionIdsOpenVINOConfig):  # type: ignore[misc]
    """Export with past of a decoder with per-layer KV heads.

    Args:
        config: the model's configuration.
        kv_heads: K of each remaining attention, in the order of their caches.
        head_dim: d.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    # For Mistral and Phi-3, optimum has patchers that look for an attention in every layer; for Gemma-2 one that turns
    # caches into tuples and back.  With transformers 5 the general one does all of that work.
    _MODEL_PATCHER = DecoderPatcher

    def __init__(self, config: PretrainedConfig, *, kv_heads: tuple[int, ...], head_dim: int) -> None:
        self._kv_heads = kv_heads
        self._head_dim = head_dim
        self.runtime_options = dict(_RUNTIME_OPTIONS)
        super().__init__(config, task="text-generation", use_past=True, use_past_in_inputs=True)

    def add_past_key_values(self, inputs_or_outputs: dict[str, dict[int, str]], direction: str) -> None:
        """Names the cache tensors of the remaining attentions and their dynamic axes."""
        name, length = {
            "inputs": ("past_key_values", "past_sequence_length"),
            "outputs": ("present", "past_sequence_length + sequence_length"),
        }[direction]
        for index in range(len(self._kv_heads)):
            for part in ("key", "value"):
                inputs_or_outputs[f"{name}.{index}.{part}"] = {0: "batch_size", 2: length}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        """Example inputs: token ids [B, T], mask [B, past + T], positions [B, T], caches [B, K, past, d]."""
        caches = [
            tuple(torch.zeros((_BATCH, heads, _PAST, self._head_dim)) for _ in ("key", "value"))
            for heads in self._kv_heads
        ]
        return {
            **_tokens_and_mask(),
            "position_ids": torch.arange(_PAST, _PAST + _TOKENS).expand(_BATCH, _TOKENS).contiguous(),
            "past_key_values": caches,
        }


class MambaExportConfig(TextDecoderOpenVINOConfig):  # type: ignore[misc]
    """Export of a Mamba model with per-layer widths; no input tells positions.

    Args:
        config: the model's configuration.
        widths: channels of each remaining mixer, in the order of their states.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    _MODEL_PATCHER = MambaPatcher

    def __init__(self, config: PretrainedConfig, *, widths: tuple[int, ...]) -> None:
        self._widths = widths
        self.runtime_options = dict(_SCALE)
        super().__init__(config, task="text-generation", use_past=True, use_past_in_inputs=True)

    def add_past_key_values(self, inputs_or_outputs: dict[str, dict[int, str]], direction: str) -> None:
        """Names the states of the remaining mixers as optimum does, which its loaders go by."""
        name = {"inputs": "cache_params.past", "outputs": "cache_params.present"}[direction]
        for index in range(len(self._widths)):
            for part in ("ssm", "conv"):
                inputs_or_outputs[f"{name}.{part}.{index}"] = {0: "batch_size"}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        """Example inputs: token ids [B, T], mask [B, past + T], states [B, N, C] and [B, C, K] of each mixer."""
        states, kernel = self._config.state_size, self._config.conv_kernel
        return {
            **_tokens_and_mask(),
            "cache_params": [
                (torch.zeros((_BATCH, states, width)), torch.zeros((_BATCH, width, kernel))) for width in self._widths
            ],
        }


def _tokens_and_mask() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.zeros((_BATCH, _TOKENS), dtype=torch.int64),
        "attention_mask": torch.ones((_BATCH, _PAST + _TOKENS), dtype=torch.int64),
    }
