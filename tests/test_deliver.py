"""The main job from checkpoint to artifact.

Two devices: this machine, really measured, where the outcome does not hang on its speed; and a simulated one whose
latency is exactly linear in the bytes of the weights, so that every decision of the loop can be checked.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from simulated_device import FIXED_S, Interrupting, fake_measure_together  # type: ignore[import-not-found]

from prune_export.benchmark.measure import Rounds, Subject
from prune_export.deliver import deliver
from prune_export.delivery import bench, workshop
from prune_export.delivery.report import write_report
from prune_export.delivery.request import Request
from prune_export.delivery.summary import Delivery, render
from prune_export.errors import BadInputError, InfeasibleError, ParityError
from prune_export.evaluate import evaluate
from prune_export.hashes import file_records
from prune_export.manifest import MANIFEST, Manifest, Measurement
from prune_export.plan import PrunePlan
from prune_export.profiles import load_profile, to_toml
from prune_export.target import Metric, Statistic, Target
from prune_export.units import format_bytes, format_duration
from prune_export.verify import verify


def tpot(manifest: Manifest, name: str, precision: str) -> float:
    (candidate,) = [item for item in manifest.candidates if (item.name, item.precision) == (name, precision)]
    assert candidate.measurement is not None
    return candidate.measurement.percentile("tpot", "p90")


@pytest.mark.usefixtures("simulated")
def test_a_speedup_is_met_against_dense_in_the_same_precision(request_: Request) -> None:
    delivery = deliver(request_)
    manifest = delivery.manifest
    assert (manifest.claim, manifest.met, manifest.precision) == ("measured", True, "int8")
    dense, pruned = tpot(manifest, "dense", "int8"), tpot(manifest, "pruned", "int8")
    assert manifest.limit == pytest.approx(dense / 1.2)
    assert manifest.figure == pruned
    # One MLP group of 16 channels is 3 * 64 * 16 bytes of 230 kB: the loop can come within a few percent.
    assert 0.93 * manifest.limit <= pruned <= manifest.limit
    assert [(item.name, item.precision) for item in manifest.candidates] == [
        ("dense", "fp32"), ("dense", "int8"), ("pruned", "fp32"), ("pruned", "int8"),
    ]  # fmt: skip
    assert manifest.shape.parameters() < manifest.dense_parameters
    assert [candidate.delivered for candidate in manifest.candidates] == [False, False, False, True]
    assert manifest.rounds
    assert manifest.rounds[-1].met


@pytest.mark.usefixtures("simulated")
@pytest.mark.slow
@pytest.mark.parametrize(("metric", "statistic"), [("ttft", "p50"), ("total", "p99")])
def test_other_figures_drive_a_whole_delivery(
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
    metric: Metric,
    statistic: Statistic,
) -> None:
    """On a device with tails, where a percentile of another metric is another number."""

    def tailed(subjects: Sequence[Subject], **settings: Any) -> list[Measurement]:
        measured = fake_measure_together(subjects, **settings)
        return [
            replace(
                item,
                ttft_s=tuple(value * (1 + 0.1 * turn) for turn, value in enumerate(item.ttft_s)),
                itl_s=tuple(value * (2 if turn % 7 == 6 else 1) for turn, value in enumerate(item.itl_s)),
            )
            for item in measured
        ]

    monkeypatch.setattr(bench, "measure_together", tailed)
    request = replace(request_, precisions=("int8",), force=True)
    dense = deliver(replace(request, target=Target(metric, 60.0, statistic))).manifest
    measurement = next(item.measurement for item in dense.candidates if item.delivered)
    assert measurement is not None
    assert dense.figure == measurement.percentile(metric, statistic) != measurement.percentile(metric, "p90")
    limit = dense.figure / 1.2
    manifest = deliver(replace(request, target=Target(metric, limit, statistic))).manifest
    measurement = next(item.measurement for item in manifest.candidates if item.delivered)
    assert measurement is not None
    assert (manifest.claim, manifest.met, manifest.limit) == ("measured", True, limit)
    assert manifest.figure == measurement.percentile(metric, statistic)
    assert 0.93 * limit <= manifest.figure <= limit


@pytest.mark.usefixtures("simulated")
@pytest.mark.slow
def test_looking_at_other_budgets_changes_no_plan(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = deliver(request_).manifest
    monkeypatch.setattr(workshop, "_LOOK_AROUND_S", 5.0)
    looking = deliver(replace(request_, force=True)).manifest
    front = looking.front
    assert front[0].rise == 1.0
    assert len(front) > 2  # other budgets than the loop's
    assert [point.cost for point in front] == sorted((point.cost for point in front), reverse=True)
    assert len(blind.front) < len(front)
    assert (blind.plan_digest, blind.rounds) == (looking.plan_digest, looking.rounds)


@pytest.mark.usefixtures("simulated")
def test_the_manifest_names_the_layers_that_int4_takes_in_smaller_groups_or_not_at_all(request_: Request) -> None:
    manifest = deliver(replace(request_, target=Target("tpot", 1.0), precisions=("int4",))).manifest
    assert manifest.departures["model.layers.0.self_attn.q_proj"] == "int4 in groups of 64"
    assert manifest.departures["model.embed_tokens"] == "int8"
    assert "model.layers.0.mlp.down_proj" not in manifest.departures  # 128 wide


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize(("format", "precision"), [("openvino", "bf16"), ("onnx", "fp16")])
def test_half_precision_is_pruned_and_delivered(request_: Request, format: str, precision: str) -> None:
    delivery = deliver(replace(request_, format=format, precisions=(precision,)))
    manifest = delivery.manifest
    assert (manifest.met, manifest.precision) == (True, precision)
    dense, pruned = (
        next(item for item in manifest.candidates if (item.name, item.precision) == (name, precision))
        for name in ("dense", "pruned")
    )
    assert dense.measurement is not None
    assert pruned.measurement is not None
    # Two bytes a weight; norms and an ONNX graph's tables of rotations, much of so small a model, take four.
    assert 1.9 < pruned.measurement.weights_bytes / pruned.parameters < 3.0
    assert pruned.measurement.weights_bytes < dense.measurement.weights_bytes
    assert manifest.parity.greedy_tokens > 0
    assert "files as in the manifest" in verify(delivery.directory)


@pytest.mark.usefixtures("simulated")
@pytest.mark.slow  # tests/delivery/test_correction.py has the logic
def test_one_disturbed_closing_measurement_costs_no_quality(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour that slows the pruned model by a third in the first closing measurement, and never again."""
    calls = []

    def disturbed(subjects: Sequence[Subject], **settings: Any) -> list[Measurement]:
        measured = fake_measure_together(subjects, **settings)
        calls.append(len(subjects))
        if calls.count(4) == 1 and calls[-1] == 4:  # dense and pruned in two precisions: the closing measurement
            measured[1] = replace(measured[1], itl_s=tuple(1.33 * value for value in measured[1].itl_s))
        return measured

    undisturbed = deliver(request_).manifest
    monkeypatch.setattr(bench, "measure_together", disturbed)
    manifest = deliver(replace(request_, force=True)).manifest
    assert calls.count(4) == 2
    assert manifest.met
    assert manifest.plan_digest == undisturbed.plan_digest


