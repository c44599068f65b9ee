"""`prune-export benchmark DIR [--compare DIR2]`: measures, compares, renders. Prints nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prune_export.benchmark.artifact import context_length
from prune_export.benchmark.compare import PairedRatio, drift_warning, paired_ratio
from prune_export.benchmark.devices import device_fingerprint
from prune_export.benchmark.integrity import check_model_files
from prune_export.benchmark.measure import Rounds, Subject, check_measurable, measure_together
from prune_export.benchmark.report_table import csv_text, json_data, labels, text_table, throughput_table
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.worker import Through
from prune_export.errors import BadInputError
from prune_export.manifest import MANIFEST, Manifest, Measurement
from prune_export.profiles import DeviceProfile, mismatch
from prune_export.progress import Progress
from prune_export.target import Workload

_COMPARED = (("ttft", "p50"), ("tpot", "p50"), ("tpot", "p90"), ("total", "p50"))


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured.

    Attributes:
        measurements: of the artifact, and of the one that it was compared with.
        ratios: "tpot p50", ... to the artifact's latency divided by the other's; empty without a comparison.
        notes: what the reader must know: a shortened prompt, a drifting machine, a host that is not the profile's.
        batches: the same artifacts at other batch sizes.
    """

    measurements: tuple[Measurement, ...]
    ratios: dict[str, PairedRatio] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    batches: tuple[Measurement, ...] = ()


def run_benchmark(
    directory: Path,
    *,
    profile: DeviceProfile,
    workload: Workload,
    compare: Path | None = None,
    precision: str = "",
    threads: int = 0,
    rounds: int = 3,
    through: Through = "session",
    batches: Sequence[int] = (),
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Measures an artifact, in turns with another one if `compare` is given.

    Args:
        directory: an artifact, or a folder with openvino_model.xml or model.onnx.
        profile: names the runtime and device.
        workload: what to run; shortened to the models' context.
        compare: the other artifact.
        precision: weight precision; by default that of the manifest, or else of the model's own files.
        threads: 0 takes the profile's.
        rounds: fresh processes for each artifact.
        through: the runtime itself, or its GenAI pipeline.
        batches: further batch sizes, for the throughput; one process each.
        progress: is told the share done.

    Raises:
        BadInputError, PruneExportError: as `measure.measure`; or a file is not as the artifact's manifest says, the
            manifest was edited, or it states another precision.
    """
    directories = [directory] if compare is None else [directory, compare]
    unchecked = [item for item in directories if not check_model_files(find_model(item))]
    subjects = [
        Subject(item, _precision(item, precision, stated=item not in unchecked), through=through)
        for item in directories
    ]
    fitted, notes = _fit(workload, directories)
    notes += [f"{item} has no manifest or export record beside it: its files were not checked" for item in unchecked]
    if reason := mismatch(profile, device_fingerprint(profile)):
        notes.append(f"measured on this host, which is not the device: {reason}")
    for batch in batches:
        check_measurable(subjects, profile, replace(fitted, batch=batch), threads)
    measured = measure_together(
        subjects, profile=profile, workload=fitted, rounds=Rounds(rounds), threads=threads, progress=progress
    )
    if warning := drift_warning(measured[-1], "tpot", compared=compare is not None):
        notes.append(warning)
    ratios = {
        f"{metric} {statistic}": paired_ratio(measured[0], measured[1], metric, statistic)
        for metric, statistic in _COMPARED
        if len(measured) == 2
    }
    other_batches: list[Measurement] = []
    for batch in batches:
        other_batches += measure_together(
            subjects,
            profile=profile,
            workload=replace(fitted, batch=batch),
            rounds=Rounds(1),
            threads=threads,
            sample_memory=False,
            progress=progress,
        )
    return BenchmarkResult(tuple(measured), ratios, tuple(notes), tuple(other_batches))


def render_text(result: BenchmarkResult) -> str:
    """The table for the screen."""
    lines = [text_table(result.measurements)]
    if result.ratios:
        first, second = labels(result.measurements)
        lines.append(f"{first} / {second}, paired by round; below 1 {first} is faster:")
        lines += [f"  {name}: {ratio}" for name, ratio in result.ratios.items()]
    if result.batches:
        lines.append(throughput_table((*result.measurements, *result.batches)))
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def render_json(result: BenchmarkResult) -> dict[str, Any]:
    """Everything as plain data, raw samples included."""
    ratios = {
        name: {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "per_round": list(ratio.per_round)}
        for name, ratio in result.ratios.items()
    }
    everything = json_data((*result.measurements, *result.batches))
    return {"measurements": everything, "ratios": ratios, "notes": list(result.notes)}


def render_csv(result: BenchmarkResult) -> str:
    """One line a measurement."""
    return csv_text((*result.measurements, *result.batches))


def artifact_precision(directory: Path) -> str:
    """Weight precision by the manifest of the artifact, or by the model's own files where there is none.

    Raises:
        BadInputError: no model, or a broken or edited manifest.
    """
    found = find_model(directory)
    for place in (directory, found.path.parent.absolute().parent) if found.runtime.format != "checkpoint" else ():
        if (place / MANIFEST).is_file():
            return Manifest.load_unedited(place).precision
    return found.precision


def _precision(directory: Path, asked: str, *, stated: bool) -> str:
    """That of an artifact; what was asked for where the artifact does not state its own."""
    found = artifact_precision(directory)
    if asked and stated and asked != found:
        raise BadInputError(f"--precision {asked}: the weights of {directory} are in {found}: leave it out")
    return asked or found


def _fit(workload: Workload, directories: list[Path]) -> tuple[Workload, list[str]]:
    contexts = [context_length(find_model(item).path) for item in directories]
    known = [length for length in contexts if length is not None]
    fitted = workload.fitted(min(known)) if known else workload
    if fitted == workload:
        return workload, []
    return fitted, [
        f"prompt shortened from {workload.prompt_tokens} to {fitted.prompt_tokens} tokens: "
        f"prompt + new must fit the context of {min(known)}"
    ]
