"""report.html, one self-contained page about a delivered artifact, and its figures as PNG beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prune_export.delivery import layer_plot, page
from prune_export.delivery.drawing import Picture
from prune_export.delivery.pareto_plot import pareto, predicted_front
from prune_export.delivery.plots import distribution, distribution_metrics, predictions
from prune_export.delivery.provenance import is_report, provenance, workload_of
from prune_export.delivery.summary import claim, sparsity_lines, timed_metric, times
from prune_export.files import sha256, write_whole
from prune_export.hashes import FileRecord
from prune_export.manifest import FIGURES_FOLDER, PLAN_FILE, REPORT_FILE, Candidate, Manifest
from prune_export.plan import PrunePlan
from prune_export.units import format_bytes, format_duration

_STATISTICS = ("p50", "p90", "p99")


def write_report(directory: Path) -> Path:
    """Writes report.html and the figures from the manifest (and plan) in an artifact's directory; gives its path.

    Raises:
        BadInputError: `directory` is no artifact.
    """
    manifest = Manifest.load(directory)
    plan_path = directory / PLAN_FILE
    plan = PrunePlan.load(plan_path) if plan_path.is_file() else None
    pictures = drawn(manifest, plan)
    folder = directory / FIGURES_FOLDER
    folder.mkdir(exist_ok=True)
    for picture in pictures.values():
        (folder / f"{picture.name}.png").write_bytes(picture.png())
    for path in folder.glob("*.png"):  # of an earlier version's report
        if path.stem not in pictures:
            path.unlink()
    write_whole(directory / REPORT_FILE, render(manifest, plan, pictures))
    return directory / REPORT_FILE


def remake_report(directory: Path) -> Path:
    """Writes the report of an artifact anew, and its hashes into the manifest; gives its path.

    Raises:
        BadInputError: `directory` is no artifact, or its manifest was edited.
    """
    manifest = Manifest.load_unedited(directory)
    path = write_report(directory)
    remade = with_report_files(manifest, directory)
    if remade.files != manifest.files:
        remade.save(directory)
    return path


def with_report_files(manifest: Manifest, directory: Path) -> Manifest:
    """A manifest that lists the report's files as they are in the directory, and all others as before."""
    paths = [directory / REPORT_FILE, *(directory / FIGURES_FOLDER).iterdir()]
    own = {
        path.relative_to(directory).as_posix(): FileRecord(sha256(path), path.stat().st_size) for path in sorted(paths)
    }
    others = {name: record for name, record in manifest.files.items() if not is_report(name)}
    return replace(manifest, files=dict(sorted({**others, **own}.items())))


def drawn(manifest: Manifest, plan: PrunePlan | None) -> dict[str, Picture]:
    """All figures that there is something to draw for, by name."""
    found = [
        pareto(manifest),
        layer_plot.layers(plan) if plan is not None else None,
        *(distribution(manifest, metric) for metric in distribution_metrics(manifest)),
        predictions(manifest),
    ]
    return {picture.name: picture for picture in found if picture is not None}


def render(manifest: Manifest, plan: PrunePlan | None, pictures: dict[str, Picture]) -> str:
    """The whole page as HTML without any outside reference."""
    name = Path(manifest.source).name or manifest.source
    sections = [
        f"<h1>{page.escaped(name)} on {page.escaped(manifest.profile)}</h1>",
        page.paragraph(claim(manifest), "claim" if manifest.met else "claim missed"),
        *(page.paragraph(line) for line in sparsity_lines(manifest)),
        page.paragraph(f"Asked for: {manifest.target}, workload {workload_of(manifest)}."),
        "<h2>Alternatives</h2>",
        _candidates(manifest),
        *_figure(pictures, "pareto", _pareto_caption(manifest)),
        *_kept(plan, pictures),
        *_latencies(manifest, pictures),
        *_loop(manifest, pictures),
        *_samples(manifest),
        "<h2>Provenance</h2>",
        provenance(manifest, plan),
    ]
    return page.document(f"{name} on {manifest.profile} - prune-export", "\n".join(sections))


def _figure(pictures: dict[str, Picture], name: str, caption: str) -> list[str]:
    return [page.figure(pictures[name], caption)] if name in pictures else []


