"""Checkpoints on disk: dense models in the stock layout, pruned ones with the code that runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from prune_export.prune.families import family_of, is_pruned, pruned_module
from prune_export.prune.loading import CONFIG, GENERATION_CONFIG, load_model
from prune_export.prune.quiet import quiet
from prune_export.prune.remote import copy_remote_code, is_remote
from prune_export.prune.shapes import model_shape
from prune_export.prune.surgery import AUTO_MODULE


def save_checkpoint(model: Any, tokenizer: Any, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes a model and its tokenizer so that `load` and `AutoModelForCausalLM.from_pretrained` read them.

    Tensor names are the family's own.  A pruned model's directory also gets the file that defines its classes, so it
    loads with `trust_remote_code=True` where this package is not installed.  Code that came with a model goes along.

    Args:
        model: a model of a supported family, dense or pruned.
        tokenizer: its tokenizer, or None.
        directory: exists or is created; files of the same names are overwritten.
        dtype: of the stored weights; that of the model unless told.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stored = dtype if dtype is not None else model.dtype
    with quiet():
        save_torch_state_dict(_state(model, stored), directory, metadata={"format": "pt"})
        _write_json(directory / CONFIG, _config_data(model, stored))
        _write_json(directory / GENERATION_CONFIG, json.loads(model.generation_config.to_json_string()))
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
    if is_remote(family_of(model.config)):
        copy_remote_code(model, directory, AUTO_MODULE)
    elif is_pruned(model.config):
        shutil.copyfile(str(pruned_module(family_of(model.config)).__file__), directory / f"{AUTO_MODULE}.py")


def load(directory: Path | str, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> Any:
    """The model that `save_checkpoint` wrote, or any dense checkpoint of a supported family.

    Raises:
        BadInputError: as `load_model`.
    """
    return load_model(Path(directory), dtype=dtype, trust_remote_code=trust_remote_code)


def _state(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    if model_shape(model.config).tied_embeddings:
        state.pop(f"{family_of(model.config).head}.weight", None)
    return state


def _config_data(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    data["dtype"] = str(dtype).removeprefix("torch.")
    data["architectures"] = [type(model).__name__]
    if not is_pruned(model.config) and not is_remote(family_of(model.config)):
        data.pop("auto_map", None)  # names code that once came with the checkpoint and is not used here
    return data


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf8")
