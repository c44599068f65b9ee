"""What `prune-export benchmark` does, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prune_export import cli
from prune_export.benchmark import run
from prune_export.benchmark.run import artifact_precision, render_csv, render_json, render_text, run_benchmark
from prune_export.errors import BadInputError
from prune_export.manifest import MANIFEST, Measurement
from prune_export.profiles import load_profile
from prune_export.target import Workload


def test_two_artifacts_are_compared_and_the_prompt_fits_the_context(tiny_ir: Path) -> None:
    result = run_benchmark(
        tiny_ir,
        compare=tiny_ir,
        profile=load_profile("host"),
        workload=Workload(1, 512, 8, 1, 1),
        threads=1,
        rounds=2,
    )
    assert [len(item.load_s) for item in result.measurements] == [2, 2]
    assert result.measurements[0].workload.prompt_tokens == 64 - 8
    assert "prompt shortened from 512 to 56 tokens: prompt + new must fit the context of 64" in result.notes
    assert set(result.ratios) == {"ttft p50", "tpot p50", "tpot p90", "total p50"}
    # The same artifact twice: on a busy machine the two may differ, but not by a factor of four.
    assert 0.25 < result.ratios["tpot p50"].ratio < 4
    text = render_text(result)
    assert "openvino / openvino, paired by round; below 1 openvino is faster:" in text
    assert "note: prompt shortened" in text
    data = json.loads(json.dumps(render_json(result)))
    assert len(data["ratios"]["ttft p50"]["per_round"]) == 2
    assert len(render_csv(result).splitlines()) == 3


def test_a_machine_that_moved_is_said(
    make_measurement: Callable[..., Measurement], tiny_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline is the artifact that is compared with: the second."""
    steady = make_measurement((0.1, 0.1), (0.010, 0.010), rounds=2)
    drifting = make_measurement((0.1, 0.1), (0.010, 0.0105), rounds=2)
    note = "the baseline's own tpot p50 moved by 5.0% over 2 rounds (limit 3%)"
    for second, said in ((drifting, True), (steady, False)):
        monkeypatch.setattr(run, "measure_together", lambda *_, second=second, **__: [steady, second])
        result = run_benchmark(
            tiny_ir, compare=tiny_ir, profile=load_profile("host"), workload=Workload(1, 8, 4, 0, 1), threads=1
        )
        assert any(note in item for item in result.notes) is said
        assert (note in render_text(result)) is said


def test_of_one_that_moved_no_baseline_and_no_ratio_are_spoken_of(
    make_measurement: Callable[..., Measurement], tiny_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifting = make_measurement((0.1, 0.1), (0.010, 0.0105), rounds=2)
    monkeypatch.setattr(run, "measure_together", lambda *_, **__: [drifting])
    result = run_benchmark(tiny_ir, profile=load_profile("host"), workload=Workload(1, 8, 4, 0, 1), threads=1)
    (note,) = (item for item in result.notes if "moved" in item)
    assert note.startswith("the model's tpot p50 moved by 5.0% over 2 rounds (limit 3%)")
    assert note.endswith("measure again, or beside another one with --compare")
    assert any(item.endswith("its files were not checked") for item in result.notes)
    # Memory that was not sampled is no memory of zero.
    row = render_csv(replace(result, measurements=(replace(drifting, peak_rss_bytes=0, rss_rise_bytes=0),)))
    assert row.splitlines()[1].split(",")[-3:-1] == ["", ""]


def test_two_results_in_one_place_are_refused(
    tiny_ir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("-", str(tmp_path / "found")):
        assert cli.main(["benchmark", str(tiny_ir), "--json", place, "--csv", place]) == 2
        assert "each need a place of their own" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_throughput_at_several_batch_sizes(tiny_ir: Path) -> None:
    result = run_benchmark(
        tiny_ir, profile=load_profile("host"), workload=Workload(1, 8, 4, 0, 1), threads=1, rounds=1, batches=(2, 3)
    )
    assert [item.workload.batch for item in (*result.measurements, *result.batches)] == [1, 2, 3]
    rows = render_text(result).splitlines()
    (head,) = (at for at, row in enumerate(rows) if "decode tokens/s" in row)
    assert [row.split()[2] for row in rows[head + 1 : head + 4]] == ["1", "2", "3"]
    for data, item in zip(render_json(result)["measurements"], (*result.measurements, *result.batches), strict=True):
        batch = item.workload.batch
        assert data["tokens_per_s"]["decode"] == pytest.approx(batch * len(item.itl_s) / sum(item.itl_s))
        whole = sum(item.samples("total"))
        assert data["tokens_per_s"]["request"] == pytest.approx(batch * 4 * len(item.ttft_s) / whole)
    assert len(render_csv(result).splitlines()) == 4
    assert cli.main(["benchmark", str(tiny_ir), "--batches", "2,x"]) == 2


def test_a_host_that_is_not_the_device_is_said(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune_export.benchmark.run.mismatch", lambda profile, fingerprint: "it needs amx_tile")
    result = run_benchmark(
        tiny_ir, profile=load_profile("cpu-xeon"), workload=Workload(1, 8, 4, 0, 1), threads=1, rounds=1
    )
    assert "measured on this host, which is not the device: it needs amx_tile" in result.notes
    assert result.ratios == {}


def test_the_precision_comes_from_the_manifest_or_from_the_weights(tiny_ir: Path) -> None:
    assert artifact_precision(tiny_ir) == "fp32"
    manifest = tiny_ir.parent / MANIFEST
    manifest.write_text("{}")
    try:
        with pytest.raises(BadInputError, match=r"manifest.json has format None"):
            artifact_precision(tiny_ir)
    finally:
        manifest.unlink()
