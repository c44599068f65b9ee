"""The verb sparsify, from the command line and from Python."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import prune_export
from prune_export import api, cli
from prune_export.errors import BadInputError
from prune_export.evaluate import evaluate
from prune_export.prune.loading import load_tokenizer
from prune_export.prune.projection_pruning import SparsityMethod
from prune_export.prune.semi_structured import to_semi_structured
from prune_export.prune.sparse_journal import SparseJournal
from prune_export.records import from_json
from prune_export.sparsity import SPARSITY_FILE, Pattern, SparsityReport

ROOT = Path(__file__).parents[1]
TWO_FOUR = Pattern(0.5, 2, 4)


def arguments(checkpoint: Path, text_file: Path, output: Path, *more: str) -> list[str]:
    size = ["--calibration", str(text_file), "--calibration-windows", "4", "--calibration-length", "64", "--quiet"]
    return ["sparsify", "--model", str(checkpoint), "-o", str(output), *size, *more]


def test_the_command_writes_a_sparse_checkpoint_and_what_it_measured(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sparse"
    assert cli.main(arguments(checkpoint, text_file, output, "--pattern", "2:4", "--memory", "64MiB")) == 0
    printed = capsys.readouterr().out
    assert "50.00% of the weights of 28 projections are zero; pattern 2:4 holds in every projection" in printed
    report = from_json(SparsityReport, json.loads((output / SPARSITY_FILE).read_text()), where=SPARSITY_FILE)
    assert (report.method, report.mask, report.compensation, report.pattern) == ("mrp", "M", "M", "2:4")
    assert report.calibration_tokens == 256
    model, dense = prune_export.load(output), prune_export.load(checkpoint)
    for item in report.projections:
        layer, _, name = item.name.removeprefix("layer ").partition(".")
        weight = model.model.layers[int(layer)].get_submodule(name).weight
        assert int((weight == 0).sum()) == item.zeros == item.rows * item.columns // 2
        assert ((weight != 0).view(-1, 4).sum(1) <= 2).all()
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    scored = evaluate(str(output), eval_text=str(text_file), tokens=256, window=64)
    assert len(scored.nll) == 4


def test_an_interrupted_command_goes_on(
    checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    keep = SparseJournal.keep

    def killed(self: SparseJournal, index: int, *rest: Any) -> None:
        keep(self, index, *rest)
        if index == 1:
            raise KeyboardInterrupt

    command = [*arguments(checkpoint, text_file, tmp_path / "out", "--pattern", "50%")]
    command.remove("--quiet")
    monkeypatch.setattr(SparseJournal, "keep", killed)
    assert cli.main(command) == cli.INTERRUPTED
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(SparseJournal, "keep", keep)
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "resuming: 2 layers were pruned by an earlier run" in capsys.readouterr().err
    assert cli.main([*command[:4], str(tmp_path / "whole"), *command[5:]]) == 0
    assert "resuming" not in capsys.readouterr().err
    one, other = prune_export.load(tmp_path / "out").state_dict(), prune_export.load(tmp_path / "whole").state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--pattern", "2-4"], "is not a number with a unit"),
        (["--pattern", "2:4:8"], "kept:group such as 2:4"),
        (["--pattern", "5:10"], "pattern 5:10 does not fit layer 0.self_attn.q_proj: rows of 64 weights"),
        (["--pattern", "50%", "--mask", "M"], "--mask M is defined for N:M patterns only"),
        (["--pattern", "50%", "--method", "wandb"], 'did you mean "wanda"'),
        (["--pattern", "50%", "--calibration-windows", "0"], "--calibration-windows 0 must be at least 1"),
        (["--pattern", "50%", "--memory", "1KiB"], "1.00 KiB of memory are too little for rows of 64 weights"),
        (["--pattern", "50%", "--calibration-length", "9999999"], "give a longer text or a shorter window"),
        (["--pattern", "50%", "--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_bad_requests_are_one_line(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert cli.main(arguments(checkpoint, text_file, tmp_path / "out", *more)) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("prune-export: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def trained_mamba(directory: Path, tokenizer: Any, text: str) -> None:
    """A few steps of the script that trains a Mamba."""
    spec = importlib.util.spec_from_file_location("train_mamba", ROOT / "tools" / "train_mamba.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = script.new_model(len(tokenizer), seed=0)
    stream = torch.tensor(tokenizer(text)["input_ids"])
    steps, loss = script.train(model, stream, lambda step: step / 4, seed=0)
    assert steps == 4
    assert loss < math.log(len(tokenizer)) + 0.5
    # The script's own recurrence computes what the loop of `transformers` computes.
    with torch.no_grad():
        trained, plain = model.train()(stream[None, :20]).logits, model.eval()(stream[None, :20]).logits
    assert torch.allclose(trained, plain, rtol=1e-4, atol=1e-4)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def test_a_mamba_trained_by_the_script_is_pruned_and_read_back(
    tmp_path: Path, text_file: Path, word_tokenizer: Any, text: str
) -> None:
    trained_mamba(tmp_path / "mamba", word_tokenizer, text)
    report = api.sparsify(
        str(tmp_path / "mamba"), tmp_path / "out", SparsityMethod(TWO_FOUR), calibration=str(text_file), windows=4,
        length=32,
    )  # fmt: skip
    model, tokenizer = prune_export.load(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    names = {item.name.split(".mixer.")[1] for item in report.projections}
    assert names == {"in_proj", "x_proj", "dt_proj", "out_proj"}
    assert report.pattern_holds
    for block in model.backbone.layers:
        assert ((block.mixer.x_proj.weight != 0).view(-1, 4).sum(1) <= 2).all()
    ids = torch.tensor([tokenizer("the model")["input_ids"]])
    assert torch.isfinite(model(input_ids=ids).logits).all()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BadInputError, match="is truncated or damaged"):
        prune_export.load(tmp_path / "out")


def test_sparse_tensor_cores_need_a_sparse_model_and_a_gpu(checkpoint: Path) -> None:
    model = prune_export.load(checkpoint)
    with pytest.raises(BadInputError, match="no projection is 2:4 sparse"):
        to_semi_structured(model)
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight * torch.tensor([1.0, 0, 0, 1] * 32), requires_grad=False)
    if not torch.cuda.is_available():
        with pytest.raises(BadInputError, match="no CUDA device"):
            to_semi_structured(model)
        return
    ids = torch.ones(1, 64, dtype=torch.long)
    expected = model(input_ids=ids).logits
    assert to_semi_structured(model) == 1
    found = model(input_ids=ids.cuda()).logits.float().cpu()
    assert torch.allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
