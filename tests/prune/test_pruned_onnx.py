"""Pruned models of the families beside Llama's kind, as ONNX in `onnxruntime` against torch, through the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import plan_of, tiny_model, varied_plan

from prune_export.errors import BadInputError, ParityError
from prune_export.export.gate import check_against
from prune_export.export.onnx_export import export_onnx
from prune_export.export.onnx_read import read_decoder
from prune_export.export.parity import torch_reference
from prune_export.plan import LayerKeep
from prune_export.prune.surgery import prune_model

HALF_ROTATED = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
# ONNX Runtime rotates multiples of 16 dimensions, of heads that are a multiple of 16 wide.
WIDE: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "qwen3-biases-tied": {"head_dim": 16},
    "phi3": {"hidden_size": 64},
    "gpt_neox": {"hidden_size": 128},
    "gpt_neox-sequential": {"hidden_size": 128, "rope_parameters": HALF_ROTATED},
    "opt": {},
    "opt-bare": {},
    "gpt2": {},
    "gpt2-inverse-scale": {},
}


@pytest.mark.parametrize("variant", WIDE)
def test_a_pruned_model_computes_what_torch_computes(variant: str, tmp_path: Path) -> None:
    dense = tiny_model(variant, **WIDE[variant])
    pruned = prune_model(dense, varied_plan(dense))
    layers = read_decoder(pruned).layers
    # Layer 0 is without attention, 2 without MLP, 3 without both; 1 and 4 are narrower, each in its own way.
    assert [layer.attention is not None for layer in layers] == [False, True, True, False, True]
    assert [layer.mlp is not None for layer in layers] == [True, True, False, False, True]
    assert len({layer.mlp.up.weight.shape[0] for layer in layers if layer.mlp is not None}) == 3
    assert len({layer.attention.heads for layer in layers if layer.attention is not None}) == 2
    export_onnx(pruned, None, tmp_path)
    errors, tolerance = check_against(torch_reference(pruned), tmp_path, threads=1)
    assert max(errors.values()) <= tolerance


def test_another_cut_is_found(tmp_path: Path) -> None:
    dense = tiny_model("gpt2", layers=2)
    whole = tuple(range(24))
    one, other = (
        prune_model(tiny_model("gpt2", layers=2), plan_of(dense, {0: LayerKeep(groups, whole)}))
        for groups in ((0, 1), (0, 2))
    )
    export_onnx(one, None, tmp_path)
    with pytest.raises(ParityError, match="largest logit error"):
        check_against(torch_reference(other), tmp_path, threads=1)


def test_rotations_that_the_runtime_has_not_are_refused() -> None:
    model = tiny_model("gpt_neox", layers=1, hidden_size=64)
    with pytest.raises(BadInputError, match="heads of which 8 dimensions are rotated have no ONNX export"):
        read_decoder(model)
