"""Configuration files beside an exported model, under the family's stock model type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prune_export.prune.families import family_of
from prune_export.prune.shapes import head_dim


def save_configs(model: PreTrainedModel, directory: Path, family: str) -> None:
    """Writes config.json and generation_config.json."""
    text = json.dumps(stock_config(model, family), indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf8")
    # Written without the checks of save_pretrained, which refuses some published files (a temperature beside greedy).
    if model.generation_config is not None:
        model.generation_config.to_json_file(directory / "generation_config.json")


def stock_config(model: PreTrainedModel, family: str) -> dict[str, Any]:
    """config.json under the family's stock model type.

    The exported graph carries the per-layer shapes itself; its loaders want a model type that transformers knows
    without remote code, token ids and the context length.  `prune_layers`, where there is one, stays as plain
    information.
    """
    data: dict[str, Any] = model.config.to_diff_dict()
    for key in ("auto_map", "_name_or_path"):
        data.pop(key, None)
    stock = AutoConfig.for_model(family)
    data["model_type"] = stock.model_type
    data["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[stock.model_type]]
    if not family_of(model.config).mixer:
        data["head_dim"] = head_dim(model.config)
    data["dtype"] = "float32"
    data["use_cache"] = True
    return data