@pytest.mark.usefixtures("simulated")
@pytest.mark.slow  # tests/delivery/test_verdict.py has the logic
@pytest.mark.parametrize("disturbed", ["dense", "both, in different rounds"])
def test_a_burst_in_one_round_changes_nothing_of_a_speedup(
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
    disturbed: str,
) -> None:
    """Pooled, a burst in the dense model's samples raises the limit: a plan that is too slow would be called met."""
    undisturbed = deliver(request_).manifest
    bursts = ((0, 0),) if disturbed == "dense" else ((0, 0), (1, 2))

    def bursting(subjects: Sequence[Subject], **settings: Any) -> list[Measurement]:
        # As many as follow where four disagree.
        measured = fake_measure_together(subjects, **settings | {"rounds": Rounds(8)})
        for index, turn in bursts:
            if len(measured) > 1:
                measured[index] = slowed(measured[index], turn=turn, factor=1.8)
        return measured

    monkeypatch.setattr(bench, "measure_together", bursting)
    manifest = deliver(replace(request_, force=True)).manifest
    assert manifest.plan_digest == undisturbed.plan_digest
    assert manifest.figure == pytest.approx(undisturbed.figure)
    assert manifest.limit == pytest.approx(undisturbed.limit)
    assert sum(factor >= 1.2 for factor in manifest.speedups) >= 6
    assert len(manifest.speedups) == 8


