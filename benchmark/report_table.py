"""Measurements as a table, as JSON and as CSV.

Field names are those of vLLM and optimum-benchmark, seconds throughout:

- `ttft`: time to first token, one sample a repeat; OpenVINO llm_bench's `first_latency` (there in ms).
- `itl`: every inter-token latency; its mean is llm_bench's `second_avg_latency` (there in ms).
- `tpot`: time per output token. Same samples as `itl`: its percentiles are over tokens, which is what a target limits.
  (vLLM averages each request first; only the mean is then the same.)
- `e2e`: the whole request, one sample a repeat.
- `decode_tokens_per_s`, `request_tokens_per_s`: all sequences of the batch together; the first without the prompt, the
  second over the whole request (optimum-benchmark's `decode_throughput` and `generate_throughput`).

Each of the first four has `mean`, `p50`, `p90`, `p99` and `stdev` (of the sample, n - 1).
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune_export.manifest import Measurement
from prune_export.records import to_json
from prune_export.units import format_bytes, format_duration

METRICS = {"ttft": "ttft", "tpot": "tpot", "itl": "tpot", "e2e": "total"}
STATISTICS = ("mean", "p50", "p90", "p99", "stdev")
# itl repeats tpot's figures: on the screen once is enough.
_SHOWN = ("ttft", "tpot", "e2e")


def summary(measurement: Measurement) -> dict[str, dict[str, float]]:
    """Seconds by metric (`ttft`, `tpot`, `itl`, `e2e`) and statistic (`mean`, `p50`, `p90`, `p99`, `stdev`)."""
    return {name: _statistics(measurement, metric) for name, metric in METRICS.items()}


def throughput(measurement: Measurement) -> dict[str, float]:
    """New tokens a second of all sequences together: while decoding (`decode`), and over whole requests (`request`)."""
    work = measurement.workload
    decode = work.batch / statistics.fmean(measurement.samples("tpot"))
    return {
        "decode": decode,
        "request": work.batch * work.new_tokens / statistics.fmean(measurement.samples("total")),
    }


def throughput_table(measurements: Sequence[Measurement]) -> str:
    """One row for each artifact and batch size."""
    rows = [["artifact", "precision", "batch", "tpot p50", "decode tokens/s", "request tokens/s"]]
    for item, shown in zip(measurements, labels(measurements), strict=True):
        found = throughput(item)
        per_token = format_duration(summary(item)["tpot"]["p50"])
        rates = (f"{found['decode']:.1f}", f"{found['request']:.1f}")
        rows.append([shown, item.precision, str(item.workload.batch), per_token, *rates])
    return "\n".join(_align(rows))


def text_table(measurements: Sequence[Measurement]) -> str:
    """One block of rows for each measurement, then what was run and where."""
    rows = [["artifact", "precision", "metric", *STATISTICS]]
    names = labels(measurements)
    for item, shown in zip(measurements, names, strict=True):
        figures = summary(item)
        for index, name in enumerate(_SHOWN):
            label = [shown, item.precision] if index == 0 else ["", ""]
            rows.append([*label, name, *(format_duration(figures[name][key]) for key in STATISTICS)])
    lines = _align(rows)
    lines += [_footprint(item, shown) for item, shown in zip(measurements, names, strict=True)]
    lines += sorted({_conditions(item) for item in measurements})
    return "\n".join(lines)


def json_data(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Plain data: the raw measurement and its summary in seconds."""
    return [
        {"summary_s": summary(item), "tokens_per_s": throughput(item), "measurement": to_json(item)}
        for item in measurements
    ]


def csv_text(measurements: Sequence[Measurement]) -> str:
    """One line a measurement; columns such as `tpot_p90_s`."""
    figures = [(name, key) for name in METRICS for key in STATISTICS]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            *("artifact", "precision", "profile", "processor", "threads", "batch", "prompt_tokens", "new_tokens"),
            *(f"{name}_{key}_s" for name, key in figures),
            *("decode_tokens_per_s", "request_tokens_per_s"),
            *("load_s", "weights_bytes", "peak_rss_bytes", "rss_rise_bytes", "peak_device_bytes"),
        ]
    )
    for item in measurements:
        values = summary(item)
        work = item.workload
        writer.writerow(
            [
                *(item.artifact, item.precision, item.profile, item.host["processor"], item.threads),
                *(work.batch, work.prompt_tokens, work.new_tokens),
                *(f"{values[name][key]:.9g}" for name, key in figures),
                *(f"{value:.9g}" for value in throughput(item).values()),
                *(f"{statistics.median(item.load_s):.9g}", item.weights_bytes),
                *((item.peak_rss_bytes, item.rss_rise_bytes) if item.peak_rss_bytes else ("", "")),  # "": not sampled
                "-" if item.peak_device_bytes is None else item.peak_device_bytes,
            ]
        )
    return buffer.getvalue()


def _statistics(measurement: Measurement, metric: str) -> dict[str, float]:
    samples = measurement.samples(metric)
    spread = statistics.stdev(samples) if len(samples) > 1 else 0.0
    percentiles = {name: measurement.percentile(metric, name) for name in ("p50", "p90", "p99")}
    return {"mean": statistics.fmean(samples), **percentiles, "stdev": spread}


def labels(measurements: Sequence[Measurement]) -> list[str]:
    """The shortest ends of the artifacts' paths that tell them apart; equal paths stay equal."""
    parts = [Path(item.artifact).parts for item in measurements]
    different = len(set(parts))
    for length in range(1, max(map(len, parts), default=1) + 1):
        ends = [part[-length:] for part in parts]
        if len(set(ends)) == different:
            return [str(Path(*end)) for end in ends]
    return [item.artifact for item in measurements]


def _footprint(item: Measurement, label: str) -> str:
    memory = (
        f"peak memory {format_bytes(item.peak_rss_bytes)} ({format_bytes(item.rss_rise_bytes)} of it from loading on)"
        if item.peak_rss_bytes
        else "memory not sampled"
    )
    if item.peak_device_bytes != 0:
        memory += f", {'-' if item.peak_device_bytes is None else format_bytes(item.peak_device_bytes)} on the GPU"
    load = format_duration(statistics.median(item.load_s))
    return f"{label} {item.precision}: weights {format_bytes(item.weights_bytes)}, {memory}, loads in {load}"


def _conditions(item: Measurement) -> str:
    return (
        f"{item.workload}, {item.threads} thread{'s' if item.threads != 1 else ''}, {item.runtime} "
        f"{item.versions.get(item.runtime, '')}, {item.host['processor']} ({item.host['cores']} cores), "
        f"profile {item.profile}, {len(item.load_s)} processes of {item.workload.repeats} repeats"
    )


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
