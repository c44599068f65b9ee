"""Checkpoints that one-shot sparsity reads and writes: the families of structured pruning, GPT-2, OPT, Mamba, Mamba-2.

The latter keep their stock architecture, so `transformers` reads and writes them; safetensors only, no code from the
checkpoint, nothing silently initialised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from prune_export.errors import BadInputError
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.families import FAMILIES, PRUNED_PREFIX
from prune_export.prune.layer_walk import OTHER_LAYERS
from prune_export.prune.loading import CONFIG, load_model, load_tokenizer, weight_files
from prune_export.prune.quiet import quiet
from prune_export.prune.shapes import model_shape

_NO_LIMIT = 2048


def load_any(directory: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a checkpoint directory.

    Raises:
        BadInputError: an unsupported architecture, or an incomplete or damaged checkpoint.
    """
    kind = _architecture(directory)
    if kind in FAMILIES or kind not in OTHER_LAYERS:
        return load_model(directory), load_tokenizer(directory)
    weight_files(directory)
    try:
        with quiet():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise BadInputError(f"{directory} cannot be read: {' '.join(str(error).split())[:300]}") from None
    if missing := sorted(info["missing_keys"]):
        raise BadInputError(f"{directory} lacks {len(missing)} tensors, the first is {missing[0]}: download it again")
    return model.eval().requires_grad_(False), tokenizer


def save_any(model: Any, tokenizer: Any, directory: Path) -> None:
    """Writes what `load_any` reads, in the layout of the model's own architecture."""
    if str(model.config.model_type).removeprefix(PRUNED_PREFIX) in FAMILIES:
        save_checkpoint(model, tokenizer, directory)
        return
    with quiet():
        model.save_pretrained(directory, safe_serialization=True)
        tokenizer.save_pretrained(directory)


def context_of(model: Any) -> int:
    """Longest sequence in tokens; 2048 for architectures without a limit."""
    if str(model.config.model_type).removeprefix(PRUNED_PREFIX) in FAMILIES:
        return model_shape(model.config).context
    return int(getattr(model.config, "max_position_embeddings", _NO_LIMIT))


def _architecture(directory: Path) -> str:
    try:
        data = json.loads((directory / CONFIG).read_text(encoding="utf8"))
        return str(data["model_type"]).removeprefix(PRUNED_PREFIX)
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # `load_model` says what is wrong
