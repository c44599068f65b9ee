"""A profile's latency table against what is asked for: precisions, threads, runtime and its version, dimensions."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prune_export import cli
from prune_export.benchmark.roofline import roofline_table
from prune_export.deliver import deliver
from prune_export.delivery.known_table import planned_format, with_precisions
from prune_export.delivery.latency import medians, tail
from prune_export.delivery.request import Request
from prune_export.delivery.summary import render
from prune_export.errors import BadInputError
from prune_export.profiles import DeviceMatch, DeviceProfile, TableRecord, load_profile, to_toml
from prune_export.profiles.host import host_cores
from prune_export.progress import Progress
from prune_export.prune.loading import load_config
from prune_export.prune.shapes import model_shape
from prune_export.shape import LayerShape, MixerShape, ModelShape
from prune_export.target import Target, Workload

SHAPE = ModelShape("llama", 64, 16, 320, True, (LayerShape(4, 2, 128),) * 4, context=256)
STATE_SPACE = ModelShape("mamba", 64, 1, 320, True, (LayerShape(0, 0, 0, 64),) * 2, mixer=MixerShape(fixed=1, unit=1))
WORK = Workload(prompt_tokens=16, new_tokens=8)
TPOT, RATIO, MEMORY = Target("tpot", 0.01), Target("parameters", 0.2), Target("memory", 1e9)


class Heard(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


def box(
    *precisions: str, runtime: str = "openvino", threads: int = 8, device: str = "CPU", installed: str = ""
) -> DeviceProfile:
    """This machine's profile under another name, with a table of these precisions."""
    profile = replace(load_profile("host"), name="box", device=device, threads=threads)
    versions = {runtime: installed or version(runtime)}
    record = TableRecord({}, versions, "2026-11-29", runtime, threads, 30, 500.0)
    table = replace(roofline_table(profile, SHAPE, WORK, precisions), source="measured", record=record)
    return replace(profile, latency_table=table)


def resolved(
    profile: DeviceProfile,
    *,
    target: Target = TPOT,
    further: tuple[Target, ...] = (),
    shape: ModelShape = SHAPE,
    threads: int = 8,
    measured: bool = False,
    planning: bool = False,
    **changes: Any,
) -> tuple[Request, DeviceProfile, list[str]]:
    """The request and the profile as a job has them, and the notes."""
    request, progress = Request("m", "box.toml", target, further, **changes), Heard()
    found = with_precisions(
        request, profile, shape, WORK, threads, measured=measured, planning=planning, progress=progress
    )
    return (*found, progress.notes)


def test_the_default_precisions_are_those_that_the_table_has() -> None:
    request, profile, notes = resolved(box("int8"))
    assert request.precisions == ("int8",)
    assert profile.latency_table is not None
    assert notes == [
        "note: the latency table of box has int8 and not fp32: planned in int8; measure the rest with "
        "`prune-export profile measure --precision int8,fp32`"
    ]
    assert resolved(box("int8", "int4"))[0].precisions == ("int8",)  # int4 is no default
    assert resolved(box("int4"))[0].precisions == ("int4",)  # but what there is
    both = resolved(box("int8", "fp32"))
    assert (both[0].precisions, both[2]) == (("fp32", "int8"), [])
    assert resolved(box("fp32"), default_precisions=("int8",))[0].precisions == ("fp32",)
    assert resolved(load_profile("cpu-xeon"))[0].precisions == ("fp32", "int8")


def test_every_target_needs_its_costs() -> None:
    profile = box("int8", "fp32")
    assert profile.latency_table is not None
    costs = tuple(item for item in profile.latency_table.costs if (item.phase, item.precision) != ("prefill", "fp32"))
    partly = replace(profile, latency_table=replace(profile.latency_table, costs=costs))
    assert resolved(partly)[0].precisions == ("fp32", "int8")
    assert resolved(partly, target=RATIO)[0].precisions == ("fp32", "int8")  # tpot is shown
    for request, *_ in (
        resolved(partly, target=Target("ttft", 1.0)),
        resolved(partly, target=Target("total", 1.0)),
        resolved(partly, further=(Target("ttft", 1.0),)),
    ):
        assert request.precisions == ("int8",)
    none = replace(profile, latency_table=replace(profile.latency_table, costs=costs[:0]))
    with pytest.raises(BadInputError, match="the latency table of box has no costs for tpot: measure one with"):
        resolved(none)


def test_a_precision_that_was_asked_for_and_is_not_in_the_table_is_refused() -> None:
    words = (
        r"--precision fp32: the latency table of box has int8 for tpot: leave it out, or measure it with "
        r"`prune-export profile measure --precision int8,fp32`"
    )
    with pytest.raises(BadInputError, match=words):
        resolved(box("int8"), precisions=("fp32", "int8"))
    with pytest.raises(BadInputError, match=words):
        resolved(box("int8"), precisions=("fp32",), target=RATIO)
    assert resolved(box("int8", "fp32"), precisions=("int8",))[0].precisions == ("int8",)


