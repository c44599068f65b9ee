"""Tiny random models of every family, and the masked dense model as the independent reference for pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from prune_export.plan import LayerKeep, PrunePlan, keep_all
from prune_export.prune.families import FAMILIES
from prune_export.prune.shapes import model_shape

torch.set_num_threads(1)

VOCAB = 61
# Family and the settings that differ from the base: grouped KV heads, one KV head for each query head, biases, windows.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-biases-tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2-mixed-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
}


def tiny_model(variant: str = "llama", *, seed: int = 0, layers: int = 5) -> Any:
    """A model with weights large enough that every sub-block matters, biases and norms included."""
    family, changes = VARIANTS[variant]
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    } | changes
    torch.manual_seed(seed)
    config = getattr(transformers, FAMILIES[family].config_class)(**settings)
    model = getattr(transformers, FAMILIES[family].model_class)(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    model.generation_config.eos_token_id = None
    return model


def tokens(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Random token ids above the special ones."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def plan_of(model: Any, changed: dict[int, LayerKeep]) -> PrunePlan:
    """A plan that keeps everything except in the layers given."""
    shape = model_shape(model.config)
    keep = tuple(changed.get(index, whole) for index, whole in enumerate(keep_all(shape)))
    return PrunePlan("tiny", "0" * 64, shape, keep, "by hand", "parameters", "0" * 64)


def varied_plan(model: Any) -> PrunePlan:
    """Layer 0 loses its attention, 1 half of both, 2 its MLP, 3 both; 4 stays whole but for channels in the middle."""
    whole = keep_all(model_shape(model.config))[0]
    return plan_of(
        model,
        {
            0: LayerKeep((), whole.mlp_channels),
            1: LayerKeep((1,), tuple(range(0, 24, 3))),
            2: LayerKeep(whole.kv_groups, ()),
            3: LayerKeep((), ()),
            4: LayerKeep(whole.kv_groups, tuple(range(4, 9))),
        },
    )


@contextmanager
def masked(model: Any, keep: tuple[LayerKeep, ...]) -> Iterator[Any]:
    """The dense model with removed groups, channels and sub-blocks silenced by hooks; nothing is cut."""
    shape = model_shape(model.config)
    handles = []
    for layer, dims, kept in zip(model.model.layers, shape.layers, keep, strict=True):
        size = dims.query_heads // dims.kv_heads * shape.head_dim
        columns = [group * size + offset for group in kept.kv_groups for offset in range(size)]
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(_keep_columns(columns)))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(_keep_columns(list(kept.mlp_channels))))
        if not kept.kv_groups:
            handles.append(
                layer.self_attn.register_forward_hook(lambda _m, _a, out: (torch.zeros_like(out[0]), out[1]))
            )
        if not kept.mlp_channels:
            handles.append(layer.mlp.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out)))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _keep_columns(columns: list[int]) -> Any:
    def hook(_module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        mask = torch.zeros(inputs[0].shape[-1])
        mask[columns] = 1
        return (inputs[0] * mask,)

    return hook