@pytest.mark.usefixtures("simulated")
@pytest.mark.slow  # tests/delivery/test_pace.py has the logic
@pytest.mark.parametrize("speeds", [(1.0, 1.025, 1.0), (1.0, 1.0, 0.93)], ids=["slow trial", "fast closing"])
def test_a_limit_in_seconds_does_not_follow_a_machine_that_drifts(
    request_: Request, monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, ...]
) -> None:
    """The dense model, the trial and the closing measurement meet a machine of another speed each."""
    seconds = iter(speeds)

    def drifting(subjects: Sequence[Subject], **settings: Any) -> list[Measurement]:
        factor = next(seconds)
        return [
            replace(item, itl_s=tuple(factor * value for value in item.itl_s))
            for item in fake_measure_together(subjects, **settings)
        ]

    still = deliver(request_).manifest
    monkeypatch.setattr(bench, "measure_together", drifting)
    limited = replace(request_, target=Target("tpot", still.limit), precisions=(still.precision,), force=True)
    manifest = deliver(limited).manifest
    assert manifest.met
    assert len(manifest.rounds) == 1
    assert manifest.plan_digest == still.plan_digest
    assert manifest.figure == pytest.approx(still.figure)


def slowed(measurement: Measurement, *, turn: int, factor: float) -> Measurement:
    """The same with every token of one round slower."""
    size = len(measurement.itl_s) // len(measurement.load_s)
    begin = turn * size
    burst = tuple(factor * value for value in measurement.itl_s[begin : begin + size])
    return replace(measurement, itl_s=(*measurement.itl_s[:begin], *burst, *measurement.itl_s[begin + size :]))


@pytest.mark.usefixtures("simulated")
def test_the_artifact_is_complete_and_verifies(request_: Request) -> None:
    delivery = deliver(request_)
    directory = delivery.directory
    assert Manifest.load(directory) == delivery.manifest
    plan = PrunePlan.load(directory / "plan.json")
    assert plan.digest() == delivery.manifest.plan_digest
    assert plan.target == delivery.manifest.shape
    for name in ("openvino/openvino_model.xml", "openvino/openvino_tokenizer.xml", "openvino/openvino_detokenizer.xml",
                 "checkpoint/model.safetensors", "checkpoint/config.json", "report.html", "plan.json",
                 "README.md", "figures/pareto.png", "figures/layers.png"):  # fmt: skip
        assert name in delivery.manifest.files
    assert "files as in the manifest" in verify(directory)
    assert [path.name for path in directory.parent.iterdir() if path.name.startswith(".")] == []
    _check_card(directory, delivery.manifest)
    text = render(delivery, quiet=False)
    assert "met: measured tpot p90" in text
    assert "x >= 1.2x by 4 paired rounds (" in text
    assert "<- delivered" in text
    assert "LLMPipeline" in text
    write_report(directory)
    assert "files as in the manifest" in verify(directory)
    _check_wrong_scales(directory, directory.parent / "damaged")
    weights = directory / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    (directory / "extra").write_text("x")
    with pytest.raises(BadInputError, match=r"changed: checkpoint/model.safetensors; not listed: extra"):
        verify(directory)
    with pytest.raises(BadInputError, match="brings its own checkpoint along"):
        verify(directory, checkpoint="reference")
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"met": true', '"met": false', 1))
    with pytest.raises(BadInputError, match=r"manifest.json was edited after it was written"):
        verify(directory)


