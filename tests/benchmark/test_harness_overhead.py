"""tools/harness_overhead.py: its bare loops generate what the session does, and its table says what was found."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prune_export.benchmark.openvino_session import OpenVINOSession
from prune_export.target import Workload

PROMPT, NEW = np.arange(2, 9, dtype=np.int64)[None], 12


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "harness_overhead.py"
    spec = importlib.util.spec_from_file_location("harness_overhead", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bare_loops_generate_the_sessions_tokens(script: ModuleType, tiny_ir: Path) -> None:
    session = OpenVINOSession(tiny_ir, precision="fp32", threads=1, last_token_only=True)
    session.load()
    token = session.prefill(PROMPT)[:, -1].argmax(axis=-1, keepdims=True)
    expected = []
    for _ in range(NEW - 1):
        token = session.decode(token)[:, -1].argmax(axis=-1, keepdims=True)
        expected.append(int(token[0, 0]))
    settings = {"ir": str(tiny_ir / "openvino_model.xml"), "options": session.options, "prompt": PROMPT.tolist()}
    for loop in ("dictionary", "tight"):
        found = script.bare({**settings, "loop": loop, "new": NEW, "warmup": 1, "repeats": 2})
        assert found["tokens"] == expected
        assert len(found["seconds"]) == 2
        assert min(found["seconds"]) > 0.0


def test_throughput_is_that_of_the_median_generation_and_the_ratio_that_of_each_round(script: ModuleType) -> None:
    seconds = script.generations((0.1, 0.3, 0.2, 0.2, 0.5, 0.5), 3)
    assert seconds == pytest.approx([0.4, 0.4, 1.0])
    assert script.throughput(seconds, Workload(batch=2, new_tokens=3)) == pytest.approx(2 * 2 / 0.4)
    rounds = [
        {"session": 98.0, "dictionary": 80.0, "tight": 100.0},
        {"session": 50.0, "dictionary": 50.0, "tight": 49.0},
    ]
    lines = script.table([*rounds, {"session": 100.0, "dictionary": 90.0, "tight": 100.0}]).splitlines()
    assert lines[2] == "| session | 98 |  |  |  |"
    assert lines[4] == "| tight | 100 | 1.000 | 0.980 | 1.020 |"
    assert all(line.count("|") == 6 for line in lines)
