"""The commands on ONNX artifacts, from checkpoint to figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prune_export.cli import main
from prune_export.errors import BadInputError
from prune_export.export_record import ExportRecord
from prune_export.files import check_destination
from prune_export.formats import formats_of


def test_an_onnx_artifact_is_exported_scored_and_timed(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "artifact"
    command = ["export", "--model", str(checkpoint), "--format", "onnx", "--precision", "int4", "-o", str(output)]
    assert main([*command, "--quiet"]) == 0
    record = json.loads((output / "onnx_export.json").read_text())
    assert record["precision"] == "int4"
    assert record["smaller_blocks"]["model.layers.0.attn.qkv_proj"] == 64
    assert record["parity"]["max_logit_error"] <= record["parity"]["tolerance"]
    assert {"onnx", "onnxruntime", "torch"} <= record["versions"].keys()
    departures = ExportRecord.load(output).departures
    assert departures["model.layers.0.attn.qkv_proj"] == "int4 in groups of 64"
    assert "model.layers.0.mlp.down_proj" not in departures  # 128 wide
    assert "model.layers.0.attn.qkv_proj int4 in groups of 64" in (output / "README.md").read_text("utf8")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    scores = []
    for model in (output, checkpoint):
        capsys.readouterr()
        options = ["--eval-text", str(text_file), "--eval-tokens", "512", "--json", "-", "--quiet"]
        assert main(["evaluate", "--model", str(model), *options]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert [score["through"] for score in scores] == ["onnxruntime", "torch"]
    assert scores[0]["perplexity"] == pytest.approx(scores[1]["perplexity"], rel=0.2)
    timing = ["--workload", "prompt=8,new=4", "--processes", "1", "--threads", "1", "--json", "-", "--quiet"]
    assert main(["benchmark", str(output), *timing]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["measurements"]
    assert measured["measurement"]["runtime"] == "onnxruntime"
    assert main([*command, "--quiet"]) == 2


def test_both_formats_lie_side_by_side(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "both"
    command = ["export", "--model", str(checkpoint), "--format", "both", "--precision", "int4", "-o", str(output)]
    assert main([*command, "--group-size", "32", "--kv-cache-precision", "f16"]) == 0
    assert "note: --kv-cache-precision: for the OpenVINO export alone" in capsys.readouterr().err
    assert json.loads((output / "openvino" / "openvino_export.json").read_text())["group_size"] == 32
    record = json.loads((output / "onnx" / "onnx_export.json").read_text())
    assert (record["block_size"], record["smaller_blocks"]) == (32, {})
    assert sorted(path.name for path in output.iterdir()) == ["onnx", "openvino"]
    assert (output / "onnx" / "model.onnx.data").is_file()
    assert (output / "openvino" / "openvino_model.bin").is_file()
    assert main(["benchmark", str(output), "--quiet"]) == 2
    # --force may replace it: it is recognized as an artifact.
    check_destination(output, force=True)


def test_formats_and_precisions_that_do_not_go_together_are_refused() -> None:
    assert [row.name for row in formats_of("both", precision="int8")] == ["openvino", "onnx"]
    with pytest.raises(BadInputError, match="format openvino has no precision fp8: use one of fp32, fp16, bf16, int8"):
        formats_of("both", precision="fp8")
    with pytest.raises(BadInputError, match='format "gguf" is not one of openvino, onnx, decilm, both'):
        formats_of("gguf", precision="int8")
