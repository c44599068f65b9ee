"""What Neural Compressor chooses for a model, through both formats; skipped where it is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import assert_equal, ir_integers, onnx_integers
from tiny_exports import make_model, make_shape

from prune_export.export import neural_compressor, rounding_methods
from prune_export.export.integer_weights import Calibration
from prune_export.export.neural_compressor import linear_layers, round_weights
from prune_export.export.onnx_export import export_onnx
from prune_export.export.openvino_ir import export_graph_only
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.parity import check_parity
from prune_export.export.rounded import RoundedMatrix, put_into, stacked
from prune_export.export.rounding_options import METHODS, RoundingOptions
from prune_export.export.weights import compress
from prune_export.shape import LayerShape

# The whole of one layer is gone; no width of another takes a group; sizes differ.
LAYERS = (LayerShape(0, 0, 0), LayerShape(4, 2, 128), LayerShape(2, 2, 96), LayerShape(0, 0, 72))
TEXT = Calibration(np.random.default_rng(0).integers(0, 320, (4, 48), dtype=np.int64), {"name": "random"})

pytest.importorskip("neural_compressor", reason='needs pip install "prune-export[rounding]"')


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The library's own packed layers, in the order in which they were read; few steps for AutoRound."""
    seen: list[Any] = []
    read = neural_compressor.read_matrix

    def reading(module: Any) -> RoundedMatrix | None:
        seen.append(module)
        return read(module)

    monkeypatch.setattr(neural_compressor, "read_matrix", reading)
    monkeypatch.setattr(rounding_methods, "_STEPS", 3)
    return seen


def values_of(module: Any) -> np.ndarray:
    """What the library itself takes a packed layer for."""
    if hasattr(module, "recover"):
        return module.recover().float().numpy()
    from auto_round.export.export_to_awq.utils import dequantize_gemm

    return dequantize_gemm(module.qweight, module.qzeros, module.scales, 4, module.group_size).t().float().numpy()


@pytest.mark.parametrize("method", METHODS)
def test_the_integers_it_chose_are_in_both_formats(
    method: str, tmp_path: Path, packed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "autoround" and importlib.util.find_spec("auto_round") is None:
        pytest.skip("needs auto-round")
    model = make_model(make_shape("llama", LAYERS))
    options = RoundingOptions(method, 64)
    copy = make_model(make_shape("llama", LAYERS))
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")  # where the library would leave a folder when a method is first used
    rounded = round_weights(copy, options, TEXT if options.needs_text else None)
    assert list(Path().iterdir()) == []
    fitting = {name for name in linear_layers(model) if not name.endswith("3.mlp.down_proj")}
    if method == "autoround":  # rounds no matrix whose outputs 32 does not divide
        fitting = {name for name in fitting if "layers.3" not in name}
    assert rounded.matrices.keys() == fitting
    assert len({matrix.group for matrix in rounded.matrices.values()}) == 2
    layers = [module for module in packed if type(module).__name__ != "Linear"]
    for module, matrix in zip(layers, rounded.matrices.values(), strict=True):
        # The library multiplies in fp16.
        np.testing.assert_array_equal(values_of(module), matrix.values().astype(np.float16).astype(np.float32))
    put_into(model, rounded)
    export_graph_only(model, tmp_path / "fp32" / "openvino_model.xml")
    compress(
        tmp_path / "fp32",
        tmp_path / "ir",
        precision="int4",
        options=OpenVinoOptions(backup="none"),
        rounded=rounded,
    )
    inside = ir_integers(tmp_path / "ir")
    assert inside.keys() == rounded.matrices.keys()
    for name, matrix in rounded.matrices.items():
        assert_equal(inside[name], matrix)
    errors, tolerance = check_parity(model, tmp_path / "ir")
    assert max(errors.values()) <= tolerance
    export_onnx(model, None, tmp_path / "onnx", precision="int4", rounded=rounded)
    found = onnx_integers(tmp_path / "onnx")
    parts = [rounded.matrices[f"model.layers.2.self_attn.{part}_proj"] for part in "qkv"]
    assert_equal(found["model.layers.2.attn.qkv_proj"], stacked(parts))
    assert_equal(found["model.layers.1.mlp.down_proj"], rounded.matrices["model.layers.1.mlp.down_proj"])


def test_a_method_that_goes_by_text_is_closer_than_the_nearest_values() -> None:
    """On the text itself, GPTQ's outputs of a layer lie nearer to the model's than rounding to the nearest does."""
    model = make_model(make_shape("llama", (LayerShape(4, 2, 128),)))
    layer = model.model.layers[0]
    with torch.no_grad():
        tokens = torch.from_numpy(TEXT.tokens)
        inputs = layer.input_layernorm(model.model.embed_tokens(tokens)).flatten(0, 1).numpy()
    weight = layer.self_attn.q_proj.weight.detach().numpy().copy()
    errors = {}
    for method, text in (("rtn", None), ("gptq", TEXT)):
        copy = make_model(make_shape("llama", (LayerShape(4, 2, 128),)))
        rounded = round_weights(copy, RoundingOptions(method, 64), text)
        difference = rounded.matrices["model.layers.0.self_attn.q_proj"].values() - weight
        errors[method] = float(np.square(inputs @ difference.T).mean())
    assert errors["gptq"] < errors["rtn"]


def test_factors_of_awq_are_absorbed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and up projections take the inverse of what it multiplies with: unrounded, the function stays."""
    model = make_model(make_shape("qwen2", LAYERS))
    copy = make_model(make_shape("qwen2", LAYERS))
    rounded = round_weights(copy, RoundingOptions("awq", 32), TEXT)
    changed = {name.partition("layers.")[2] for name in rounded.floats}
    assert changed >= {"1.input_layernorm.weight", "1.post_attention_layernorm.weight"}
    ids = torch.from_numpy(TEXT.tokens)
    with torch.no_grad():
        before = model(ids).logits
        put_into(model, rounded)
        after = model(ids).logits
    nearest = make_model(make_shape("qwen2", LAYERS))
    put_into(nearest, round_weights(make_model(make_shape("qwen2", LAYERS)), RoundingOptions("rtn", 32), None))
    with torch.no_grad():
        plain = nearest(ids).logits
    assert (after - before).square().mean() < 1.5 * (plain - before).square().mean()


def test_the_same_text_gives_the_same_integers_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = [
        round_weights(make_model(make_shape("llama", LAYERS[1:3])), RoundingOptions("gptq", 32), TEXT) for _ in range(2)
    ]
    for name, matrix in made[0].matrices.items():
        np.testing.assert_array_equal(matrix.integers, made[1].matrices[name].integers)
    assert made[0].library.startswith("neural-compressor 3.")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
