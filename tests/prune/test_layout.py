"""Fused, interleaved and transposed layouts against the same models with separate projections."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.prune.families import family_of
from prune_export.prune.layout import output_units, row_matrix
from prune_export.prune.reorder import importance_orders
from prune_export.prune.shapes import model_shape
from prune_export.prune.surgery import prune_model


def test_phi3_is_a_llama_with_fused_projections() -> None:
    phi = tiny_model("phi3")
    llama = tiny_model("llama")
    for fused, layer in zip(phi.model.layers, llama.model.layers, strict=True):
        q, k, v = fused.self_attn.qkv_proj.weight.split([32, 16, 16])
        gate, up = fused.mlp.gate_up_proj.weight.split(24)
        pairs = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "mlp.gate_proj": gate}
        for name, weight in (pairs | {"mlp.up_proj": up}).items():
            layer.get_submodule(name).weight.copy_(weight)
        layer.self_attn.o_proj.weight.copy_(fused.self_attn.o_proj.weight)
        layer.mlp.down_proj.weight.copy_(fused.mlp.down_proj.weight)
        layer.input_layernorm.weight.copy_(fused.input_layernorm.weight)
        layer.post_attention_layernorm.weight.copy_(fused.post_attention_layernorm.weight)
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        llama.get_submodule(name).weight.copy_(phi.get_submodule(name).weight)
    for module in llama.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = phi.config.rms_norm_eps
    assert (phi(tokens(2, 9)).logits - llama(tokens(2, 9)).logits).abs().max() <= 1e-5
    assert importance_orders(phi) == importance_orders(llama)


@pytest.mark.parametrize("variant", ["gpt_neox", "gpt2", "opt"])
def test_scores_by_hand(variant: str) -> None:
    """Loops over heads and channels as the family's own forward pass splits them."""
    model = tiny_model(variant)
    for order, layer in zip(importance_orders(model), _layers(model), strict=True):
        *qkv, up = _by_hand(layer)
        heads = [sum(float(part[head].abs().sum(1).mean()) for part in qkv) for head in range(4)]
        assert list(order.kv_groups) == sorted(range(4), key=lambda head: -heads[head])
        channels = [float(row.abs().sum()) for row in up]
        assert list(order.mlp_channels) == sorted(range(24), key=lambda channel: -channels[channel])


def _layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    found: torch.nn.ModuleList = next(item for item in model.modules() if isinstance(item, torch.nn.ModuleList))
    return found


def _by_hand(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v [4, 8, 32] and up [24, 32] of a layer with 4 heads of 8."""
    if isinstance(layer, transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXLayer):
        fused = layer.attention.query_key_value.weight.view(4, 24, 32)
        return fused[:, :8], fused[:, 8:16], fused[:, 16:], layer.mlp.dense_h_to_4h.weight
    if isinstance(layer, transformers.models.gpt2.modeling_gpt2.GPT2Block):
        q, k, v = (part.T.reshape(4, 8, 32) for part in layer.attn.c_attn.weight.split(32, dim=1))
        return q, k, v, layer.mlp.c_fc.weight.T
    attention = layer.self_attn
    q, k, v = (item.weight.view(4, 8, 32) for item in (attention.q_proj, attention.k_proj, attention.v_proj))
    return q, k, v, layer.fc1.weight


@pytest.mark.parametrize("variant", ["llama", "phi3", "gpt_neox", "opt", "gpt2", "mamba2-groups"])
def test_output_units_are_what_surgery_keeps(variant: str) -> None:
    """The pruned output projection holds the columns of the kept units."""
    model = tiny_model(variant)
    family, shape, plan = family_of(model.config), model_shape(model.config), varied_plan(model)
    pruned = prune_model(model, plan)
    kept = {"attention": plan.keep[1].kv_groups, "mlp": plan.keep[1].mlp_channels, "mixer": plan.keep[1].mixer_units}
    for part, units in kept.items():
        if units:
            layer, cut = (item.get_submodule(family.layers)[1] for item in (model, pruned))
            path, columns = output_units(layer, family, shape, 1, part)
            wanted = row_matrix(layer.get_submodule(path))[:, columns[list(units)].flatten().sort().values]
            assert torch.equal(row_matrix(cut.get_submodule(path)), wanted)
