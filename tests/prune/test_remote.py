"""Baichuan's layout, whose code comes with the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain_multipruner import plain_perplexity  # type: ignore[import-not-found]
from tiny_models import masked, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.shapes import model_shape
from prune_export.prune.surgery import prune_model


@pytest.fixture
def model(baichuan: Path) -> Any:
    return load(baichuan, trust_remote_code=True)


def test_code_is_not_run_unasked(baichuan: Path) -> None:
    with pytest.raises(BadInputError, match=r"brings its own code for baichuan models.*trust_remote_code"):
        load(baichuan)


def test_pruned_equals_masked_dense_and_reloads(model: Any, tmp_path: Path) -> None:
    plan, ids = varied_plan(model), tokens(2, 12)
    with masked(model, plan.keep):
        expected = model(ids).logits
    assert (expected - model(ids).logits).abs().max() > 0.1
    pruned = prune_model(model, plan)
    assert model_shape(pruned.config) == plan.target
    assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.target.parameters()
    assert (pruned(ids).logits - expected).abs().max() <= 1e-5
    output = pruned(ids[:, :7], use_cache=True)
    assert len(output.past_key_values.layers) == len(plan.target.attention_layers)
    for at in range(7, 12):
        output = pruned(ids[:, at : at + 1], use_cache=True, past_key_values=output.past_key_values)
        assert (output.logits - expected[:, at : at + 1]).abs().max() <= 1e-5
    save_checkpoint(pruned, None, tmp_path / "pruned")
    with pytest.raises(BadInputError, match=r"brings its own code"):
        load(tmp_path / "pruned")
    again = load(tmp_path / "pruned", trust_remote_code=True)
    assert torch.equal(again(ids).logits, pruned(ids).logits)
    save_checkpoint(again, None, tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "pruned").glob("*.py"))
    assert names == ["configuration_baichuan.py", "modeling_baichuan.py", "modeling_prune_export.py"]
    assert sorted(path.name for path in (tmp_path / "again").glob("*.py")) == names


def test_a_dense_checkpoint_takes_its_code_along(model: Any, tmp_path: Path) -> None:
    save_checkpoint(model, None, tmp_path)
    assert torch.equal(load(tmp_path, trust_remote_code=True)(tokens(1, 8)).logits, model(tokens(1, 8)).logits)


def test_search(model: Any) -> None:
    ids = tokens(2, 12)
    pruner = MultiPruner(Evaluator(model, ids), cost=lambda shape: shape.parameters(), mlp_group=6)
    result = pruner.run(0.7 * model_shape(model.config).parameters())
    pruned = prune_model(model, make_plan(result, source="tiny", source_digest="s", calibration_digest="c"))
    assert plain_perplexity(pruned, ids) == pytest.approx(result.perplexity, rel=1e-5)


def test_alibi_is_refused(model: Any) -> None:
    model.config.max_position_embeddings = None
    with pytest.raises(BadInputError, match=r"no max_position_embeddings, and models with ALiBi \(Baichuan2-13B\)"):
        model_shape(model.config)
