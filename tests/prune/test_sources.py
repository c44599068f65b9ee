from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi

from prune_export.errors import BadInputError
from prune_export.prune.sources import resolve_source


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
