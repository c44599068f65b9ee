"""Streams on disk: what the scoring kept spares the refit its dense pass and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.prune.fast import FastSearch
from prune_export.prune.refit import refit
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.streams import DenseStreams
from prune_export.prune.surgery import prune_model

IDS = tokens(40, 12)


def kept_streams(model: Any, folder: Path) -> DenseStreams:
    """What a search of the model keeps."""
    return FastSearch(
        model, IDS.numpy(), cost=lambda shape: float(shape.parameters()), folder=ScoreFolder(folder, {}), mlp_group=8
    ).streams


@pytest.mark.parametrize("variant", ["llama", "gpt_neox", "gpt2", "mamba"])
def test_the_refit_is_the_same_and_cheaper(variant: str, tmp_path: Path) -> None:
    dense = tiny_model(variant)
    streams = kept_streams(dense, tmp_path)
    with_streams, without = (prune_model(dense, varied_plan(dense)) for _ in range(2))
    cheap, whole = refit(dense, with_streams, IDS, streams=streams), refit(dense, without, IDS)
    assert cheap.fits == whole.fits
    assert cheap.layer_tokens < whole.layer_tokens
    for (name, one), other in zip(with_streams.state_dict().items(), without.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_streams_of_other_tokens_or_with_a_gap_are_not_used(tmp_path: Path) -> None:
    dense = tiny_model()
    streams = kept_streams(dense, tmp_path)
    everything = set(range(1, 11))
    assert streams.holds(everything)
    assert not DenseStreams(tmp_path, tokens(40, 12, seed=1)).holds(everything)
    file = next(tmp_path.glob("streams-*")) / "stream-0004.npy"
    file.write_bytes(file.read_bytes()[:-8])
    assert not streams.holds(everything)
    cut, fresh = (prune_model(dense, varied_plan(dense)) for _ in range(2))
    assert refit(dense, cut, IDS, streams=streams).layer_tokens == refit(dense, fresh, IDS).layer_tokens
    file.unlink()
    assert not streams.holds(everything)


def test_a_norm_behind_the_projections_needs_the_dense_outputs(tmp_path: Path) -> None:
    dense = tiny_model("gemma2")
    streams = kept_streams(dense, tmp_path)
    one, other = (prune_model(dense, varied_plan(dense)) for _ in range(2))
    assert refit(dense, one, IDS, streams=streams).layer_tokens == refit(dense, other, IDS).layer_tokens


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    values = torch.randn(40, 12, 7, generator=torch.Generator().manual_seed(1))
    streams = DenseStreams(tmp_path, IDS)
    streams.put(3, list(values.split(16)))
    assert torch.equal(streams.get(3, slice(5, 20)), values[5:20])


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BadInputError, match=r"^streams .*stream-0001\.npy cannot be written: Not a directory$"):
        DenseStreams(tmp_path / "file", IDS).put(1, [torch.zeros(40, 12, 4)])
