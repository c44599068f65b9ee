"""What a manifest or an export record names is what is measured, or nothing is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prune_export.benchmark import integrity
from prune_export.benchmark.integrity import check_model_files
from prune_export.benchmark.run import run_benchmark
from prune_export.benchmark.runtimes import find_model
from prune_export.errors import BadInputError
from prune_export.hashes import FileRecord, file_records
from prune_export.profiles import load_profile
from prune_export.target import Workload


class _Document:
    """Stands for a manifest or a record: only its files count here."""

    def __init__(self, files: dict[str, FileRecord]) -> None:
        self.files = files


@pytest.fixture
def copied(tiny_ir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_ir, tmp_path / "openvino")
    return tmp_path


@pytest.mark.parametrize("document", ["manifest.json", "export.json"])
def test_changed_and_missing_files_are_named_in_one_line(
    copied: Path, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied / "openvino"
    place = copied if document == "manifest.json" else folder
    files = {**file_records(place, besides=document), "checkpoint/model.safetensors": FileRecord("a" * 64, 1)}
    if document == "export.json":
        del files["checkpoint/model.safetensors"]
    (place / document).write_text("{}")
    monkeypatch.setattr(integrity.Manifest, "load", lambda _: _Document(files))
    monkeypatch.setattr(integrity.ExportRecord, "load", lambda _: _Document(files))
    check_model_files(find_model(folder))  # the delivery's other folders may have stayed where they were made
    config, tokenizer = folder / "config.json", folder / "generation_config.json"
    config.write_text(config.read_text() + " ")
    tokenizer.unlink()
    with pytest.raises(BadInputError, match=rf"is not as its {document} says \(missing: .*; changed: .*config\.json\)"):
        check_model_files(find_model(folder))
    with pytest.raises(BadInputError, match="copy or make the artifact again"):
        run_benchmark(folder, profile=load_profile("host"), workload=Workload(1, 8, 4), precision="fp32", rounds=1)


def test_without_a_record_there_is_nothing_to_compare(copied: Path) -> None:
    check_model_files(find_model(copied / "openvino"))
