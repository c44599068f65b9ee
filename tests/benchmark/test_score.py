"""Perplexity through the session."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from prune_export.benchmark import score as score_module
from prune_export.benchmark.openvino_session import OpenVINOSession
from prune_export.benchmark.score import Score, score, token_nll
from prune_export.errors import BadInputError, PruneExportError

VOCAB = 96


class FixedLogits:
    """A session that answers with given logits [T, V], whatever the batch."""

    load_s = 0.0

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits
        self.batches: list[int] = []

    @property
    def vocab_size(self) -> int:
        return int(self._logits.shape[-1])

    def load(self) -> None: ...

    def reset(self) -> None: ...

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self.batches.append(len(ids))
        part = self._logits[: ids.shape[1]]
        return np.broadcast_to(part, (len(ids), *part.shape))

    def decode(self, ids: np.ndarray) -> np.ndarray:
        return self.prefill(ids)

    def touch(self) -> None: ...


def windows(count: int, length: int, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(3).integers(0, vocab, (count, length), dtype=np.int64)


@pytest.mark.parametrize("budget", [1, 32 << 20])
def test_perplexity_equals_torch_cross_entropy(
    tiny_model: LlamaForCausalLM, tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    # A budget of one byte scores window by window, the other all at once.
    monkeypatch.setattr(score_module, "_LOGITS_BYTES", budget)
    ids = windows(5, 40)
    with torch.no_grad():
        logits = tiny_model(torch.from_numpy(ids)).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.from_numpy(ids[:, 1:]), reduction="none")
    session = OpenVINOSession(tiny_ir, precision="fp32", threads=1)
    session.load()
    seen: list[tuple[int, int]] = []
    found = score(session, ids, report=lambda done, total: seen.append((done, total)))
    # fp32 logits agree within 1e-4, and so do their log-likelihoods.
    np.testing.assert_allclose(found.nll_per_window, nll.mean(dim=1).numpy(), atol=1e-4, rtol=0)
    assert found.perplexity == pytest.approx(math.exp(nll.mean().item()), rel=1e-4)
    assert found.tokens_per_window == 39
    assert seen[-1] == (5, 5)
    assert len(seen) == (5 if budget == 1 else 1)


def test_standard_error_is_that_of_the_mean_carried_through_exp() -> None:
    values = (1.0, 1.5, 1.25, 2.0)
    found = Score(values, 7)
    expected = math.exp(np.mean(values)) * np.std(values, ddof=1) / math.sqrt(4)
    assert found.standard_error == pytest.approx(expected, rel=1e-12)
    assert math.isnan(Score((1.0,), 7).standard_error)


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], np.float32)
    np.testing.assert_allclose(token_nll(logits, np.array([1, 2])), [1e4, math.log(3)], rtol=1e-7)


def test_uniform_logits_give_the_vocabulary_size() -> None:
    found = score(FixedLogits(np.zeros((200, 50), np.float32)), windows(2, 200, 50))
    assert found.perplexity == pytest.approx(50, rel=1e-12)


def test_scoring_a_large_vocabulary_stays_small() -> None:
    session = FixedLogits(np.zeros((512, 49152), np.float32))
    tracemalloc.start()
    score(session, windows(2, 512, 49152))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Each window goes in pieces of 32 MiB of logits: 170 tokens.
    assert session.batches == [1] * 8
    # The logits themselves take 96 MiB; working copies of 64 rows (12 MiB each) come on top.
    assert peak < 60 << 20


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((0, 5), np.int64), r"at least 2 tokens, got an array of shape \[0, 5\]"),
        (np.zeros((2, 1), np.int64), "at least 2 tokens"),
        (np.full((1, 4), VOCAB), f"do not fit the artifact's vocabulary of {VOCAB}: use the tokenizer"),
    ],
)
def test_windows_that_cannot_be_scored_are_refused(ids: np.ndarray, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        score(FixedLogits(np.zeros((4, VOCAB), np.float32)), ids)


def test_broken_weights_are_reported() -> None:
    logits = np.zeros((4, 8), np.float32)
    logits[2] = np.nan
    with pytest.raises(PruneExportError, match="not finite: export it again"):
        score(FixedLogits(logits), windows(1, 4, 8))


def test_a_timing_session_cannot_score(tiny_ir: Path) -> None:
    session = OpenVINOSession(tiny_ir, precision="fp32", threads=1, last_token_only=True)
    session.load()
    with pytest.raises(ValueError, match="1 rows of logits for 6 tokens"):
        score(session, windows(1, 6))
