"""The main job."""

from __future__ import annotations

import argparse
from pathlib import Path

from prune_export import units
from prune_export.errors import BadInputError
from prune_export.progress import Progress
from prune_export.sparsity import parse_sparsity
from prune_export.verbs.command import positive
from prune_export.verbs.options import (
    add_evaluation,
    add_search,
    add_sparsity,
    add_target,
    parse_precisions,
    parse_search,
    parse_targets,
    requested_workload,
)


def add_main(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--device", default="host", help="profile name or TOML file (default host; see profile list)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: named after model, device, target")
    parser.add_argument(
        "--precision",
        metavar="fp32,int8",
        help="weight precisions that may be delivered: fp32, fp16, bf16, int8, int4 (default fp32,int8, of another "
        "device with a latency table those that it has)",
    )
    parser.add_argument(
        "--format",
        choices=("openvino", "onnx"),
        default="openvino",
        help="what is delivered, measured and scored (default openvino)",
    )
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="replay a plan instead of searching")
    parser.add_argument("--max-quality-loss", metavar="5%", help="allowed rise of perplexity (default: no limit)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of the closed loop at most (default 5)")
    parser.add_argument("--require-measured", action="store_true", help="fail where the host is not the device")
    add_target(parser)
    add_search(parser)
    add_sparsity(parser, applied_to="what is delivered, the dense model too where that meets the target")
    add_evaluation(parser)


def run_main(arguments: argparse.Namespace) -> int:
    (target, *further), workload = parse_targets(arguments), requested_workload(arguments)
    from prune_export.delivery.request import Request

    request = Request(
        model=arguments.model,
        device=arguments.device,
        target=target,
        further=tuple(further),
        workload=workload,
        output=arguments.output,
        precisions=parse_precisions(arguments.precision) if arguments.precision is not None else (),
        format=arguments.format,
        search=parse_search(arguments),
        sparsity=parse_sparsity(arguments.sparsity, arguments.sparsity_method),
        plan=arguments.plan,
        calibration=arguments.calibration,
        eval_text=arguments.eval_text,
        eval_tokens=positive(arguments.eval_tokens, "--eval-tokens"),
        max_quality_loss=_quality_loss(arguments.max_quality_loss) if arguments.max_quality_loss else None,
        rounds=positive(arguments.rounds, "--rounds") or 1,
        threads=arguments.threads,
        seed=arguments.seed,
        force=arguments.force,
        require_measured=arguments.require_measured,
        command=arguments.command,
    )
    from prune_export.deliver import deliver
    from prune_export.delivery.summary import render

    delivery = deliver(request, progress=Progress(quiet=arguments.quiet))
    print(render(delivery, quiet=arguments.quiet))
    return 0


def _quality_loss(text: str) -> float:
    """A share from "5%" or "0.05"; "5" alone would be five times, which nobody means."""
    share = units.parse_share(text, what="--max-quality-loss", below=100.0)
    if share >= 1 and "%" not in text:
        raise BadInputError(f'--max-quality-loss "{text}" would be {share:.0%}: write {text}% or {share:.0%}')
    return share
