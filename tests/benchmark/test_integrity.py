"""What a manifest or an export record names is what is measured, or nothing is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from prune_export.benchmark.integrity import check_model_files
from prune_export.benchmark.run import artifact_precision, run_benchmark
from prune_export.benchmark.runtimes import find_model
from prune_export.errors import BadInputError
from prune_export.evaluate import evaluate
from prune_export.export_record import EXPORT_FILE, ExportRecord
from prune_export.hashes import SEAL, FileRecord, file_records
from prune_export.manifest import MANIFEST, Manifest, ParityRecord
from prune_export.profiles import load_profile
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Target, Workload

SHAPE = ModelShape("llama", 32, 8, 96, True, (LayerShape(4, 2, 64),) * 2, context=64)
PARITY = ParityRecord(1e-5, 1e-4, {"prefill": 1e-5}, 8, 1.0)
EDITED = r"manifest\.json was edited after it was written"


def save_manifest(directory: Path, **further: FileRecord) -> None:
    """As the main job writes it, sealed."""
    Manifest(
        command="", created="2026-01-01T00:00:00+00:00", source="tiny", source_digest="a" * 64, shape=SHAPE,
        dense_parameters=SHAPE.parameters(), formats=("openvino", "checkpoint"), precision="fp32",
        target=Target("tpot", 1.0), limit=1.0, claim="predicted", met=True, figure=0.5, profile="host", plan_digest="",
        calibration={}, evaluation={}, seed=42, candidates=(), rounds=(), parity=PARITY, versions={},
        files={**file_records(directory, besides=MANIFEST), **further},
    ).save(directory)  # fmt: skip


def save_record(directory: Path) -> None:
    """As `export` writes it, sealed."""
    ExportRecord(
        command="", created="2026-01-01T00:00:00+00:00", source="tiny", source_digest="a" * 64, shape=SHAPE,
        format="openvino", precision="fp32", parity=PARITY, host={}, versions={},
        files=file_records(directory, besides=EXPORT_FILE),
    ).save(directory)  # fmt: skip


def edit(path: Path, **changes: object) -> None:
    """A document edited by hand: its seal stays as it was."""
    path.write_text(json.dumps(json.loads(path.read_text("utf8")) | changes), encoding="utf8")


def spoil(path: Path) -> None:
    """Other weights of the same size."""
    data = bytearray(path.read_bytes())
    data[-4:] = bytes(255 - byte for byte in data[-4:])
    path.write_bytes(data)


def measure(directory: Path, *, compare: Path | None = None, precision: str = "fp32") -> None:
    workload = Workload(1, 8, 4)
    run_benchmark(
        directory, compare=compare, profile=load_profile("host"), workload=workload, precision=precision, rounds=1
    )


@pytest.fixture
def copied(tiny_ir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_ir, tmp_path / "fast" / "openvino")
    return tmp_path / "fast"


@pytest.mark.parametrize("document", [MANIFEST, EXPORT_FILE])
def test_changed_and_missing_files_are_named_in_one_line(copied: Path, document: str) -> None:
    folder = copied / "openvino"
    if document == MANIFEST:
        save_manifest(copied, **{"checkpoint/model.safetensors": FileRecord("a" * 64, 1)})
    else:
        save_record(folder)
    check_model_files(find_model(folder))  # the delivery's other folders may have stayed where they were made
    config, tokenizer = folder / "config.json", folder / "generation_config.json"
    config.write_text(config.read_text() + " ")
    tokenizer.unlink()
    with pytest.raises(BadInputError, match=rf"is not as its {document} says \(missing: .*; changed: .*config\.json\)"):
        check_model_files(find_model(folder))
    with pytest.raises(BadInputError, match="copy or make it again"):
        measure(folder)


def test_without_a_record_there_is_nothing_to_compare(copied: Path) -> None:
    check_model_files(find_model(copied / "openvino"))


def test_other_weights_with_their_hash_in_an_edited_document_are_found(copied: Path) -> None:
    folder = copied / "openvino"
    save_record(folder)
    spoil(folder / "openvino_model.bin")
    edit(folder / EXPORT_FILE, files={})
    with pytest.raises(BadInputError, match=r"export\.json was edited after it was written"):
        measure(folder)
    (folder / EXPORT_FILE).unlink()
    save_manifest(copied)
    check_model_files(find_model(copied))
    edit(copied / MANIFEST, files={})
    for place in (copied, folder):
        with pytest.raises(BadInputError, match=EDITED):
            measure(place)
        with pytest.raises(BadInputError, match=EDITED):
            evaluate(str(place))


def test_a_precision_edited_into_the_manifest_is_not_believed(copied: Path) -> None:
    save_manifest(copied)
    assert artifact_precision(copied) == "fp32"
    edit(copied / MANIFEST, precision="int8")
    for place in (copied, copied / "openvino"):
        with pytest.raises(BadInputError, match=EDITED):
            artifact_precision(place)
        with pytest.raises(BadInputError, match=EDITED):
            measure(place, precision="")
    with pytest.raises(BadInputError, match=EDITED):
        evaluate(str(copied))


def test_another_precision_than_the_artifact_states_is_refused(copied: Path) -> None:
    save_record(copied / "openvino")
    with pytest.raises(BadInputError, match=r"--precision int8: the weights of .* are in fp32: leave it out"):
        measure(copied, precision="int8")


def test_an_export_without_its_model_is_no_checkpoint(copied: Path) -> None:
    save_record(copied / "openvino")
    (copied / "openvino" / "openvino_model.xml").unlink()
    (copied / "openvino" / "config.json").write_text("{}")
    with pytest.raises(BadInputError, match="is an export whose model file is missing: copy or export it again"):
        find_model(copied / "openvino")


@pytest.mark.parametrize("document", [MANIFEST, EXPORT_FILE])
def test_a_document_without_its_seal_is_refused(copied: Path, document: str) -> None:
    folder = copied / "openvino"
    place, save = (copied, save_manifest) if document == MANIFEST else (folder, save_record)
    save(place)
    check_model_files(find_model(folder))
    bare = json.loads((place / document).read_text("utf8"))
    del bare[SEAL]
    (place / document).write_text(json.dumps(bare), encoding="utf8")
    with pytest.raises(BadInputError, match=rf"{document} has no content_digest: it was edited"):
        check_model_files(find_model(folder))
    if document == MANIFEST:  # the export's precision is read off its model's own files
        with pytest.raises(BadInputError, match="has no content_digest"):
            artifact_precision(folder)


def test_a_deliverys_checkpoint_is_checked_wherever_it_is_named_from(
    copied: Path, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = copied / "checkpoint"
    tiny_model.save_pretrained(checkpoint)
    save_manifest(copied)
    check_model_files(find_model(checkpoint))
    spoil(checkpoint / "model.safetensors")
    wrong = r"is not as its manifest\.json says \(changed: checkpoint/model\.safetensors\)"
    with pytest.raises(BadInputError, match=wrong):
        measure(copied, compare=checkpoint)
    with pytest.raises(BadInputError, match=wrong):
        evaluate(str(checkpoint))
    monkeypatch.chdir(checkpoint)
    with pytest.raises(BadInputError, match=wrong):
        measure(Path())
    spoil(copied / "openvino" / "openvino_model.bin")
    monkeypatch.chdir(copied / "openvino")
    with pytest.raises(BadInputError, match=r"changed: openvino/openvino_model\.bin"):
        measure(Path())


def test_other_programs_manifests_beside_a_checkpoint_are_nothing_to_compare_with(
    tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "llama")
    (tmp_path / MANIFEST).write_text("{}")
    check_model_files(find_model(tmp_path / "llama"))
