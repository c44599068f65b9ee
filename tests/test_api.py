"""The verbs plan, prune and export from Python, on a tiny random Llama."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

import prune_export
from prune_export import api
from prune_export.delivery.request import Request, SearchSettings
from prune_export.errors import BadInputError, InfeasibleError
from prune_export.plan import PrunePlan
from prune_export.target import Target
from prune_export.texts import load_text

SEARCH = SearchSettings(mlp_group=16, calibration_windows=2, calibration_length=64)


def test_prune_writes_a_smaller_checkpoint_and_its_plan(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    plan = api.prune(str(checkpoint), tmp_path / "out", ratio=0.2, search=SEARCH, calibration=str(text_file))
    model = prune_export.load(tmp_path / "out")
    assert plan.ratio >= 0.2
    assert sum(parameter.numel() for parameter in model.parameters()) == plan.target.parameters()
    assert PrunePlan.load(tmp_path / "out" / "plan.json") == plan
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.library_name, card.data.tags) == ("transformers", ["prune-export", "pruned"])
    assert f"{plan.ratio:.1%} of {plan.dense.parameters():,} parameters removed" in card.text
    assert "trust_remote_code=True" in card.text
    assert load_text(str(text_file), "calibration").digest in card.text
    # The plan and its calibration text give the same weights again.
    again = api.prune(
        str(checkpoint), tmp_path / "again", plan_file=tmp_path / "out" / "plan.json", search=SEARCH,
        calibration=str(text_file),
    )  # fmt: skip
    assert again == plan
    for name, tensor in prune_export.load(tmp_path / "again").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_prune_wants_a_plan_or_a_ratio(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="either a plan or a ratio"):
        api.prune(str(checkpoint), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_ratio_out_of_reach_says_how_far_it_goes(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"at most \d+\.\d% of the parameters can go"):
        api.prune(str(checkpoint), tmp_path / "out", ratio=0.97, search=SEARCH, calibration=str(text_file))


def test_plan_for_another_device_needs_no_measurement(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    request = Request(
        model=str(checkpoint),
        device="gpu-cuda",
        target=Target("tpot", None, speedup=1.2),
        output=tmp_path / "unused",
        precisions=("int8",),
        search=SEARCH,
        calibration=str(text_file),
        eval_text=str(text_file),
        eval_tokens=256,
    )
    plan = api.plan(request)
    assert plan.cost_unit == "seconds"
    assert plan.history[-1].cost <= plan.history[0].cost
    assert plan.ratio > 0
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_export_passes_the_gate_and_runs(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    from prune_export.benchmark.openvino_session import OpenVINOSession

    parity = api.export(str(checkpoint), tmp_path / "ir", precision=precision)
    assert 0 < parity.max_logit_error <= parity.tolerance
    session = OpenVINOSession(tmp_path / "ir", precision=precision)
    session.load()
    logits = session.prefill(np.asarray([[1, 2, 3, 4]], np.int64))
    assert logits.shape == (1, 4, session.vocab_size)
    with torch.no_grad():
        expected = prune_export.load(checkpoint)(torch.tensor([[1, 2, 3, 4]])).logits.numpy()
    # int8: a per-channel step is 1/255 of a row's range; on logits of this model that stays well below 0.1.
    assert np.abs(logits - expected).max() < (1e-4 if precision == "fp32" else 0.1)


def test_a_uniform_plan_gives_a_stock_checkpoint(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    search = replace(SEARCH, uniform=True)
    plan = api.prune(str(checkpoint), tmp_path / "out", ratio=0.2, search=search, calibration=str(text_file))
    assert plan.uniform
    assert plan.ratio >= 0.2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert not list((tmp_path / "out").glob("*.py"))
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    api.prune(
        str(checkpoint), tmp_path / "again", plan_file=tmp_path / "out" / "plan.json", search=search,
        calibration=str(text_file),
    )  # fmt: skip
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(prune_export.load(tmp_path / "again")(ids).logits, stock(ids).logits)
    uneven = replace(plan, uniform=False)
    uneven.save(tmp_path / "plan.json")
    with pytest.raises(BadInputError, match=r"plan.json is not uniform: make it with plan --uniform"):
        api.prune(str(checkpoint), tmp_path / "no", plan_file=tmp_path / "plan.json", search=search)
