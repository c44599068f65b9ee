import json
from dataclasses import replace
from pathlib import Path

import pytest

from prune_export.errors import BadInputError
from prune_export.manifest import Measurement, percentile
from prune_export.plan import LayerKeep, PlanStep, PrunePlan, keep_all
from prune_export.records import digest, from_json, to_json
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload

SHAPE = ModelShape("llama", 64, 16, 100, True, (LayerShape(4, 2, 96), LayerShape(4, 2, 96)))
PLAN = PrunePlan(
    source="m",
    source_digest="0" * 64,
    dense=SHAPE,
    keep=(LayerKeep((1,), (0, 1, 2, 5, 9, 10)), LayerKeep((), tuple(range(96)))),
    method="by hand",
    cost_unit="parameters",
    calibration_digest="1" * 64,
    history=(PlanStep("blocks", 1, "attention", 0, 12.5, 1000.0),),
)


def test_a_plan_survives_its_file_and_lists_ranges(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["keep"][0]["mlp_channels"] == "0-2,5,9-10"
    assert PrunePlan.load(tmp_path / "plan.json") == PLAN


def test_an_edited_plan_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    path.write_text(path.read_text().replace('"0-2,5,9-10"', '"0-2,5,96"'))
    with pytest.raises(BadInputError, match=r"layer 0: mlp_channels must lie in 0..95, got 0..96"):
        PrunePlan.load(path)
    path.write_text(path.read_text().replace('"0-2,5,96"', '"0-2,five"'))
    with pytest.raises(BadInputError, match='"five" is no index or range'):
        PrunePlan.load(path)
    path.write_text("{")
    with pytest.raises(BadInputError, match="cannot be read as JSON"):
        PrunePlan.load(path)
    with pytest.raises(BadInputError, match="does not exist"):
        PrunePlan.load(tmp_path / "nothing.json")


def test_the_target_shape_follows_from_what_is_kept() -> None:
    assert PLAN.target.layers == (LayerShape(2, 1, 6), LayerShape(0, 0, 96))
    assert replace(PLAN, keep=keep_all(SHAPE)).ratio == 0.0
    # By hand: layer 0 loses two query heads, a KV head (16 rows each) and 90 channels, layer 1 its attention and norm.
    attention = 64 * 16 * (4 + 2 + 2 + 4)
    removed = attention // 2 + 3 * 90 * 64 + attention + 64
    assert pytest.approx(removed / SHAPE.parameters()) == PLAN.ratio


def test_parameters_count_biases_and_untied_heads() -> None:
    biased = replace(SHAPE, biases=("q", "k", "v"), tied_embeddings=False)
    assert biased.parameters() - SHAPE.parameters() == 100 * 64 + 2 * 16 * (4 + 2 + 2)


def test_every_mistake_is_named_at_once() -> None:
    data = to_json(SHAPE)
    data["hiden_size"] = data.pop("hidden_size")
    data["head_dim"] = "16"
    data["layers"][1]["kv_heads"] = 3
    with pytest.raises(BadInputError) as caught:
        from_json(ModelShape, data, where="shape.json")
    message = str(caught.value)
    assert 'unknown key "hiden_size" (did you mean "hidden_size"?)' in message
    assert 'missing key "hidden_size"' in message
    assert 'head_dim: expected int, got "16"' in message
    assert "layers[1]: 4 query heads are no multiple of 3 KV heads" in message


def test_round_trip_and_digest_are_stable() -> None:
    again = from_json(PrunePlan, json.loads(json.dumps(to_json(PLAN))), where="plan")
    assert again == PLAN
    assert digest(again) == PLAN.digest()
    assert replace(PLAN, source="other").digest() != PLAN.digest()


def test_percentiles_equal_numpys() -> None:
    import numpy as np

    samples = tuple(np.random.default_rng(0).exponential(size=37).tolist())
    for percent in (0.0, 50.0, 90.0, 99.0, 100.0):
        assert percentile(samples, percent) == pytest.approx(float(np.percentile(samples, percent)), rel=1e-12)
    with pytest.raises(ValueError, match="no samples"):
        percentile((), 50.0)


def test_totals_add_up_per_repeat() -> None:
    measurement = Measurement(
        artifact="a",
        profile="host",
        host={},
        runtime="openvino",
        precision="fp32",
        threads=2,
        workload=Workload(new_tokens=3),
        ttft_s=(1.0, 2.0),
        itl_s=(0.1, 0.2, 0.3, 0.4),
        load_s=(1.0,),
        weights_bytes=1,
        peak_rss_bytes=0,
        rss_rise_bytes=0,
        versions={},
    )
    assert measurement.samples("total") == pytest.approx((1.3, 2.7))
    assert measurement.percentile("tpot", "p50") == pytest.approx(0.25)
