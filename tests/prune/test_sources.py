from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from transformers.utils.hub import CHAT_TEMPLATE_DIR, CHAT_TEMPLATE_FILE

from prune_export.errors import BadInputError
from prune_export.prune import sources
from prune_export.prune.sources import resolve_source

# Llama-3.2-1B-Instruct's files, those of other exports that such repositories hold, and all places of chat templates.
WANTED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE_FILE,
)
UNWANTED = (
    ".gitattributes",
    "LICENSE.txt",
    "README.md",
    "USE_POLICY.md",
    "pytorch_model.bin",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "original/params.json",
    "original/tokenizer.model",
    "runs/Nov29/events.json",
)
FURTHER = (f"{CHAT_TEMPLATE_DIR}/tool_use.jinja", f"{CHAT_TEMPLATE_DIR}/rag.jinja")


def test_directory_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_source(str(tmp_path)) == tmp_path
    (tmp_path / "reference").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_source("reference").parts[-2:] == ("reference", "model")
    assert resolve_source("./reference") == Path("reference")


def test_file_and_missing_directory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"is a file: give the directory"):
        resolve_source(str(tmp_path / "model.safetensors"))
    with pytest.raises(BadInputError, match=r"nothing/here does not exist: give a directory, a hub id"):
        resolve_source(f"{tmp_path}/nothing/here")


def test_offline_fails_fast_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(self: HfApi, model_id: str, *, timeout: float) -> None:
        assert timeout <= 10
        raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(BadInputError, match=r"^nobody/nothing is no local directory and cannot be fetched .*network"):
        resolve_source("nobody/nothing")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("further", [(), FURTHER])
def test_weights_tokenizer_and_chat_templates_are_fetched_and_nothing_else(
    further: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = (*WANTED, *UNWANTED, *further)
    fetched: set[str] = set()
    calls = 0

    def info(self: HfApi, model_id: str, *, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(
        model_id: str, *, allow_patterns: list[str] | None = None, ignore_patterns: list[str] | None = None
    ) -> str:
        nonlocal calls
        calls += 1
        # As the real one chooses.
        fetched.update(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr(HfApi, "model_info", info)
    monkeypatch.setattr(sources, "snapshot_download", download)
    assert resolve_source("somebody/model") == tmp_path
    assert fetched == {*WANTED, *further}
    assert calls == (2 if further else 1)
