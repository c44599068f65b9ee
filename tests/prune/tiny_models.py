"""Tiny random models of every family, and the masked dense model as the independent reference for pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from prune_export.plan import LayerKeep, PrunePlan, keep_all
from prune_export.prune.families import FAMILIES, family_of, needs_eager
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
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3-biases-tied": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "phi3": ("phi3", {}),
    "phi3-mha-window": ("phi3", {"num_key_value_heads": 4, "sliding_window": 5, "partial_rotary_factor": 0.5}),
    "gemma2": ("gemma2", {"head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": 5,
                          "tie_word_embeddings": True, "final_logit_softcapping": 4.0}),
    "gpt_neox": ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                  "partial_rotary_factor": 0.5}}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "opt": ("opt", {"tie_word_embeddings": True}),
    "opt-bare": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "gpt2": ("gpt2", {"tie_word_embeddings": True}),
    "gpt2-inverse-scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": None}),
    "mamba": ("mamba", {"state_size": 4, "conv_kernel": 3, "tie_word_embeddings": True}),
    "mamba-biases": ("mamba", {"state_size": 4, "use_bias": True, "use_conv_bias": False}),
    "mamba2": ("mamba2", {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4}),
    "mamba2-groups": ("mamba2", {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4,
                                 "use_bias": True}),
}  # fmt: skip
# The first variant of every family.
ONE_OF_EACH = tuple({family: variant for variant, (family, _) in reversed(VARIANTS.items())}.values())[::-1]
# How the families call the common settings, where they differ from Llama; None leaves one out.
NOT_IN_MAMBA: dict[str, str | None] = dict.fromkeys(
    ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
)
RENAMED: dict[str, dict[str, str | None]] = {
    "gpt_neox": {"num_key_value_heads": None},
    "opt": {"intermediate_size": "ffn_dim", "num_key_value_heads": None},
    "gpt2": {"intermediate_size": "n_inner", "num_key_value_heads": None},
    "mamba": NOT_IN_MAMBA,
    "mamba2": NOT_IN_MAMBA,
}


@dataclass(frozen=True)
class Places:
    """Where the sub-blocks are; written down here again, so that a wrong name in the package's table is found."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    o: str = "self_attn.o_proj"
    mlp: str = "mlp"
    down: str = "mlp.down_proj"
    cache: str = "past_key_values"


PLACES = {
    "gpt_neox": Places("gpt_neox.layers", "attention", "attention.dense", "mlp", "mlp.dense_4h_to_h"),
    "opt": Places("model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2", "fc2"),
    "gpt2": Places("transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj"),
    "mamba": Places("backbone.layers", cache="cache_params"),
    "mamba2": Places("backbone.layers", cache="cache_params"),
}


def places(model: Any) -> Places:
    """Of a model's family."""
    return PLACES.get(model.config.model_type.removeprefix("prune_"), Places())


def tiny_model(variant: str = "llama", *, seed: int = 0, layers: int = 5, **more: Any) -> Any:
    """A model with weights large enough that every sub-block matters, biases and norms included.

    Args:
        variant: one of `VARIANTS`.
        seed: of the weights.
        layers: how many.
        more: settings that differ from the variant's, by the family's names.
    """
    family, changes = VARIANTS[variant]
    base = {
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
    }
    names = {name: RENAMED.get(family, {}).get(name, name) for name in base}
    settings = {new: base[name] for name, new in names.items() if new} | changes | more
    torch.manual_seed(seed)
    config = getattr(transformers, FAMILIES[family].config_class)(**settings)
    model = getattr(transformers, FAMILIES[family].model_class)(config).eval().requires_grad_(False)
    fill_with_noise(model, seed)
    if needs_eager(config):  # as `load_model` does
        model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = None
    return model


