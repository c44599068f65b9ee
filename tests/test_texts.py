import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_export import cli, texts
from prune_export.delivery.request import SearchSettings
from prune_export.errors import BadInputError
from prune_export.evaluate import Comparison, evaluate

SEARCH = SearchSettings(mlp_group=16, calibration_windows=2, calibration_length=64)


def test_windows_are_pieces_of_the_text_spread_over_it(text_file: Path, word_tokenizer: Any) -> None:
    text = texts.load_text(str(text_file), "evaluation")
    stream = texts.encode(text, word_tokenizer)
    windows = texts.token_windows(text, word_tokenizer, count=5, length=64)
    assert windows.shape == (5, 64)
    starts = [next(i for i in range(0, len(stream), 64) if np.array_equal(stream[i : i + 64], row)) for row in windows]
    assert starts[0] == 0
    assert starts[-1] == (len(stream) // 64 - 1) * 64
    assert sorted(starts) == starts
    assert texts.windows_digest(windows) != texts.windows_digest(windows[:4])


def test_encoding_in_pieces_loses_no_text(word_tokenizer: Any) -> None:
    document = "\n".join(f"line {number} of the text" for number in range(8000))
    text = texts.Text("long", (document,), "")
    assert word_tokenizer.decode(texts.encode(text, word_tokenizer)) == document


def test_jsonl_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n\n{"content": "two"}\n')
    assert texts.load_text(str(path), "calibration").documents == ("one", "two")
    path.write_text('{"text": "one"}\n{"title": "two"}\n')
    with pytest.raises(BadInputError, match=r"rows.jsonl:2 has no text"):
        texts.load_text(str(path), "calibration")
    path.write_text("{\n")
    with pytest.raises(BadInputError, match=r"rows.jsonl:1 is no JSON"):
        texts.load_text(str(path), "calibration")
    path.write_text("\n")
    with pytest.raises(BadInputError, match="holds no text"):
        texts.load_text(str(path), "calibration")


def test_data_sets_fail_fast_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    for name in texts.DATASETS:
        with pytest.raises(BadInputError, match="does not answer within 3 s"):
            texts.load_text(name, "evaluation")


def test_data_sets_take_the_papers_splits_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load(path: str, config: str | None = None, *, data_files: Any = None, split: str, revision: Any = None) -> Any:
        asked.append((path, config, data_files, split))
        column = next(row.column for row in texts.DATASETS.values() if row.path == path)
        return datasets.Dataset.from_dict({column: [f"row {number}" for number in range(100)]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(texts, "_check_reachable", lambda name: None)
    assert len(texts.load_text("wikitext2", "evaluation").documents) == 100
    assert asked[-1] == ("Salesforce/wikitext", "wikitext-2-raw-v1", None, "test")
    # 20% of the rows are split off with seed 42 and halved: the "test split" of SliceGPT's and MultiPruner's code.
    halves = [texts.load_text("alpaca", role).documents for role in ("calibration", "evaluation")]
    assert [len(half) for half in halves] == [10, 10]
    assert not set(halves[0]) & set(halves[1])
    texts.load_text("c4", "calibration")
    assert asked[-1][2] == {"train": "en/c4-train.00000-of-01024.json.gz"}
    texts.load_text("ptb", "evaluation")
    assert asked[-1][3] == "test"


def test_evaluation_equals_the_models_own_loss(checkpoint: Path, text_file: Path, word_tokenizer: Any) -> None:
    import torch

    from prune_export.prune.checkpoint import load

    result = evaluate(str(checkpoint), eval_text=str(text_file), tokens=4 * 128, window=128)
    windows = texts.token_windows(texts.load_text(str(text_file), "evaluation"), word_tokenizer, count=4, length=128)
    model = load(checkpoint)
    for nll, row in zip(result.nll, windows, strict=True):
        ids = torch.from_numpy(row)[None]
        with torch.no_grad():
            # Two summation orders of the same fp32 losses.
            assert nll == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)
    assert result.perplexity == pytest.approx(float(np.exp(np.mean(result.nll))))
    assert "4 windows of 128 tokens" in str(result)
    assert json.loads(json.dumps(result.to_json()))["perplexity"] == result.perplexity
    with pytest.raises(BadInputError, match="exceeds the model's context of 256"):
        evaluate(str(checkpoint), eval_text=str(text_file), window=512)


def test_rows_are_counted_and_empty_ones_of_data_sets_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(texts, "_dataset", lambda name, split: ["one", "", "two", "three"])
    text = texts.load_text("wikitext2", "evaluation")
    assert text.documents == ("one", "", "two", "three")
    assert text.first(3).documents == ("one", "", "two")
    assert text.first(3).digest != text.digest
    with pytest.raises(BadInputError, match=r"has 4 rows, 5 are asked for"):
        text.first(5)


def test_two_models_are_compared_window_by_window(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    from prune_export.api import prune

    prune(str(checkpoint), tmp_path / "small", ratio=0.2, search=SEARCH, calibration=str(text_file))
    asked: dict[str, Any] = {"eval_text": str(text_file), "tokens": 6 * 64, "window": 64}
    one, other = (evaluate(str(path), **asked) for path in (tmp_path / "small", checkpoint))
    compared = Comparison(one, other)
    differences = np.asarray(one.nll) - np.asarray(other.nll)
    assert len(differences) == 6
    assert compared.difference == pytest.approx(differences.mean())
    assert compared.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(6))
    # Paired, most of the windows' own spread drops out.
    assert compared.standard_error < one.standard_error / one.perplexity
    assert compared.to_json()["perplexity_ratio"] == pytest.approx(one.perplexity / other.perplexity)
    (tmp_path / "other.txt").write_text(text_file.read_text()[::-1])
    for changed in ({"window": 32}, {"tokens": 5 * 64}, {"eval_text": str(tmp_path / "other.txt")}):
        with pytest.raises(BadInputError, match=r"were scored on different (text|tokens|windows)"):
            Comparison(one, evaluate(str(checkpoint), **(asked | changed)))


def test_evaluate_compares_on_the_command_line(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["evaluate", "--model", str(checkpoint), "--quiet", "--eval-text", str(text_file), "--window", "64"]
    saved = tmp_path / "saved.json"
    assert cli.main([*model, "--eval-tokens", "256", "--json", str(saved)]) == 0
    assert "4 windows of 64 tokens, not overlapping" in capsys.readouterr().out
    assert len(json.loads(saved.read_text())["nll"]) == 4
    # As many windows as the saved evaluation has, though the default is more.
    assert cli.main([*model, "--compare", str(saved), "--json", "-"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert (compared["difference"], compared["standard_error"], len(compared["one"]["nll"])) == (0.0, 0.0, 4)
    assert cli.main([*model, "--eval-tokens", "all", "--compare", str(checkpoint)]) == 0
    assert "log perplexity +0.0000 +- 0.0000" in capsys.readouterr().out
    saved.write_text('{"nll": 3}')
    assert cli.main([*model, "--compare", str(saved)]) == 2
    assert "missing key" in capsys.readouterr().err
    assert cli.main([*model, "--eval-tokens", "some"]) == 2
    assert 'neither a number of tokens nor "all"' in capsys.readouterr().err
