"""The lines shown to the user run."""

from __future__ import annotations

import shlex
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from tiny_exports import Exported

from prune_export.export.usage import python_lines, server_command
from prune_export.export.versions import package_versions


def test_the_python_lines_run(llama: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / 'it\'s a "model"'
    shutil.copytree(llama.directory, directory)
    lines = python_lines(directory, prompt="The quick", new_tokens=5)
    exec("\n".join(lines), {})
    printed = capsys.readouterr().out
    assert printed.strip()
    # The prompt is not repeated, and 5 tokens are no longer than 5 times the longest word of the vocabulary.
    assert "The quick" not in printed
    assert len(printed.strip()) <= 5 * max(map(len, llama.tokenizer.get_vocab()))


def test_the_server_command_survives_a_shell(tmp_path: Path) -> None:
    directory = tmp_path / "my model; rm -rf"
    words = shlex.split(server_command(directory, device="GPU", port=9000))
    assert words[0] == "ovms"
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options == {
        "--model_path": str(directory),
        "--model_name": "my-model-rm-rf",
        "--task": "text_generation",
        "--target_device": "GPU",
        "--rest_port": "9000",
    }


def test_versions_are_those_installed() -> None:
    versions = package_versions()
    for name in ("torch", "transformers", "optimum-intel", "nncf", "openvino", "openvino-tokenizers", "openvino-genai"):
        assert versions[name] == metadata.version(name)
    assert versions["prune-export"]
    assert versions["python"].count(".") == 2
