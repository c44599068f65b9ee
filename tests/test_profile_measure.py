"""profile measure and kit: from a model's dimensions to a profile that plans, with and without torch on the device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from prune_export import cli
from prune_export.benchmark import claim, stacks, torch_cuda_session
from prune_export.benchmark import kit as kits
from prune_export.benchmark.kit import KIT_FILE, cache_warning, error_table, measure_kit
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest
from prune_export.benchmark.table_fit import Stack, fit_costs
from prune_export.delivery import preflight, profiling
from prune_export.delivery import stacks as delivery_stacks
from prune_export.delivery.kit import pack_kit
from prune_export.delivery.profiling import measure_profile
from prune_export.errors import BadInputError
from prune_export.hashes import sealed
from prune_export.manifest import Manifest
from prune_export.profiles import DeviceMatch, host_fingerprint, load_profile, to_toml
from prune_export.progress import Progress
from prune_export.prune.loading import load_config
from prune_export.prune.shapes import model_shape
from prune_export.prune.synthetic import KNOWN_SHAPES
from prune_export.records import to_json
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload

HOST = load_profile("host")
WEIGHTS = (".bin", ".data", ".safetensors")
SMALL = Workload(prompt_tokens=8, new_tokens=4)
TORCH = ("torch", "transformers", "optimum", "nncf", "safetensors", "tokenizers")


@pytest.fixture
def shape(checkpoint: Path) -> ModelShape:
    return model_shape(load_config(checkpoint))


def by_bytes(request: PanelRequest) -> PanelReply:
    """A device whose tokens take a fixed time and a time for each byte of the weights."""
    seconds = []
    for directory in map(Path, request.directories):
        (weights,) = (path.stat().st_size for path in directory.glob("*") if path.suffix in WEIGHTS)
        seconds.append(1e-3 + 1e-8 * weights)
    return PanelReply(tuple((10 * each,) for each in seconds), tuple((each,) for each in seconds), {"openvino": "1"})


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_a_profile_is_measured_checked_and_read_back(
    shape: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    order: list[str] = []

    def panel(request: PanelRequest) -> PanelReply:
        order.append("table")
        return by_bytes(request)

    def bandwidth(threads: int) -> float:
        order.append("bandwidth")
        return 1e10 * threads

    monkeypatch.setattr(stacks, "run_panel", panel)
    monkeypatch.setattr(kits, "read_bandwidth", bandwidth)
    # As cpu-xeon, which stands for many machines and assumes their memory.
    broad = replace(HOST, runtime=runtime, width_multiple=32, match=DeviceMatch(), memory_bytes=1)
    found = measure_profile(
        shape, broad, name="box", precisions=("fp32",), workload=SMALL,
        threads=1, held_out=3, work=tmp_path,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    table = found.latency_table
    assert table is not None
    assert table.record is not None
    assert (found.name, found.threads, found.bandwidth_bytes_per_s) == ("box", 1, 1e10)
    assert order[:2] == ["bandwidth", "table"], "what fails late throws the table away"
    assert order.count("bandwidth") == 1
    assert (found.match, found.memory_bytes) == (HOST.match, HOST.memory_bytes), "of this host alone"
    assert found.sources["memory_bytes"] == "detected"
    assert table.record.host == host_fingerprint()
    assert abs((datetime.now(UTC).date() - date.fromisoformat(table.record.date)).days) <= 1
    assert f"measured {table.record.date} with 1 threads" in found.description
    assert (table.record.runtime, table.record.versions, table.record.threads) == (runtime, {"openvino": "1"}, 1)
    assert [error.models for error in table.record.held_out] == [3, 3]
    # The device is linear in the parameters, but for the bytes of constants beside the weights.
    assert all(error.worst < 0.01 for error in table.record.held_out)
    assert "| fp32 | TPOT | 3 |" in error_table(table)
    path = tmp_path / "box.toml"
    path.write_text(to_toml(found))
    assert load_profile(path) == found
    # The record holds what the costs were fitted to: fitted again, it gives them again.
    group = shape.layers[0].query_heads // shape.layers[0].kv_heads
    for phase in stacks.PHASES:
        again = [
            Stack(
                tuple(
                    LayerShape(group * heads, heads, width)
                    for heads, width in zip(item.kv_heads, item.mlp_widths, strict=True)
                ),
                item.prefill_s if phase == "prefill" else item.decode_s,
            )
            for item in table.record.stacks
        ]
        assert again[0].layers == shape.layers
        refitted = fit_costs(again, phase=phase, precision="fp32")
        assert refitted == replace(table.phase(phase, "fp32"), p90=0.0, p99=0.0)
    halved = shape.with_layers(tuple(replace(layer, mlp_width=layer.mlp_width // 2) for layer in shape.layers))
    dense, smaller = (table.predict(item.layers, "tpot", precision="fp32") for item in (shape, halved))
    saved = 1e-8 * 4 * (shape.parameters() - halved.parameters())
    assert dense - smaller == pytest.approx(saved, rel=0.05)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is timed, in the place of timing it."""
    seen: list[tuple[str, ...]] = []

    def watched(request: PanelRequest) -> PanelReply:
        seen.append(tuple(Path(directory).name for directory in request.directories))
        return by_bytes(request)

    monkeypatch.setattr(stacks, "run_panel", watched)
    monkeypatch.setattr(kits, "read_bandwidth", lambda threads: 1e10 * threads)
    return seen


