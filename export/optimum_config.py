"""optimum-intel's export configuration for decoders whose layers differ.

The stock configurations read one KV-head count for all layers from config.json.  Here every remaining attention has
its own, and a layer without attention has no cache at all.
"""

from __future__ import annotations

from typing import Any

import torch
from optimum.exporters.openvino.config import TextDecoderWithPositionIdsOpenVINOConfig
from optimum.exporters.openvino.model_patcher import OVDecoderModelPatcher
from optimum.utils import NormalizedTextConfig
from transformers import PretrainedConfig

# Example inputs for the tracer.  No dimension may be 0 or 1 (the tracer would take it for a broadcast) and the two
# lengths differ, so that a length is never mistaken for another.
_BATCH, _TOKENS, _PAST = 2, 5, 7

# What optimum writes into every uncompressed text model, so that ours behave alike: the runtime's own default would
# be a cache in 8 bits, and fp16 GPUs would overflow without the scale.
_RUNTIME_OPTIONS = {"ACTIVATIONS_SCALE_FACTOR": "8.0", "KV_CACHE_PRECISION": "f16"}


class DecoderExportConfig(TextDecoderWithPositionIdsOpenVINOConfig):  # type: ignore[misc]
    """Export with past of a decoder with per-layer KV heads.

    Args:
        config: the model's configuration.
        kv_heads: K of each remaining attention, in the order of their caches.
        head_dim: d.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    # For Mistral, optimum has a patcher that looks for an attention in every layer; with transformers 5 the general
    # one does the same work.
    _MODEL_PATCHER = OVDecoderModelPatcher

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
        ids = torch.zeros((_BATCH, _TOKENS), dtype=torch.int64)
        caches = [
            tuple(torch.zeros((_BATCH, heads, _PAST, self._head_dim)) for _ in ("key", "value"))
            for heads in self._kv_heads
        ]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones((_BATCH, _PAST + _TOKENS), dtype=torch.int64),
            "position_ids": torch.arange(_PAST, _PAST + _TOKENS).expand(_BATCH, _TOKENS).contiguous(),
            "past_key_values": caches,
        }
