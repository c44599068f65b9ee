"""Exports of weights that were rounded before, from the command line; what rounds is a few lines of this file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_export.cli import main
from prune_export.export import neural_compressor
from prune_export.export.integer_weights import Calibration
from prune_export.export.rounded import RoundedMatrix, RoundedWeights
from prune_export.export.rounding_options import RoundingOptions
from prune_export.texts import windows_digest

sys.path.append(str(Path(__file__).parent / "export"))
from made_up import assert_equal, ir_integers, linear_names, onnx_integers


def to_nearest(weight: np.ndarray, group: int) -> RoundedMatrix:
    """Asymmetric rounding to the nearest of 16 values between each group's smallest and largest."""
    rows, width = weight.shape
    parts = weight.reshape(rows, width // group, group)
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    scales = ((high - low) / 15).astype(np.float16)
    steps = scales.astype(np.float32)
    zero_points = np.clip(np.round(-low / steps), 0, 15)
    integers = np.clip(np.round(parts / steps[:, :, None]) + zero_points[:, :, None], 0, 15)
    return RoundedMatrix(integers.reshape(rows, width).astype(np.uint8), scales, zero_points.astype(np.uint8))


class OwnRounding:
    """Takes the library's place and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[RoundingOptions, Calibration | None]] = []
        self.made: RoundedWeights | None = None

    def __call__(self, model: Any, options: RoundingOptions, calibration: Calibration | None) -> RoundedWeights:
        self.calls.append((options, calibration))
        matrices = {
            name: to_nearest(model.get_submodule(name).weight.detach().numpy(), options.group_for(width))
            for name, (_, width) in linear_names(model).items()
        }
        described = calibration.described if calibration is not None else {}
        self.made = RoundedWeights(options.method, options.group_size, matrices, calibration=described)
        return self.made


@pytest.fixture
def own_rounding(monkeypatch: pytest.MonkeyPatch) -> OwnRounding:
    rounding = OwnRounding()
    monkeypatch.setattr(neural_compressor, "check_installed", lambda method: None)
    monkeypatch.setattr(neural_compressor, "round_weights", rounding)
    return rounding


def test_both_formats_get_the_same_integers(
    checkpoint: Path, text_file: Path, tmp_path: Path, own_rounding: OwnRounding, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["export", "--model", str(checkpoint), "--format", "both", "--precision", "int4", "--rounding", "gptq"]
    more = ["--group-size", "32", "--calibration", str(text_file), "--num-samples", "3", "--kv-cache-precision", "u8"]
    assert main([*command, *more, "-o", str(output), "--quiet"]) == 0
    ((options, calibration),) = own_rounding.calls
    assert options == RoundingOptions("gptq", 32, str(text_file), 3)
    assert calibration is not None
    assert calibration.tokens.shape == (3, 256)
    assert own_rounding.made is not None
    inside = ir_integers(output / "openvino")
    for name, matrix in own_rounding.made.matrices.items():
        assert_equal(inside[name], matrix)
    queries = own_rounding.made.matrices["model.layers.3.self_attn.q_proj"]
    found = onnx_integers(output / "onnx")["model.layers.3.attn.qkv_proj"]
    assert_equal(tuple(part[:64] for part in found), queries)
    for folder in ("openvino", "onnx"):
        record = json.loads((output / folder / f"{folder}_export.json").read_text())
        assert record["rounding"] == "gptq"
        assert record["calibration"] == calibration.described
        sealed = json.loads((output / folder / "export.json").read_text())["rounding"]
        assert sealed["calibration tokens"] == windows_digest(calibration.tokens)
        assert record["parity"]["max_logit_error"] <= record["parity"]["tolerance"]
        assert 0 < abs(record["parity"]["nll_error"]) < 1
        assert "rounding: method gptq, group size 32" in (output / folder / "README.md").read_text()
    assert json.loads((output / "openvino" / "openvino_export.json").read_text())["kv_cache"] == "u8"
    capsys.readouterr()
    assert main(["verify", str(output), "--model", str(checkpoint), "--quiet"]) == 0
    assert capsys.readouterr().out.count("files as in export.json") == 2


def test_what_does_not_go_with_it_is_refused(
    checkpoint: Path, tmp_path: Path, own_rounding: OwnRounding, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["export", "--model", str(checkpoint), "-o", str(output), "--quiet", "--rounding", "awq"]
    for options, words in (
        ([], "--rounding awq is for int4 weights, not for the default precision: add --precision int4"),
        (["--precision", "int8"], "--rounding awq is for int4 weights, not for int8: add --precision int4"),
        (["--precision", "int4", "--sym"], "--sym is of OpenVINO's own compression, with --rounding awq Neural"),
        (["--precision", "int4", "--format", "decilm"], "format decilm has no precision int4"),
        (["--precision", "int4", "--format", "onnx", "--kv-cache-precision", "u8"], "onnx has no --kv-cache-precision"),
    ):
        assert main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert main([*command, "--rounding", "best"]) == 2
    assert "invalid choice: 'best'" in capsys.readouterr().err
    assert not own_rounding.calls
    assert not output.exists()


def test_a_missing_library_is_named_with_its_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(neural_compressor, "find_spec", lambda name: None)
    command = ["export", "--model", str(checkpoint), "--precision", "int4", "--rounding", "rtn"]
    assert main([*command, "-o", str(tmp_path / "out"), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('neural-compressor, which is not installed: pip install "prune-export[rounding]"')
    assert not (tmp_path / "out").exists()


def test_state_space_models_are_refused_before_their_weights_are_read(
    tmp_path: Path, own_rounding: OwnRounding, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model_type": "mamba", "hidden_size": 32, "vocab_size": 64}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    command = ["export", "--model", str(tmp_path / "model"), "--precision", "int4", "--rounding", "rtn", "--quiet"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert "--rounding has no form for mamba" in capsys.readouterr().err
