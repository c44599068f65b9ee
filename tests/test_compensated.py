"""Compensated plans from the command line to the artifact, on a tiny random Llama."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import prune_export
from prune_export import cli
from prune_export.deliver import deliver
from prune_export.delivery.request import Request, SearchSettings
from prune_export.plan import PrunePlan
from prune_export.progress import Progress
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.loading import load_tokenizer
from prune_export.prune.realise import stored_dtype
from prune_export.target import Target
from prune_export.verify import verify

SHORT = "256 calibration tokens for projections of up to 128 inputs, 1280 are advisable"
OPTIONS = ["--mlp-group", "16", "--calibration-windows", "8", "--calibration-length", "32"]


def test_a_plan_and_its_replay_give_the_same_checkpoint(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(checkpoint), "--calibration", str(text_file), *OPTIONS]
    straight, plan, replayed = tmp_path / "straight", tmp_path / "plan.json", tmp_path / "replayed"
    assert cli.main(["prune", *model, "--target-ratio", "20%", "-o", str(straight)]) == 0
    assert SHORT in capsys.readouterr().err
    assert cli.main(["plan", *model, "--target-ratio", "20%", "-o", str(plan)]) == 0
    assert SHORT in capsys.readouterr().err
    assert PrunePlan.load(plan) == PrunePlan.load(straight / "plan.json")
    assert PrunePlan.load(plan).compensated
    assert cli.main(["prune", *model, "--plan", str(plan), "-o", str(replayed)]) == 0
    printed = capsys.readouterr().err
    assert SHORT in printed
    assert "other calibration text" not in printed
    first, second = (folder / "model.safetensors" for folder in (straight, replayed))
    assert first.read_bytes() == second.read_bytes()
    # Other text, other weights; that is said.  More of it, and nothing is short.
    more = [*model, "--calibration-windows", "40"]
    assert cli.main(["prune", *more, "--plan", str(plan), "-o", str(replayed), "--force"]) == 0
    printed = capsys.readouterr().err
    assert "note: this plan was made with other calibration text" in printed
    assert "are advisable" not in printed
    assert second.read_bytes() != first.read_bytes()
    # Without compensation nothing is short, and rows that stay are the dense model's.
    assert cli.main(["prune", *model, "--target-ratio", "20%", "--no-compensate", "-o", str(tmp_path / "plain")]) == 0
    assert SHORT not in capsys.readouterr().err
    plain, dense = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plain", checkpoint))
    kept = PrunePlan.load(tmp_path / "plain" / "plan.json").keep
    for index, layer in enumerate(kept):
        if layer.mlp_channels:
            name = f"model.layers.{index}.mlp.down_proj.weight"
            assert torch.equal(plain[name], dense[name][:, list(layer.mlp_channels)])


class _Listening(Progress):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


def test_the_delivered_checkpoint_computes_what_the_ir_computes(
    checkpoint: Path, text_file: Path, tmp_path: Path
) -> None:
    """Weights stored in bfloat16: those that were fitted are rounded before they are exported."""
    from prune_export.benchmark.openvino_session import OpenVINOSession

    source = tmp_path / "bf16"
    save_checkpoint(prune_export.load(checkpoint), load_tokenizer(checkpoint), source, dtype=torch.bfloat16)
    request = Request(
        model=str(source), device="gpu-cuda", target=Target("parameters", 0.2), precisions=("fp32",),
        output=tmp_path / "out", search=SearchSettings(mlp_group=16, calibration_windows=12, calibration_length=32),
        calibration=str(text_file), eval_text=str(text_file), eval_tokens=512,
    )  # fmt: skip
    listening = _Listening()
    delivery = deliver(request, progress=listening)
    assert sum("384 calibration tokens" in note for note in listening.notes) == 1
    plan = PrunePlan.load(delivery.directory / "plan.json")
    assert plan.compensated
    weights = load_file(delivery.directory / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    ids = np.asarray([[5, 9, 70, 33, 200, 8, 61]], np.int64)
    session = OpenVINOSession(delivery.directory / "openvino", precision="fp32")
    session.load()
    with torch.no_grad():
        expected = prune_export.load(delivery.directory / "checkpoint")(torch.as_tensor(ids)).logits.numpy()
    assert np.abs(session.prefill(ids) - expected).max() < 1e-4
    assert "files as in the manifest" in verify(delivery.directory)
    # Some projection is not the dense model's: it was fitted.
    dense = load_file(source / "model.safetensors")
    kept = [name for name in weights if name.endswith("o_proj.weight") and weights[name].shape == dense[name].shape]
    assert kept
    assert any(not torch.equal(weights[name], dense[name]) for name in kept)


def test_the_stored_precision_is_that_of_most_weights(checkpoint: Path, tmp_path: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in state.items()}
    mixed |= {"a.mask": torch.ones(4000, 4000, dtype=torch.bool), "a.scale": torch.ones(3)}
    save_file(mixed, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) is torch.bfloat16
    assert stored_dtype(checkpoint) is torch.float32
