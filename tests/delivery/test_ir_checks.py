"""Exported IRs run in a process of their own, which finds what this process would find."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_export.delivery.ir_checks import compare, continuation, score_ir
from prune_export.errors import ParityError, PruneExportError
from prune_export.evaluate import torch_nll
from prune_export.export.gate import Reference, check_against
from prune_export.export.openvino_ir import export_openvino
from prune_export.export.parity import greedy_tokens_of, torch_reference
from prune_export.progress import Progress
from prune_export.prune.loading import load_model

PROMPT = [5, 9, 2, 7]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def exported(model: Any, word_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ir")
    export_openvino(model, word_tokenizer, directory)
    return directory


class Listening(Progress):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.told: list[tuple[float, float]] = []

    def update(self, done: float, total: float, detail: str = "") -> None:
        self.told.append((done, total))


def test_a_reference_survives_its_file(model: Any, tmp_path: Path) -> None:
    reference = torch_reference(model)
    assert reference.rotary is None  # 256 tokens
    reference = replace(reference, rotary=np.random.default_rng(0).random((2, 8, 4), np.float32))
    reference.save(tmp_path / "reference.npz")
    again = Reference.load(tmp_path / "reference.npz")
    assert (again.context, again.vocab_size) == (reference.context, reference.vocab_size)
    np.testing.assert_array_equal(again.rotary, reference.rotary)
    assert list(again.logits) == list(reference.logits)
    for name, steps in reference.logits.items():
        assert len(steps) == len(again.logits[name])
        for one, other in zip(steps, again.logits[name], strict=True):
            assert np.array_equal(one, other)


def test_the_gate_passes_and_fails_in_the_process_as_in_this_one(model: Any, exported: Path, tmp_path: Path) -> None:
    reference = torch_reference(model)
    saved = tmp_path / "reference.npz"
    reference.save(saved)
    assert compare(saved, exported, threads=1) == check_against(reference, exported, threads=1)
    wrong = {name: tuple(step + 1 for step in steps) for name, steps in reference.logits.items()}
    broken = Reference(reference.context, reference.vocab_size, wrong)
    broken.save(saved)
    with pytest.raises(ParityError) as here:
        check_against(broken, exported, threads=1)
    with pytest.raises(ParityError) as there:
        compare(saved, exported, threads=1)
    assert str(there.value) == str(here.value)


def test_scores_and_continuations_are_torchs(model: Any, exported: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(0).integers(0, 300, (6, 32))
    expected = greedy_tokens_of(model, PROMPT, new_tokens=12)
    progress = Listening()
    found = score_ir(
        exported, precision="fp32", prompt=PROMPT, expected=expected, windows=windows, gate_threads=1, score_threads=1,
        progress=progress, scratch=tmp_path,
    )  # fmt: skip
    assert found.agreement == 1.0
    assert [found.continuation_nll] == pytest.approx(torch_nll(model, np.array([PROMPT + expected])), abs=1e-5)
    assert found.nll == pytest.approx(torch_nll(model, windows), abs=1e-5)
    assert progress.told[-1] == (6, 6)
    assert not list(tmp_path.iterdir())
    assert continuation(exported, precision="fp32", prompt=PROMPT, new_tokens=12) == expected


def test_a_process_that_dies_says_what_it_was_at(tmp_path: Path) -> None:
    with pytest.raises(
        PruneExportError, match=r"running .*gone: the worker process ended with exit code 1: FileNotFoundError"
    ):
        compare(tmp_path / "no-reference.npz", tmp_path / "gone", threads=1)


def test_the_process_holds_no_torch() -> None:
    assert torch.__version__  # it could
    script = (
        "import sys, prune_export.delivery.ir_worker; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
