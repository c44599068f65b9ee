"""The verbs that choose and cut: plan and prune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prune_export import units
from prune_export.errors import BadInputError
from prune_export.progress import Progress
from prune_export.sparsity import parse_sparsity
from prune_export.target import Target
from prune_export.verbs.command import check_file, limit_torch
from prune_export.verbs.options import (
    add_search,
    add_sparsity,
    add_target,
    parse_precisions,
    parse_search,
    parse_target,
    requested_workload,
)

if TYPE_CHECKING:
    from prune_export.delivery.request import Request

_SWEEP = tuple(percent / 100 for percent in range(5, 55, 5))


def add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="replay a plan")
    parser.add_argument("--target-ratio", metavar="22%", help="removed share of the parameters")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True)
    add_search(parser)
    add_sparsity(parser, applied_to="the pruned model")


def run_prune(arguments: argparse.Namespace) -> int:
    limit_torch(arguments.threads)
    if (arguments.plan is None) == (arguments.target_ratio is None):
        raise BadInputError("give either --plan PLAN.json or --target-ratio 22%")
    ratio = units.parse_share(arguments.target_ratio, what="--target-ratio") if arguments.target_ratio else None
    from prune_export.api import prune

    plan = prune(
        arguments.model,
        arguments.output,
        plan_file=arguments.plan,
        ratio=ratio,
        search=parse_search(arguments),
        sparsity=parse_sparsity(arguments.sparsity, arguments.sparsity_method),
        calibration=arguments.calibration,
        seed=arguments.seed,
        force=arguments.force,
        command=arguments.command,
        progress=Progress(quiet=arguments.quiet),
    )
    print(f"{plan.ratio:.1%} of {plan.dense.parameters():,} parameters removed: {arguments.output}")
    return 0


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plan`."""
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--device", default="host", help="profile name or TOML file (default host)")
    parser.add_argument("--precision", metavar="int8", help="weight precision the latency is for (default int8)")
    parser.add_argument("-o", "--output", type=Path, metavar="PLAN.json", required=True, help="or a directory for many")
    parser.add_argument(
        "--sweep", action="store_true", help="plans for many ratios, 5%%, 10%% and so on if --target-ratio names none"
    )
    add_target(parser, several=True)
    add_search(parser)


def run_plan(arguments: argparse.Namespace) -> int:
    """Writes one plan, or several from one search."""
    limit_torch(arguments.threads)
    ratios = _ratios(arguments)
    target = Target("parameters", ratios[0], arguments.statistic) if ratios else parse_target(arguments)
    files = _plan_files(arguments.output, ratios) if ratios else [arguments.output]
    for file in files:
        check_file(str(file), arguments.force, make_directory=len(files) > 1)
    from prune_export.delivery.request import Request

    request = Request(
        model=arguments.model,
        device=arguments.device,
        target=target,
        workload=requested_workload(arguments),
        precisions=parse_precisions(arguments.precision) if arguments.precision is not None else (),
        default_precisions=("int8",),
        search=parse_search(arguments),
        calibration=arguments.calibration,
        threads=arguments.threads,
        seed=arguments.seed,
    )
    if ratios:
        return _run_plans(arguments, request, ratios, files)
    from prune_export.api import plan
    from prune_export.prune.planning import front_path

    front = front_path(arguments.output)
    made = plan(request, front_file=front, progress=Progress(quiet=arguments.quiet))
    made.save(arguments.output)
    print(f"{made.ratio:.1%} of {made.dense.parameters():,} parameters would go: {arguments.output}")
    return 0


def _run_plans(arguments: argparse.Namespace, request: Request, ratios: tuple[float, ...], files: list[Path]) -> int:
    from prune_export.api import plans
    from prune_export.delivery.sweep import render
    from prune_export.prune.planning import front_path, save_front

    made = plans(
        request,
        ratios,
        metric=arguments.metric,
        as_far_as_possible=arguments.sweep and not arguments.target_ratio,
        progress=Progress(quiet=arguments.quiet),
    )
    written = files[: len(made)]
    written[0].parent.mkdir(exist_ok=True)
    for item, file in zip(made, written, strict=True):
        item.plan.save(file)
        if item.front:
            save_front(front_path(file), item.front, cost_unit=item.plan.cost_unit)
    print(render(made, [str(file) for file in written], metric=arguments.metric))
    return 0


def _ratios(arguments: argparse.Namespace) -> tuple[float, ...]:
    """The ratios of several plans, or nothing where one plan is asked for."""
    text = arguments.target_ratio
    if not arguments.sweep and (not text or "," not in text):
        return ()
    others = [name for name in ("latency", "speedup", "memory") if getattr(arguments, f"target_{name}")]
    if others:
        raise BadInputError(
            f"several plans are made for ratios, not for --target-{others[0]}: give --target-ratio alone"
        )
    if not text:
        return _SWEEP
    parts = [part for part in text.split(",") if part.strip()]
    return tuple(sorted({units.parse_share(part, what="--target-ratio") for part in parts}))


def _plan_files(output: Path, ratios: tuple[float, ...]) -> list[Path]:
    """ "plans/plan-10%.json" for a directory, "mine-10%.json" for "mine.json"."""
    folder, stem = (output.parent, output.stem) if output.suffix == ".json" else (output, "plan")
    return [folder / f"{stem}-{round(100 * ratio, 6):g}%.json" for ratio in ratios]
