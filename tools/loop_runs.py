"""Runs the closed loop for several targets and measures each delivered artifact again, in processes of its own.

    python tools/loop_runs.py --model reference --output DIR
    python tools/loop_runs.py --model ./my-llama --device box.toml --precisions int8 --metric ttft --output DIR
    python tools/loop_runs.py --table --output DIR    # of all records below DIR

Every run leaves a JSON record in the output directory; started again, the script goes on after the last.  It prints
a Markdown table: for each target the limit, what the loop claimed, what the later measurement found by the same rule,
and the noise: for a speed-up two standard errors of the later rounds, for a limit in seconds how far the dense model
moved between the later processes, or from the closing measurement to them.  Below it a summary counts apart what a
dense precision satisfied and what was refused.
A machine that does nothing else is needed.  What is tested is how the loop meets a latency, so a large model may get
little calibration and held-out text, and a profile that `prune-export profile measure` made spares each run its table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import get_args

from prune_export.api import export
from prune_export.benchmark.artifact import context_length
from prune_export.benchmark.compare import per_round
from prune_export.benchmark.measure import Rounds, Subject, measure_together
from prune_export.deliver import deliver
from prune_export.delivery.bench import samples_wanted
from prune_export.delivery.request import PRECISIONS, Request, SearchSettings
from prune_export.delivery.verdict import figure_of, judged, rounds_error
from prune_export.errors import InfeasibleError
from prune_export.export.files import MODEL_XML
from prune_export.manifest import IR_FOLDER, Manifest
from prune_export.profiles.host import host_fingerprint
from prune_export.profiles.load import load_profile
from prune_export.progress import Progress
from prune_export.records import from_json, to_json
from prune_export.target import Metric, Statistic, Target, parse_workload
from prune_export.units import format_bytes, format_duration

SPEEDUPS = (1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6)
SHARES = (0.9, 0.75, 0.6)  # absolute limits, as shares of the fastest dense precision's figure
ROUNDS = 6  # as many loaded the one way as the other
RECORD = ".run.json"  # how a record's name ends; the artifacts beside it are full of other JSON files
HEAD = (
    "| target | limit | claimed | undershoot | measured again | its limit | over by | noise | minutes |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Run:
    """One run of the loop and the later measurement; times in seconds.

    Attributes:
        target: what was asked for.
        minutes: how long the loop took.
        infeasible: why nothing was delivered, else empty; then the rest is 0.
        precision: of the delivered weights.
        pruned: the delivered model is not a dense one.
        limit, claimed: the loop's own; bytes for a target of memory.
        later, later_limit: the same of the later measurement.
        noise: for a speed-up two standard errors of the later rounds; for a limit in seconds (largest - smallest) /
            smallest of the dense model's figure over the later processes, or if it is more, by how much slower the
            dense model was than in the closing measurement; 0 for memory.
        dense, later_dense: the dense model's figure in the closing and in the later measurement; 0 if not recorded.
        date, machine: when and where; the processor and its cores.
    """

    target: str
    minutes: float
    infeasible: str = ""
    precision: str = ""
    pruned: bool = True
    limit: float = 0.0
    claimed: float = 0.0
    later: float = 0.0
    later_limit: float = 0.0
    noise: float = 0.0
    dense: float = 0.0
    later_dense: float = 0.0
    date: str = ""
    machine: str = ""

    @property
    def undershoot(self) -> float:
        """Share of the limit that the claimed figure leaves unused."""
        return 1 - self.claimed / self.limit

    @property
    def over(self) -> float:
        """Share by which the later figure is above its limit; negative where it is below."""
        return self.later / self.later_limit - 1

    @property
    def row(self) -> str:
        """A line of the table."""
        if self.infeasible:
            return f"| {self.target} | infeasible: {self.infeasible} | | | | | | | {self.minutes:.1f} |"
        show = format_bytes if self.target.startswith("memory") else format_duration
        cells = (
            f"{self.target}, {self.precision}{'' if self.pruned else ' dense'}",
            *(show(self.limit), show(self.claimed), f"{self.undershoot:.1%}"),
            *(show(self.later), show(self.later_limit)),
            "-" if self.over <= 0 else f"{self.over:.1%}",
            *(f"{self.noise:.1%}", f"{self.minutes:.1f}"),
        )
        return f"| {' | '.join(cells)} |"


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="directory, hub id or reference; may be repeated")
    parser.add_argument("--output", type=Path, required=True, help="holds records and artifacts; resumed if it exists")
    parser.add_argument("--device", default="host", help="host, or a profile measured here (default host)")
    parser.add_argument("--precisions", default="fp32,int8", help="that may be delivered (default fp32,int8)")
    parser.add_argument(
        "--metric", default="tpot", choices=get_args(Metric)[:-1], help="that is limited (default tpot)"
    )
    parser.add_argument("--statistic", default="p90", choices=get_args(Statistic), help="of it (default p90)")
    parser.add_argument("--speedups", default=_listed(SPEEDUPS), help=f"default {_listed(SPEEDUPS)}")
    parser.add_argument("--shares", default=_listed(SHARES), help="limits against the fastest dense precision's figure")
    parser.add_argument("--workload", default="prompt=512,new=128,batch=1")
    parser.add_argument("--eval-tokens", type=int)
    parser.add_argument("--calibration-windows", type=int)
    parser.add_argument("--calibration", help="text for the search")
    parser.add_argument("--eval-text", help="held-out text")
    parser.add_argument("--table", action="store_true", help="print what is below the output directory")
    arguments = parser.parse_args()
    precisions = tuple(item for item in PRECISIONS if item in arguments.precisions.split(","))
    metric: Metric = arguments.metric
    if arguments.table:
        print(tables(arguments.output))
        return
    everything = []
    for model in arguments.model or ["reference"]:
        folder = arguments.output / f"{Path(model).name}-{'-'.join(precisions)}"
        speedups = _numbers(arguments.speedups) if metric != "memory" else []
        base = Request(
            model=model,
            device=arguments.device,
            target=Target(metric, None, arguments.statistic, speedup=SPEEDUPS[0]),
            workload=parse_workload(arguments.workload),
            precisions=precisions,
            search=SearchSettings(calibration_windows=arguments.calibration_windows),
            calibration=arguments.calibration,
            eval_text=arguments.eval_text,
            eval_tokens=arguments.eval_tokens,
        )
        runs = all_runs(base, folder, speedups, _numbers(arguments.shares))
        print(f"\n{model}\n\n{HEAD}\n{_rows(runs)}", flush=True)
        everything += runs
    print(f"\n{summary(everything)}")


def tables(folder: Path) -> str:
    """Every series of records below a directory as a table, and a summary of each and of all."""
    series: dict[str, list[Run]] = {}
    for record in sorted(folder.rglob(f"*{RECORD}")):
        series.setdefault(str(record.parent.relative_to(folder)), []).append(_load(record))
    for runs in series.values():
        runs.sort(key=lambda run: run.date)
    parts = [f"{name}\n\n{HEAD}\n{_rows(runs)}\n\n{summary(runs)}" for name, runs in series.items()]
    return "\n\n".join((*parts, f"in all: {summary([run for runs in series.values() for run in runs])}"))


def _rows(runs: Sequence[Run]) -> str:
    return "\n".join(run.row for run in runs)


def summary(runs: Sequence[Run]) -> str:
    """How the runs ended, those that pruned apart from the others."""
    delivered = [run for run in runs if not run.infeasible]
    pruned = [run for run in delivered if run.pruned]
    counted = f"{len(pruned)} pruned, {len(delivered) - len(pruned)} dense, {len(runs) - len(delivered)} refused"
    if not pruned:
        return counted
    unused = [run.undershoot for run in pruned]
    over = [run for run in delivered if run.over > 0]
    beyond = sum(run.over > run.noise for run in over)
    undershoot = f"median {median(unused):.1%}, worst {max(unused):.1%}"
    return (
        f"{counted}; undershoot of the pruned: {undershoot}; over the limit when "
        f"measured again: {len(over)}, beyond that measurement's noise: {beyond}"
    )


def all_runs(base: Request, folder: Path, speedups: Sequence[float], shares: Sequence[float]) -> list[Run]:
    """The runs of every target, those on record as they are recorded."""
    dense = dense_artifacts(base, folder / "dense")
    runs = []
    for target in targets(base, dense, folder, speedups, shares):
        name = str(target).replace(" ", "-").replace("<=", "within")
        record = folder / f"{name}{RECORD}"
        if not record.is_file():
            run = one_run(replace(base, target=target, output=folder / name, force=True), dense)
            _save(record, replace(run, date=_now(), machine=_machine()))
            shutil.rmtree(folder / name, ignore_errors=True)
        runs.append(_load(record))
        print(runs[-1].row, flush=True)
    return runs


def targets(
    base: Request, dense: Path, folder: Path, speedups: Sequence[float], shares: Sequence[float]
) -> list[Target]:
    """Speed-ups, and absolute limits below the fastest dense precision's figure, which is measured once."""
    aim = base.target
    record = folder / f"dense-{aim.metric}-{aim.statistic}.figure"
    if shares and not record.is_file():
        subjects = [Subject(dense / precision, precision) for precision in base.precisions]
        context = context_length(dense / base.precisions[0] / MODEL_XML)
        workload = base.workload.fitted(context) if context else base.workload
        found = measure_together(
            subjects,
            profile=load_profile(base.device),
            workload=workload,
            rounds=Rounds(ROUNDS, samples=samples_wanted(aim, workload)),
            sample_memory=aim.metric == "memory",
        )
        record.write_text(json.dumps(min(figure_of(aim, item) for item in found)), encoding="utf8")
    relative = [replace(aim, speedup=factor) for factor in speedups]
    least = float(json.loads(record.read_text(encoding="utf8"))) if shares else 0.0
    return [*relative, *(replace(aim, limit=least * share, speedup=None) for share in shares)]


