"""report.html: one self-contained page about a delivered artifact."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from prune_export.delivery import plots
from prune_export.delivery.summary import claim, sparsity_lines, speed, timed_metric
from prune_export.manifest import PLAN_FILE, REPORT_FILE, Candidate, Manifest
from prune_export.plan import PrunePlan
from prune_export.units import format_bytes, format_clock, format_duration

_STYLE = """
:root{color-scheme:light dark;--fg:#1d2329;--bg:#fff;--soft:#f3f5f7;--line:#d8dee4;--good:#12715b}
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ec;--bg:#15191d;--soft:#1f252b;--line:#39424b;--good:#5fd3b3}}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:var(--fg);background:var(--bg)}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
tr.delivered td{font-weight:600;background:var(--soft)}
.claim{font-size:1.1rem;color:var(--good);white-space:pre-line}
figure{margin:1rem 0;background:#fff;border:1px solid var(--line);border-radius:6px;padding:.5rem}
figure svg{width:100%;height:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{opacity:.7}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--soft);padding:.7rem;overflow:auto;border-radius:6px;white-space:pre-wrap}
"""


def write_report(directory: Path) -> Path:
    """Writes report.html from the manifest (and plan) in an artifact's directory and returns its path.

    Raises:
        BadInputError: `directory` is no artifact.
    """
    manifest = Manifest.load(directory)
    plan_path = directory / PLAN_FILE
    plan = PrunePlan.load(plan_path) if plan_path.is_file() else None
    path = directory / REPORT_FILE
    fresh = path.with_suffix(".new")
    fresh.write_text(page(manifest, plan), encoding="utf8")
    return fresh.replace(path)


def page(manifest: Manifest, plan: PrunePlan | None) -> str:
    """The whole page as HTML without any outside reference."""
    name = Path(manifest.source).name or manifest.source
    sections = [
        f"<h1>{_text(name)} on {_text(manifest.profile)}</h1>",
        f'<p class="claim">{_text(claim(manifest))}</p>',
        *(f"<p>{_text(line)}</p>" for line in sparsity_lines(manifest)),
        f"<p>Asked for: {_text(str(manifest.target))}, workload {_text(str(_workload(manifest)))}.</p>",
        "<h2>Alternatives</h2>",
        _candidates(manifest),
        _figure(plots.pareto(manifest), "Latency against perplexity: left and low is better."),
    ]
    if plan is not None:
        sections += ["<h2>What was kept</h2>", _figure(plots.layers(plan), _removed(plan))]
    if any(candidate.measurement for candidate in manifest.candidates):
        sections += ["<h2>Latency of every token</h2>", _figure(plots.distributions(manifest), "Measured samples.")]
    if manifest.rounds:
        sections += ["<h2>Closed loop</h2>", _rounds(manifest)]
    sections += _samples(manifest)
    sections += ["<h2>Provenance</h2>", _provenance(manifest)]
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(name)} - prune-export</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>{body}</body></html>\n"
    )


def _candidates(manifest: Manifest) -> str:
    metric = timed_metric(manifest.target)
    head = (
        "model",
        "weights",
        f"{metric} p50",
        f"{metric} p90",
        f"{metric} p99",
        "load",
        "memory",
        "parameters",
        "perplexity",
        "rise",
    )
    base = manifest.candidates[0].perplexity
    rows = [_candidate(candidate, metric, base) for candidate in manifest.candidates]
    marks = [candidate.delivered for candidate in manifest.candidates]
    return _table(head, rows, marks)


def _candidate(candidate: Candidate, metric: str, base: float) -> tuple[str, ...]:
    measured = candidate.measurement
    if measured is None:
        guess = speed(candidate, metric, "p90")
        times: tuple[str, ...] = ("-", "-" if guess is None else f"~{format_duration(guess)}", "-", "-", "-")
    else:
        shown = [format_duration(measured.percentile(metric, statistic)) for statistic in ("p50", "p90", "p99")]
        load = format_duration(sum(measured.load_s) / len(measured.load_s))
        times = (*shown, load, format_bytes(measured.peak_rss_bytes) if measured.peak_rss_bytes else "-")
    rise = f"{candidate.perplexity / base - 1:+.1%}"
    return (
        candidate.name,
        candidate.precision,
        *times,
        f"{candidate.parameters:,}",
        f"{candidate.perplexity:.2f}",
        rise,
    )


def _rounds(manifest: Manifest) -> str:
    seconds = manifest.target.metric != "memory"
    show = format_duration if seconds else format_bytes
    head = (
        "round",
        "weights",
        "budget by table",
        "predicted",
        "measured",
        "limit",
        "measured / predicted",
        "perplexity",
        "met",
    )
    rows = [
        (
            str(number),
            turn.precision,
            show(turn.budget),
            show(turn.predicted),
            show(turn.measured),
            show(turn.limit),
            f"{turn.measured / turn.predicted:.3f}",
            f"{turn.perplexity:.2f}",
            "yes" if turn.met else "no",
        )
        for number, turn in enumerate(manifest.rounds, 1)
    ]
    return _table(head, rows, [turn.met for turn in manifest.rounds])


def _samples(manifest: Manifest) -> list[str]:
    if not manifest.samples:
        return []
    parts = [f"<h3>{name}</h3><pre>{_text(manifest.samples[name])}</pre>" for name in ("prompt", "dense", "delivered")]
    return ["<h2>Greedy continuation, before and after</h2>", *parts]


def _provenance(manifest: Manifest) -> str:
    host = next((item.measurement.host for item in manifest.candidates if item.measurement), {})
    gate = manifest.parity
    rows = {
        "command": manifest.command,
        "made": manifest.created,
        "model": f"{manifest.source} ({manifest.source_digest[:16]})",
        "plan": manifest.plan_digest[:16] or "none: dense",
        "calibration": _words(manifest.calibration),
        "evaluation": _words(manifest.evaluation),
        "seed": str(manifest.seed),
        "parity": f"largest logit error {gate.max_logit_error:.1e} of {gate.tolerance:.0e} allowed; "
        f"{gate.greedy_agreement:.0%} of {gate.greedy_tokens} greedy tokens as torch's",
        "host": _words(host),
        "memory of the run": f"{format_bytes(manifest.peak_tree_bytes)} at most, during: {manifest.peak_tree_phase}",
        "time of the run": format_clock(sum(manifest.timings_s.values())),
        "versions": _words(manifest.versions),
    }
    return "<dl>" + "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in rows.items()) + "</dl>"


def _workload(manifest: Manifest) -> str:
    measured = next((item.measurement for item in manifest.candidates if item.measurement), None)
    return str(measured.workload) if measured else "as in the prediction"


def _removed(plan: PrunePlan) -> str:
    return f"{plan.ratio:.1%} of the parameters removed by {plan.method}."


def _words(values: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[bool]) -> str:
    header = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=delivered' if mark else ''}>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for row, mark in zip(rows, marks, strict=True)
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return html.escape(value)
