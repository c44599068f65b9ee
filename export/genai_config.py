"""`genai_config.json`: what ONNX Runtime GenAI wants to know of a model, in the form its own builder writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prune_export.export.files import GENAI_CONFIG, MODEL_ONNX
from prune_export.export.onnx_spec import Decoder

# Types that the runtime knows; the others run as its plain decoder.
_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
}
_PLAIN = "decoder"
_SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


def genai_config(decoder: Decoder, *, generation: Any) -> dict[str, Any]:
    """The configuration as plain data.

    The head counts stand for all layers there; where layers differ, the runtime takes each cache's own from the graph.

    Args:
        decoder: the exported model.
        generation: its `GenerationConfig`.
    """
    attentions = decoder.attentions
    first = attentions[0]
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        **({"position_ids": "position_ids"} if decoder.positions is not None else {}),
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    outputs = {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    }
    ends = generation.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    begin = generation.bos_token_id
    pad = generation.pad_token_id
    return {
        "model": {
            "bos_token_id": begin if begin is not None else end if end is not None else 0,
            "context_length": decoder.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_ONNX,
                "head_size": first.head_dim,
                "hidden_size": decoder.hidden_size,
                "inputs": inputs,
                "outputs": outputs,
                "num_attention_heads": first.heads,
                "num_hidden_layers": len(attentions),
                "num_key_value_heads": first.kv_heads,
            },
            "eos_token_id": ends if ends is not None else 0,
            "pad_token_id": pad if pad is not None else end if end is not None else 0,
            "type": _TYPES.get(decoder.family, _PLAIN),
            "vocab_size": decoder.vocab_size,
        },
        "search": {**_search(generation), "max_length": decoder.context, "past_present_share_buffer": True},
    }


def write_genai_config(decoder: Decoder, directory: Path, *, generation: Any) -> None:
    """Writes `genai_config.json`."""
    text = json.dumps(genai_config(decoder, generation=generation), indent=4)
    (directory / GENAI_CONFIG).write_text(text + "\n", encoding="utf8")


def _search(generation: Any) -> dict[str, Any]:
    settings = {
        name: value if (value := getattr(generation, name, None)) is not None else default
        for name, default in _SAMPLING.items()
    }
    return {**settings, "min_length": 0, "num_beams": 1, "num_return_sequences": 1, "early_stopping": True}
