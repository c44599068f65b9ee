"""The commands: their arguments, and the function of the package that each one calls.

Everything heavy is imported inside `run`, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_export import units
from prune_export.errors import BadInputError
from prune_export.formats import BOTH, FORMATS, PRECISIONS
from prune_export.progress import Progress
from prune_export.target import Target, Workload, parse_workload

MAIN = ""


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        description: what it does, for --help.
        epilog: an example, for --help.
        add_arguments: declares its arguments.
        run: executes it and returns the exit code.
    """

    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments that every command takes."""
    group = parser.add_argument_group("common")
    group.add_argument("--quiet", action="store_true", help="print results only")
    group.add_argument("--verbose", action="store_true", help="show where an error came from")
    group.add_argument("--seed", type=int, default=42, help="seed of everything random (default 42)")
    group.add_argument("--threads", type=int, default=0, help="runtime threads (default: the device's)")
    group.add_argument("--force", action="store_true", help="replace an existing output")


# --- main ----------------------------------------------------------------------------------------------------------


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target (one of)")
    group.add_argument("--target-latency", metavar="40ms", help="limit on --metric")
    group.add_argument("--target-speedup", metavar="1.5x", help="against the dense model in the same precision")
    group.add_argument("--target-memory", metavar="2GiB", help="peak resident memory of the process that runs it")
    group.add_argument("--target-ratio", metavar="22%", help="removed share of the parameters")
    group.add_argument(
        "--metric",
        choices=("tpot", "ttft", "total"),
        default="tpot",
        help="time per output token, time to first token, or both together (default tpot)",
    )
    group.add_argument("--statistic", choices=("p50", "p90", "p99"), default="p90", help="default p90")
    group.add_argument("--workload", metavar="prompt=512,new=128,batch=1", help="what is timed (default as shown)")


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--distribution",
        metavar="44:52:4",
        default="44:52:4",
        help="shares of blocks, MLP channels and heads in what is removed (default 44:52:4)",
    )
    group.add_argument("--mlp-group", type=int, metavar="N", help="MLP channels removed at once (default: by width)")
    group.add_argument("--kv-group", type=int, metavar="N", default=1, help="KV heads removed at once (default 1)")
    group.add_argument(
        "--calibration",
        metavar="TEXT",
        help="text or JSONL file, or wikitext2, alpaca, c4, ptb (default: standard library)",
    )
    group.add_argument("--calibration-windows", type=int, metavar="N", help="sequences (default: by model size)")
    group.add_argument("--calibration-length", type=int, metavar="T", help="tokens a sequence")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval-text", metavar="TEXT", help="held-out text, named as for --calibration")
    group.add_argument("--eval-tokens", type=int, metavar="N", help="tokens of it (default: by model size)")


def _add_main(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--device", default="host", help="profile name or TOML file (default host; see profile list)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: named after model, device, target")
    parser.add_argument(
        "--precision",
        metavar="fp32,int8",
        default="fp32,int8",
        help="weight precisions that may be delivered: fp32, int8, int4 (default fp32,int8)",
    )
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="replay a plan instead of searching")
    parser.add_argument("--max-quality-loss", metavar="5%", help="allowed rise of perplexity (default: no limit)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of the closed loop at most (default 5)")
    parser.add_argument("--require-measured", action="store_true", help="fail where the host is not the device")
    _add_target(parser)
    _add_search(parser)
    _add_evaluation(parser)


def _run_main(arguments: argparse.Namespace) -> int:
    target, workload = _target(arguments), _workload(arguments)
    from prune_export.delivery.request import Request

    request = Request(
        model=arguments.model,
        device=arguments.device,
        target=target,
        workload=workload,
        output=arguments.output,
        precisions=_precisions(arguments.precision),
        search=_search(arguments),
        plan=arguments.plan,
        calibration=arguments.calibration,
        eval_text=arguments.eval_text,
        eval_tokens=_positive(arguments.eval_tokens, "--eval-tokens"),
        max_quality_loss=(
            units.parse_share(arguments.max_quality_loss, what="--max-quality-loss", below=100.0)
            if arguments.max_quality_loss
            else None
        ),
        rounds=_positive(arguments.rounds, "--rounds") or 1,
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


def _target(arguments: argparse.Namespace) -> Target:
    given = [name for name in ("latency", "speedup", "memory", "ratio") if getattr(arguments, f"target_{name}")]
    if len(given) != 1:
        found = " and ".join(f"--target-{name}" for name in given) or "none"
        raise BadInputError(f"one target is needed, got {found}: e.g. --target-latency 40ms or --target-speedup 1.3x")
    text, what = getattr(arguments, f"target_{given[0]}"), f"--target-{given[0]}"
    metric, statistic = arguments.metric, arguments.statistic
    if given[0] == "latency":
        return Target(metric, units.parse_duration(text, what=what), statistic)
    if given[0] == "memory":
        return Target("memory", float(units.parse_bytes(text, what=what)), statistic)
    if given[0] == "ratio":
        return Target("parameters", units.parse_share(text, what=what), statistic)
    speedup = units.parse_speedup(text, what=what)
    if speedup <= 1.0:
        raise BadInputError(f'{what} "{text}" asks for no speed-up: give more than 1x, e.g. 1.3x')
    return Target(metric, None, statistic, speedup=speedup)


def _workload(arguments: argparse.Namespace) -> Workload:
    return parse_workload(arguments.workload) if arguments.workload else Workload()


def _search(arguments: argparse.Namespace) -> Any:
    from prune_export.delivery.request import SearchSettings

    return SearchSettings(
        distribution=_distribution(arguments.distribution),
        mlp_group=_positive(arguments.mlp_group, "--mlp-group"),
        kv_group=_positive(arguments.kv_group, "--kv-group") or 1,
        calibration_windows=_positive(arguments.calibration_windows, "--calibration-windows"),
        calibration_length=_positive(arguments.calibration_length, "--calibration-length"),
    )


def _distribution(text: str) -> tuple[float, float, float]:
    try:
        parts = tuple(float(part) for part in text.split(":"))
    except ValueError:
        parts = ()
    if len(parts) != 3 or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
        raise BadInputError(f'--distribution "{text}" is not three shares such as 44:52:4 (blocks:MLP:attention)')
    return (parts[0], parts[1], parts[2])


def _precisions(text: str) -> tuple[str, ...]:
    from prune_export.delivery.request import PRECISIONS

    wanted = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in wanted if part not in PRECISIONS]
    if unknown or not wanted:
        raise BadInputError(
            f'--precision "{text}": {unknown[0] if unknown else "nothing"} is not one of {", ".join(PRECISIONS)}'
        )
    return tuple(part for part in PRECISIONS if part in wanted)


def _positive(value: int | None, what: str) -> int | None:
    if value is not None and value < 1:
        raise BadInputError(f"{what} {value} must be at least 1")
    return value


# --- verbs on artifacts and checkpoints ------------------------------------------------------------------------------


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--plan", type=Path, metavar="PLAN.json", help="replay a plan")
    parser.add_argument("--target-ratio", metavar="22%", help="removed share of the parameters")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True)
    _add_search(parser)


def _run_prune(arguments: argparse.Namespace) -> int:
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
        search=_search(arguments),
        calibration=arguments.calibration,
        seed=arguments.seed,
        force=arguments.force,
        progress=Progress(quiet=arguments.quiet),
    )
    print(f"{plan.ratio:.1%} of {plan.dense.parameters():,} parameters removed: {arguments.output}")
    return 0


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--device", default="host", help="profile name or TOML file (default host)")
    parser.add_argument("--precision", default="int8", metavar="int8", help="weight precision the latency is for")
    parser.add_argument("-o", "--output", type=Path, metavar="PLAN.json", required=True)
    _add_target(parser)
    _add_search(parser)


def _run_plan(arguments: argparse.Namespace) -> int:
    limit_torch(arguments.threads)
    target, workload = _target(arguments), _workload(arguments)
    _check_file(str(arguments.output), arguments.force)
    from prune_export.api import plan
    from prune_export.delivery.request import Request

    request = Request(
        model=arguments.model,
        device=arguments.device,
        target=target,
        workload=workload,
        precisions=_precisions(arguments.precision),
        search=_search(arguments),
        calibration=arguments.calibration,
        threads=arguments.threads,
        seed=arguments.seed,
    )
    made = plan(request, progress=Progress(quiet=arguments.quiet))
    made.save(arguments.output)
    print(f"{made.ratio:.1%} of {made.dense.parameters():,} parameters would go: {arguments.output}")
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint, dense or pruned")
    parser.add_argument(
        "--format", choices=(*FORMATS, BOTH), default="openvino", help="of the artifact (default openvino)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="of the weights (default int8)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True)


def _run_export(arguments: argparse.Namespace) -> int:
    limit_torch(arguments.threads)
    from prune_export.api import export

    parity = export(
        arguments.model,
        arguments.output,
        format=arguments.format,
        precision=arguments.precision,
        force=arguments.force,
        progress=Progress(quiet=arguments.quiet),
    )
    print(f"exported: {arguments.output} (largest logit error in fp32 {parity.max_logit_error:.1e})")
    return 0


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="artifact, or directory of an exported model")
    parser.add_argument("--compare", type=Path, metavar="DIR2", help="interleave with this one, print the ratio")
    parser.add_argument("--device", default="host", help="profile name or TOML file (default host)")
    parser.add_argument("--workload", metavar="prompt=512,new=128,batch=1")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the manifest's")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes (default 3)")
    parser.add_argument("--json", metavar="FILE", help="raw samples and statistics; - prints them")
    parser.add_argument("--csv", metavar="FILE", help="statistics; - prints them")


def _run_benchmark(arguments: argparse.Namespace) -> int:
    workload = _workload(arguments)
    for destination in (arguments.json, arguments.csv):
        _check_file(destination, arguments.force)
    from prune_export.benchmark.run import render_csv, render_json, render_text, run_benchmark
    from prune_export.profiles.load import load_profile

    result = run_benchmark(
        arguments.directory,
        profile=load_profile(arguments.device),
        workload=workload,
        compare=arguments.compare,
        precision=arguments.precision or "",
        threads=arguments.threads,
        rounds=_positive(arguments.processes, "--processes") or 1,
        progress=Progress(quiet=arguments.quiet),
    )
    if "-" not in (arguments.json, arguments.csv):
        print(render_text(result))
    _emit(json.dumps(render_json(result), indent=1), arguments.json)
    _emit(render_csv(result).rstrip("\n"), arguments.csv)
    return 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="reference", metavar="DIR", help="checkpoint or exported artifact")
    parser.add_argument("--window", type=int, metavar="T", help="tokens a window (default: 2048 or the context)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of an export without manifest")
    parser.add_argument("--json", metavar="FILE", help="per-window figures; - prints them")
    _add_evaluation(parser)


def _run_evaluate(arguments: argparse.Namespace) -> int:
    _check_file(arguments.json, arguments.force)
    from prune_export.evaluate import evaluate

    result = evaluate(
        arguments.model,
        eval_text=arguments.eval_text,
        tokens=_positive(arguments.eval_tokens, "--eval-tokens"),
        window=_positive(arguments.window, "--window"),
        precision=arguments.precision,
        threads=arguments.threads,
        progress=Progress(quiet=arguments.quiet),
    )
    if arguments.json != "-":
        print(result)
    _emit(json.dumps(result.to_json(), indent=1), arguments.json)
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="delivered artifact")


def _run_verify(arguments: argparse.Namespace) -> int:
    limit_torch(arguments.threads)
    from prune_export.verify import verify

    print(verify(arguments.directory, progress=Progress(quiet=arguments.quiet)))
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="delivered artifact")


def _run_report(arguments: argparse.Namespace) -> int:
    from prune_export.delivery.report import write_report

    print(write_report(arguments.directory))
    return 0


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show", "host"), help="all, one, or this machine")
    parser.add_argument("device", nargs="?", help="profile name or TOML file, for show")


def _run_profile(arguments: argparse.Namespace) -> int:
    from prune_export.profiles.listing import profile_list, profile_text

    if arguments.action == "show" and not arguments.device:
        raise BadInputError("profile show needs a profile: prune-export profile show cpu-xeon")
    print(profile_list() if arguments.action == "list" else profile_text(arguments.device or "host"))
    return 0


def limit_torch(threads: int) -> None:
    """Makes torch use that many threads; 0 leaves its default.

    Raises:
        BadInputError: more threads than cores, or a negative number.
    """
    from prune_export.profiles.host import host_cores

    if not 0 <= threads <= host_cores():
        raise BadInputError(f"--threads {threads}: this machine has {host_cores()} cores, use 1 to {host_cores()}")
    if threads:
        import torch

        torch.set_num_threads(threads)


def _check_file(destination: str | None, force: bool) -> None:
    """Refuses a result file that cannot be written, before the work.

    Raises:
        BadInputError: it exists and --force is not given, or its directory does not.
    """
    if destination is None or destination == "-":
        return
    path = Path(destination)
    if path.exists() and not force:
        raise BadInputError(f"output {path} exists: pass --force to replace it, or name another")
    if not path.absolute().parent.is_dir():
        raise BadInputError(f"output {path} cannot be written: {path.absolute().parent} is not a directory")


def _emit(text: str, destination: str | None) -> None:
    if destination == "-":
        print(text)
    elif destination:
        Path(destination).write_text(text + "\n", encoding="utf8")


COMMANDS: dict[str, Command] = {
    MAIN: Command(
        "Prunes a language model until it meets a target on a device, and hands over the measured artifact.\n"
        "\nOther commands: plan, prune, export, benchmark, evaluate, verify, report, profile (each with --help).",
        "example:\n  prune-export --model ./my-llama --device cpu-xeon --target-latency 40ms\n"
        "\nexit codes: 0 met (or delivered as predicted), 2 bad input, 3 infeasible, 4 parity failed, 1 anything else",
        _add_main,
        _run_main,
    ),
    "plan": Command(
        "Chooses what to remove and writes the plan; exports nothing.",
        "example:\n  prune-export plan --model ./my-llama --target-ratio 22% -o plan.json",
        _add_plan,
        _run_plan,
    ),
    "prune": Command(
        "Writes a dense, smaller checkpoint.",
        "example:\n  prune-export prune --model ./my-llama --target-ratio 22% -o ./my-llama-22",
        _add_prune,
        _run_prune,
    ),
    "export": Command(
        "Exports a checkpoint, dense or pruned, to a runtime's format, behind the parity gate.",
        "example:\n  prune-export export --model ./my-llama-22 --precision int8 -o ./my-llama-22-ir",
        _add_export,
        _run_export,
    ),
    "benchmark": Command(
        "Times an artifact in fresh processes; needs no torch.",
        "example:\n  prune-export benchmark ./artifact --compare ./dense --workload prompt=256,new=64",
        _add_benchmark,
        _run_benchmark,
    ),
    "evaluate": Command(
        "Perplexity of a checkpoint, or of an exported artifact through its runtime.",
        "example:\n  prune-export evaluate --model ./artifact --eval-text wikitext2",
        _add_evaluate,
        _run_evaluate,
    ),
    "verify": Command(
        "Checks an artifact's files against the hashes in its manifest, and its parity.",
        "example:\n  prune-export verify ./artifact",
        _add_verify,
        _run_verify,
    ),
    "report": Command(
        "Writes report.html for a delivered artifact again.",
        "example:\n  prune-export report ./artifact",
        _add_report,
        _run_report,
    ),
    "profile": Command(
        "Lists the device profiles, shows one, or describes this machine.",
        "example:\n  prune-export profile show cpu-xeon",
        _add_profile,
        _run_profile,
    ),
}
