"""Sparsity on top of a delivery, from the request to the zeros in the checkpoint and in the IR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from safetensors.torch import load_file
from simulated_device import fake_measure_together  # type: ignore[import-not-found]

from prune_export import api, cli
from prune_export.benchmark.measure import Subject
from prune_export.deliver import deliver
from prune_export.delivery import bench
from prune_export.delivery.preflight import calibration_tokens
from prune_export.delivery.request import Request, SearchSettings
from prune_export.delivery.sparse import stored_sparsity
from prune_export.delivery.summary import Delivery, render
from prune_export.errors import BadInputError, InfeasibleError
from prune_export.manifest import Manifest, Measurement
from prune_export.plan import LayerKeep, PrunePlan, keep_all
from prune_export.prune import sparsify
from prune_export.prune.loading import load_config, load_tokenizer, source_digest
from prune_export.prune.projection_pruning import SparsityMethod
from prune_export.prune.realise import realise
from prune_export.prune.shapes import model_shape
from prune_export.prune.sparse_journal import SparseJournal
from prune_export.sparsity import Pattern, Sparsity
from prune_export.target import Target, Workload
from prune_export.texts import load_text
from prune_export.verify import verify

TWO_FOUR = Sparsity(Pattern(0.5, 2, 4))


@pytest.fixture
def request_(checkpoint: Path, text_file: Path, tmp_path: Path) -> Request:
    return Request(
        model=str(checkpoint),
        device="host",
        target=Target("parameters", 0.2),
        workload=Workload(prompt_tokens=16, new_tokens=8),
        output=tmp_path / "out",
        precisions=("int8",),
        search=SearchSettings(mlp_group=16, calibration_windows=4, calibration_length=64),
        sparsity=TWO_FOUR,
        calibration=str(text_file),
        eval_text=str(text_file),
        eval_tokens=512,
    )


def projections(directory: Path) -> dict[str, torch.Tensor]:
    """The weights of a stored Llama's projections by name."""
    stored = load_file(directory / "model.safetensors")
    return {name: tensor for name, tensor in stored.items() if name.endswith("_proj.weight")}


def ir_zeros(directory: Path) -> dict[str, np.ndarray]:
    """Where the weights of an IR's projections are zero once they are decompressed."""
    model = openvino.Core().read_model(directory / "openvino_model.xml")
    constants = {
        node.get_friendly_name(): node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"
    }
    found = {}
    for name, node in constants.items():
        if name.endswith("_proj.weight"):
            shift = constants.get(f"{name}/zero_point")
            found[name.removeprefix("self.")] = node.data == (0 if shift is None else shift.data)
    return found


def check_two_four(delivery: Delivery) -> dict[str, torch.Tensor]:
    """The manifest says what is on disk, and that is 2:4; the weights."""
    record = delivery.manifest.sparsity
    assert record is not None
    assert (record.pattern, record.method, record.mask, record.compensation) == ("2:4", "mrp", "M", "M")
    assert record.pattern_holds
    weights = projections(delivery.directory / "checkpoint")
    for name, weight in weights.items():
        assert ((weight != 0).reshape(-1, 4).sum(1) <= 2).all(), name
    for item in record.layers:
        own = [weight for name, weight in weights.items() if f".layers.{item.layer}." in name]
        assert item.weights == sum(weight.numel() for weight in own)
        assert item.zeros == sum(int((weight == 0).sum()) for weight in own)
        assert item.share == pytest.approx(0.5, abs=0.01)
    assert sum(item.weights for item in record.layers) == sum(weight.numel() for weight in weights.values())
    assert Manifest.load(delivery.directory) == delivery.manifest
    assert "files as in the manifest" in verify(delivery.directory)
    assert "sparsity 2:4 by mrp: 50." in render(delivery, quiet=True)
    assert "the pattern holds in every projection" in (delivery.directory / "report.html").read_text()
    return weights


@pytest.mark.usefixtures("simulated")
@pytest.mark.slow
def test_structures_go_first_and_zeros_come_on_the_activations_of_what_is_left(
    request_: Request, checkpoint: Path, text_file: Path, tmp_path: Path
) -> None:
    delivery = deliver(request_)
    weights = check_two_four(delivery)
    plan = PrunePlan.load(delivery.directory / "plan.json")
    assert delivery.manifest.met
    assert plan.compensated
    assert delivery.manifest.shape.parameters() < delivery.manifest.dense_parameters
    tokens = calibration_tokens(
        load_text(str(text_file), "calibration"), load_tokenizer(checkpoint), plan.dense, request_.search, lazy=True
    ).tokens
    model = realise(checkpoint, plan, tokens)
    sparsify.sparsify_model(model, tokens, SparsityMethod(TWO_FOUR.pattern))
    expected = model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    compressed = ir_zeros(delivery.directory / "openvino")
    assert compressed.keys() == weights.keys()
    assert all(compressed[name][(weight == 0).numpy()].all() for name, weight in weights.items())
    api.export(str(delivery.directory / "checkpoint"), tmp_path / "plain", precision="fp32")
    plain = ir_zeros(tmp_path / "plain")
    assert all((plain[name] == (weight == 0).numpy()).all() for name, weight in weights.items())


