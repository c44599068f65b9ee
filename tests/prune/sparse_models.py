"""Tiny models of the architectures that one-shot sparsity knows beside the families of structured pruning."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny_models import VOCAB, plan_of, tiny_model  # type: ignore[import-not-found]

from prune_export.plan import LayerKeep
from prune_export.prune.surgery import prune_model

KINDS = ("llama", "qwen2", "llama-pruned", "opt", "gpt2", "mamba", "mamba2")


def sparse_model(kind: str, *, seed: int = 0) -> Any:
    """Two layers, hidden 32 (the pruned Llama: five layers, of which one has neither sub-block)."""
    if kind == "llama-pruned":
        dense = tiny_model("llama", seed=seed)
        some, every = (0, 1), tuple(range(24))
        cuts = {0: LayerKeep((), every), 1: LayerKeep((1,), every[::3]), 2: LayerKeep(some, ()), 3: LayerKeep((), ())}
        return prune_model(dense, plan_of(dense, cuts))
    if kind in ("llama", "qwen2"):
        return tiny_model(kind, seed=seed, layers=2)
    torch.manual_seed(seed)
    common = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
    if kind == "opt":
        config = transformers.OPTConfig(
            **common, ffn_dim=64, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32
        )
        model = transformers.OPTForCausalLM(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "mamba":
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**common, state_size=4, time_step_rank=8))
    else:
        config = transformers.Mamba2Config(**common, num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=8)
        model = transformers.Mamba2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not name.endswith("A_log"):
            torch.nn.init.normal_(parameter.data, std=0.15)
    return model.eval().requires_grad_(False)
