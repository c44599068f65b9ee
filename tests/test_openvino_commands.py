"""The commands on OpenVINO exports, from checkpoint to figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prune_export import formats
from prune_export.cli import main
from prune_export.errors import BadInputError
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.formats import formats_of, unheeded
from prune_export.progress import Progress

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def chat_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(checkpoint, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    settings = json.loads((directory / "generation_config.json").read_text()) | {"temperature": 0.7, "top_k": 20}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


def test_a_half_precision_artifact_with_a_cache_hint(
    chat_checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "ir"
    options = ["--precision", "bf16", "--kv-cache-precision", "u8"]
    assert main(["export", "--model", str(chat_checkpoint), *options, "-o", str(output), "--quiet"]) == 0
    record = json.loads((output / "openvino_export.json").read_text())
    assert (record["precision"], record["kv_cache"]) == ("bf16", "u8")
    assert record["parity"]["max_logit_error"] <= record["parity"]["tolerance"]
    assert {"openvino", "torch"} <= record["versions"].keys()
    settings = json.loads((output / "generation_config.json").read_text())
    assert (settings["temperature"], settings["top_k"]) == (0.7, 20)
    assert (output / "chat_template.jinja").read_text() == TEMPLATE
    capsys.readouterr()
    scoring = ["--eval-text", str(text_file), "--eval-tokens", "512", "--json", "-", "--quiet"]
    assert main(["evaluate", "--model", str(output), *scoring]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["through"], scored["precision"]) == ("openvino", "bf16")
    timing = ["--workload", "prompt=8,new=4", "--processes", "1", "--threads", "1", "--json", "-", "--quiet"]
    assert main(["benchmark", str(output), *timing]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["measurements"]
    assert measured["measurement"]["options"]["KV_CACHE_PRECISION"] == "u8"


def test_chats_are_rendered_with_the_models_own_template(chat_checkpoint: Path, tmp_path: Path) -> None:
    import openvino_genai

    output = tmp_path / "ir"
    command = ["export", "--model", str(chat_checkpoint), "--precision", "int4", "--group-size", "32", "--sym"]
    assert main([*command, "-o", str(output), "--quiet"]) == 0
    record = json.loads((output / "openvino_export.json").read_text())
    assert (record["mode"], record["group_size"], record["smaller_groups"]) == ("int4_sym", 32, {})
    text = openvino_genai.Tokenizer(str(output)).apply_chat_template([{"role": "user", "content": "hi"}], True)
    assert text == "[user] hi"
    config = openvino_genai.GenerationConfig(str(output / "generation_config.json"))
    assert (round(config.temperature, 3), config.top_k) == (0.7, 20)


def test_options_where_they_have_no_meaning_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["export", "--model", str(checkpoint), "-o", str(output), "--quiet"]
    for options, words in (
        (["--precision", "int8", "--ratio", "0.5"], "--ratio is for int4 weights, not for int8"),
        (["--precision", "int4", "--ratio", "1.5"], "ratio 1.5 of int4 layers must be above 0 and at most 1"),
        (["--format", "onnx", "--precision", "int4", "--sym"], "--format onnx has no --sym: leave it out"),
        (["--format", "onnx", "--precision", "int8", "--group-size", "32"], "--group-size is for int4 weights"),
        (["--format", "onnx", "--kv-cache-precision", "u8"], "--format onnx has no --kv-cache-precision"),
        (["--format", "decilm", "--group-size", "32"], "--format decilm has no --group-size"),
        (["--kv-cache-precision", "u2"], "invalid choice: 'u2'"),
    ):
        assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err
    assert not output.exists()


def test_both_formats_take_the_options_for_their_openvino_part() -> None:
    rows = formats_of("both", precision="int8", openvino=OpenVinoOptions(symmetric=True))
    plain = formats_of("both", precision="int8")
    assert [row.name for row in rows] == ["openvino", "onnx"]
    assert rows[1] is plain[1]
    assert rows[0].write is not plain[0].write


@pytest.mark.parametrize("text", ["both", "onnx"])
def test_the_group_size_is_onnxs_too(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []

    def written(*_: object, block: int) -> None:
        blocks.append(block)

    monkeypatch.setattr(formats, "_onnx", written)
    row = formats_of(text, precision="int4", openvino=OpenVinoOptions(group_size=32))[-1]
    row.write(Path("model"), Path("out"), "int4", Progress(quiet=True))
    assert (row.name, blocks) == ("onnx", [32])
    assert unheeded(text, OpenVinoOptions(group_size=32)) == ""


def test_what_openvino_alone_has_is_said_where_both_are_written() -> None:
    options = OpenVinoOptions(group_size=32, symmetric=True, kv_cache="u8")
    assert unheeded("both", options).startswith("note: --sym, --kv-cache-precision: for the OpenVINO export alone")
    assert unheeded("openvino", options) == unheeded("both", None) == ""


def test_a_family_that_a_format_lacks_is_refused_before_its_weights_are_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, format_name, words in (
        ("mamba2", "openvino", 'architecture "mamba2" has no OpenVINO export: use one of llama, '),
        ("mamba", "onnx", 'architecture "mamba" has no ONNX export: use one of llama, '),
        ("mamba", "both", 'architecture "mamba" has no ONNX export: use one of llama, '),
    ):
        source = tmp_path / f"{kind} {format_name}"
        source.mkdir()
        settings = {"model_type": kind, "hidden_size": 32, "num_heads": 8, "head_dim": 8, "vocab_size": 64}
        (source / "config.json").write_text(json.dumps(settings))
        command = ["export", "--model", str(source), "--format", format_name, "--precision", "fp32"]
        assert main([*command, "-o", str(tmp_path / "out"), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInputError, match='format "gguf" is not one of openvino, onnx, decilm, both'):
        formats_of("gguf", precision="int8")
