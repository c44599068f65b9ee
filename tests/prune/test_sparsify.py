"""One-shot sparsity over whole tiny models: the order of the walk, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sparse_models import KINDS, sparse_model  # type: ignore[import-not-found]
from tiny_models import tiny_model, tokens  # type: ignore[import-not-found]
from transformers.pytorch_utils import Conv1D

from prune_export.errors import BadInputError
from prune_export.progress import Progress
from prune_export.prune import sparsify
from prune_export.prune.layer_walk import decoder_layers
from prune_export.prune.projection_pruning import SparsityMethod, prune_projection, relative_error
from prune_export.prune.projections import replace_weight, weight_of
from prune_export.prune.sparse_journal import SparseJournal
from prune_export.prune.sparsify import sparsify_model
from prune_export.sparsity import Pattern, parse_pattern

# Mamba's time step is made of two numbers here, which only 1:2 fits.
HALF, TWO_FOUR, ONE_TWO = Pattern(0.5), Pattern(0.5, 2, 4), Pattern(0.5, 1, 2)
TOKENS = tokens(6, 16)
EXPECTED = {
    "opt": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"},
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "mamba": {"mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"},
    "mamba2": {"mixer.in_proj", "mixer.out_proj"},
}


def moments_of(model: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """X X^T of the named projections' inputs in one ordinary run of the whole model."""
    found: dict[str, torch.Tensor] = {}
    modules = {f"layer {i}.{n}": m for i, layer in enumerate(decoder_layers(model)) for n, m in layer.named_modules()}
    handles = []
    for name in names:

        def hook(_: Any, arguments: Any, name: str = name) -> None:
            rows = arguments[0].reshape(-1, arguments[0].shape[-1]).double()
            found[name] = rows.T @ rows

        handles.append(modules[name].register_forward_pre_hook(hook))
    model(input_ids=TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("kind", "pattern"), [*((kind, ONE_TWO) for kind in KINDS), ("llama", HALF), ("llama-pruned", TWO_FOUR)]
)
def test_each_projection_was_pruned_on_what_the_pruned_model_feeds_it(kind: str, pattern: Pattern) -> None:
    dense, model = sparse_model(kind), sparse_model(kind)
    report = sparsify_model(model, TOKENS, SparsityMethod(pattern))
    names = [item.name for item in report.projections]
    if kind in EXPECTED:
        assert {name.split(".", 1)[1] for name in names} == EXPECTED[kind]
    before, after = ({f"layer {i}.{n}": m for i, layer in enumerate(decoder_layers(each)) for n, m in
                      layer.named_modules()} for each in (dense, model))  # fmt: skip
    moments = moments_of(model, names)
    for item in report.projections:
        weights, pruned = weight_of(before[item.name]), weight_of(after[item.name])
        # The optimum for this very moment: nothing that came later changed what the projection sees.
        expected, _ = prune_projection(weights, moments[item.name], SparsityMethod(pattern))
        assert torch.allclose(pruned, expected, rtol=1e-3, atol=1e-4 * float(weights.abs().max())), item.name
        assert item.error == pytest.approx(relative_error(weights, pruned, moments[item.name]), rel=1e-3, abs=1e-9)
        assert item.zeros == int((pruned == 0).sum())
        assert item.share == pytest.approx(0.5, abs=0.5 / item.columns)
        assert item.pattern_holds
    changed = {f"{name}.weight" for name in after}
    prefix = next(name for name, module in model.named_modules() if module is decoder_layers(model)[0])[:-1]
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix) and f"layer {name.removeprefix(prefix)}" in changed:
            continue
        assert torch.equal(tensor, dense.state_dict()[name]), name


@pytest.mark.parametrize("pattern", [HALF, TWO_FOUR, Pattern(0.5, 4, 8)])
def test_all_methods_keep_the_pattern_and_joint_compensation_costs_least(pattern: Pattern) -> None:
    errors = {}
    for name in ("mrp", "sparsegpt", "wanda", "magnitude"):
        model = tiny_model("llama", layers=1)
        report = sparsify_model(model, TOKENS, SparsityMethod(pattern, name))
        assert report.pattern_holds
        assert report.share == pytest.approx(0.5)
        # q, k and v all read the untouched stream, so their errors are comparable.
        errors[name] = sum(item.error for item in report.projections[:3])
    assert errors["mrp"] < errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"mask": "S", "compensation": "S"}, ("S", "S")),
        ({"mask": "S", "compensation": "M"}, ("S", "M")),
        ({"mask": "M", "compensation": "S"}, ("M", "S")),
        ({"mask": "M", "compensation": "M"}, ("M", "M")),
        ({}, ("M", "M")),
    ],
)
def test_all_combinations_of_mask_and_compensation_run(settings: dict[str, str], kinds: tuple[str, str]) -> None:
    model = tiny_model("llama", layers=1)
    report = sparsify_model(model, TOKENS, SparsityMethod(TWO_FOUR, **settings))
    assert (report.mask, report.compensation) == kinds
    assert report.pattern_holds