def test_on_the_device_itself_nothing_is_refused_for_its_precision() -> None:
    request, profile, notes = resolved(box("int8"), measured=True)
    assert (request.precisions, profile, notes) == (("fp32", "int8"), box("int8"), [])
    assert resolved(box("int8"), measured=True, precisions=("fp32",))[0].precisions == ("fp32",)


def test_another_runtime_is_refused_with_what_can_be_done() -> None:
    words = (
        r"the latency table of box was measured through onnxruntime, what is delivered runs through openvino: "
        r"deliver --format onnx, or measure one with `prune-export profile measure --runtime openvino`"
    )
    for measured in (False, True):
        with pytest.raises(BadInputError, match=words):
            resolved(box("int8", runtime="onnxruntime"), measured=measured)
    with pytest.raises(BadInputError, match=r"runs through onnxruntime: measure one with .* --runtime onnxruntime"):
        resolved(box("int8", runtime="torch"), format="onnx")
    assert resolved(box("int8", runtime="onnxruntime"), format="onnx")[0].precisions == ("int8",)
    assert resolved(box("int8", runtime="torch", device="cuda"))[0].precisions == (
        "int8",
    )  # a checkpoint is timed there


def test_a_plan_is_made_in_the_tables_format() -> None:
    request = Request("m", "box.toml", TPOT)
    assert planned_format(request, box("int8", runtime="onnxruntime")) == "onnx"
    assert planned_format(request, box("int8", runtime="torch")) == "openvino"
    assert planned_format(request, load_profile("cpu-xeon")) == "openvino"
    assert resolved(box("int8", runtime="torch"), planning=True)[0].precisions == ("int8",)
    with pytest.raises(BadInputError, match="was measured through torch"):
        resolved(box("int8", runtime="torch"), planning=True, measured=True)


def test_another_number_of_threads_is_refused_or_measured() -> None:
    words = (
        r"measured with 8 threads, asked for are 1: leave out --threads, or measure one with "
        r"`prune-export profile measure --threads 1`"
    )
    with pytest.raises(BadInputError, match=words):
        resolved(box("int8"), threads=1)
    request, profile, notes = resolved(box("int8"), threads=1, measured=True)
    assert (request.precisions, profile.latency_table) == (("fp32", "int8"), None)
    assert notes == ["note: the latency table of box was measured with 8 threads, here are 1: it is not used"]


def test_another_version_of_the_runtime_is_said() -> None:
    (note, _) = resolved(box("int8", installed="2020.1"))[2]
    assert note.startswith("note: the latency table of box was measured with openvino 2020.1, here is")


@pytest.mark.parametrize("asked", [{"target": RATIO, "measured": True}, {"target": MEMORY, "measured": True}])
def test_a_table_that_nothing_is_read_off_hinders_nothing(asked: dict[str, Any]) -> None:
    other = box("int8", runtime="torch", installed="1")
    request, profile, notes = resolved(other, threads=1, precisions=("fp32",), **asked)
    assert (request.precisions, profile, notes) == (("fp32",), other, [])


def test_a_state_space_model_reads_nothing_off_a_table() -> None:
    profile = box("int8")
    assert profile.latency_table is not None
    key = replace(profile.latency_table.key, head_dim=1, heads_per_group=1)
    alike = replace(profile, latency_table=replace(profile.latency_table, key=key))
    assert resolved(alike, target=RATIO, shape=STATE_SPACE)[0].precisions == ("fp32", "int8")


def test_a_table_of_another_workload_or_runtime_ends_before_any_work(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape, path = model_shape(load_config(checkpoint)), tmp_path / "box.toml"
    profile = replace(box("int8"), match=DeviceMatch(vendors=("AnotherVendor",)))
    assert profile.latency_table is not None
    key = replace(profile.latency_table.key, vocab_size=shape.vocab_size)
    path.write_text(to_toml(replace(profile, latency_table=replace(profile.latency_table, key=key))))
    arguments = [
        *("--model", str(checkpoint), "--device", str(path), "--target-latency", "10ms", "--quiet"),
        *("--calibration", str(text_file), "--eval-text", str(text_file), "-o", str(tmp_path / "out")),
    ]
    for more, words in (
        ([], "the latency table was made for prompt_tokens 16 (here 128), new_tokens 8 (here 128)"),
        (["--workload", "prompt=16,new=8", "--precision", "fp32"], "--precision fp32: the latency table of box has"),
        (["--workload", "prompt=16,new=8", "--threads", "3"], "measured with 8 threads, asked for are 3"),
        (["--workload", "prompt=16,new=8", "--format", "onnx"], "what is delivered runs through onnxruntime"),
    ):
        assert cli.main([*arguments, *more]) == BadInputError.exit_code
        line = capsys.readouterr().err
        assert words in line
        assert line.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir() if item.name != "cache"] == ["box.toml"]


