"""Checkpoints in the per-layer layout of `DeciLMForCausalLM`, written, and read back for the gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open

from prune_export.errors import ParityError
from prune_export.export import configuration_decilm
from prune_export.export.decilm_layout import Block, block_configs, blocks_of, width_of
from prune_export.export.gate import TOLERANCE
from prune_export.export.parity import greedy_tokens_of, torch_agreement, torch_reference
from prune_export.export.quiet import quiet
from prune_export.prune.families import FAMILIES, pruned_classes
from prune_export.prune.loading import CONFIG, GENERATION_CONFIG, empty_model, fill, weight_files
from prune_export.prune.shapes import head_dim, model_shape

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_KEPT_SETTINGS = (
    "hidden_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings",
    "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range",
    "rope_parameters",
)  # fmt: skip
_PARTS = {"attention": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
_LAYERS = "model.layers"


def write_decilm(model: Any, tokenizer: Any, directory: Path, *, dtype: torch.dtype) -> None:
    """Writes config.json, the class behind it, weights, generation configuration and tokenizer files.

    Args:
        model: of Llama's or Mistral's family, dense or pruned.
        tokenizer: its tokenizer, or None.
        directory: made if missing.
        dtype: of the stored weights.

    Raises:
        BadInputError: the model does not fit the layout.
    """
    blocks = blocks_of(model.config)
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        save_torch_state_dict(_state(model, blocks, dtype), directory, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
    _write_json(directory / CONFIG, _config(model.config, blocks, dtype))
    _write_json(directory / GENERATION_CONFIG, json.loads(model.generation_config.to_json_string()))
    shutil.copyfile(configuration_decilm.__file__, directory / "configuration_decilm.py")


def read_decilm(directory: Path) -> Any:
    """The model that a directory in this layout describes, by the readers' rules, in fp32; for the gate.

    Its dimensions come from `block_configs` alone, not from the weights.
    """
    data = json.loads((directory / CONFIG).read_text(encoding="utf8"))
    heads, hidden = data["num_attention_heads"], data["hidden_size"]
    rows = [
        [
            0 if block["attention"]["no_op"] else heads,
            0 if block["attention"]["no_op"] else heads // block["attention"]["n_heads_in_group"],
            0 if block["ffn"]["no_op"] else width_of(block["ffn"]["ffn_mult"], hidden),
        ]
        for block in data["block_configs"]
    ]
    settings = {name: data[name] for name in _KEPT_SETTINGS}
    settings |= {"num_hidden_layers": data["num_hidden_layers"], "num_attention_heads": heads, "prune_layers": rows}
    model = empty_model(pruned_classes(FAMILIES["llama"])[0](**settings))
    state: dict[str, torch.Tensor] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            state |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  no mapping
    fill(model, state)
    return model


def check_decilm(
    model: Any, directory: Path, *, prompt: Sequence[int], new_tokens: int
) -> tuple[dict[str, float], float, float]:
    """Compares what a directory describes with the model that was written there.

    Args:
        model: with the weights in the precision that they were stored in.
        directory: from `write_decilm`.
        prompt: of a greedy continuation.
        new_tokens: its length.

    Returns:
        The largest logit error of each check, the limit on it, and the share of the model's greedy tokens that what is
        described chooses too, each after those before it.

    Raises:
        ParityError: an error is over the limit or not finite.
    """
    described = read_decilm(directory)
    ours, theirs = torch_reference(described), torch_reference(model)
    errors = {}
    for name, steps in ours.logits.items():
        pairs = zip(steps, theirs.logits[name], strict=True)
        errors[name] = float(np.max([np.abs(one - other).max() for one, other in pairs]))
        if not errors[name] <= TOLERANCE:
            raise ParityError(
                f'parity check "{name}": what {directory.name} describes differs from the checkpoint, largest logit '
                f"error {errors[name]:.2g}, the limit is {TOLERANCE:.0e}: export again"
            )
    expected = greedy_tokens_of(model, prompt, new_tokens=new_tokens)
    return errors, TOLERANCE, torch_agreement(described, prompt, expected)


def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Rounds a model's weights to a type, in place; they stay in fp32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).float()


def _config(config: Any, blocks: tuple[Block, ...], dtype: torch.dtype) -> dict[str, Any]:
    shape = model_shape(config)
    layers = [shape.layers[block.attention] for block in blocks if block.attention is not None]
    rope = dict(config.rope_parameters or {})
    data = {name: getattr(config, name, False) for name in _KEPT_SETTINGS}
    data |= {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "model_type": "nemotron-nas",
        "block_configs": block_configs(blocks, shape),
        "num_hidden_layers": len(blocks),
        "num_attention_heads": layers[0].query_heads,
        "num_key_value_heads": layers[0].kv_heads,
        "head_dim": head_dim(config),
        "intermediate_size": max(shape.layers[block.mlp].mlp_width for block in blocks),
        "use_cache": True,
        "dtype": str(dtype).removeprefix("torch."),
        # As older releases of the readers look for them.
        "rope_theta": rope.get("rope_theta", 10000.0),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if "original_max_position_embeddings" in rope:  # llama.cpp looks for it here
        data["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return data


def _state(model: Any, blocks: tuple[Block, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of the layout by name: the family's own names, layers numbered anew."""
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    if model_shape(model.config).tied_embeddings:
        state.pop("lm_head.weight", None)
    result = {name: tensor for name, tensor in state.items() if not name.startswith(f"{_LAYERS}.")}
    for number, block in enumerate(blocks):
        for source, part in ((block.attention, "attention"), (block.mlp, "mlp")):
            if source is None:
                continue
            begin = f"{_LAYERS}.{source}."
            for name, tensor in state.items():
                if name.startswith(tuple(f"{begin}{module}." for module in _PARTS[part])):
                    result[f"{_LAYERS}.{number}.{name.removeprefix(begin)}"] = tensor
    return result


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf8")