def test_conjugate_gradients_come_close_to_the_exact_solver() -> None:
    exact, quick = (tiny_model("llama", layers=2) for _ in range(2))
    first = sparsify_model(exact, TOKENS, SparsityMethod(HALF))
    second = sparsify_model(quick, TOKENS, SparsityMethod(HALF, solver="cg"))
    for one, other in zip(first.projections[:3], second.projections[:3], strict=True):
        assert other.error == pytest.approx(one.error, rel=3e-3)


def test_a_killed_run_goes_on_and_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_model("llama", layers=4)
    expected = sparsify_model(whole, TOKENS, SparsityMethod(HALF))
    keep = SparseJournal.keep

    def killed(self: SparseJournal, index: int, *rest: Any) -> None:
        if index == 2:
            raise KeyboardInterrupt
        keep(self, index, *rest)

    monkeypatch.setattr(SparseJournal, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        sparsify_model(tiny_model("llama", layers=4), TOKENS, SparsityMethod(HALF), journal=SparseJournal(tmp_path))
    monkeypatch.setattr(SparseJournal, "keep", keep)
    pruned: list[int] = []
    original = sparsify._prune_layer
    monkeypatch.setattr(sparsify, "_prune_layer", lambda walk, i, *r: pruned.append(i) or original(walk, i, *r))
    again = tiny_model("llama", layers=4)
    report = sparsify_model(again, TOKENS, SparsityMethod(HALF), journal=SparseJournal(tmp_path))
    assert pruned == [2, 3]
    assert report == expected
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


def test_a_pruned_model_goes_through_the_journal_too(tmp_path: Path) -> None:
    one, other = sparse_model("llama-pruned"), sparse_model("llama-pruned")
    expected = sparsify_model(one, TOKENS.numpy(), SparsityMethod(TWO_FOUR), journal=SparseJournal(tmp_path))
    assert sparsify_model(other, TOKENS, SparsityMethod(TWO_FOUR), journal=SparseJournal(tmp_path)) == expected
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_damaged_journal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "layer-0000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BadInputError, match=r"layer-0000\.safetensors is damaged: delete it"):
        sparsify_model(tiny_model("llama", layers=1), TOKENS, SparsityMethod(HALF), journal=SparseJournal(tmp_path))


def test_weights_keep_their_precision() -> None:
    model = tiny_model("llama", layers=1).bfloat16()
    report = sparsify_model(model, TOKENS, SparsityMethod(TWO_FOUR))
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert report.pattern_holds


def test_few_tokens_warn_and_stay_finite(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama", layers=2)
    report = sparsify_model(model, tokens(1, 4), SparsityMethod(HALF), progress=Progress())
    assert "4 calibration tokens are fewer than the 32 inputs of the widest projection" in report.warnings[0]
    assert report.warnings[0] in capsys.readouterr().err
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


def test_conv1d_weights_are_transposed() -> None:
    module = Conv1D(6, 4)
    assert weight_of(module).shape == (6, 4)
    replace_weight(module, torch.arange(24.0).view(6, 4))
    assert torch.equal(module(torch.eye(4)) - module.bias, torch.arange(24.0).view(6, 4).T)


def test_a_width_that_the_pattern_does_not_divide_is_refused_before_any_work() -> None:
    model = tiny_model("llama", layers=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        BadInputError, match=r"pattern 7:14 does not fit layer 0\.self_attn\.q_proj: rows of 32 weights"
    ):
        sparsify_model(model, TOKENS, SparsityMethod(parse_pattern("7:14")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(BadInputError, match="too few for it"):
        sparsify_model(model, TOKENS, SparsityMethod(Pattern(0.001)))


def test_activations_that_are_not_finite_name_the_layer() -> None:
    model = tiny_model("llama", layers=3)
    model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.inf
    with pytest.raises(BadInputError, match=r"layer 1\.\S+ .*not finite"):
        sparsify_model(model, TOKENS, SparsityMethod(HALF, "sparsegpt"))


def test_unsupported_modules_are_named() -> None:
    model = tiny_model("llama", layers=2)
    model.model.layers[1].mlp.experts = torch.nn.Bilinear(4, 4, 4)
    with pytest.raises(BadInputError, match=r"layer 1\.mlp\.experts\.weight of Bilinear has more than two dim"):
        sparsify_model(model, TOKENS, SparsityMethod(HALF))
    model = tiny_model("llama", layers=2)
    model.model.layers[1].mlp.unused = torch.nn.Linear(8, 8)
    with pytest.raises(BadInputError, match=r"layer 1\.mlp\.unused is called 0 times in one pass"):
        sparsify_model(model, TOKENS, SparsityMethod(HALF))
    model = tiny_model("llama", layers=1)
    model.config.model_type = "rwkv"
    with pytest.raises(BadInputError, match='architecture "rwkv" is not supported: use one of llama'):
        sparsify_model(model, TOKENS, SparsityMethod(HALF))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "sparsgpt"}, 'did you mean "sparsegpt"'),
        ({"solver": "qr"}, '--solver "qr" is not one of exact, cg'),
        ({"mask": "M"}, "--mask M is defined for N:M patterns only, not for 50%"),
        ({"mask": "X"}, "neither S"),
        ({"name": "wanda", "compensation": "S"}, "--compensation S belongs to --method mrp"),
        ({"damping": 0.0}, "must be above zero"),
    ],
)
def test_undefined_methods_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        SparsityMethod(HALF, **settings)
