"""Random models of given dimensions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from tiny_models import ONE_OF_EACH, tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.prune.modeling import PruneLlamaForCausalLM
from prune_export.prune.shapes import model_shape
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape

DENSE = (LayerShape(4, 2, 96),) * 2
MIXED = (LayerShape(0, 0, 64), LayerShape(3, 1, 0), LayerShape(6, 2, 80), LayerShape(0, 0, 0))


@pytest.mark.parametrize("layers", [DENSE, MIXED], ids=["dense", "mixed"])
@pytest.mark.parametrize(
    ("family", "biases"),
    [
        ("llama", ()),
        ("llama", ("q", "k", "v", "o")),
        ("llama", ("q", "k", "v", "o", "gate", "up", "down")),
        ("mistral", ()),
        ("qwen2", ("q", "k", "v")),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_has_the_shape(
    family: str, biases: tuple[str, ...], tied: bool, layers: tuple[LayerShape, ...]
) -> None:
    shape = ModelShape(family, 64, 16, 100, tied, layers, biases, 128)
    model = random_model(shape, seed=0)
    assert model.name_or_path == model.config.name_or_path == ""
    assert model_shape(model.config) == shape
    # `parameters()` yields a tied table once.
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters()
    assert not model.training
    logits = model(torch.zeros((1, 5), dtype=torch.int64)).logits
    assert logits.shape == (1, 5, 100)
    assert logits.isfinite().all()


def test_equal_layers_give_the_stock_class_others_the_pruned() -> None:
    stock = random_model(ModelShape("llama", 64, 16, 100, True, DENSE), seed=0)
    assert type(stock) is transformers.LlamaForCausalLM
    for layers in (MIXED, (LayerShape(3, 1, 96),) * 2):  # 3 heads do not divide 64, which the stock class refuses
        assert type(random_model(ModelShape("llama", 64, 16, 100, True, layers), seed=0)) is PruneLlamaForCausalLM


def test_the_seed_decides_and_the_global_state_stays() -> None:
    shape = ModelShape("llama", 64, 16, 100, True, MIXED)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, same, other = (random_model(shape, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_impossible_shapes_are_named() -> None:
    with pytest.raises(BadInputError, match='family "gpt": use one of llama, mistral, qwen2'):
        random_model(ModelShape("gpt", 64, 16, 100, True, DENSE), seed=0)
    with pytest.raises(BadInputError, match="at least one layer needs KV heads"):
        random_model(ModelShape("llama", 64, 16, 100, True, (LayerShape(0, 0, 8),)), seed=0)
    with pytest.raises(BadInputError, match="no model with biases q; nearest: nowhere"):
        random_model(ModelShape("mistral", 64, 16, 100, True, DENSE, ("q",)), seed=0)


@pytest.mark.parametrize("variant", [name for name in ONE_OF_EACH if not name.startswith("mamba")])
def test_shapes_of_every_family(variant: str) -> None:
    model = tiny_model(variant)
    for shape in (model_shape(model.config), varied_plan(model).target):
        random = random_model(shape, seed=0)
        assert model_shape(random.config) == shape
        assert sum(weight.numel() for weight in random.parameters()) == shape.parameters()
        assert random(tokens(1, 5)).logits.isfinite().all()


def test_a_shape_that_the_family_cannot_have() -> None:
    shape = dataclasses.replace(model_shape(tiny_model("gpt2").config), gated=True)
    with pytest.raises(BadInputError, match=r"family gpt2 has no model with .*nearest: .*gated=False"):
        random_model(shape, seed=0)


@pytest.mark.parametrize("variant", [name for name in ONE_OF_EACH if not name.startswith("mamba")])
def test_weights_are_initialised_as_the_constructor_does(variant: str) -> None:
    found = random_model(model_shape(tiny_model(variant).config), seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        expected = type(found)(found.config)
    assert found.config.to_dict() == expected.config.to_dict()
    for name, weight in expected.named_parameters():
        ours, theirs = found.get_parameter(name).detach(), weight.detach()
        # Of n Gaussian values the deviation is found to 1 / sqrt(2 n), of both to 1 / sqrt(n); five times that.
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=5 / ours.numel() ** 0.5), name
        assert float((ours.mean() - theirs.mean()).abs()) <= 5 * float(theirs.std()) * (2 / ours.numel()) ** 0.5, name
    for name, values in expected.named_buffers():
        assert torch.equal(found.get_buffer(name), values), name
