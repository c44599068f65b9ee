"""The front matter of model cards, and their tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from prune_export.delivery.card import checkpoint_card
from prune_export.plan import LayerKeep, PrunePlan, keep_all
from prune_export.shape import LayerShape, ModelShape

DENSE = ModelShape("llama", 64, 16, 100, True, (LayerShape(4, 2, 96),) * 4)
HALF = LayerKeep((1,), tuple(range(48)))


def plan(source: str, *, uniform: bool = False) -> PrunePlan:
    keep = (HALF, HALF, LayerKeep((), ()), HALF) if uniform else (*keep_all(DENSE)[:3], LayerKeep((), (5,)))
    return PrunePlan(source, "a" * 64, DENSE, keep, "by | hand", "parameters", "b" * 64, uniform=uniform)


@pytest.mark.parametrize(
    ("source", "base"),
    [("someone/model-7b", "someone/model-7b"), ("./model", None), ("reference", None), ("/models/a/b", None)],
)
def test_only_a_hub_id_is_a_base_model(source: str, base: str | None) -> None:
    card = ModelCard(checkpoint_card(plan(source), command="prune-export prune", calibration={}))
    assert card.data.base_model == base
    assert card.data.library_name == "transformers"


def test_a_directory_of_that_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = ModelCard(checkpoint_card(plan("models/small"), command="", calibration={}))
    assert card.data.base_model is None
    assert "From Python." in card.text


def test_layers_are_listed_in_runs_and_the_loader_is_the_right_one() -> None:
    text = checkpoint_card(plan("m"), command="prune-export prune -o x", calibration={"name": "t", "digest": "d"})
    assert "| 0-2 | 4 | 2 | 96 |\n| 3 | 0 | 0 | 1 |" in text
    assert "```sh\nprune-export prune -o x\n```" in text
    assert "- calibration: name t, digest d" in text
    assert 'from_pretrained(".", trust_remote_code=True)' in text
    uniform = checkpoint_card(plan("m", uniform=True), command="", calibration={})
    assert "| 0-1 | 2 | 1 | 48 |\n| 2 | 0 | 0 | 0 |\n| 3 | 2 | 1 | 48 |" in uniform
    assert 'from_pretrained(".")' in uniform
