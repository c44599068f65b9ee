"""Every family from search to a reloaded checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_multipruner import plain_perplexity  # type: ignore[import-not-found]
from tiny_models import ONE_OF_EACH, tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.plan import PrunePlan
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.journal import JournalFile
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.surgery import prune_model


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_search_surgery_and_reload(variant: str, tmp_path: Path) -> None:
    model, ids = tiny_model(variant, layers=3), tokens(2, 12)
    pruner = MultiPruner(Evaluator(model, ids), cost=lambda shape: shape.parameters(), mlp_group=6)
    dense = sum(parameter.numel() for parameter in model.parameters())
    result = pruner.run((0.5 if variant.startswith("mamba") else 0.72) * dense)
    assert {step.stage for step in result.history} >= {"blocks", "attention" if variant == "mamba2" else "mlp"}
    make_plan(result, source="tiny", source_digest="s", calibration_digest="c").save(tmp_path / "plan.json")
    plan = PrunePlan.load(tmp_path / "plan.json")
    pruned = prune_model(model, plan)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.target.parameters() == result.cost
    assert plain_perplexity(pruned, ids) == pytest.approx(result.perplexity, rel=1e-5)
    save_checkpoint(pruned, None, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(ids).logits, pruned(ids).logits)


def test_a_state_space_plan_is_kept_in_a_journal_and_a_file(tmp_path: Path) -> None:
    model, ids = tiny_model("mamba2", layers=3), tokens(2, 12)
    plan = varied_plan(tiny_model("mamba2"))
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    assert [layer.state_size for layer in plan.target.layers] == [0, 4, 0, 0, 0]
    file = JournalFile(tmp_path / "journal", "s", "c")
    runs = [
        MultiPruner(Evaluator(model, ids), cost=lambda shape: shape.parameters(), journal=file).run(10000)
        for _ in range(2)
    ]
    assert runs[0].history == runs[1].history
    assert runs[1].evaluations == 0


def test_recurrences_are_removed_when_that_costs_least() -> None:
    """Mamba-Shedder's SSM removal: with C = 0 in two layers, taking their recurrences changes nothing."""
    model, ids = tiny_model("mamba2", layers=3), tokens(2, 12)
    for layer in model.backbone.layers[1:]:
        for tensor in (layer.mixer.conv1d.weight, layer.mixer.conv1d.bias):
            tensor[-4:] = 0
    ids = model.generate(ids[:, :2], max_new_tokens=14, do_sample=False)  # text that the model likes as it is
    evaluator = Evaluator(model, ids)
    dense = evaluator.perplexity()
    pruner = MultiPruner(evaluator, cost=lambda shape: shape.parameters(), distribution=(1, 0, 0))
    result = pruner.run(evaluator.shape.parameters() - 2 * evaluator.shape.mixer.state_fixed)
    assert [(step.layer, step.part) for step in result.history] == [(1, "recurrence"), (2, "recurrence")]
    assert result.perplexity == pytest.approx(dense, rel=1e-6)
