"""Tables, JSON and CSV of measurements."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prune_export.benchmark.report_table import (
    METRICS,
    STATISTICS,
    csv_text,
    json_data,
    labels,
    summary,
    text_table,
    throughput,
)
from prune_export.manifest import Measurement
from prune_export.records import from_json, to_json

Make = Callable[..., Measurement]
TTFT, ITL = (0.010, 0.012, 0.011), (0.001, 0.002, 0.0015, 0.001, 0.003, 0.0012)


def test_the_summary_equals_numpy(make_measurement: Make) -> None:
    found = summary(make_measurement(TTFT, ITL))
    e2e = tuple(first + sum(ITL[2 * i : 2 * i + 2]) for i, first in enumerate(TTFT))
    assert set(found) == set(METRICS) == {"ttft", "tpot", "itl", "e2e"}
    for name, samples in (("ttft", TTFT), ("tpot", ITL), ("itl", ITL), ("e2e", e2e)):
        expected = {
            "mean": np.mean(samples),
            "stdev": np.std(samples, ddof=1),
            **{f"p{q}": np.percentile(samples, q) for q in (50, 90, 99)},
        }
        assert found[name] == pytest.approx(expected, rel=1e-12)
        assert tuple(found[name]) == STATISTICS


def test_one_sample_has_no_spread(make_measurement: Make) -> None:
    assert summary(make_measurement((0.01,), (0.001,)))["ttft"]["stdev"] == 0.0


def test_the_table_shows_figures_memory_and_conditions(make_measurement: Make) -> None:
    lines = text_table([make_measurement(TTFT, ITL)]).splitlines()
    assert lines[0].split() == ["artifact", "precision", "metric", *STATISTICS]
    assert lines[1].split()[:5] == ["openvino", "int8", "ttft", "11.0", "ms"]
    assert [line.split()[0] for line in lines[2:4]] == ["tpot", "e2e"]
    assert lines[4] == (
        "openvino int8: weights 1.00 MiB, peak memory 3.00 MiB (2.00 MiB of it from loading on), loads in 250 ms"
    )
    assert "prompt=8,new=3,batch=1, 1 thread, openvino 2026.4.1, Test CPU (2 cores), profile host" in lines[5]
    unsampled = replace(make_measurement(TTFT, ITL), peak_rss_bytes=0)
    assert "memory not sampled" in text_table([unsampled])
    on_gpu = replace(make_measurement(TTFT, ITL), peak_device_bytes=5 << 30)
    assert "of it from loading on), 5.00 GiB on the GPU, loads in" in text_table([on_gpu])
    assert csv_text([on_gpu]).splitlines()[1].endswith(f",{5 << 30}")
    unknown = replace(on_gpu, peak_device_bytes=None)
    assert "of it from loading on), - on the GPU, loads in" in text_table([unknown])
    assert csv_text([unknown]).splitlines()[1].endswith(",-")
    assert from_json(Measurement, to_json(unknown), where="") == unknown
    assert "peak_device_bytes" not in json_data([unsampled])[0]["measurement"], "only where there is one"


def test_labels_tell_artifacts_apart(make_measurement: Make) -> None:
    made = [make_measurement(TTFT, ITL, artifact=path) for path in ("/x/dense/openvino", "/x/pruned/openvino")]
    assert labels(made) == ["dense/openvino", "pruned/openvino"]
    assert labels(made[:1]) == ["openvino"]
    assert labels([made[0], made[0]]) == ["openvino", "openvino"]


def test_json_keeps_the_raw_samples(make_measurement: Make) -> None:
    made = make_measurement(TTFT, ITL)
    data = json.loads(json.dumps(json_data([made])))[0]
    assert from_json(Measurement, data["measurement"], where="test") == made
    assert data["summary_s"]["tpot"]["p90"] == pytest.approx(np.percentile(ITL, 90))


def test_csv_reads_back(make_measurement: Make) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text([make_measurement(TTFT, ITL, artifact='odd, "name"')] * 2))))
    assert len(rows) == 2
    assert rows[0]["artifact"] == 'odd, "name"'
    assert float(rows[0]["itl_p99_s"]) == pytest.approx(np.percentile(ITL, 99), rel=1e-8)
    assert float(rows[0]["e2e_mean_s"]) == pytest.approx(np.mean(TTFT) + sum(ITL) / 3, rel=1e-8)
    assert (rows[0]["prompt_tokens"], rows[0]["weights_bytes"]) == ("8", str(1 << 20))


def test_the_names_are_documented(make_measurement: Make) -> None:
    """With their counterparts in llm_bench and optimum-benchmark."""
    text = (Path(__file__).parents[2] / "docs/devices.md").read_text(encoding="utf8")
    rates = [f"{name}_tokens_per_s" for name in throughput(make_measurement(TTFT, ITL))]
    for name in (*METRICS, *rates):
        assert f"| `{name}` |" in text