def _pareto_caption(manifest: Manifest) -> str:
    text = "Left and low is better."
    if manifest.rounds and manifest.target.speedup is not None:
        text += (
            " Each round of the closed loop is drawn at its share of its own limit, which follows the dense model; the "
            "delivered model and its dense one where the paired rounds have them."
        )
    if predicted_front(manifest):
        text += (
            " Other budgets: what the search predicts without building anything, the table's costs scaled to the dense "
            "model's figure and the rise on the calibration text put on its perplexity."
        )
    return text


def _kept(plan: PrunePlan | None, pictures: dict[str, Picture]) -> list[str]:
    if plan is None:
        return []
    kept = "; ".join(part.summary for part in layer_plot.parts_of(plan))
    caption = f"{plan.ratio:.1%} of the parameters removed: {kept}. Pale: the dense model."
    head, rows = layer_plot.rows(plan)
    return [
        "<h2>What was kept</h2>",
        *_figure(pictures, "layers", caption),
        page.details("The same as a table", page.table("what every layer keeps", head, rows)),
    ]


def _latencies(manifest: Manifest, pictures: dict[str, Picture]) -> list[str]:
    figures = [
        part
        for metric in distribution_metrics(manifest)
        for part in _figure(
            pictures,
            f"distribution-{metric}",
            f"Every measured {metric}, dense against delivered; the axis ends a little beyond the slowest p99.",
        )
    ]
    return ["<h2>Latencies, dense against delivered</h2>", *figures] if figures else []


def _loop(manifest: Manifest, pictures: dict[str, Picture]) -> list[str]:
    caption = "On the line, the prediction was right; the band is 5% to either side."
    parts = _figure(pictures, "predictions", caption)
    if manifest.rounds:
        parts.append(_rounds(manifest))
    return ["<h2>Predicted against measured</h2>", *parts] if parts else []


def _candidates(manifest: Manifest) -> str:
    metric = timed_metric(manifest.target)
    head = (
        "model",
        "weights",
        *(f"{metric} {name}" for name in _STATISTICS),
        "load",
        "memory",
        "parameters",
        "perplexity",
        "rise",
    )
    base = manifest.candidates[0].perplexity
    rows = [_candidate(candidate, manifest, base) for candidate in manifest.candidates]
    return page.table("alternatives", head, rows, marks=[item.delivered for item in manifest.candidates], left=2)


def _candidate(candidate: Candidate, manifest: Manifest, base: float) -> tuple[str, ...]:
    measured, load, memory = candidate.measurement, "-", "-"
    if measured is not None:
        load = format_duration(sum(measured.load_s) / len(measured.load_s))
        memory = format_bytes(measured.peak_rss_bytes) if measured.peak_rss_bytes else "-"
    rise = f"{candidate.perplexity / base - 1:+.1%}"
    size = f"{candidate.parameters:,}"
    found = (*times(candidate, manifest, _STATISTICS), load, memory)
    return (candidate.name, candidate.precision, *found, size, f"{candidate.perplexity:.2f}", rise)


def _rounds(manifest: Manifest) -> str:
    show = format_bytes if manifest.target.metric == "memory" else format_duration
    head = ("round", "weights", "budget by table", "predicted", "measured", "error", "limit", "perplexity", "met")
    rows: Sequence[tuple[str, ...]] = [
        (
            str(number),
            turn.precision,
            *(show(value) for value in (turn.budget, turn.predicted, turn.measured)),
            f"{turn.measured / turn.predicted - 1:+.1%}",
            show(turn.limit),
            f"{turn.perplexity:.2f}",
            "yes" if turn.met else "no",
        )
        for number, turn in enumerate(manifest.rounds, 1)
    ]
    return page.table("rounds of the closed loop", head, rows, marks=[turn.met for turn in manifest.rounds], left=2)


def _samples(manifest: Manifest) -> list[str]:
    if not manifest.samples:
        return []
    names = ("prompt", "dense", "delivered")
    parts = [f"<h3>{name}</h3><pre>{page.escaped(manifest.samples[name])}</pre>" for name in names]
    return ["<h2>Greedy continuation, before and after</h2>", *parts]