def one_run(request: Request, dense: Path) -> Run:
    """Runs the loop and measures what it delivered again, beside the dense model in the same precision."""
    begun = time.monotonic()
    try:
        manifest = deliver(request, progress=Progress()).manifest
    except InfeasibleError as error:
        return Run(str(request.target), (time.monotonic() - begun) / 60, infeasible=str(error))
    minutes = (time.monotonic() - begun) / 60
    assert request.output is not None
    run = Run(
        target=str(request.target),
        minutes=minutes,
        precision=manifest.precision,
        pruned=bool(manifest.plan_digest),
        limit=manifest.limit,
        claimed=manifest.figure,
        dense=_closing_dense(manifest),
    )
    return measured_again(run, manifest, request.output, dense, request.device)


def _closing_dense(manifest: Manifest) -> float:
    """The dense model's figure in the delivered precision, in the closing measurement."""
    wanted = ("dense", manifest.precision)
    beside = next(item.measurement for item in manifest.candidates if (item.name, item.precision) == wanted)
    assert beside is not None
    return figure_of(manifest.target, beside)


def measured_again(run: Run, manifest: Manifest, output: Path, dense: Path, device: str) -> Run:
    """The run with what a later measurement found by the loop's own rule, and its noise."""
    measurement = next(item.measurement for item in manifest.candidates if item.delivered)
    assert measurement is not None
    precision, target = manifest.precision, manifest.target
    baseline, again = measure_together(
        [Subject(dense / precision, precision), Subject(output / IR_FOLDER, precision)],
        profile=load_profile(device),
        workload=measurement.workload,
        rounds=Rounds(ROUNDS, samples=samples_wanted(target, measurement.workload)),
        threads=measurement.threads,
        sample_memory=target.metric == "memory",
    )
    found = judged(target, baseline=baseline, variant=again)
    noise = 2 * rounds_error(target, baseline=baseline, variant=again)
    later_dense = figure_of(target, baseline)
    if target.speedup is None and target.metric != "memory":
        figures = per_round(baseline, target.metric, target.statistic)
        noise = max(max(figures) / min(figures), later_dense / run.dense) - 1
    return replace(run, later=found.figure, later_limit=found.limit, noise=noise, later_dense=later_dense)


def dense_artifacts(base: Request, folder: Path) -> Path:
    """Dense IRs in each precision to measure beside; they appear whole, so one that is there is not made again."""
    for precision in base.precisions:
        if not (folder / precision).is_dir():
            export(base.model, folder / precision, precision=precision, progress=Progress())
    return folder


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _numbers(text: str) -> list[float]:
    return [float(item) for item in text.split(",") if item]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")


def _machine() -> str:
    found = host_fingerprint()
    return f"{found['processor']}, {found['cores']} cores"


def _load(record: Path) -> Run:
    return from_json(Run, json.loads(record.read_text(encoding="utf8")), where=str(record))


def _save(record: Path, run: Run) -> None:
    fresh = record.with_suffix(".new")
    fresh.write_text(json.dumps(to_json(run), indent=1) + "\n", encoding="utf8")
    shutil.move(fresh, record)


if __name__ == "__main__":
    main()
