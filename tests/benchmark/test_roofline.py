"""The roofline against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prune_export.benchmark.roofline import roofline, roofline_table, table_key
from prune_export.errors import BadInputError
from prune_export.profiles import DeviceProfile, load_profile
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload

D, HD, V = 64, 16, 1000
SHAPE = ModelShape("llama", D, HD, V, True, (LayerShape(4, 2, 128), LayerShape(0, 0, 96), LayerShape(2, 1, 0)))
WORK = Workload(batch=2, prompt_tokens=10, new_tokens=4)


def device(*, bandwidth: float = 1e9, peak: float = 1e12, overhead: float = 0.0) -> DeviceProfile:
    return replace(
        load_profile("cpu-edge"),
        bandwidth_bytes_per_s=bandwidth,
        peak_flops={"fp32": peak, "int8": peak, "int4": peak},
        per_block_overhead_s=overhead,
        int4_group=128,
    )


def attention_parameters(heads: int, kv_heads: int) -> int:
    return 2 * heads * HD * D + 2 * kv_heads * HD * D + D


def test_decode_moves_weights_cache_and_activations() -> None:
    context = 10 + 4 / 2
    bytes_moved = 0.0
    for heads, kv_heads in ((4, 2), (2, 1)):
        cache = 2 * 2 * kv_heads * HD * (context + 1) * 4
        bytes_moved += attention_parameters(heads, kv_heads) * 4 + cache + 2 * 2 * D * 4
    for width in (128, 96):
        bytes_moved += (3 * width * D + D) * 4 + 2 * 2 * D * 4
    bytes_moved += V * D * 4 + 2 * V * 4
    found = roofline(device(peak=1e18), SHAPE, WORK, "fp32")
    assert found["tpot_s"] == pytest.approx(bytes_moved / 1e9, rel=1e-12)


def test_prefill_computes_every_token_but_one_head() -> None:
    rows, mean_context = 2 * 10, 5.5
    operations = 0.0
    for heads, kv_heads in ((4, 2), (2, 1)):
        operations += 2 * attention_parameters(heads, kv_heads) * rows + 4 * rows * heads * HD * mean_context
    for width in (128, 96):
        operations += 2 * (3 * width * D + D) * rows
    operations += 2 * V * D * 2
    found = roofline(device(bandwidth=1e18), SHAPE, WORK, "fp32")
    assert found["ttft_s"] == pytest.approx(operations / 1e12, rel=1e-12)


def test_each_block_pays_the_overhead_and_a_gone_one_nothing() -> None:
    plain, slow = roofline(device(), SHAPE, WORK, "fp32"), roofline(device(overhead=1.0), SHAPE, WORK, "fp32")
    # Two attentions, two MLPs and the fixed part.
    assert slow["tpot_s"] - plain["tpot_s"] == pytest.approx(5.0)


def test_narrower_weights_move_less() -> None:
    big = SHAPE.with_layers((LayerShape(4, 2, 4096),))
    times = [roofline(device(peak=1e18), big, WORK, name)["tpot_s"] for name in ("fp32", "int8", "int4")]
    # Weights dominate: a quarter, and an eighth plus the groups' scales and zero points (2.5 bytes in 128).
    assert times[1] / times[0] == pytest.approx(1 / 4, rel=0.02)
    assert times[2] / times[0] == pytest.approx((0.5 + 2.5 / 128) / 4, rel=0.03)


@pytest.mark.parametrize("metric", ["ttft", "tpot"])
def test_the_table_predicts_what_the_roofline_says(metric: str) -> None:
    table = roofline_table(device(peak=2e10, overhead=1e-6), SHAPE, WORK, ["fp32", "int8"])
    assert table.source == "roofline"
    for layers in (SHAPE.layers, (LayerShape(2, 1, 77), LayerShape(4, 2, 0)), ()):
        for precision in ("fp32", "int8"):
            direct = roofline(device(peak=2e10, overhead=1e-6), SHAPE.with_layers(layers), WORK, precision)
            # Exact on straight pieces; the bend lies between two points of the curve.
            expected = direct[f"{metric}_s"]
            assert table.predict(layers, metric, precision=precision) == pytest.approx(expected, rel=5e-3)


def test_threads_limit_the_device() -> None:
    profile = replace(load_profile("cpu-edge"), per_block_overhead_s=0.0)
    profile = replace(profile, core_bandwidth_bytes_per_s=profile.bandwidth_bytes_per_s / 4)
    whole = roofline(profile, SHAPE, Workload(), "fp32")["ttft_s"]
    quarter = roofline(replace(profile, threads=1), SHAPE, Workload(), "fp32")["ttft_s"]
    assert quarter == pytest.approx(4 * whole, rel=1e-6)


def test_the_key_is_that_of_the_model() -> None:
    key = table_key(SHAPE, WORK)
    assert (key.hidden_size, key.head_dim, key.heads_per_group, key.vocab_size) == (D, HD, 2, V)
    assert (key.batch, key.prompt_tokens, key.new_tokens) == (2, 10, 4)
    with pytest.raises(BadInputError, match=r"layers with \[2, 4\] query heads per KV head"):
        table_key(SHAPE.with_layers((LayerShape(4, 2, 1), LayerShape(4, 1, 1))), WORK)


def test_a_precision_without_a_peak_is_refused() -> None:
    with pytest.raises(BadInputError, match="gives no peak_flops for bf16: it has fp32, int8, int4"):
        roofline(device(), SHAPE, WORK, "bf16")