def test_a_large_model_is_measured_in_shallow_stacks_and_the_whole_model(
    shape: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: list[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(delivery_stacks, "_SMALL", 0)
    monkeypatch.setattr(delivery_stacks, "_LEAST_DEPTH", 2)
    monkeypatch.setattr(delivery_stacks, "usable_cache_bytes", lambda threads: 1)
    found = measure_profile(
        shape, replace(HOST, width_multiple=32), name="box", precisions=("fp32",), workload=SMALL,
        threads=1, held_out=3, work=tmp_path,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert timed[:2] == [("base",)] * kits.ALONE
    assert timed[2][:3] == ("base", "half-of-the-attentions", "half-of-the-MLPs")
    fitted = [names for names in timed[2:] if "base" in names]
    assert sum("dense" in names for names in fitted) == 3, (
        "the whole model in three processes, to continue the slopes to"
    )
    assert timed[-6] == ("dense", "held-out-model-1", "held-out-model-2", "held-out-model-3")
    assert timed[-1] == ("dense",) * 5, "beside itself, for the noise"
    assert found.latency_table is not None
    assert found.latency_table.record is not None
    # Constants beside the weights differ between depths: a few kilobytes, of models of half a megabyte.
    assert all(error.worst < 0.03 for error in found.latency_table.record.held_out)


class FakeCuda:
    """Another GPU than the built-in profile's."""

    name = "NVIDIA Test 900"

    def memory_bytes(self) -> int:
        return 10**11

    def bandwidth(self) -> float:
        return 5e12

    def flops(self, precision: str) -> float:
        return {"bf16": 9e14, "fp32": 6e13}[precision]


def test_a_profile_of_any_gpu_is_measured_whole(
    shape: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "run_panel", by_bytes)
    monkeypatch.setattr(torch_cuda_session, "DeviceCuda", FakeCuda)
    monkeypatch.setattr(kits, "device_fingerprint", lambda _: host_fingerprint() | {"gpu": FakeCuda.name})
    base = load_profile("gpu-cuda")
    found = measure_profile(
        shape, base, name="box", precisions=("bf16", "fp32"), workload=SMALL, threads=1, held_out=1, work=tmp_path
    )
    assert found.match == DeviceMatch(processors=("NVIDIA Test 900",))
    assert (found.memory_bytes, found.bandwidth_bytes_per_s) == (10**11, 5e12)
    assert found.peak_flops == {"bf16": 9e14, "fp32": 6e13}
    assert found.sources["peak_flops"].startswith("measured ")
    assert found.sources["width_multiple"] == base.sources["width_multiple"]
    assert found.description.startswith("NVIDIA Test 900, measured")
    assert found.latency_table is not None
    assert found.latency_table.record is not None
    assert found.latency_table.record.host["gpu"] == "NVIDIA Test 900"
    assert found.latency_table.predict(shape.layers, "tpot", precision="bf16") > 1e-3
    monkeypatch.undo()
    with pytest.raises(BadInputError, match="this host has no NVIDIA GPU: run it there"):
        measure_profile(shape, base, name="box", precisions=("bf16",), workload=SMALL, threads=1, work=tmp_path)


def test_the_depth_of_stacks_follows_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = KNOWN_SHAPES["smollm2-135m"], KNOWN_SHAPES["llama-3.2-1b"]
    depths = {}
    for cache in (0, 32, 256, 10**6):
        monkeypatch.setattr(delivery_stacks, "usable_cache_bytes", lambda threads, cache=cache: cache * 2**20)
        assert delivery_stacks.table_depth(small, "fp32", 2) == 30
        depths[cache] = [delivery_stacks.table_depth(large, precision, 2) for precision in ("fp32", "int8", "int4")]
    # 263 million parameters of the head, 61 a block, half of which the smallest stack has; what it reads is three times
    # the cache or more.
    assert depths == {0: [8, 8, 16], 32: [8, 8, 8], 256: [8, 16, 16], 10**6: [16, 16, 16]}
    smallest = min(
        sum(large.mlp_parameters(layer.mlp_width) for layer in design.layers)
        for design in delivery_stacks.designs(large.with_layers(large.layers[:10]), 128, finer=True, whole_beside=True)
        if design.name.startswith("three of five")
    ) + 10 * large.attention_parameters(8, 32)
    assert smallest / (10 * (large.mlp_parameters(8192) + large.attention_parameters(8, 32))) == pytest.approx(
        0.5, abs=0.1
    )
    mixed = large.with_layers((replace(large.layers[0], mlp_width=4096), *large.layers[1:]))
    assert delivery_stacks.table_depth(mixed, "int8", 2) == 16


def elsewhere(*_: object) -> dict[str, str]:
    """What another machine says of itself."""
    return host_fingerprint() | {"vendor": "AnotherVendor"}


def test_a_kit_is_measured_where_torch_is_not_and_its_profile_plans(
    shape: ModelShape,
    checkpoint: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kit, box = tmp_path / "kit", tmp_path / "box.toml"
    packing = ["kit", "--model", str(checkpoint), "-o", str(kit), "--held-out", "1", "--depth", "2", "--quiet"]
    assert cli.main([*packing, "--workload", "prompt=8,new=4"]) == 0
    assert "on the device: prune-export profile measure --kit" in capsys.readouterr().out
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in TORCH:
        (blocked / f"{name}.py").write_text("raise ImportError('not installed')")
    paths = [str(blocked), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = ["profile", "measure", "--kit", str(kit), "-o", str(box), "--threads", "1", "--quiet", "--budget", "3s"]
    code = f"import sys; from prune_export.cli import main; sys.exit(main({command!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": os.pathsep.join(paths)}
    )
    assert result.returncode == 0, result.stderr
    assert "| int8 | TPOT | 1 |" in result.stdout
    edited = tmp_path / "edited"
    edited.mkdir()
    text = (kit / KIT_FILE).read_text(encoding="utf8")
    (edited / KIT_FILE).write_text(text.replace('"hidden_size": ', '"hidden_size": 1'), encoding="utf8")
    with pytest.raises(BadInputError, match=r"kit\.json was edited after it was written"):
        measure_kit(edited, HOST, name="box")
    found = load_profile(box)
    assert found.latency_table is not None
    assert found.latency_table.predict(shape.layers, "tpot", precision="int8") > 0
    # Back on the workstation, which is not the box: planned with the box's table, and called predicted.
    tail = found.latency_table.tail("tpot", "p90", precision="int8")
    assert tail >= 1.0
    assert found.latency_table.tail("ttft", "p99", precision="int8") >= 1.0
    limit = 0.9 * tail * found.latency_table.predict(shape.layers, "tpot", precision="int8")
    delivery = [
        *("--model", str(checkpoint), "--device", str(box), "--target-latency", f"{limit * 1e6:.4f}us"),
        *("--workload", "prompt=8,new=4", "-o", str(tmp_path / "out")),
        *("--calibration", str(text_file), "--eval-text", str(text_file), "--mlp-group", "16"),
        *("--calibration-windows", "4", "--calibration-length", "64"),
    ]
    with monkeypatch.context() as workstation:
        workstation.setattr(preflight, "host_fingerprint", elsewhere)
        assert cli.main(delivery) == 0
    assert "has int8 and not fp32: planned in int8" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["claim"] == "predicted"
    assert {item["precision"] for item in manifest["candidates"]} == {"int8"}
    assert manifest["device"] == {
        "runtime": "openvino", "device": "CPU", "threads": 1, "match": json.loads(json.dumps(to_json(found.match)))
    }  # fmt: skip
    assert manifest["figure"] <= manifest["limit"] == pytest.approx(limit, rel=1e-3)
    # On the box the claim is measured, whether it holds or not, and written into a copy.
    capsys.readouterr()
    refuses_what_is_not_claimed(tmp_path / "out", box, monkeypatch, capsys)
    measuring = ["benchmark", str(tmp_path / "out"), "--manifest", str(tmp_path / "measured.json"), "--processes", "1"]
    assert cli.main([*measuring, "--threads", "1", "--quiet"]) == 0
    copy = json.loads((tmp_path / "measured.json").read_text())
    assert (copy["claim"], copy["profile"], copy["device"]) == ("measured", "box", manifest["device"])
    assert copy["workload"] == manifest["workload"] == {**vars(Workload()), "prompt_tokens": 8, "new_tokens": 4}
    (delivered,) = [item for item in copy["candidates"] if item["delivered"]]
    assert copy["figure"] == pytest.approx(np.percentile(delivered["measurement"]["itl_s"], 90))
    assert copy["met"] == (copy["figure"] <= copy["limit"])
    sentence = "met: measured tpot p90" if copy["met"] else "not met: measured tpot p90"
    assert sentence in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    # A claim that was edited by hand is not measured.
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest | {"limit": 1.0}))
    assert cli.main([*measuring, "--threads", "1", "--quiet", "--force"]) == 2
    assert "edited" in capsys.readouterr().err


def refuses_what_is_not_claimed(
    out: Path, box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The claim: int8, prompt=8,new=4, one thread of this host."""
    before = (out / "manifest.json").read_text()

    def refused(*options: str) -> str:
        assert cli.main(["benchmark", str(out), "--manifest", str(out / "measured.json"), "--quiet", *options]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert not (out / "measured.json").exists()
        return line

    for options, words in (
        (
            ["--workload", "prompt=16,new=4"],
            "--workload prompt=16,new=4,batch=1: the claim is of prompt=8,new=4,batch=1",
        ),
        (["--precision", "fp32"], "--precision fp32: the claim is of int8"),
        (["--threads", "2"], "--threads 2: the claim is of 1"),
        (["--through", "genai"], "--through genai: a claim is of the runtime itself"),
        (["--device", "cpu-xeon"], "--device cpu-xeon: the claim is of profile box: leave out --device"),
    ):
        assert words in refused(*options)
    with monkeypatch.context() as workstation:
        workstation.setattr(claim, "device_fingerprint", elsewhere)
        for options in ([], ["--device", str(box)]):
            assert "the claim is of another device: box stands for CPUs of" in refused(*options)
    # Manifests of earlier versions do not say which hosts they are for: the profile's file does.
    data = {key: value for key, value in json.loads(before).items() if key not in ("device", "content_digest")}
    (out / "manifest.json").write_text(json.dumps(sealed(data)))
    assert "is of an earlier version, which did not record the hosts of profile box" in refused()
    assert Manifest.load(out).device is None
    assert claim.claimed(out, load_profile(box), claim.Asked())[1] == load_profile(box)
    (out / "manifest.json").write_text(before)


def test_a_kits_table_is_continued_to_the_whole_model_and_checked_beside_it(
    shape: ModelShape, tmp_path: Path, timed: list[tuple[str, ...]]
) -> None:
    directory = tmp_path / "kit"
    kit = pack_kit(shape, HOST, directory, precisions=("fp32",), workload=SMALL, depth=2, held_out=2)
    (part,) = kit.parts
    assert part.dense is not None
    assert (part.dense.layers, len(part.base.layers)) == (shape.layers, 2)
    found = measure_kit(directory, HOST, name="box", threads=1)
    fitted = [names for names in timed if "base" in names]
    assert sum("dense" in names for names in fitted) == 3, "a point of the fit"
    assert timed[-6] == ("dense", "held-out-model-1", "held-out-model-2")
    assert timed[-1] == ("dense",) * 5, "beside itself, for the noise"
    table = found.latency_table
    assert table is not None
    assert table.record is not None
    assert all(error.worst < 0.03 for error in table.record.held_out)
    # A kit of the model's own depth has it as its base.
    (deep,) = pack_kit(shape, HOST, tmp_path / "deep", precisions=("fp32",), workload=SMALL, depth=9, held_out=0).parts
    assert (deep.dense, deep.base.layers) == (None, shape.layers)


def test_a_kit_that_is_not_whole_is_refused_before_anything_is_timed(
    shape: ModelShape, tmp_path: Path, timed: list[tuple[str, ...]]
) -> None:
    directory = tmp_path / "kit"
    pack_kit(shape, HOST, directory, precisions=("fp32",), workload=SMALL, depth=2, held_out=1)
    (directory / "box.toml").write_text("what a user leaves beside it")
    weights = directory / "fp32" / "base" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.rmtree(directory / "fp32" / "held-out-model-1")
    with pytest.raises(
        BadInputError, match=r"missing: fp32/held-out-model-1/openvino_model.bin, .*; changed: fp32/base/openvino_m"
    ):
        measure_kit(directory, HOST, name="box", threads=1)
    assert timed == []


@pytest.mark.parametrize(("cache", "warned"), [(0, False), (9_000, False), (50_000, True), (10**9, False)])
def test_stacks_that_stay_in_the_cache_where_the_model_does_not_are_warned_of(
    shape: ModelShape, tmp_path: Path, timed: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], cache: int, warned: bool,
) -> None:  # fmt: skip
    """Two layers of it take 74 kB in int8, four twice that; stacks of smaller blocks less."""
    directory = tmp_path / "kit"
    pack_kit(shape, HOST, directory, precisions=("int8",), workload=SMALL, depth=2, held_out=0)
    monkeypatch.setattr(kits, "usable_cache_bytes", lambda threads: cache)
    measure_kit(directory, HOST, name="box", threads=1, progress=Progress())
    told = [line for line in capsys.readouterr().err.splitlines() if "last cache" in line]
    assert len(told) == warned
    if not warned:
        return
    assert "2 layers fit this processor's last cache" in told[0]
    depth = int(told[0].rpartition("--depth ")[2])
    assert depth == 4
    (again,) = pack_kit(
        shape, HOST, tmp_path / "again", precisions=("int8",), workload=SMALL, depth=depth, held_out=0
    ).parts
    assert cache_warning(shape, again, cache) == ""


def test_a_profile_is_checked_on_twenty_models_by_default(
    checkpoint: Path, tmp_path: Path, timed: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    box = tmp_path / "box.toml"
    arguments = ["--model", str(checkpoint), "--runtime", "torch", "--precision", "fp32", "-o", str(box), "--quiet"]
    assert cli.main(["profile", "measure", *arguments, "--workload", "prompt=8,new=4", "--threads", "1"]) == 0
    assert "| fp32 | TTFT | 20 |" in capsys.readouterr().out
    table = load_profile(box).latency_table
    assert table is not None
    assert table.record is not None
    assert [len(error.errors) for error in table.record.held_out] == [20, 20]
    names = {name for names in timed for name in names if name.startswith("held-out")}
    assert len(names) == 20


def test_too_little_disk_or_memory_is_refused_before_anything_is_built(
    shape: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "build_stack", lambda *_, **__: pytest.fail("something was built"))
    measure = partial(measure_profile, shape, HOST, name="x", precisions=("int8",), workload=SMALL, work=tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300 << 20))
        with pytest.raises(pytest.fail.Exception, match="something was built"):  # enough for so small a model
            measure()
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=256 << 20))
        with pytest.raises(BadInputError, match=r"256 MiB free on that disk, about 258 MiB needed: .* with TMPDIR"):
            measure()
        with pytest.raises(BadInputError, match=r"free on that disk, about .* choose another -o"):
            full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=64 << 20))
            pack_kit(shape, HOST, tmp_path / "kit", precisions=("int8",), workload=SMALL)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=1 << 30))
    with pytest.raises(BadInputError, match=r"1.00 GiB of memory free, about 1.00 GiB needed for 168,000 parameters"):
        measure()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_kit_or_another_device_is_one_line(
    shape: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match=r"is no kit: it has no readable kit\.json"):
        measure_kit(tmp_path, HOST, name="box")
    (tmp_path / KIT_FILE).write_text('{"version": 0}')
    with pytest.raises(BadInputError, match="is of version 0, this prune-export reads 3: make the kit again"):
        measure_kit(tmp_path, HOST, name="box")
    (tmp_path / KIT_FILE).write_text('{"version": 99}')
    with pytest.raises(BadInputError, match=r"is of version 99, .*: install the version that made it"):
        measure_kit(tmp_path, HOST, name="box")
    with pytest.raises(BadInputError, match="--depth 1: a stack needs at least 2 layers"):
        pack_kit(shape, HOST, tmp_path / "kit", precisions=("int8",), workload=SMALL, depth=1)
    with pytest.raises(BadInputError, match="runtime torch: a kit is for a machine without torch, choose --runtime"):
        pack_kit(shape, replace(HOST, runtime="torch"), tmp_path / "kit", precisions=("fp32",), workload=SMALL)
    with pytest.raises(BadInputError, match="precision int8: torch is timed in fp32, bf16, fp16"):
        measure_profile(
            shape, replace(HOST, runtime="torch"), name="x", precisions=("int8",), workload=SMALL, threads=1,
            work=tmp_path,
        )  # fmt: skip
    assert not (tmp_path / "kit").exists()
    built: list[object] = []
    monkeypatch.setattr(profiling, "build_stack", lambda *_, **__: built.append(1))
    monkeypatch.setattr(kits, "read_bandwidth", built.append)
    with pytest.raises(BadInputError, match="measured on the device itself"):
        measure_profile(
            shape, replace(HOST, match=DeviceMatch(vendors=("AnotherVendor",))), name="x", precisions=("fp32",),
            workload=SMALL, threads=1, work=tmp_path,
        )  # fmt: skip
    assert built == [], "refused before any work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --model DIR or --kit DIR"),
        (["--model", "reference"], "needs -o FILE.toml"),
        (["--model", "reference", "-o", "box.json"], "a profile is a .toml file, e.g. -o box.toml"),
        (["--model", "reference", "-o", "gone/box.toml"], "the directory gone does not exist"),
        (["--kit", "kit", "-o", "box.toml", "--precision", "fp32"], "--precision: the kit decides this"),
        (["--model", "reference", "-o", "box.toml", "--precision", "int9"], '--precision "int9" is not one of'),
        (["--model", "reference", "-o", "box.toml", "--held-out", "-1"], "--held-out -1 must be at least 0"),
        (["--model", "reference", "-o", "box.toml", "--budget", "9"], '--budget "9"'),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["profile", "measure", *arguments]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