@pytest.mark.usefixtures("simulated")
def test_a_dense_model_that_meets_the_target_is_delivered_sparse(request_: Request, checkpoint: Path) -> None:
    delivery = deliver(replace(request_, target=Target("tpot", 1.0), precisions=("fp32",)))
    weights, dense = check_two_four(delivery), projections(checkpoint)
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in dense.items()
    }
    manifest = delivery.manifest
    assert (manifest.plan_digest, manifest.precision, manifest.met) == ("", "fp32", True)
    assert [(item.name, item.precision, item.delivered) for item in manifest.candidates] == [
        ("dense", "fp32", False), ("sparse", "fp32", True),
    ]  # fmt: skip
    assert manifest.candidates[1].measurement is not None
    assert manifest.candidates[1].perplexity != manifest.candidates[0].perplexity
    assert any("no structure was removed" in note for note in delivery.notes)


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("further", [False, True])
def test_zeros_that_cost_a_target_are_said_after_a_second_look(
    request_: Request, monkeypatch: pytest.MonkeyPatch, further: bool
) -> None:
    """The target that they cost is named, also where it is not the one that drives: memory, with little room."""
    slow_calls = []

    def slow_zeros(subjects: Sequence[Subject], **settings: Any) -> list[Measurement]:
        results = fake_measure_together(subjects, **settings)
        if subjects[-1].directory.parent.name != "sparse":
            return results
        slow_calls.append(len(subjects))
        return [results[0], replace(results[1], itl_s=tuple(1e3 * value for value in results[1].itl_s))]

    monkeypatch.setattr(bench, "measure_together", slow_zeros)
    words = r"^tpot p90 <= 1\.00 s: dense int8 meets it, with sparsity 2:4 by mrp it takes .* the limit is 1\.00 s"
    others = (Target("memory", 2e7),) if further else ()
    with pytest.raises(InfeasibleError, match=words):
        deliver(replace(request_, target=Target("tpot", 1.0), further=others))
    assert slow_calls == [2, 2]


@pytest.mark.slow  # tests/prune/test_sparsify.py has the journal
@pytest.mark.usefixtures("simulated")
def test_a_killed_run_goes_on_after_the_last_sparse_layer(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = SparseJournal.keep

    def killed(self: SparseJournal, index: int, *rest: Any) -> None:
        keep(self, index, *rest)
        if index == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SparseJournal, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        deliver(request_)
    monkeypatch.setattr(SparseJournal, "keep", keep)
    pruned: list[int] = []
    original = sparsify._prune_layer
    monkeypatch.setattr(sparsify, "_prune_layer", lambda walk, i, *r: pruned.append(i) or original(walk, i, *r))
    # Another pattern is another run.
    other = deliver(replace(request_, sparsity=Sparsity(Pattern(0.5)), output=Path(f"{request_.output}-other")))
    assert pruned == [0, 1, 2, 3]
    assert other.manifest.sparsity is not None
    assert other.manifest.sparsity.pattern == "50%"
    pruned.clear()
    check_two_four(deliver(request_))
    assert pruned == [3]


def test_prune_makes_sparse_checkpoints_too(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    size = ["--calibration", str(text_file), "--calibration-windows", "4", "--calibration-length", "64", "--quiet"]
    command = ["prune", "--model", str(checkpoint), "--target-ratio", "20%", "-o", str(tmp_path / "out"), *size]
    assert cli.main([*command, "--sparsity", "4:8", "--sparsity-method", "sparsegpt"]) == 0
    record = stored_sparsity(tmp_path / "out")
    assert record is not None
    assert (record.pattern, record.method, record.pattern_holds) == ("4:8", "sparsegpt", True)
    assert all(((weight != 0).reshape(-1, 8).sum(1) <= 4).all() for weight in projections(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sparsity", "2-4"], "--sparsity"),
        (["--sparsity", "2:4", "--sparsity-method", "wandb"], 'did you mean "wanda"'),
        (["--sparsity-method", "wanda"], "belongs to --sparsity: give a pattern"),
        (["--sparsity", "5:10"], "pattern 5:10 does not fit layer 0.self_attn.q_proj: rows of 64 weights"),
        (["--sparsity", "2:4", "--mlp-group", "10"], "--mlp-group 10 leaves widths that pattern 2:4 does not fit: give "
         "--mlp-group 12"),
    ],
)  # fmt: skip
def test_what_cannot_be_sparse_is_one_line_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    command = ["--model", str(checkpoint), "--target-ratio", "20%", "-o", str(tmp_path / "out"), "--quiet", *more]
    assert cli.main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prune-export: ")]
    assert words in line
    assert not (tmp_path / "out").exists()


def test_a_plan_whose_widths_the_pattern_does_not_fit_is_refused(request_: Request, tmp_path: Path) -> None:
    shape = model_shape(load_config(Path(request_.model)))
    keep = (LayerKeep((0, 1), tuple(range(126))), *keep_all(shape)[1:])
    plan = PrunePlan(
        request_.model, source_digest(Path(request_.model)), shape, keep, "by hand", "parameters", "0" * 64
    )
    plan.save(tmp_path / "plan.json")
    words = "pattern 2:4 does not fit the plan: it leaves layer 0 an MLP of 126 columns"
    with pytest.raises(BadInputError, match=words):
        deliver(replace(request_, plan=tmp_path / "plan.json"))
    with pytest.raises(BadInputError, match=words):
        api.prune(request_.model, tmp_path / "out", plan_file=tmp_path / "plan.json", sparsity=TWO_FOUR)
