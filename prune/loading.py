"""Reading checkpoints: where they are, whether they can be used, and the model in memory.

Weights come from safetensors files only, tensor by tensor through a memory map; no code that a checkpoint brings along
is executed unless the caller allows it.  Every tensor that the architecture needs must be there with the right shape
and finite values: nothing is ever silently initialised.
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
from prune_export.prune.families import Family, family_of, is_pruned, needs_eager, pruned_classes, stock_classes
from prune_export.prune.quiet import quiet
from prune_export.prune.remote import is_remote, remote_config, remote_model
from prune_export.prune.shapes import model_shape

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
_PIECE = 1 << 20
# Ends of the names of buffers in older checkpoints: rotary frequencies and causal masks.
_RECOMPUTED = (".inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_model(directory: Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> Any:
    """The causal language model in a directory, dense or pruned by this package, in evaluation mode on the CPU.

    Weights stored in `dtype` are used through the memory map; others are converted one at a time.

    Args:
        directory: holds config.json and safetensors weights.
        dtype: of the parameters in memory.
        trust_remote_code: run the code that the directory brings along, for the families that are not in
            `transformers`; never used for the others.

    Raises:
        BadInputError: missing or broken files, code that may not run, an unsupported architecture, missing or surplus
            tensors, wrong shapes, values that are not finite.
    """
    config = load_config(directory, trust_remote_code=trust_remote_code)
    model = empty_model(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = model_shape(config).tied_embeddings
    family = family_of(config)
    head = f"{family.head}.weight"
    if tied:
        del expected[head]
    state = {}
    for stored, tensor in _tensors(directory):
        name = _current_name(stored, family, expected)
        if name.endswith(_RECOMPUTED) or (tied and name == head):
            continue  # made from the configuration; the same tensor as the embedding table
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
        if needs_eager(config):
            model.set_attn_implementation("eager")
    return model


def load_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration in a directory, as an object of its family's class.

    Raises:
        BadInputError: missing directory or file, no JSON, unsupported architecture, quantized weights, invalid values.
    """
    data = _read_config(directory)
    family = family_of(data)
    if "quantization_config" in data:
        raise BadInputError(f"{directory} holds quantized weights, pruning needs plain ones: use the original model")
    try:
        with quiet():
            if is_remote(family):
                config = remote_config(directory, family, trust_remote_code=trust_remote_code)
            else:
                config_class, _ = pruned_classes(family) if is_pruned(data) else stock_classes(family)
                config = config_class.from_dict(data)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise BadInputError(f"{directory / CONFIG} is not valid for {family.name}: {_one_line(error)}") from None
    model_shape(config)
    return config


def empty_model(config: Any) -> Any:
    """The model of a configuration with parameters on the meta device: shapes without memory (but `remote_model`)."""
    family = family_of(config)
    if is_remote(family):
        with quiet():
            return remote_model(config).eval()
    _, model_class = pruned_classes(family) if is_pruned(config) else stock_classes(family)
    with quiet(), torch.device("meta"):
        return model_class(config).eval()


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
    _fill_buffers(model, family)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left
    model.requires_grad_(False)


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a directory.

    Args:
        directory: holds its files.
        trust_remote_code: run the code that the directory brings along.

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
                directory,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                config=load_config(directory, trust_remote_code=trust_remote_code),
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
        data = json.loads(path.read_text(encoding="utf8"), object_hook=_special_float)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadInputError(f"{path} is no table of settings")
    return data


def _special_float(item: dict[str, Any]) -> Any:
    """`transformers` writes numbers that are not finite (Mamba-2's limits) as {"__float__": "Infinity"}."""
    return float(item["__float__"]) if item.keys() == {"__float__"} else item


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


def _current_name(name: str, family: Family, expected: dict[str, tuple[int, ...]]) -> str:
    """The name in today's model: checkpoints of a bare decoder, such as GPT-2's, lack the decoder's own name."""
    base = family.layers.split(".", 1)[0]
    return f"{base}.{name}" if name not in expected and f"{base}.{name}" in expected else name


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


def _fill_buffers(model: Any, family: Family) -> None:
    """Computes the buffers that no checkpoint holds: rotary frequencies, Gemma's scale of the embeddings."""
    if family.rotary is not None:
        parent, _, name = family.rotary.rpartition(".")
        module = model.get_submodule(family.rotary)
        setattr(model.get_submodule(parent), name, type(module)(config=model.config))
    table = model.get_submodule(family.embeddings)
    if hasattr(table, "embed_scale"):
        table.embed_scale = torch.tensor(table.scalar_embed_scale)


def _generation_config(directory: Path, config: Any) -> Any:
    if not (directory / GENERATION_CONFIG).is_file():
        return transformers.GenerationConfig.from_model_config(config)
    try:
        return transformers.GenerationConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise BadInputError(f"{directory / GENERATION_CONFIG} cannot be read: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
