"""The command `sparsify`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from prune_export import units
from prune_export.errors import BadInputError
from prune_export.progress import Progress
from prune_export.sparsity import SparsityReport, parse_pattern

DESCRIPTION = (
    "Sets weights to zero in one shot, without retraining, and compensates in those that stay.\n"
    "\nZeros save time only on a runtime that skips them; see docs/sparsity.md for what was measured."
)
EPILOG = "example:\n  prune-export sparsify --model ./my-llama --pattern 2:4 -o ./my-llama-2-4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True)
    parser.add_argument(
        "--pattern", metavar="50%|2:4|4:8", required=True, help="removed share of each row, or kept:group"
    )
    parser.add_argument("--method", default="mrp", metavar="mrp|sparsegpt|wanda|magnitude", help="default mrp")
    group = parser.add_argument_group("mrp (multiple removal)")
    group.add_argument("--mask", default="", metavar="S|M", help="chosen one by one, or jointly (N:M; default there)")
    group.add_argument("--compensation", default="", metavar="S|M", help="one by one, or jointly (default)")
    group.add_argument("--solver", default="exact", metavar="exact|cg", help="of joint compensation (default exact)")
    group.add_argument("--damping", type=float, default=0.01, help="share of the mean diagonal (default 0.01)")
    group.add_argument("--memory", default="1GiB", metavar="1GiB", help="bound of the exact solver (default 1GiB)")
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration",
        metavar="TEXT",
        help="text or JSONL file, or wikitext2, alpaca, c4, ptb (default: standard library)",
    )
    group.add_argument("--calibration-windows", type=int, metavar="N", help="sequences (default 128)")
    group.add_argument("--calibration-length", type=int, metavar="T", help="tokens a sequence (default: the context)")


def run(arguments: argparse.Namespace) -> int:
    """Executes the command and returns the exit code."""
    for name in ("calibration_windows", "calibration_length"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BadInputError(f"--{name.replace('_', '-')} {value} must be at least 1")
    pattern, memory = parse_pattern(arguments.pattern), units.parse_bytes(arguments.memory, what="--memory")
    from prune_export.prune.projection_pruning import SparsityMethod
    from prune_export.sparsify import sparsify
    from prune_export.verbs.command import limit_torch

    limit_torch(arguments.threads)
    method = SparsityMethod(
        pattern=pattern,
        name=arguments.method,
        mask=arguments.mask,
        compensation=arguments.compensation,
        damping=arguments.damping,
        solver=arguments.solver,
        memory_bytes=memory,
    )
    report = sparsify(
        arguments.model,
        arguments.output,
        method,
        calibration=arguments.calibration,
        windows=arguments.calibration_windows,
        length=arguments.calibration_length,
        force=arguments.force,
        progress=Progress(quiet=arguments.quiet),
    )
    print(render(report))
    print(f"written: {arguments.output}")
    return 0


def render(report: SparsityReport) -> str:
    """What was measured afterwards, in two lines."""
    worst = max(report.projections, key=lambda item: item.error)
    holds = "holds in every projection" if report.pattern_holds else "DOES NOT HOLD"
    return (
        f"{report.share:.2%} of the weights of {len(report.projections)} projections are zero; pattern "
        f"{report.pattern} {holds}\nlargest output error on the calibration tokens: {worst.error:.2%} of its energy, "
        f"{worst.name}"
    )
