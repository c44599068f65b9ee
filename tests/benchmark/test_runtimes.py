"""A runtime is a session's file, its row and its name; everything else follows."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_export.benchmark import measure as measuring
from prune_export.benchmark import runtimes, worker
from prune_export.benchmark.child import Parent
from prune_export.benchmark.measure import measure
from prune_export.benchmark.runtimes import Runtime, find_model
from prune_export.benchmark.session import Logits, Tokens
from prune_export.errors import BadInputError
from prune_export.profiles import device, load_profile, to_toml
from prune_export.records import from_json, to_json
from prune_export.target import Workload
from prune_export.verbs import profiles as verbs

WORKLOAD = Workload(prompt_tokens=4, new_tokens=3, warmup=0, repeats=2)


class Toy:
    """A session that knows how many tokens it holds."""

    vocab_size, load_s = 7, 0.5

    def __init__(self, directory: Path, *, precision: str, threads: int, device: str, last_token_only: bool) -> None:
        self.options = {"precision": precision, "threads": str(threads), "device": device}
        self.length = 0

    def load(self) -> None: ...

    def reset(self) -> None:
        self.length = 0

    def prefill(self, ids: Tokens) -> Logits:
        self.length += ids.shape[1]
        return np.ones((len(ids), 1, self.vocab_size), np.float32)

    decode = prefill

    def touch(self) -> None: ...


ROW = Runtime(
    "toy", "toy-format", "model.toy",
    lambda _: None, lambda _: "int8", lambda path: path.stat().st_size, Toy, ("numpy",),
)  # fmt: skip


def test_every_row_has_its_name_in_profiles() -> None:
    assert tuple(row.name for row in runtimes.RUNTIMES) == device.RUNTIMES


def test_a_made_up_runtime_is_found_measured_and_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tmp_path / "artifact"
    (artifact / "toy-format").mkdir(parents=True)
    (artifact / "toy-format" / "model.toy").write_bytes(b"123")
    (artifact / "config.json").write_text(json.dumps({"model_type": "llama"}))
    profile = replace(load_profile("host"), name="box")
    text = to_toml(profile).replace('runtime = "openvino"', 'runtime = "toy"')
    (tmp_path / "box.toml").write_text(text)
    with pytest.raises(BadInputError, match='runtime "toy" is not one of openvino'):
        load_profile(tmp_path / "box.toml")

    monkeypatch.setattr(runtimes, "RUNTIMES", (*runtimes.RUNTIMES, ROW))
    monkeypatch.setattr(measuring, "RUNTIMES", runtimes.RUNTIMES)
    monkeypatch.setattr(device, "RUNTIMES", (*device.RUNTIMES, "toy"))
    monkeypatch.setattr(verbs, "RUNTIMES", device.RUNTIMES)
    monkeypatch.setattr(measuring, "run_worker", _here)

    assert find_model(artifact).runtime is ROW  # behind the checkpoint's row, and still before its configuration
    with pytest.raises(BadInputError, match=r"holds no .* or model\.toy: export the model first"):
        find_model(tmp_path)
    found = measure(
        artifact, profile=load_profile(tmp_path / "box.toml"), workload=WORKLOAD, precision="int8", threads=1,
        processes=1, sample_memory=False,
    )  # fmt: skip
    assert (found.runtime, found.weights_bytes, found.options["device"]) == ("toy", 3, "CPU")
    assert (len(found.ttft_s), len(found.itl_s)) == (found.workload.repeats, 2 * found.workload.repeats)
    parser = argparse.ArgumentParser()
    verbs.add_kit(parser)
    assert parser.parse_args(["--model", "m", "-o", "k", "--runtime", "toy"]).runtime == "toy"


class Alone(Parent):
    """Nobody who gives turns."""

    def wait(self, last: float) -> int:
        return 0


def _here(request: worker.Request) -> worker.Reply:
    """The worker's own code in this process, where the row is known; it pins the process, which others go on in."""
    cpus = os.sched_getaffinity(0)
    try:
        data: dict[str, Any] = worker._handle(to_json(request), Alone(lambda _: None))
    finally:
        os.sched_setaffinity(0, cpus)
    return from_json(worker.Reply, data, where="reply")
