"""What `verify` says of exports: whole, edited, linked, damaged, of another checkpoint."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from prune_export import verify as verification
from prune_export.api import export
from prune_export.cli import main
from prune_export.errors import BadInputError, ParityError
from prune_export.evaluate import torch_nll
from prune_export.export_record import EXPORT_FILE, ExportRecord
from prune_export.hashes import check_seal, file_records, write_sealed
from prune_export.manifest import ParityRecord
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape
from prune_export.texts import load_text, token_windows
from prune_export.verify import verify


@pytest.fixture(scope="module")
def exports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenVINO and ONNX in fp32, from the command line."""
    output = tmp_path_factory.mktemp("exports") / "both"
    command = ["export", "--model", str(checkpoint), "--format", "both", "--precision", "fp32", "-o", str(output)]
    assert main([*command, "--quiet"]) == 0
    return output


@pytest.fixture
def copied(exports: Path, tmp_path: Path) -> Path:
    """The ONNX one, to be changed."""
    shutil.copytree(exports / "onnx", tmp_path / "onnx")
    return tmp_path / "onnx"


def test_exports_of_both_formats_verify_with_and_without_the_checkpoint(exports: Path, checkpoint: Path) -> None:
    lines = verify(exports).splitlines()
    assert [line.split(":")[0] for line in lines] == [str(exports / "onnx"), str(exports / "openvino")]
    assert all(f"files as in {EXPORT_FILE}; " in line and "greedy tokens" in line for line in lines)
    lines = verify(exports, checkpoint=str(checkpoint)).splitlines()
    assert all("largest logit error" in line for line in lines)
    with pytest.raises(BadInputError, match=r"reference .* is not what .* was exported from"):
        verify(exports / "onnx", checkpoint="reference")


def test_a_compressed_export_is_compared_with_its_checkpoint_within_a_limit(checkpoint: Path, tmp_path: Path) -> None:
    """Its tokens may have parted early; the NLL that torch gives now is the one that is recorded, or it fails."""
    output = tmp_path / "int8"
    assert main(["export", "--model", str(checkpoint), "--precision", "int8", "-o", str(output), "--quiet"]) == 0
    assert "from what was recorded" in verify(output, checkpoint=str(checkpoint))
    record = ExportRecord.load(output)
    # Within what int8 may differ by itself, but not what torch may.
    replace(record, parity=replace(record.parity, window_nll=record.parity.window_nll + 0.01)).save(output)
    assert "greedy tokens" in verify(output)
    with pytest.raises(ParityError, match=r"in torch: mean NLL differs by -0.010 from what was recorded, 0.001 is"):
        verify(output, checkpoint=str(checkpoint))


@pytest.mark.parametrize("cache", ["u8", "f16"])
def test_fp32_with_a_rounded_cache_verifies_against_its_checkpoint(
    checkpoint: Path, tmp_path: Path, cache: str
) -> None:
    output = tmp_path / "fp32"
    command = ["export", "--model", str(checkpoint), "--precision", "fp32", "--kv-cache-precision", cache]
    assert main([*command, "-o", str(output), "--quiet"]) == 0
    assert "largest logit error" in verify(output, checkpoint=str(checkpoint))


def test_the_record_and_the_card_say_where_an_export_comes_from(exports: Path, checkpoint: Path) -> None:
    record = ExportRecord.load(exports / "onnx")
    assert {"README.md", "model.onnx", "model.onnx.data", "config.json"} <= record.files.keys()
    assert record.command.startswith("prune-export export --model")
    card = ModelCard.load(exports / "onnx" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("onnx", "text-generation")
    assert card.data.tags == ["prune-export", "onnx", "fp32"]
    assert card.data.base_model is None
    for part in (record.command, record.source_digest, record.host["processor"], record.versions["torch"],
                 "| 0-3 | 4 | 2 | 128 |"):  # fmt: skip
        assert part in card.text


def test_what_no_check_reaches_stands_in_record_and_card(word_tokenizer: Any, tmp_path: Path) -> None:
    shape = ModelShape("mistral", 64, 16, len(word_tokenizer), True, (LayerShape(4, 2, 128),), context=512)
    model = random_model(shape, seed=0)
    model.config.sliding_window = 300
    (tmp_path / "model").mkdir()
    save_checkpoint(model, word_tokenizer, tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out", format="onnx", precision="fp32")
    words = "a sliding window of 300 tokens, since sequences end at 256"
    assert ExportRecord.load(tmp_path / "out").parity.unchecked == (words,)
    assert words in (tmp_path / "out" / "README.md").read_text("utf8")


def test_the_record_has_the_held_out_perplexity_of_the_export_itself(exports: Path, checkpoint: Path) -> None:
    model = load_model(checkpoint)
    for name in ("onnx", "openvino"):
        found = ExportRecord.load(exports / name).parity
        length = len(found.prompt) + len(found.continuation)
        assert length == min(16 + 128, model.config.max_position_embeddings)
        windows = token_windows(load_text(None, "evaluation"), load_tokenizer(checkpoint), count=8, length=length)
        assert found.perplexity == pytest.approx(math.exp(statistics.fmean(torch_nll(model, windows))), rel=1e-4)
        assert abs(found.nll_error) < 1e-4
        assert found.held_out.startswith("standard library, held-out modules")
        assert f"{found.perplexity:.2f} through the export" in (exports / name / "README.md").read_text("utf8")


def test_a_changed_export_is_not_evaluated(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "config.json"
    path.write_text(path.read_text("utf8") + " ", encoding="utf8")
    assert main(["evaluate", "--model", str(copied), "--eval-tokens", "512", "--quiet"]) == 2
    found = capsys.readouterr()
    assert f"is not as its {EXPORT_FILE} says (changed: config.json)" in found.err
    assert not found.out


def test_an_edited_record_is_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / EXPORT_FILE
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "precision": "int8"}))
    assert main(["verify", str(copied), "--quiet"]) == 2
    assert "export.json was edited after it was written" in capsys.readouterr().err.splitlines()[-1]
    del data["content_digest"]
    path.write_text(json.dumps(data))
    with pytest.raises(BadInputError, match="has no content_digest"):
        verify(copied)
    path.write_text("{")
    with pytest.raises(BadInputError, match="cannot be read as JSON"):
        verify(copied)
    path.unlink()
    with pytest.raises(BadInputError, match=r"no artifact of prune-export: it has no manifest.json and no export.json"):
        verify(copied)


