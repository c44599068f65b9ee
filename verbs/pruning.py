"""The verbs that choose and cut: plan and prune."""

from __future__ import annotations

import argparse
from pathlib import Path

from prune_export import units
from prune_export.errors import BadInputError
from prune_export.progress import Progress
from prune_export.verbs.command import check_file, limit_torch
from prune_export.verbs.options import (
    add_search,
    add_target,
    parse_precisions,
    parse_search,
    parse_target,
    requested_workload,
)


def add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="replay a plan")
    parser.add_argument("--target-ratio", metavar="22%", help="removed share of the parameters")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True)
    add_search(parser)


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
        calibration=arguments.calibration,
        seed=arguments.seed,
        force=arguments.force,
        progress=Progress(quiet=arguments.quiet),
    )
    print(f"{plan.ratio:.1%} of {plan.dense.parameters():,} parameters removed: {arguments.output}")
    return 0


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--device", default="host", help="profile name or TOML file (default host)")
    parser.add_argument("--precision", default="int8", metavar="int8", help="weight precision the latency is for")
    parser.add_argument("-o", "--output", type=Path, metavar="PLAN.json", required=True)
    add_target(parser)
    add_search(parser)


def run_plan(arguments: argparse.Namespace) -> int:
    limit_torch(arguments.threads)
    target, workload = parse_target(arguments), requested_workload(arguments)
    check_file(str(arguments.output), arguments.force)
    from prune_export.api import plan
    from prune_export.delivery.request import Request

    request = Request(
        model=arguments.model,
        device=arguments.device,
        target=target,
        workload=workload,
        precisions=parse_precisions(arguments.precision),
        search=parse_search(arguments),
        calibration=arguments.calibration,
        threads=arguments.threads,
        seed=arguments.seed,
    )
    made = plan(request, progress=Progress(quiet=arguments.quiet))
    made.save(arguments.output)
    print(f"{made.ratio:.1%} of {made.dense.parameters():,} parameters would go: {arguments.output}")
    return 0
