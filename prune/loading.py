"""Reading checkpoints: where they are, whether they can be used, and the model in memory.

Weights come from safetensors files only, tensor by tensor through a memory map; nothing that a checkpoint brings along
is executed.  Every tensor that the architecture needs must be there with the right shape and finite values: nothing is
ever silently initialised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from prune_export.errors import BadInputError
from prune_export.files import release_pages, sha256
from prune_export.prune import modeling
from prune_export.prune.families import Family, family_of, is_pruned
from prune_export.prune.quiet import quiet
from prune_export.prune.shapes import model_shape

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
_PIECE = 1 << 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_model(directory: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model in a directory, dense or pruned by this package, in evaluation mode on the CPU.

    Weights stored in `dtype` are used through the memory map; others are converted one at a time.

    Args:
        directory: holds config.json and safetensors weights.
        dtype: of the parameters in memory.

    Raises:
        BadInputError: missing or broken files, an unsupported architecture, missing or surplus tensors, wrong shapes,
            values that are not finite.
    """
    config = load_config(directory)
    model = empty_model(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = model_shape(config).tied_embeddings
    head = f"{family_of(config).head}.weight"
    if tied:
        del expected[head]
    state = {}
    for name, tensor in _tensors(directory):
        if name.endswith("rotary_emb.inv_freq") or (tied and name == head):
            continue  # recomputed from the configuration; the same tensor as the embedding table
        _check_tensor(directory, name, tensor, expected)
        state[name] = tensor.to(dtype)
    if missing := sorted(expected.keys() - state.keys()):
        raise BadInputError(
            f"{directory} lacks {len(missing)} of {len(expected)} tensors that its {CONFIG} asks for, the first is "
            f"{missing[0]}: the checkpoint is incomplete, download it again"
        )
    fill(model, state)
    release_pages(directory)  # every value was looked at once; what the model uses comes back as it is used
    with quiet():
        model.generation_config = _generation_config(directory, config)
    return model


def load_config(directory: Path) -> Any:
    """The configuration in a directory, as an object of its family's class.

    Raises:
        BadInputError: missing directory or file, no JSON, unsupported architecture, quantized weights, invalid values.
    """
    data = _read_config(directory)
    family = family_of(data)
    if "quantization_config" in data:
        raise BadInputError(f"{directory} holds quantized weights, pruning needs plain ones: use the original model")
    source, name = (modeling, family.pruned_config_class) if is_pruned(data) else (transformers, family.config_class)
    try:
        with quiet():
            config = getattr(source, name).from_dict(data)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise BadInputError(f"{directory / CONFIG} is not valid for {family.name}: {_one_line(error)}") from None
    model_shape(config)
    return config


def empty_model(config: Any) -> Any:
    """The model of a configuration with parameters on the meta device: shapes without memory."""
    family = family_of(config)
    source, name = (modeling, family.pruned_model_class) if is_pruned(config) else (transformers, family.model_class)
    with quiet(), torch.device("meta"):
        return getattr(source, name)(config).eval()


def fill(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Puts tensors into an empty model without copying them, ties the head and computes the rotary buffers.

    Args:
        model: from `empty_model`.
        state: all parameters by name; the LM head may be left out when it is tied.
    """
    family = family_of(model.config)
    model.load_state_dict(state, strict=False, assign=True)
    if model_shape(model.config).tied_embeddings:
        model.get_submodule(family.head).weight = model.get_submodule(family.embeddings).weight
    _replace_rotary(model, family)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left
    model.requires_grad_(False)


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in a directory.

    Raises:
        BadInputError: there is none, or it cannot be read.
    """
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise BadInputError(
            f"{directory} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}): "
            "copy the model's tokenizer files there"
        )
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, config=load_config(directory)
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise BadInputError(f"the tokenizer in {directory} cannot be read: {_one_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exception for a broken tokenizer.json
        raise BadInputError(f"the tokenizer in {directory} cannot be read: {_one_line(error)}") from None


def source_digest(directory: Path) -> str:
    """sha256 (64 hex digits) over config.json and the weight files, their names included.

    Raises:
        BadInputError: as `load_config` and for missing weights.
    """
    _read_config(directory)
    hasher = hashlib.sha256()
    for path in (directory / CONFIG, *weight_files(directory)):
        hasher.update(f"{path.name} {sha256(path)}\n".encode())
    return hasher.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted.

    Raises:
        BadInputError: none, pickle only, or an index that names missing files or files elsewhere.
    """
    index = directory / WEIGHTS_INDEX
    if index.is_file():
        return _shards(directory, index)
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickles:
        raise BadInputError(
            f"{directory} has pickle weights only ({pickles[0]}), which can run code when read: "
            "convert them to safetensors first"
        )
    raise BadInputError(f"{directory} has no weights: {WEIGHTS} or {WEIGHTS_INDEX} is needed")


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise BadInputError(f"model directory {directory} does not exist")
    path = directory / CONFIG
    if not path.is_file():
        what = "is empty" if not any(directory.iterdir()) else f"has no {CONFIG}"
        raise BadInputError(f"model directory {directory} {what}: it must hold {CONFIG}, safetensors and a tokenizer")
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadInputError(f"{path} is no table of settings")
    return data


def _shards(directory: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values()))
        paths = [directory / name for name in names]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise BadInputError(f"{index} is no weight index: {_one_line(error)}") from None
    for name, path in zip(names, paths, strict=True):
        if Path(name).name != name:
            raise BadInputError(
                f'{index} points to "{name}", outside the model directory: only plain file names may stand there'
            )
        if not path.is_file():
            raise BadInputError(
                f"{directory} lacks {name}, one of {len(names)} weight files in {index.name}: download it again"
            )
    return paths


def _tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadInputError(f"{path} is truncated or damaged: {_one_line(error)}; download it again") from None


def _check_tensor(directory: Path, name: str, tensor: torch.Tensor, expected: dict[str, tuple[int, ...]]) -> None:
    if name not in expected:
        raise BadInputError(
            f"{directory} holds the tensor {name}, which a model by its {CONFIG} does not have: "
            "configuration and weights do not belong together"
        )
    if tuple(tensor.shape) != expected[name]:
        raise BadInputError(
            f"{directory}: {name} has shape {list(tensor.shape)}, by {CONFIG} it must be {list(expected[name])}: "
            "configuration and weights do not belong together"
        )
    if not tensor.is_floating_point():
        raise BadInputError(f"{directory}: {name} holds {tensor.dtype}, floating-point weights are needed")
    # In pieces: a test of the whole tensor would need a temporary of its size.
    if not all(bool(torch.isfinite(piece).all()) for piece in tensor.reshape(-1).split(_PIECE)):
        raise BadInputError(f"{directory}: {name} contains NaN or infinite values: the checkpoint is damaged")


def _replace_rotary(model: Any, family: Family) -> None:
    parent, name = family.rotary.rsplit(".", 1)
    module = model.get_submodule(family.rotary)
    setattr(model.get_submodule(parent), name, type(module)(config=model.config))


def _generation_config(directory: Path, config: Any) -> Any:
    if not (directory / GENERATION_CONFIG).is_file():
        return transformers.GenerationConfig.from_model_config(config)
    try:
        return transformers.GenerationConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise BadInputError(f"{directory / GENERATION_CONFIG} cannot be read: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
