"""Groups of options that several commands take, and what they are parsed into."""

from __future__ import annotations

import argparse

from prune_export import units
from prune_export.delivery.settings import DEFAULT_SEARCH, DISTRIBUTION, ORDERS, SEARCHES, SearchSettings
from prune_export.errors import BadInputError
from prune_export.sparsity import METHODS
from prune_export.target import LATENCIES, Target, Workload, parse_workload
from prune_export.verbs.command import positive


def add_target(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """What is to be reached; `several` ratios make several plans."""
    group = parser.add_argument_group("target (one of)" if several else "target (one, or latency and memory together)")
    limits = "limit on --metric" + ("" if several else ', or on several: "tpot=40ms,ttft=1s"')
    group.add_argument("--target-latency", metavar="40ms", help=limits)
    group.add_argument("--target-speedup", metavar="1.5x", help="against the dense model in the same precision")
    group.add_argument("--target-memory", metavar="2GiB", help="peak resident memory of the process that runs it")
    group.add_argument(
        "--target-ratio",
        metavar="22%" if not several else "22%[,30%]",
        help="removed share of the parameters" + (", or several for a plan each" if several else ""),
    )
    group.add_argument(
        "--metric",
        choices=LATENCIES,
        default="tpot",
        help="time per output token, time to first token, or both together (default tpot)",
    )
    group.add_argument("--statistic", choices=("p50", "p90", "p99"), default="p90", help="default p90")
    group.add_argument("--workload", metavar="prompt=512,new=128,batch=1", help="what is timed (default as shown)")


def add_search(parser: argparse.ArgumentParser) -> None:
    """How the plan is searched and on what text."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--search",
        choices=SEARCHES,
        default=None,
        help=f"the papers' greedy searches, or NSGA-II (default {DEFAULT_SEARCH}; docs/pruning.md says which when)",
    )
    group.add_argument(
        "--compensate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="refit what stays for what goes (default: on for fast and evolve, off for the papers' searches)",
    )
    group.add_argument(
        "--uniform",
        action="store_true",
        help="one MLP width and one number of KV heads for all layers: a stock checkpoint that needs no code",
    )
    group.add_argument("--preset", metavar="llama-2-7b", help="distribution and groups of the paper for a model")
    group.add_argument(
        "--distribution",
        metavar="44:52:4",
        help="shares of blocks, MLP channels and heads in what is removed (default 44:52:4)",
    )
    group.add_argument("--mlp-group", type=int, metavar="N", help="MLP channels removed at once (default: by width)")
    group.add_argument("--kv-group", type=int, metavar="N", default=1, help="KV heads removed at once (default 1)")
    group.add_argument(
        "--order",
        choices=ORDERS,
        default="l1",
        help="importance of channels and heads: by weight (l1, default), by weight and activation (wanda), or none",
    )
    group.add_argument(
        "--calibration",
        metavar="TEXT",
        help="text or JSONL file, or wikitext2, alpaca, c4, ptb (default: standard library)",
    )
    group.add_argument(
        "--calibration-windows", metavar="N[,N]", help="sequences, and those for widths (default: by model size)"
    )
    group.add_argument(
        "--calibration-rows", metavar="N[,N]", help="instead: the text's first rows, joined and cut, as in the papers"
    )
    group.add_argument("--calibration-length", type=int, metavar="T", help="tokens a sequence")


def add_sparsity(parser: argparse.ArgumentParser, *, applied_to: str) -> None:
    """Zeros on top; `applied_to` says of what."""
    group = parser.add_argument_group("sparsity")
    group.add_argument(
        "--sparsity",
        metavar="50%|2:4|4:8",
        help=f"zeros in {applied_to}, after its structures went and were compensated; saves time only where a "
        "runtime skips zeros (docs/sparsity.md)",
    )
    group.add_argument("--sparsity-method", metavar="|".join(METHODS), help=f"default {METHODS[0]}")


def add_evaluation(parser: argparse.ArgumentParser, *, whole: bool = False) -> None:
    """On what text perplexity is computed; `whole` allows "all" of it."""
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval-text", metavar="TEXT", help="held-out text, named as for --calibration")
    group.add_argument(
        "--eval-tokens",
        type=str if whole else int,
        metavar="N|all" if whole else "N",
        help="tokens of it (default: by model size)",
    )


def parse_targets(arguments: argparse.Namespace) -> tuple[Target, ...]:
    """One target or several that must hold together: latencies, or a speed-up, and memory.

    Raises:
        BadInputError: none, some that exclude each other, or one that does not parse.
    """
    given = _given(arguments)
    if set(given) not in ({"latency", "memory"}, {"speedup", "memory"}) and len(given) != 1:
        raise _not_one(given)
    found: list[Target] = []
    for kind in given:
        found += _latencies(arguments) if kind == "latency" else [_target(arguments, kind)]
    return tuple(found)


def _latencies(arguments: argparse.Namespace) -> list[Target]:
    """ "40ms" is a limit on --metric; "tpot=40ms,ttft=1s" are several."""
    text, what = arguments.target_latency, "--target-latency"
    found: dict[str, Target] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        metric = name.strip() if equals else arguments.metric
        if metric not in LATENCIES:
            raise BadInputError(f'{what} "{part}": "{metric}" is not one of {", ".join(LATENCIES)}')
        if metric in found:
            raise BadInputError(f'{what} "{text}" limits {metric} twice: give one limit for each')
        found[metric] = Target(metric, units.parse_duration(value, what=what), arguments.statistic)
    return list(found.values())


def parse_target(arguments: argparse.Namespace) -> Target:
    """The one target.

    Raises:
        BadInputError: none, several, or one that does not parse.
    """
    given = _given(arguments)
    if len(given) != 1:
        raise _not_one(given)
    return _target(arguments, given[0])


def _given(arguments: argparse.Namespace) -> list[str]:
    return [name for name in ("latency", "speedup", "memory", "ratio") if getattr(arguments, f"target_{name}")]


def _not_one(given: list[str]) -> BadInputError:
    found = " and ".join(f"--target-{name}" for name in given) or "none"
    example = "e.g. --target-latency 40ms or --target-speedup 1.3x"
    if len(given) > 1 and "ratio" not in given:
        example += "; the main command takes limits of latency and memory together"
    return BadInputError(f"one target is needed, got {found}: {example}")


def _target(arguments: argparse.Namespace, kind: str) -> Target:
    text, what = getattr(arguments, f"target_{kind}"), f"--target-{kind}"
    metric, statistic = arguments.metric, arguments.statistic
    if kind == "latency":
        return Target(metric, units.parse_duration(text, what=what), statistic)
    if kind == "memory":
        return Target("memory", float(units.parse_bytes(text, what=what)), statistic)
    if kind == "ratio":
        return Target("parameters", units.parse_share(text, what=what), statistic)
    speedup = units.parse_speedup(text, what=what)
    if speedup <= 1.0:
        raise BadInputError(f'{what} "{text}" asks for no speed-up: give more than 1x, e.g. 1.3x')
    return Target(metric, None, statistic, speedup=speedup)


def requested_workload(arguments: argparse.Namespace) -> Workload:
    return parse_workload(arguments.workload) if arguments.workload else Workload()


def parse_search(arguments: argparse.Namespace) -> SearchSettings:
    """The search's settings, checked as far as they can be without a model."""
    windows, width_windows = _pair(arguments.calibration_windows, "--calibration-windows")
    rows, width_rows = _pair(arguments.calibration_rows, "--calibration-rows")
    return SearchSettings(
        search=arguments.search or "",
        compensate=arguments.compensate,
        uniform=arguments.uniform,
        preset=arguments.preset,
        order=arguments.order,
        distribution=parse_distribution(arguments.distribution) if arguments.distribution else DISTRIBUTION,
        mlp_group=positive(arguments.mlp_group, "--mlp-group"),
        kv_group=positive(arguments.kv_group, "--kv-group") or 1,
        calibration_windows=windows,
        width_windows=width_windows,
        calibration_rows=rows,
        width_rows=width_rows,
        calibration_length=positive(arguments.calibration_length, "--calibration-length"),
    )


def _pair(text: str | None, what: str) -> tuple[int | None, int | None]:
    """ "256,128" or "256"."""
    if text is None:
        return None, None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BadInputError(f'{what} "{text}" is not one or two numbers above zero, e.g. 256 or 256,128')
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else None


def parse_distribution(text: str) -> tuple[float, float, float]:
    try:
        parts = tuple(float(part) for part in text.split(":"))
    except ValueError:
        parts = ()
    if len(parts) != 3 or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
        raise BadInputError(f'--distribution "{text}" is not three shares such as 44:52:4 (blocks:MLP:attention)')
    return (parts[0], parts[1], parts[2])


def parse_precisions(text: str) -> tuple[str, ...]:
    from prune_export.delivery.request import PRECISIONS

    wanted = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in wanted if part not in PRECISIONS]
    if unknown or not wanted:
        raise BadInputError(
            f'--precision "{text}": {unknown[0] if unknown else "nothing"} is not one of {", ".join(PRECISIONS)}'
        )
    return tuple(part for part in PRECISIONS if part in wanted)