def _check_wrong_scales(directory: Path, damaged: Path) -> None:
    """Whatever the share of equal tokens was: wrong scales of its int8 weights fail, though all hashes fit."""
    shutil.copytree(directory, damaged)
    manifest = Manifest.load(damaged)
    assert manifest.precision == "int8"
    assert len(manifest.parity.continuation) == manifest.parity.greedy_tokens
    early = replace(manifest.parity, greedy_agreement=0.25)
    # A manifest of an earlier version has neither tokens nor NLL.
    parities = early, replace(early, continuation=(), window_nll=0.0)
    for parity in parities:
        replace(manifest, parity=parity).save(damaged)
        assert "files as in the manifest" in verify(damaged)
    constants = re.findall(
        r'<data element_type="f16" shape="[^"]+" offset="(\d+)" size="(\d+)"',
        (damaged / "openvino" / "openvino_model.xml").read_text(),
    )
    assert constants
    path = damaged / "openvino" / "openvino_model.bin"
    weights = bytearray(path.read_bytes())
    for begin, size in ((int(begin), int(size)) for begin, size in constants):
        weights[begin : begin + size] = np.full(size // 2, 3.0, np.float16).tobytes()
    path.write_bytes(weights)
    files = file_records(damaged, besides=MANIFEST)
    for parity in parities:
        replace(manifest, parity=parity, files=files).save(damaged)
        with pytest.raises(ParityError, match=r"in int8: mean NLL differs from torch's by .*, 0.25 is allowed"):
            verify(damaged)
    replace(manifest, parity=replace(early, window_nll=early.window_nll + 0.01), files=files).save(damaged)
    with pytest.raises(ParityError, match=r"checkpoint in torch: mean NLL differs by -0.010 from what was recorded"):
        verify(damaged)


def _check_card(directory: Path, manifest: Manifest) -> None:
    """Figures, texts and the command."""
    card = ModelCard.load(directory / "README.md")
    assert card.data.library_name == "openvino"
    assert card.data.tags == ["prune-export", "pruned", "openvino", "checkpoint", "int8"]
    delivered = next(candidate for candidate in manifest.candidates if candidate.delivered)
    dense = manifest.candidates[0]
    for candidate in (delivered, dense):
        assert candidate.measurement is not None
        row = next(line for line in card.text.splitlines() if line.replace("*", "").startswith(
            f"| {candidate.name} | {candidate.precision} |"))  # fmt: skip
        assert row.startswith("| **") == candidate.delivered
        for figure in (
            format_duration(candidate.measurement.percentile("tpot", "p90")),
            format_bytes(candidate.measurement.peak_rss_bytes),
            f"{candidate.parameters:,}",
            f"{candidate.perplexity:.2f}",
        ):
            assert figure in row
    plan = PrunePlan.load(directory / "plan.json")
    for part in (
        *(manifest.command, manifest.source_digest, manifest.plan_digest, manifest.calibration["digest"]),
        *(manifest.evaluation["digest"], manifest.versions["openvino"], "processor simulated", f"{plan.ratio:.1%}"),
    ):
        assert part in card.text


@pytest.mark.usefixtures("simulated")
def test_a_dense_precision_that_meets_the_target_is_delivered_and_said(request_: Request) -> None:
    generous = deliver(replace(request_, target=Target("tpot", 1.0)))
    assert generous.manifest.precision == "fp32"
    assert generous.manifest.plan_digest == ""
    assert generous.manifest.met
    assert any("already meets the target" in note for note in generous.notes)
    fp32, int8 = (tpot(generous.manifest, "dense", precision) for precision in ("fp32", "int8"))
    between = deliver(replace(request_, target=Target("tpot", (fp32 + int8) / 2), force=True))
    assert between.manifest.precision == "int8"
    assert between.manifest.plan_digest == ""


@pytest.mark.usefixtures("simulated")
def test_a_latency_below_dense_int8_is_reached_by_pruning(request_: Request) -> None:
    dense = tpot(deliver(replace(request_, target=Target("tpot", 1.0))).manifest, "dense", "int8")
    for share in (0.95, 0.8):
        limit = FIXED_S + (dense - FIXED_S) * share
        manifest = deliver(replace(request_, target=Target("tpot", limit), force=True)).manifest
        assert manifest.figure <= limit
        assert manifest.claim == "measured"
        assert manifest.plan_digest


@pytest.mark.usefixtures("simulated")
def test_an_infeasible_target_names_the_best_reachable_and_publishes_nothing(request_: Request) -> None:
    with pytest.raises(
        InfeasibleError, match=r"cannot be reached; the smallest model takes .* at perplexity"
    ) as caught:
        deliver(replace(request_, target=Target("tpot", 1.1e-3)))
    assert caught.value.exit_code == 3
    assert request_.output is not None
    assert not request_.output.exists()
    assert [path.name for path in request_.output.parent.iterdir()] == ["cache"]


@pytest.mark.usefixtures("simulated")
def test_more_quality_loss_than_allowed_is_infeasible(request_: Request) -> None:
    # Compensated, this random model reads the words no worse than before.
    search = replace(request_.search, search="multipruner")
    with pytest.raises(InfeasibleError, match=r"--max-quality-loss allows 0.0%"):
        deliver(replace(request_, search=search, target=Target("parameters", 0.3), max_quality_loss=1e-9))


@pytest.mark.usefixtures("simulated")
def test_ratio_and_memory_targets(request_: Request) -> None:
    ratio = deliver(replace(request_, target=Target("parameters", 0.2))).manifest
    assert ratio.met
    assert 1 - ratio.shape.parameters() / ratio.dense_parameters == ratio.figure >= 0.2
    dense = next(item.measurement for item in ratio.candidates if (item.name, item.precision) == ("dense", "int8"))
    assert dense is not None
    limit = float(dense.peak_rss_bytes) - 60_000
    memory = deliver(replace(request_, target=Target("memory", limit), force=True)).manifest
    assert memory.met
    assert memory.figure <= limit
    assert memory.plan_digest


@pytest.mark.usefixtures("simulated")
def test_a_uniform_delivery_is_a_stock_checkpoint(request_: Request) -> None:
    search = replace(request_.search, uniform=True, mlp_group=4)
    delivery = deliver(replace(request_, search=search, target=Target("parameters", 0.2), precisions=("int8",)))
    manifest = delivery.manifest
    assert manifest.met
    assert manifest.shape.common_layer is not None
    files = {path.name for path in (delivery.directory / "checkpoint").iterdir()}
    assert not any(name.endswith(".py") for name in files)
    assert '"model_type": "llama"' in (delivery.directory / "checkpoint" / "config.json").read_text()
    assert "files as in the manifest" in verify(delivery.directory)


@pytest.mark.usefixtures("simulated")
def test_onnx_goes_through_the_same_loop(request_: Request, capsys: pytest.CaptureFixture[str]) -> None:
    delivery = deliver(replace(request_, format="onnx"))
    manifest = delivery.manifest
    assert manifest.met
    assert manifest.rounds
    assert manifest.formats == ("onnx", "checkpoint")
    for candidate in manifest.candidates:
        assert candidate.measurement is not None
        assert candidate.measurement.runtime == "onnxruntime"
    dense, pruned = tpot(manifest, "dense", manifest.precision), tpot(manifest, "pruned", manifest.precision)
    assert 0.93 * dense / 1.2 <= pruned <= dense / 1.2
    assert {"onnx/model.onnx", "onnx/model.onnx.data", "onnx/genai_config.json", "onnx/tokenizer.json"} <= set(
        manifest.files
    )
    assert not any(name.startswith("openvino/") for name in manifest.files)
    assert "files as in the manifest" in verify(delivery.directory)
    # The perplexity in the manifest is the artifact's own, by another way to it.
    again = evaluate(str(delivery.directory), eval_text=request_.eval_text, tokens=1024, window=256)
    assert again.through == "onnxruntime"
    delivered = next(candidate for candidate in manifest.candidates if candidate.delivered)
    assert again.perplexity == pytest.approx(delivered.perplexity, rel=1e-3)
    assert "LLMPipeline" not in render(delivery, quiet=False)
    exec("\n".join(delivery.usage))
    assert capsys.readouterr().out.strip()


@pytest.mark.usefixtures("simulated")
def test_an_edited_plan_is_replayed(request_: Request, tmp_path: Path) -> None:
    first = deliver(request_)
    plan = PrunePlan.load(first.directory / "plan.json")
    smaller = replace(plan, keep=(replace(plan.keep[0], mlp_channels=()), *plan.keep[1:]))
    smaller.save(tmp_path / "edited.json")
    listening = Interrupting(at=0)
    again = deliver(replace(request_, plan=tmp_path / "edited.json", force=True), progress=listening)
    assert not any(name.startswith(("latency", "search")) for name in listening.begun)
    assert again.manifest.shape.layers[0].mlp_width == 0
    assert again.manifest.shape.layers[1:] == first.manifest.shape.layers[1:]
    with pytest.raises(InfeasibleError, match="the plan removes"):
        deliver(replace(request_, plan=tmp_path / "edited.json", target=Target("parameters", 0.9), force=True))


def test_ratio_and_memory_on_another_device(request_: Request) -> None:
    delivery = deliver(replace(request_, device="gpu-cuda", target=Target("parameters", 0.2)))
    assert delivery.manifest.claim == "predicted"
    # Latencies, not parameters: a tiny model takes microseconds on any GPU.
    assert all(item.predicted_s is not None and item.predicted_s < 0.01 for item in delivery.manifest.candidates)
    with pytest.raises(BadInputError, match="--target-memory is measured, never estimated"):
        deliver(replace(request_, device="gpu-cuda", target=Target("memory", 1e9), force=True))


def test_another_device_is_delivered_as_predicted(request_: Request) -> None:
    delivery = deliver(replace(request_, device="gpu-cuda", target=Target("tpot", None, speedup=1.1)))
    manifest = delivery.manifest
    assert manifest.claim == "predicted"
    assert all(candidate.measurement is None for candidate in manifest.candidates)
    assert manifest.figure <= manifest.limit
    text = render(delivery, quiet=False)
    assert "predicted, not measured" in text
    assert "met: measured" not in text
    with pytest.raises(BadInputError, match="--require-measured"):
        deliver(replace(request_, device="gpu-cuda", require_measured=True, force=True))


def test_groups_that_onnx_lacks_are_refused_before_anything_is_made(request_: Request, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(to_toml(replace(load_profile("host"), name="odd", int4_group=256)))
    request = replace(request_, device=str(path), format="onnx", precisions=("fp32", "int4"))
    with pytest.raises(BadInputError, match="odd asks for int4 groups of 256 weights, ONNX has 128, 64, 32: set int4"):
        deliver(request)
    assert not (tmp_path / "out").exists()


@pytest.mark.alone
def test_this_machine_is_really_measured(request_: Request) -> None:
    manifest = deliver(replace(request_, target=Target("total", 60.0))).manifest
    assert manifest.claim == "measured"
    assert manifest.met
    for candidate in manifest.candidates:
        assert candidate.measurement is not None
        assert candidate.measurement.peak_rss_bytes > candidate.measurement.weights_bytes > 0
        assert len(candidate.measurement.itl_s) == 7 * len(candidate.measurement.ttft_s)
        assert "simulated" not in candidate.measurement.host["processor"]


@pytest.mark.usefixtures("simulated")
def test_a_broken_export_fails_the_gate_and_publishes_nothing(
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prune_export.delivery import exporters

    export = exporters.export_openvino

    def corrupted(model: Any, tokenizer: Any, directory: Path) -> None:
        export(model, tokenizer, directory)
        path = directory / "openvino_model.bin"
        weights = bytearray(path.read_bytes())
        middle = len(weights) // 2  # well inside the layers' matrices
        weights[middle : middle + 2000] = bytes(2000)
        path.write_bytes(weights)

    monkeypatch.setattr(exporters, "export_openvino", corrupted)
    with pytest.raises(ParityError) as caught:
        deliver(request_)
    assert caught.value.exit_code == 4
    assert request_.output is not None
    assert not request_.output.exists()


@pytest.mark.usefixtures("simulated")
def test_the_report_stands_alone(request_: Request) -> None:
    delivery: Delivery = deliver(request_)
    page = (delivery.directory / "report.html").read_text(encoding="utf8")
    assert "met: measured tpot p90" in page
    assert page.count("<svg") == 5
    assert delivery.manifest.files["checkpoint/model.safetensors"].sha256 in page
    for outside in ("src=", "<link", "<script", "@import", "url(http"):
        assert outside not in page
