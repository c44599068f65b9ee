"""Runs the closed loop for several targets and measures each delivered artifact again, in processes of its own.

    python tools/loop_runs.py --model reference --output DIR

Prints a Markdown table: for each target the limit, what the loop claimed, what the later measurement found, and the
spread that the dense baseline showed between its own processes in the same later measurement (the noise floor).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from prune_export.benchmark.compare import per_round
from prune_export.benchmark.measure import Subject, measure_together
from prune_export.deliver import deliver
from prune_export.delivery.request import Request, SearchSettings
from prune_export.errors import InfeasibleError
from prune_export.manifest import IR_FOLDER, Manifest
from prune_export.profiles.load import load_profile
from prune_export.progress import Progress
from prune_export.target import Target

SPEEDUPS = (1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6)
SHARES = (0.9, 0.75, 0.6)  # absolute limits, as shares of the fastest dense precision's figure
ROUNDS = 5


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--calibration-windows", type=int)
    arguments = parser.parse_args()
    base = Request(model=arguments.model, device="host", target=Target("tpot", 1e3), output=arguments.output / "dense")
    base = replace(base, search=SearchSettings(calibration_windows=arguments.calibration_windows))
    dense = dense_artifact(arguments.model, arguments.output)
    fastest = fastest_dense(base)
    targets = [Target("tpot", None, speedup=factor) for factor in SPEEDUPS]
    targets += [Target("tpot", fastest * share) for share in SHARES]
    print("| target | limit | claimed | undershoot | later | later limit | over by | dense spread | minutes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number, target in enumerate(targets):
        output = arguments.output / f"run-{number}"
        begun = time.monotonic()
        try:
            delivery = deliver(replace(base, target=target, output=output, force=True), progress=Progress())
        except InfeasibleError as error:
            print(f"| {target} | infeasible: {error} | | | | | | | |", flush=True)
            continue
        print(row(target, delivery.manifest, output, dense, (time.monotonic() - begun) / 60), flush=True)


def row(target: Target, manifest: Manifest, output: Path, dense: Path, minutes: float) -> str:
    """Measures the artifact again, beside the dense one in the same precision."""
    subjects = [
        Subject(dense / manifest.precision, manifest.precision),
        Subject(output / IR_FOLDER, manifest.precision),
    ]
    measurement = next(item.measurement for item in manifest.candidates if item.delivered)
    assert measurement is not None
    baseline, again = measure_together(
        subjects, profile=load_profile("host"), workload=measurement.workload, rounds=ROUNDS, sample_memory=False
    )
    later = again.percentile("tpot", "p90")
    limit = baseline.percentile("tpot", "p90") / target.speedup if target.speedup else manifest.limit
    spread = per_round(baseline, "tpot", "p90")
    noise = (max(spread) - min(spread)) / min(spread)
    figures = [manifest.limit, manifest.figure]
    claimed = " | ".join(f"{value * 1e6:.0f} us" for value in figures)
    return (
        f"| {target} | {claimed} | {1 - manifest.figure / manifest.limit:.1%} | {later * 1e6:.0f} us | "
        f"{limit * 1e6:.0f} us | {max(0.0, later / limit - 1):.1%} | {noise:.1%} | {minutes:.1f} |"
    )


def dense_artifact(model: str, output: Path) -> Path:
    """Dense IRs of both precisions to measure beside, made once by the export command."""
    for precision in ("fp32", "int8"):
        command = ["export", "--model", model, "--precision", precision, "-o", str(output / "dense" / precision)]
        subprocess.run([sys.executable, "-m", "prune_export.cli", *command, "--force", "--quiet"], check=True)
    return output / "dense"


def fastest_dense(base: Request) -> float:
    """p90 of the fastest dense precision in seconds."""
    manifest = deliver(replace(base, output=base.output.parent / "any" if base.output else None, force=True)).manifest
    return min(item.measurement.percentile("tpot", "p90") for item in manifest.candidates if item.measurement)


if __name__ == "__main__":
    main()
