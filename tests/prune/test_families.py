from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tiny_models import VARIANTS, places, tiny_model, varied_plan  # type: ignore[import-not-found]
from transformers.utils import logging

from prune_export.errors import BadInputError
from prune_export.prune import modeling
from prune_export.prune.calibration import default_size, search_flops
from prune_export.prune.families import FAMILIES, Family, family_of, is_pruned, pruned_classes
from prune_export.prune.quiet import quiet
from prune_export.prune.shapes import model_shape
from prune_export.prune.surgery import prune_model
from prune_export.shape import LayerShape, ModelShape


@pytest.mark.parametrize("variant", VARIANTS)
def test_row_matches_the_model(variant: str) -> None:
    model = tiny_model(variant)
    family, shape = family_of(model.config), model_shape(model.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters()
    for path in (family.embeddings, family.positions, family.final_norm, family.rotary, family.head):
        if path is not None:
            model.get_submodule(path)
    if shape.mixer is not None:
        for path in (family.mixer, family.mixer_norm, family.path("mixer", "in"), family.path("mixer", "out")):
            model.get_submodule(family.layers)[0].get_submodule(path)
        assert shape.layers[0].mixer_width * shape.mixer.unit_columns == 64
        return
    layer = model.get_submodule(family.layers)[0]
    where = places(model)
    assert (family.layers, family.attention) == (where.layers, where.attention)
    assert (family.path("attention", "o"), family.path("mlp", "down")) == (where.o, where.down)
    parts = {"qkv": "qkv", "gate_up": ("gate", "up")}
    attention = ("q", "k", "v", "o") if family.heads == "separate" else ("qkv", "o")
    found = {short: layer.get_submodule(family.path("attention", short)) for short in attention}
    found |= {short: layer.get_submodule(family.path("mlp", short)) for short in (*family.in_modules, "down")}
    assert set(found) == set(family.projections)
    biased = {part for short, linear in found.items() if linear.bias is not None for part in parts.get(short, (short,))}
    assert biased == set(shape.biases)
    for part in ("attention", "mlp"):
        for path in family.norms(part):
            layer.get_submodule(path)
    assert (family.softcap is None) or hasattr(model.config, family.softcap)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_pruned_classes_exist_under_their_own_type(family: Family) -> None:
    if not family.config_class:
        pytest.skip("made from the checkpoint's own classes, see test_remote.py")
    config_class, model_class = pruned_classes(family)
    assert config_class.model_type == family.pruned_type
    assert model_class.config_class is config_class
    assert not is_pruned(SimpleNamespace(model_type=family.name))
    assert family_of({"model_type": family.pruned_type}) is family


def test_shape_of_a_pruned_configuration() -> None:
    model = tiny_model("qwen2")
    plan = varied_plan(model)
    assert model_shape(prune_model(model, plan).config) == plan.target


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "qwen4",
            r'architecture "qwen4" is not supported: use one of llama, mistral, .*, gpt2.* \(did you mean "qwen3"\?\)',
        ),
        (None, r"a configuration without model_type is not supported"),
    ],
)
def test_unsupported_architecture(kind: str | None, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        family_of(SimpleNamespace(model_type=kind))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_layer_norm_before": False}, r"do_layer_norm_before = False is not supported: .*OPT-350m"),
        ({"word_embed_proj_dim": 16}, r"word_embed_proj_dim = 16 is not supported: its embeddings are projected"),
        ({"_remove_final_layer_norm": True}, r"_remove_final_layer_norm = True is not supported"),
    ],
)
def test_members_of_a_family_that_are_built_otherwise_are_refused(settings: dict[str, Any], words: str) -> None:
    config = transformers.OPTConfig(hidden_size=32, num_attention_heads=4, **settings)
    with pytest.raises(BadInputError, match=words):
        model_shape(config)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[4, 2, 24]], r"prune_layers needs 2 rows"),
        ([[4, 2, 24], [4, 2]], r"prune_layers needs 2 rows"),
        ([[0, 0, 24], [0, 0, 24]], r"leaves no attention"),
    ],
)
def test_invalid_pruned_configuration(rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        modeling.PruneLlamaConfig(num_hidden_layers=2, prune_layers=rows)


@pytest.mark.parametrize("variant", ["llama", "phi3", "gpt_neox", "opt", "gpt2"])
def test_a_change_of_attention_reaches_every_layer(variant: str) -> None:
    model = tiny_model(variant)
    pruned = prune_model(model, varied_plan(model))
    pruned.set_attn_implementation("eager")
    where = places(model)
    attentions = [getattr(layer, where.attention) for layer in pruned.get_submodule(where.layers)]
    assert {item.config._attn_implementation for item in attentions if hasattr(item, "layer_idx")} == {"eager"}
    ids = torch.arange(3, 12)[None]
    eager = pruned(ids).logits
    pruned.set_attn_implementation("sdpa")
    assert (pruned(ids).logits - eager).abs().max() <= 1e-5


def test_quiet_restores_what_it_found() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def shape_of(layers: int, hidden: int, width: int, vocab: int, context: Any = 2048) -> ModelShape:
    return ModelShape(
        "llama", hidden, 64, vocab, True, (LayerShape(hidden // 64, hidden // 64, width),) * layers, (), context
    )


def test_default_calibration_size() -> None:
    tiny, small, large = shape_of(8, 128, 384, 2048), shape_of(30, 576, 1536, 49152), shape_of(32, 4096, 11008, 32000)
    sizes = [default_size(shape) for shape in (tiny, small, large)]
    assert [size.tokens for size in sizes] == [16384, 512, 512]
    assert default_size(tiny) == sizes[0]
    middle = shape_of(12, 256, 768, 4096)
    size = default_size(middle, flops=1e13)
    assert 512 < size.tokens < 16384
    assert 0.5e13 < size.tokens * search_flops(middle, ratio=0.25) <= 1e13
    assert default_size(shape_of(8, 128, 384, 2048, context=100)).length == 100
    assert default_size(middle, flops=1e13, lazy=True).tokens > 2 * size.tokens
