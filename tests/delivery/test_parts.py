"""The smaller parts of a delivery."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prune_export.delivery.latency import latency_table
from prune_export.delivery.request import Request, default_output
from prune_export.delivery.resources import TreeMemory
from prune_export.delivery.state import KnownTrial, RunState
from prune_export.delivery.steps import default_group
from prune_export.errors import BadInputError, ParityError
from prune_export.export.gate import check_nll
from prune_export.export.openvino_options import CACHES
from prune_export.progress import Progress
from prune_export.shape import LayerShape, MixerShape, ModelShape
from prune_export.target import Target


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Target("tpot", None, speedup=1.3), "llama-host-1.3x"),
        (Target("tpot", 0.04), "llama-host-40.0ms"),
        (Target("parameters", 0.22), "llama-host-22_"),
    ],
)
def test_the_default_output_is_a_fresh_directory(
    target: Target, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request(model="/models/llama", device="host", target=target)
    assert str(default_output(request)) == name
    (tmp_path / name).mkdir()
    assert str(default_output(request)) == f"{name}-2"


@pytest.mark.parametrize(
    ("width", "multiple", "group"), [(384, 128, 32), (1536, 128, 128), (11008, 128, 896), (8192, 128, 640), (8, 128, 1)]
)
def test_groups_are_about_a_twelfth_of_the_width(width: int, multiple: int, group: int) -> None:
    shape = ModelShape("llama", 64, 16, 100, True, (LayerShape(4, 2, width),))
    assert default_group(shape, multiple) == group


@pytest.mark.alone
def test_the_memory_of_a_child_counts_until_sampling_pauses() -> None:
    script = "import time; data = bytearray(200 * 2**20); time.sleep(1.5)"
    with TreeMemory() as memory:
        before = memory.peak_bytes
        subprocess.run([sys.executable, "-c", script], check=True)
        counted = memory.peak_bytes
        with memory.paused():
            subprocess.run([sys.executable, "-c", script.replace("200", "400")], check=True)
        assert counted >= before + 150 * 2**20
        assert memory.peak_bytes < counted + 100 * 2**20
        memory.add(10**12)
    assert memory.peak_bytes > 10**12


@pytest.mark.alone
def test_the_peak_is_found_in_its_phase() -> None:
    progress = Progress(quiet=True)
    script = "import time; data = bytearray({} * 2**20); time.sleep(1)"
    with TreeMemory(lambda: progress.current) as memory:
        for name, size in (("small", 50), ("large", 300), ("none", 0)):
            with progress.phase(name):
                subprocess.run([sys.executable, "-c", script.format(size)], check=True)
    assert memory.peak_phase == "large", memory.phases_bytes
    assert memory.peak_bytes == memory.phases_bytes["large"]
    assert memory.phases_bytes["large"] > memory.phases_bytes["small"] + 200 * 2**20


def test_state_is_found_again_by_the_same_key_only(tmp_path: Path) -> None:
    progress = Progress(quiet=True)
    state = RunState(["a"], progress)
    state.learn(base=0.5)
    state.learn(trial=("plan", KnownTrial(1.0, 2.0, 4.0, 3.0, 0.1)))
    again = RunState(["a"], progress)
    assert again.known.base == 0.5
    assert again.known.trials == {"plan": KnownTrial(1.0, 2.0, 4.0, 3.0, 0.1)}
    assert RunState(["b"], progress).known.base is None
    again.forget()
    assert RunState(["a"], progress).known.base is None
    # A file of another version or a torn one starts the run anew instead of ending it.
    state.learn(base=0.25)
    (file,) = (tmp_path / "cache" / "runs").glob("*/known.json")
    file.write_text("{")
    assert RunState(["a"], progress).known.base is None


def test_a_wrong_kernel_fails_the_gate_and_rounding_does_not() -> None:
    check_nll(0.05, precision="int8", name="pruned")
    check_nll(-0.0005, precision="fp32", name="pruned")
    check_nll(0.05, precision="fp32", name="pruned", cache="u8")
    check_nll(0.5, precision="int4", name="pruned", cache="f32")
    for error, precision, cache in (
        (0.3, "int8", ""), (0.002, "fp32", ""), (float("nan"), "int8", ""), (0.3, "fp32", "u8"), (0.05, "fp32", "f16"),
    ):  # fmt: skip
        with pytest.raises(ParityError, match="computes something else on this processor"):
            check_nll(error, precision=precision, name="pruned", cache=cache)


def test_every_cache_that_can_be_asked_for_has_a_limit() -> None:
    for cache in CACHES:
        check_nll(0.0, precision="fp32", name="pruned", cache=cache)
        with pytest.raises(ParityError, match=f"in fp32, cache in {cache}: mean NLL"):
            check_nll(2.0, precision="fp32", name="pruned", cache=cache)


def test_a_state_space_model_has_no_latency_table() -> None:
    layers = (LayerShape(0, 0, 0, 64, 0),) * 2
    job: Any = SimpleNamespace(shape=ModelShape("mamba", 32, 1, 61, True, layers, mixer=MixerShape(fixed=32, unit=99)))
    with pytest.raises(BadInputError, match="a mamba model has neither: use --target-ratio"):
        latency_table(job, SimpleNamespace())  # type: ignore[arg-type]
