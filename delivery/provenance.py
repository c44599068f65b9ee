"""The report's last section: where everything comes from, in full."""

from __future__ import annotations

from collections.abc import Mapping

from prune_export.delivery.page import definitions, details, table
from prune_export.manifest import FIGURES_FOLDER, REPORT_FILE, Manifest, Measurement
from prune_export.plan import PrunePlan
from prune_export.units import format_bytes, format_clock


def provenance(manifest: Manifest, plan: PrunePlan | None) -> str:
    """All of it as HTML."""
    parts = [
        definitions(_making(manifest)),
        "<h3>Device and runtime</h3>",
        definitions(_device(manifest)),
        "<h3>Model and plan</h3>",
        definitions(_model(manifest, plan)),
        "<h3>Texts</h3>",
        definitions(_texts(manifest)),
        "<h3>Checks</h3>",
        definitions(_checks(manifest)),
        "<h3>Versions</h3>",
        definitions(manifest.versions),
        _times(manifest),
        _files(manifest),
    ]
    return "\n".join(parts)


def is_report(name: str) -> bool:
    """Whether a delivered file is the report's own: it cannot show its own hash."""
    return name == REPORT_FILE or name.startswith(f"{FIGURES_FOLDER}/")


def workload_of(manifest: Manifest) -> str:
    """What was, or would be, timed."""
    measured = _measured(manifest)
    workload = manifest.workload or (measured.workload if measured else None)
    return str(workload) if workload else "as in the prediction"


def _making(manifest: Manifest) -> dict[str, str]:
    peak = f"{format_bytes(manifest.peak_tree_bytes)} at most, during: {manifest.peak_tree_phase}"
    return {
        "command": manifest.command,
        "made": manifest.created,
        "seed": str(manifest.seed),
        "time of the run": format_clock(sum(manifest.timings_s.values())),
        "memory of the run": peak if manifest.peak_tree_bytes else "",
    }


def _device(manifest: Manifest) -> dict[str, str]:
    found = _measured(manifest)
    rows = {"profile": manifest.profile, "workload": workload_of(manifest)}
    if found is None:
        return {**rows, "measured": "nothing: latencies are predicted"}
    repeats = f"{len(found.load_s)} fresh processes, {len(found.ttft_s)} repeats, {len(found.itl_s)} tokens timed"
    return {
        **rows,
        "host": words({**found.host, **_memory(found.host)}),
        "runtime": f"{found.runtime}, {words(found.versions)}",
        "threads": str(found.threads),
        "options": words(found.options),
        "samples of the delivered model": repeats,
    }


def _model(manifest: Manifest, plan: PrunePlan | None) -> dict[str, str]:
    removed = manifest.dense_parameters - manifest.shape.parameters()
    rows = {
        "model": manifest.source,
        "sha256 of the model": manifest.source_digest,
        "family": manifest.shape.family,
        "parameters": f"{manifest.shape.parameters():,} of {manifest.dense_parameters:,}, "
        f"{removed / manifest.dense_parameters:.1%} removed",
        "formats": ", ".join(manifest.formats),
        "weights": manifest.precision,
        "stored otherwise": words(manifest.departures),
    }
    if plan is None:
        return {**rows, "plan": "none: no structure was removed"}
    return {
        **rows,
        "plan": plan.method,
        "cost in the search": f"{plan.cost_unit}, {len(plan.history)} steps",
        "what stays": "fitted again on the calibration text" if plan.compensated else "as in the dense model",
        "layers": "one shape for all that stay" if plan.uniform else "",
        "sha256 of the plan": manifest.plan_digest,
        "sha256 of the calibration tokens": plan.calibration_digest,
    }


def _texts(manifest: Manifest) -> dict[str, str]:
    return {"calibration": words(manifest.calibration), "evaluation": words(manifest.evaluation)}


def _checks(manifest: Manifest) -> dict[str, str]:
    gate = manifest.parity
    greedy = f"{gate.greedy_agreement:.0%} of {gate.greedy_tokens} as torch's, in {manifest.precision}"
    return {
        "logits": f"largest error {gate.max_logit_error:.1e} of {gate.tolerance:.0e} allowed, in fp32 against torch",
        **{f"logits, {name}": f"{error:.1e}" for name, error in gate.checks.items()},
        "not compared": "; ".join(gate.unchecked),
        "greedy tokens": greedy,
        "NLL": f"{gate.nll_error:+.2e} nats a token against torch's",
    }


def _times(manifest: Manifest) -> str:
    peaks = manifest.phases_bytes
    rows = [
        (name, f"{seconds:.1f} s", format_bytes(peaks[name]) if peaks.get(name) else "-")
        for name, seconds in manifest.timings_s.items()
    ]
    return details("Time and memory of every phase", table("phases", ("phase", "time", "peak memory"), rows))


def _files(manifest: Manifest) -> str:
    rows = [
        (name, format_bytes(record.bytes), record.sha256)
        for name, record in manifest.files.items()
        if not is_report(name)
    ]
    if not rows:
        return ""
    whole = format_bytes(sum(record.bytes for name, record in manifest.files.items() if not is_report(name)))
    text = table("delivered files", ("file", "size", "sha256"), rows)
    return details(f"{len(rows)} delivered files, {whole}, with their hashes", text)


def _memory(host: Mapping[str, str]) -> dict[str, str]:
    """The host's memory, readable."""
    size = host.get("memory", "")
    return {"memory": format_bytes(int(size))} if size.isdecimal() else {}


def _measured(manifest: Manifest) -> Measurement | None:
    """The delivered model's measurement, else any."""
    found = [item for item in manifest.candidates if item.measurement is not None]
    return min(found, key=lambda item: not item.delivered).measurement if found else None


def words(values: Mapping[str, str]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{key} {value}" for key, value in values.items())
