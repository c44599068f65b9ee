from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import VARIANTS, masked, places, plan_of, tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep
from prune_export.prune.shapes import model_shape
from prune_export.prune.surgery import prune_model

# fp32 sums over at most 32 terms in another order; logits are of magnitude 1 to 10.
TOLERANCE = 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_pruned_equals_masked_dense(variant: str) -> None:
    model = tiny_model(variant)
    plan = varied_plan(model)
    ids = tokens(3, 11)
    dense = model(ids).logits
    pruned = prune_model(model, plan)
    with masked(model, plan.keep):
        expected = model(ids).logits
    assert (expected - dense).abs().max() > 0.1  # the mask does something
    assert (pruned(ids).logits - expected).abs().max() <= TOLERANCE
    assert torch.equal(model(ids).logits, dense)  # the source is unchanged


@pytest.mark.parametrize("variant", VARIANTS)
def test_pruned_equals_masked_dense_with_cache(variant: str) -> None:
    model = tiny_model(variant)
    plan = varied_plan(model)
    pruned = prune_model(model, plan)
    ids = tokens(2, 12)
    with masked(model, plan.keep):
        expected = model(ids).logits
    name = places(model).cache
    output = pruned(ids[:, :7], use_cache=True)
    cache = output[name]
    assert len(cache.layers) == len(plan.target.attention_layers or plan.target.mixer_layers)
    assert (output.logits - expected[:, :7]).abs().max() <= TOLERANCE
    for at in range(7, 12):
        output = pruned(ids[:, at : at + 1], use_cache=True, **{name: cache})
        assert (output.logits - expected[:, at : at + 1]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen2-mixed-windows", "gemma2", "gpt2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_left_padding(variant: str, beams: int) -> None:
    model = tiny_model(variant)
    plan = varied_plan(model)
    pruned = prune_model(model, plan)
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    ids[0, :4], mask[0, :4] = 0, 0
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    with masked(model, plan.keep):
        expected = model.generate(ids, **settings)
    assert pruned.generate(ids, **settings).tolist() == expected.tolist()
    alone = pruned.generate(ids[:1, 4:], **(settings | {"attention_mask": mask[:1, 4:]}))
    assert alone[0, 5:].tolist() == expected[0, 9:].tolist()


def test_soft_caps_of_eager_attention() -> None:
    model = tiny_model("gemma2")
    ids = tokens(2, 12)
    without = model(ids).logits
    model.config.attn_logit_softcapping = 0.5
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.5
    model.set_attn_implementation("eager")  # the only one that knows the caps
    assert (model(ids).logits - without).abs().max() > 1e-2
    plan = varied_plan(model)
    with masked(model, plan.keep):
        expected = model(ids).logits
    assert (prune_model(model, plan)(ids).logits - expected).abs().max() <= TOLERANCE


def test_shape_and_absent_modules() -> None:
    model = tiny_model("qwen2")
    plan = varied_plan(model)
    pruned = prune_model(model, plan)
    assert model_shape(pruned.config) == plan.target
    assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.target.parameters()
    names = [name for name, _ in pruned.named_parameters()]
    assert not [name for name in names if name.startswith("model.layers.3.")]
    assert not [name for name in names if name.startswith(("model.layers.0.self", "model.layers.0.input_layernorm"))]
    assert not [name for name in names if name.startswith(("model.layers.2.mlp", "model.layers.2.post_attention"))]
    indices = [layer.self_attn.layer_idx for layer in pruned.model.layers if layer.self_attn is not None]
    assert indices == [0, 1, 2]


def test_uncut_tensors_share_storage() -> None:
    model = tiny_model()
    pruned = prune_model(model, varied_plan(model))
    shared = {tensor.data_ptr() for tensor in model.state_dict().values()}
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        assert pruned.state_dict()[name].data_ptr() in shared
    assert pruned.state_dict()["model.layers.1.mlp.up_proj.weight"].data_ptr() not in shared


def test_plan_that_removes_nothing_gives_a_stock_model() -> None:
    model = tiny_model("mistral")
    same = prune_model(model, plan_of(model, {}))
    assert type(same) is type(model)
    assert same is not model
    assert torch.equal(same(tokens(1, 8)).logits, model(tokens(1, 8)).logits)


def test_pruning_twice_equals_pruning_once() -> None:
    model = tiny_model()
    once = prune_model(model, varied_plan(model))
    second = dataclasses.replace(
        plan_of(model, {}),
        dense=model_shape(once.config),
        keep=(
            LayerKeep((), tuple(range(12))), LayerKeep((0,), (2, 5)), LayerKeep((1,), ()), LayerKeep((), ()),
            LayerKeep((), (0, 4)),
        ),
    )  # fmt: skip
    direct = plan_of(
        model,
        {
            0: LayerKeep((), tuple(range(12))), 1: LayerKeep((1,), (6, 15)), 2: LayerKeep((1,), ()),
            3: LayerKeep((), ()), 4: LayerKeep((), (4, 8)),
        },
    )  # fmt: skip
    twice = prune_model(once, second)
    assert torch.equal(twice(tokens(2, 9)).logits, prune_model(model, direct)(tokens(2, 9)).logits)


@pytest.mark.parametrize("variant", ["mamba", "mamba2", "mamba2-groups"])
def test_pruning_mixers_twice_equals_pruning_once(variant: str) -> None:
    model = tiny_model(variant)
    first = varied_plan(model)
    once = prune_model(model, first)
    chosen = first.keep[1].mixer_units[::2]
    again = {1: LayerKeep((), (), tuple(range(0, len(first.keep[1].mixer_units), 2))), 2: LayerKeep((), (), (0, 2))}
    direct = {1: LayerKeep((), (), chosen), 2: LayerKeep((), (), (0, 2), first.keep[2].recurrence)}
    plan = dataclasses.replace(first, keep=tuple(direct.get(at, keep) for at, keep in enumerate(first.keep)))
    twice = prune_model(once, plan_of(once, again))
    assert (twice(tokens(2, 9)).logits - prune_model(model, plan)(tokens(2, 9)).logits).abs().max() <= TOLERANCE


def test_plan_of_another_model_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"made for another model .*5 layers.*this one is llama with 4 layers"):
        prune_model(tiny_model(layers=4), varied_plan(tiny_model()))


def test_plan_without_mixer_is_refused() -> None:
    model = tiny_model("mamba2")
    with pytest.raises(BadInputError, match=r"removes every mixer: keep at least one unit"):
        prune_model(model, plan_of(model, {index: LayerKeep((), ()) for index in range(5)}))


def test_plan_without_attention_is_refused() -> None:
    model = tiny_model()
    plan = plan_of(model, {index: LayerKeep((), (0,)) for index in range(5)})
    with pytest.raises(BadInputError, match=r"removes every attention: keep at least one"):
        prune_model(model, plan)
