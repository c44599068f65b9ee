"""tools/attention_operators.py and tools/onnx_speed.py: what they compare is alike."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest

from prune_export.errors import PruneExportError


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("past", "new", "shared"), [(40, 1, True), (40, 1, False), (0, 24, True)])
def test_both_attentions_compute_the_same(past: int, new: int, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    script = loaded("attention_operators", monkeypatch)
    case = script.Case("tiny", 4, 2, 16, past, new, shared)
    ours, theirs = script.sessions(case, 1)
    for a, b in zip(ours.results(), theirs.results(), strict=True):
        assert np.abs(a).max() > 0.1
        assert np.abs(a - b).max() <= script.TOLERANCE
    monkeypatch.setattr(script, "_TURN_S", 0.001)
    turns = script.timed(case, 1, 0.0, True)
    assert len(turns[0]) == len(turns[1]) >= 4
    assert min(map(min, turns)) > 0


def test_attentions_that_differ_or_do_not_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    script = loaded("attention_operators", monkeypatch)
    case, plain = script.Case("tiny", 4, 2, 16, 40, 1, True), script.standard_graph
    monkeypatch.setattr(script, "standard_graph", lambda case, opset: plain(replace(case, kv_heads=4), opset))
    with pytest.raises(PruneExportError, match=r"ONNX Runtime .* does not run Attention: \S"):
        script.sessions(case, 1)

    def unscaled(case: object, opset: int) -> onnx.ModelProto:
        graph = plain(case, opset)
        for attribute in graph.graph.node[-1].attribute:
            if attribute.name == "scale":
                attribute.f = 1.0
        return graph

    monkeypatch.setattr(script, "standard_graph", unscaled)
    with pytest.raises(PruneExportError, match=r"differ by .*, at most 1e-05 is rounding"):
        script.sessions(case, 1)


def test_the_builder_is_asked_for_our_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = loaded("onnx_speed", monkeypatch)
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    for precision, block in (("int4", 64), ("int4", 0), ("fp32", 64)):
        script.build(tmp_path, tmp_path / "out", precision, tmp_path / "cache", block=block)
    assert commands[0][-2:] == ["--extra_options", "block_size=64"]
    assert all("--extra_options" not in command for command in commands[1:])


def test_blocks_are_read_off_the_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prune_export.export.onnx_export import export_onnx
    from prune_export.prune.synthetic import random_model
    from prune_export.shape import LayerShape, ModelShape

    script = loaded("onnx_speed", monkeypatch)
    model = random_model(ModelShape("llama", 64, 16, 96, True, (LayerShape(4, 2, 128),), context=64), seed=0)
    for precision, expected in (("int4", (128, 64)), ("fp32", ())):
        export_onnx(model, None, tmp_path / precision, precision=precision)
        assert script.blocks(tmp_path / precision) == expected