@pytest.mark.usefixtures("simulated")
def test_on_the_device_a_precision_without_costs_gets_its_own(request_: Request, tmp_path: Path) -> None:
    """A table of int8, and a delivery in fp32, which is then the fastest dense precision."""
    shape, path = model_shape(load_config(Path(request_.model))), tmp_path / "box.toml"
    profile = box("int8", threads=host_cores())
    assert profile.latency_table is not None
    key = replace(profile.latency_table.key, vocab_size=shape.vocab_size)
    path.write_text(to_toml(replace(profile, latency_table=replace(profile.latency_table, key=key))))
    progress = Heard()
    manifest = deliver(replace(request_, device=str(path), precisions=("fp32",)), progress=progress).manifest
    assert (manifest.claim, manifest.met, manifest.precision) == ("measured", True, "fp32")
    assert 0.93 * manifest.limit <= manifest.figure
    assert "note: the latency table of box has nothing for fp32: one is measured here now" in progress.notes


def scaled(profile: DeviceProfile, **tails: float) -> DeviceProfile:
    """The profile with these percentiles in its table."""
    table = profile.latency_table
    assert table is not None
    return replace(profile, latency_table=replace(table, costs=tuple(replace(item, **tails) for item in table.costs)))


def test_costs_are_of_the_statistic_where_that_is_known_and_predicted() -> None:
    job: Any = SimpleNamespace(
        profile=scaled(box("int8", "fp32"), p90=1.25, p99=1.5), measured=False, shape=SHAPE,
        request=Request("m", "d", TPOT, (Target("total", 1.0),), precisions=("fp32", "int8")),
    )  # fmt: skip
    for statistic, ratio in (("p50", 1.0), ("p90", 1.25), ("p99", 1.5)):
        assert tail(job, Target("tpot", 0.01, statistic), "int8") == ratio  # type: ignore[arg-type]
    assert tail(job, Target("total", 1.0), "int8") == 0.0
    assert medians(job) == ("total",)
    costs = job.profile.latency_table.costs
    # One precision without percentiles: all are compared as medians.
    partly = (replace(costs[0], p90=0.0), replace(costs[1], p90=0.0), *costs[2:])
    job.profile = replace(job.profile, latency_table=replace(job.profile.latency_table, costs=partly))
    assert tail(job, TPOT, "fp32") == tail(job, TPOT, "int8") == 0.0
    assert medians(job) == ("tpot", "total")
    job.profile = load_profile("cpu-xeon")
    assert medians(job) == ("tpot", "total")
    # What is measured is of the statistic itself, and costs only compare plans.
    job.measured = True
    assert tail(job, TPOT, "int8") == 1.0
    assert medians(job) == ()


@pytest.mark.parametrize("known", [True, False])
def test_a_prediction_is_of_the_statistic_that_the_target_limits(
    request_: Request,
    tmp_path: Path,
    known: bool,
) -> None:
    shape, path = model_shape(load_config(Path(request_.model))), tmp_path / "box.toml"
    profile = replace(box("int8", "fp32"), match=DeviceMatch(vendors=("AnotherVendor",)))
    assert profile.latency_table is not None
    key = replace(profile.latency_table.key, vocab_size=shape.vocab_size)
    profile = replace(profile, latency_table=replace(profile.latency_table, key=key))
    table = profile.latency_table
    assert table is not None
    path.write_text(to_toml(scaled(profile, p90=1.25) if known else profile))
    ratio = 1.25 if known else 1.0
    dense = table.predict(shape.layers, "tpot", precision="int8")
    limit = 0.95 * ratio * dense
    delivery = deliver(replace(request_, device=str(path), precisions=("int8",), target=Target("tpot", limit)))
    manifest = delivery.manifest
    assert manifest.medians == (() if known else ("tpot",))
    pruned = table.predict(manifest.shape.layers, "tpot", precision="int8")
    assert manifest.figure == pytest.approx(ratio * pruned)
    assert [item.predicted_s for item in manifest.candidates] == pytest.approx([ratio * dense, ratio * pruned])
    text = render(delivery, quiet=True)
    assert f"predicted, not measured: tpot {'p90' if known else 'median'} " in text
    assert ("predicted tpot is the median: nothing tells p90 on this device" in text) is not known
