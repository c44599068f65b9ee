"""The embedded model and the texts that go with it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from prune_export.evaluate import evaluate
from prune_export.prune.loading import load_config
from prune_export.prune.shapes import model_shape
from prune_export.prune.sources import resolve_source
from prune_export.reference import corpus
from prune_export.reference.train import batches, learning_rate


def figures() -> dict[str, float]:
    data: dict[str, float] = json.loads((resolve_source("reference") / "training.json").read_text())
    return data


def test_the_model_is_a_grouped_llama_trained_on_twenty_tokens_a_parameter() -> None:
    shape = model_shape(load_config(resolve_source("reference")))
    assert shape.family == "llama"
    assert 8 <= len(shape.layers) <= 12
    assert 2_000_000 <= shape.parameters() <= 4_000_000
    assert all(1 < layer.kv_heads < layer.query_heads for layer in shape.layers)
    assert figures()["parameters"] == shape.parameters()
    assert figures()["training_tokens"] >= 20 * shape.parameters()


def test_the_training_log_reaches_the_end() -> None:
    lines = (resolve_source("reference") / "training.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert entries[-1]["tokens"] > 0.98 * figures()["training_tokens"]
    assert entries[-1]["loss"] < entries[0]["loss"] / 2


def test_the_recorded_perplexity_is_that_of_the_shipped_weights() -> None:
    result = evaluate("reference", tokens=20 * 512)
    # A model that predicts nothing has a perplexity of 2048.
    assert result.perplexity < 60
    if result.text["digest"] == figures()["heldout_digest"]:
        # Twenty windows of a thousand: the sample's own spread is the tolerance.
        assert abs(math.log(result.perplexity / figures()["heldout_perplexity"])) < 0.5


def test_calibration_and_held_out_modules_are_fixed_and_apart() -> None:
    calibration, heldout = corpus.CALIBRATION_MODULES, corpus.HELDOUT_MODULES
    assert not set(calibration) & set(heldout)
    assert not any(name.startswith("test") for name in (*calibration, *heldout))
    texts = {corpus.calibration().digest, corpus.heldout().digest}
    assert len(texts) == 2
    assert corpus.heldout().digest == corpus.heldout().digest


def test_held_out_text_was_never_trained_on() -> None:
    trained = set(corpus.training_documents())
    assert trained
    assert not trained & set(corpus.heldout().documents)
    assert set(corpus.calibration().documents) <= trained


def test_batches_are_non_overlapping_rows_of_the_stream() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    rows = batches(stream, seed=1, epoch=0, length=16)
    assert rows.shape[1] == 17
    assert np.array_equal(np.diff(rows, axis=1), np.ones_like(rows[:, 1:]))
    assert len(set(rows[:, 0].tolist())) == len(rows)
    assert not np.array_equal(rows, batches(stream, seed=1, epoch=1, length=16))


@pytest.mark.parametrize(("progress", "step", "expected"), [(0.0, 99, 0.5), (0.5, 1000, 1.0), (0.8, 5000, 0.5)])
def test_the_learning_rate_warms_up_holds_and_decays(progress: float, step: int, expected: float) -> None:
    assert learning_rate(progress, step, 1.0) == pytest.approx(expected)
