"""Every family from search to a reloaded checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_multipruner import plain_perplexity  # type: ignore[import-not-found]
from tiny_models import ONE_OF_EACH, tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.plan import PrunePlan
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.surgery import prune_model


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_search_surgery_and_reload(variant: str, tmp_path: Path) -> None:
    model, ids = tiny_model(variant, layers=3), tokens(2, 12)
    pruner = MultiPruner(Evaluator(model, ids), cost=lambda shape: shape.parameters(), mlp_group=6)
    dense = sum(parameter.numel() for parameter in model.parameters())
    result = pruner.run(0.72 * dense)
    assert {step.stage for step in result.history} >= {"blocks", "mlp"}
    make_plan(result, source="tiny", source_digest="s", calibration_digest="c").save(tmp_path / "plan.json")
    plan = PrunePlan.load(tmp_path / "plan.json")
    pruned = prune_model(model, plan)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.target.parameters() == result.cost
    assert plain_perplexity(pruned, ids) == pytest.approx(result.perplexity, rel=1e-5)
    save_checkpoint(pruned, None, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(ids).logits, pruned(ids).logits)