def fill_with_noise(model: Any, seed: int) -> None:
    """Gives every parameter values that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if "norm" in name or ".ln_" in name else 0.2 * noise)


def tokens(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Random token ids above the special ones."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def plan_of(model: Any, changed: dict[int, LayerKeep]) -> PrunePlan:
    """A plan that keeps everything except in the layers given."""
    shape = model_shape(model.config)
    keep = tuple(changed.get(index, whole) for index, whole in enumerate(keep_all(shape)))
    return PrunePlan("tiny", "0" * 64, shape, keep, "by hand", "parameters", "0" * 64)


def varied_plan(model: Any) -> PrunePlan:
    """Layer 0 loses its attention, 1 half of both, 2 its MLP, 3 both; 4 stays whole but for channels in the middle.

    In a state-space model, layers 0 and 3 are gone, 1 is narrower, 2 loses its recurrence (if it can) and 4 both.
    """
    shape = model_shape(model.config)
    whole = keep_all(shape)[0]
    if shape.mixer is not None:
        alone = shape.layers[0].state_size > 0
        return plan_of(
            model,
            {
                0: LayerKeep((), ()),
                1: LayerKeep((), (), whole.mixer_units[1::2]),
                2: LayerKeep((), (), whole.mixer_units, not alone),
                3: LayerKeep((), ()),
                4: LayerKeep((), (), whole.mixer_units[1:4], not alone),
            },
        )
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
    shape, where = model_shape(model.config), places(model)
    if shape.mixer is not None:
        with _masked_mixers(model.get_submodule(where.layers), keep):
            yield model
        return
    handles = []
    for layer, dims, kept in zip(model.get_submodule(where.layers), shape.layers, keep, strict=True):
        size = dims.query_heads // dims.kv_heads * shape.head_dim
        columns = [group * size + offset for group in kept.kv_groups for offset in range(size)]
        o, down = layer.get_submodule(where.o), layer.get_submodule(where.down)
        handles.append(o.register_forward_pre_hook(_keep_columns(columns)))
        handles.append(down.register_forward_pre_hook(_keep_columns(list(kept.mlp_channels))))
        if not kept.kv_groups:
            attention = layer.get_submodule(where.attention)
            handles.append(attention.register_forward_hook(lambda _m, _a, out: (torch.zeros_like(out[0]), *out[1:])))
        if not kept.mlp_channels:
            mlp = layer.get_submodule(where.mlp)
            handles.append(mlp.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out)))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _masked_mixers(layers: Any, keep: tuple[LayerKeep, ...]) -> Iterator[None]:
    """Channels are silenced where they enter B, C, the time step and the output, heads where they enter the gated norm;
    a recurrence by zero weights for C.
    """
    handles, restored = [], []
    for layer, kept in zip(layers, keep, strict=True):
        mixer = layer.mixer
        if hasattr(mixer, "x_proj"):
            handles += [
                getattr(mixer, name).register_forward_pre_hook(_keep_columns(list(kept.mixer_units)))
                for name in ("x_proj", "out_proj")
            ]
        else:
            size, per_group = mixer.head_dim, mixer.num_heads // mixer.n_groups
            heads = [group * per_group + unit for group in range(mixer.n_groups) for unit in kept.mixer_units]
            columns = [head * size + offset for head in heads for offset in range(size)]
            handles.append(mixer.norm.register_forward_pre_hook(_keep_columns(columns)))
            if not kept.recurrence:
                restored.append((mixer.conv1d.weight, mixer.conv1d.weight.clone()))
                restored.append((mixer.conv1d.bias, mixer.conv1d.bias.clone()))
                for tensor in (mixer.conv1d.weight, mixer.conv1d.bias):
                    tensor[-mixer.n_groups * mixer.ssm_state_size :] = 0
        if not kept.mixer_units:
            handles.append(mixer.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for tensor, values in restored:
            tensor.copy_(values)


def _keep_columns(columns: list[int]) -> Any:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        mask = torch.zeros(inputs[0].shape[-1])
        mask[columns] = 1
        return (inputs[0] * mask, *inputs[1:])

    return hook


def last_stream(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What enters the final norm, [N, T, D], from one whole pass."""
    seen: list[torch.Tensor] = []
    norm = model.get_submodule(family_of(model.config).final_norm)
    handle = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    return seen[0]


def generated(model: Any, prompt: NDArray[np.int64], new_tokens: int) -> list[int]:
    """Torch's own greedy tokens, by its own loop."""
    ids = torch.from_numpy(prompt)[None]
    model.generation_config.eos_token_id = None
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    expected: list[int] = found[0, len(prompt) :].tolist()
    return expected