def test_formats_that_were_exported_together_are_whole_together_or_refused(exports: Path, tmp_path: Path) -> None:
    assert {ExportRecord.load(exports / name).together for name in ("onnx", "openvino")} == {("openvino", "onnx")}
    both = tmp_path / "both"
    shutil.copytree(exports, both)
    record = both / "openvino" / EXPORT_FILE
    text = record.read_text("utf8")
    record.unlink()
    with pytest.raises(BadInputError, match=rf"both is not as it was exported \(without {EXPORT_FILE}: openvino\)"):
        verify(both)
    record.write_text(text, encoding="utf8")
    (both / "notes.txt").write_text("x")
    with pytest.raises(BadInputError, match=r"\(not listed: notes.txt\)"):
        verify(both)
    shutil.rmtree(both / "openvino")
    with pytest.raises(BadInputError, match=r"\(missing: openvino; not listed: notes.txt\): copy or make"):
        verify(both)
    assert "greedy tokens" in verify(both / "onnx")  # one by itself
    # Of an earlier version, which did not say what belongs together.
    replace(ExportRecord.load(both / "onnx"), together=()).save(both / "onnx")
    assert "greedy tokens" in verify(both)


@pytest.mark.parametrize(("kind", "words"), [("soft", "a symbolic link"), ("hard", "hard-linked")])
def test_linked_data_is_named(copied: Path, tmp_path: Path, kind: str, words: str) -> None:
    data, elsewhere = copied / "model.onnx.data", tmp_path / "elsewhere"
    data.rename(elsewhere)
    if kind == "soft":
        data.symlink_to(elsewhere)
    else:
        data.hardlink_to(elsewhere)
    with pytest.raises(BadInputError, match=rf"not as its export.json says \({words}: model.onnx.data\)"):
        verify(copied)


def test_missing_changed_and_new_files_are_named_together(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "config.json").write_text("{}")
    (copied / "notes.txt").write_text("x")
    with pytest.raises(
        BadInputError, match=r"missing: tokenizer.json; changed: config.json; not listed: notes.txt\): copy"
    ):
        verify(copied)


def test_weights_that_compute_something_else_fail_though_all_hashes_fit(copied: Path) -> None:
    data = copied / "model.onnx.data"
    weights = bytearray(data.read_bytes())
    middle = len(weights) // 2
    weights[middle : middle + 40000] = bytes(40000)
    data.write_bytes(weights)
    replace(ExportRecord.load(copied), files=file_records(copied, besides=EXPORT_FILE)).save(copied)
    with pytest.raises(ParityError):
        verify(copied)


@pytest.mark.parametrize(("count", "enough"), [(128, 116), (8, 6)])
def test_near_ties_may_fall_otherwise_on_another_host(count: int, enough: int, tmp_path: Path) -> None:
    """A tenth of the tokens, of few tokens two."""
    recorded = ParityRecord(0.0, 1e-4, {}, greedy_tokens=count, greedy_agreement=1.0)
    assert "greedy tokens equal the checkpoint's" in verification._tokens(tmp_path, enough / count, recorded)
    with pytest.raises(ParityError, match="of the greedy tokens equal the checkpoint's, when it was made 100% did"):
        verification._tokens(tmp_path, (enough - 1) / count, recorded)


def test_a_seal_holds_through_json_and_breaks_with_any_change(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    document = {"a": 1, "b": 0.1 + 0.2, "c": [1e-300, None, True], "d": {"ü": "x"}}
    write_sealed(path, document)
    check_seal(path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(data.items())), indent=7))  # the same content in other words
    check_seal(path)
    for key, value in (("a", 2), ("b", 0.3), ("c", [1e-300, None, False]), ("e", 1)):
        path.write_text(json.dumps({**data, key: value}))
        with pytest.raises(BadInputError, match="was edited after it was written"):
            check_seal(path)
