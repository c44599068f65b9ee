"""Several targets at once, on the simulated device of simulated_device.py: all hold, and the hardest one drives."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune_export import cli
from prune_export.deliver import deliver
from prune_export.delivery.request import Request
from prune_export.delivery.summary import claim
from prune_export.errors import BadInputError, InfeasibleError
from prune_export.target import Target
from prune_export.units import format_duration
from prune_export.verbs.options import add_target, parse_targets

BASE_BYTES = 10_000_000  # of the simulated process


def parsed(*arguments: str) -> tuple[Target, ...]:
    parser = argparse.ArgumentParser()
    add_target(parser)
    return parse_targets(parser.parse_args(arguments))


def test_targets_that_go_together() -> None:
    assert parsed("--target-latency", "40ms") == (Target("tpot", 0.04),)
    assert parsed("--target-latency", "tpot=40ms, ttft=1s") == (Target("tpot", 0.04), Target("ttft", 1.0))
    assert parsed("--target-latency", "2s", "--metric", "total") == (Target("total", 2.0),)
    memory = Target("memory", float(2 << 30))
    assert parsed("--target-latency", "40ms", "--target-memory", "2GiB") == (Target("tpot", 0.04), memory)
    assert parsed("--target-speedup", "1.3x", "--target-memory", "2GiB") == (Target("tpot", None, speedup=1.3), memory)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target-latency", "tpot=40ms,tpot=30ms"), "limits tpot twice"),
        (("--target-latency", "topt=40ms"), '"topt" is not one of tpot, ttft, total'),
        (("--target-latency", "tpot="), "--target-latency"),
        (("--target-latency", "40ms", "--target-speedup", "2x"), "got --target-latency and --target-speedup"),
        (("--target-memory", "2GiB", "--target-ratio", "20%"), "got --target-memory and --target-ratio"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        parsed(*arguments)


def int8_memory(request: Request) -> float:
    """Peak of the dense model in int8."""
    found = deliver(replace(request, target=Target("memory", 1e12), force=True)).manifest
    return next(
        float(item.measurement.peak_rss_bytes)
        for item in found.candidates
        if item.precision == "int8" and item.measurement is not None
    )


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("harder", [pytest.param("memory", marks=pytest.mark.slow), "tpot"])
def test_both_hold_and_the_harder_one_drives(request_: Request, harder: str) -> None:
    dense = int8_memory(request_) - BASE_BYTES
    kept = 0.7 if harder == "memory" else 0.95
    memory = Target("memory", BASE_BYTES + kept * dense)
    manifest = deliver(replace(request_, further=(memory,), force=True)).manifest
    assert manifest.met
    assert manifest.target.metric == harder
    (other,) = manifest.further
    assert {manifest.target, other.target} == {memory, request_.target}
    assert other.met
    assert other.figure <= other.limit
    lines = claim(manifest).splitlines()
    assert sum(line.startswith("met: measured") for line in lines) == 2
    assert 0.93 * manifest.limit <= manifest.figure <= manifest.limit  # and the harder one is not overdone


@pytest.mark.slow
@pytest.mark.usefixtures("simulated")
def test_a_dense_model_that_meets_one_of_two_is_pruned(request_: Request) -> None:
    dense = int8_memory(request_) - BASE_BYTES
    wanted = replace(request_, target=Target("tpot", 1.0), force=True)
    assert deliver(wanted).manifest.plan_digest == ""
    limit = Target("memory", BASE_BYTES + 0.8 * dense)
    manifest = deliver(replace(wanted, further=(limit,))).manifest
    assert manifest.plan_digest
    assert manifest.met
    assert all(item.met for item in manifest.further)
    with pytest.raises(InfeasibleError):
        deliver(replace(wanted, further=(Target("memory", float(BASE_BYTES)),)))


@pytest.mark.slow
def test_a_prediction_meets_both_latencies(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: Any
) -> None:
    """Elsewhere, by the roofline: 5% below the dense model's own figures of two metrics."""
    from prune_export.benchmark.roofline import roofline
    from prune_export.profiles import load_profile
    from prune_export.prune.loading import load_config
    from prune_export.prune.shapes import model_shape
    from prune_export.target import Workload

    shape, workload = model_shape(load_config(checkpoint)), Workload(prompt_tokens=16, new_tokens=8)
    dense = roofline(load_profile("gpu-intel"), shape, workload, "int8")
    limits = ",".join(f"{name}={0.95 * dense[f'{name}_s'] * 1e9:.1f}ns" for name in ("tpot", "ttft"))
    arguments = [
        *("--model", str(checkpoint), "--device", "gpu-intel", "--target-latency", limits, "--precision", "int8"),
        *("--workload", "prompt=16,new=8", "--calibration", str(text_file), "--eval-text", str(text_file)),
        *("--calibration-windows", "4", "--calibration-length", "64", "--mlp-group", "16", "--quiet"),
        *("-o", str(tmp_path / "out")),
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("predicted, not measured") == 2
    assert printed.count("would meet") == 2


def test_another_target_that_is_out_of_reach_is_named_with_its_own_limit(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The LM head takes 12% of the bytes of a token, and next to nothing of the work on a prompt."""
    from prune_export.benchmark.roofline import roofline
    from prune_export.profiles import load_profile
    from prune_export.prune.loading import load_config
    from prune_export.prune.shapes import model_shape
    from prune_export.target import Workload

    box = tmp_path / "box.toml"
    peaks = ", ".join(f"{name} = 1e10" for name in load_profile("gpu-intel").peak_flops)
    box.write_text(
        f'extends = "gpu-intel"\nname = "box"\nbandwidth_bytes_per_s = 1e9\nper_block_overhead_s = 0.0\n'
        f"peak_flops = {{ {peaks} }}\n"
    )
    shape, workload = model_shape(load_config(checkpoint)), Workload(prompt_tokens=64, new_tokens=8)
    dense = roofline(load_profile(box), shape, workload, "int8")
    tpot, ttft = 0.11 * dense["tpot_s"], 0.108 * dense["ttft_s"]
    arguments = [
        *("--model", str(checkpoint), "--device", str(box), "--precision", "int8"),
        *("--target-latency", f"tpot={tpot * 1e9:.1f}ns,ttft={ttft * 1e9:.1f}ns"),
        *("--workload", "prompt=64,new=8", "--calibration", str(text_file), "--eval-text", str(text_file)),
        *("--calibration-windows", "4", "--calibration-length", "64", "--mlp-group", "16", "--quiet"),
        *("-o", str(tmp_path / "out")),
    ]
    assert cli.main(arguments) == InfeasibleError.exit_code
    line = capsys.readouterr().err
    limit = format_duration(tpot)
    assert f"tpot p90 <= {limit}: {limit} cannot be reached; the smallest model takes" in line
