"""The verbs on devices: profile and kit."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from prune_export.errors import BadInputError
from prune_export.formats import PRECISIONS
from prune_export.profiles.device import RUNTIMES
from prune_export.progress import Progress
from prune_export.shape import ModelShape
from prune_export.units import parse_duration
from prune_export.verbs.command import limit_torch
from prune_export.verbs.options import requested_workload


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Arguments of `profile`."""
    parser.add_argument(
        "action", choices=("list", "show", "host", "measure"), help="all, one, this machine, or measure this machine"
    )
    parser.add_argument("device", nargs="?", help="profile name or TOML file, for show")
    group = parser.add_argument_group("measure")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", help="checkpoint whose dimensions are measured; weights are not read")
    source.add_argument("--kit", type=Path, metavar="DIR", help="what `prune-export kit` made; needs no torch")
    group.add_argument("--device", dest="base", default="host", help="profile to start from (default host)")
    group.add_argument("--held-out", type=int, metavar="N", help="models that the table is checked on (default 20)")
    group.add_argument("--budget", default="9min", metavar="9min", help="for the table of one precision (default 9min)")
    group.add_argument("-o", "--output", type=Path, metavar="FILE.toml")
    _add_measured(group)


def add_kit(parser: argparse.ArgumentParser) -> None:
    """Arguments of `kit`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint; its weights are not read")
    parser.add_argument("--device", default="host", help="profile with the widths that the device likes (default host)")
    parser.add_argument("--depth", type=int, metavar="N", help="layers of a stack (default 4)")
    parser.add_argument("--held-out", type=int, metavar="N", help="whole models to check the table on (default 3)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True)
    _add_measured(parser)


def run_profile(arguments: argparse.Namespace) -> int:
    """Lists, shows or measures."""
    if arguments.action == "measure":
        return _measure(arguments)
    from prune_export.profiles.listing import profile_list, profile_text

    if arguments.action == "show" and not arguments.device:
        raise BadInputError("profile show needs a profile: prune-export profile show cpu-xeon")
    print(profile_list() if arguments.action == "list" else profile_text(arguments.device or "host"))
    return 0


def run_kit(arguments: argparse.Namespace) -> int:
    """Packs a kit."""
    limit_torch(arguments.threads)
    precisions = _precisions(arguments.precision)
    workload = requested_workload(arguments)
    from prune_export.delivery.kit import DEPTH, HELD_OUT, pack_kit
    from prune_export.profiles.load import load_profile
    from prune_export.units import format_bytes

    profile = load_profile(arguments.device)
    kit = pack_kit(
        _shape(arguments.model),
        replace(profile, runtime=arguments.runtime or profile.runtime),
        arguments.output,
        precisions=precisions,
        workload=workload,
        depth=DEPTH if arguments.depth is None else arguments.depth,
        held_out=HELD_OUT if arguments.held_out is None else _count(arguments.held_out),
        seed=arguments.seed,
        force=arguments.force,
        progress=Progress(quiet=arguments.quiet),
    )
    size = sum(path.stat().st_size for path in arguments.output.rglob("*") if path.is_file())
    models = sum(1 + len(part.stacks) + (part.dense is not None) + len(part.held_out) for part in kit.parts)
    print(f"packed: {arguments.output}, {models} models, {format_bytes(size)}")
    print(f"on the device: prune-export profile measure --kit {arguments.output} -o box.toml")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    if (arguments.model is None) == (arguments.kit is None):
        raise BadInputError("profile measure needs --model DIR or --kit DIR")
    output = _output(arguments)
    budget = parse_duration(arguments.budget, what="--budget")
    from prune_export.benchmark.kit import error_table, measure_kit
    from prune_export.files import write_whole
    from prune_export.profiles.load import load_profile
    from prune_export.profiles.write import to_toml

    progress = Progress(quiet=arguments.quiet)
    base = load_profile(arguments.base)
    base = replace(base, runtime=arguments.runtime or base.runtime)
    if arguments.kit is not None:
        _refuse_for_kit(arguments)
        profile = measure_kit(
            arguments.kit, base, name=output.stem, threads=arguments.threads, budget_s=budget, progress=progress
        )
    else:
        from prune_export.delivery.profiling import HELD_OUT, measure_profile

        profile = measure_profile(
            _shape(arguments.model),
            base,
            name=output.stem,
            precisions=_precisions(arguments.precision),
            workload=requested_workload(arguments),
            threads=arguments.threads,
            held_out=HELD_OUT if arguments.held_out is None else _count(arguments.held_out),
            budget_s=budget,
            seed=arguments.seed,
            progress=progress,
        )
    write_whole(output, to_toml(profile))
    assert profile.latency_table is not None
    record = profile.latency_table.record
    assert record is not None
    print(f"measured: {output}, {record.measurements} timings of stacks in {record.seconds:.0f} s")
    if record.held_out:
        print(f"\nErrors on models that were not fitted:\n{error_table(profile.latency_table)}")
    print(f"\nuse it: prune-export --device {output} --target-latency ...")
    return 0


def _add_measured(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--precision", default="int8", metavar="int8[,fp32]", help="of the weights (default int8)")
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: the profile's")
    parser.add_argument("--workload", metavar="prompt=512,new=128,batch=1", help="what is timed (default as shown)")


def _refuse_for_kit(arguments: argparse.Namespace) -> None:
    """A kit decides these itself: an option without effect would mislead."""
    given = {
        "--precision": arguments.precision != "int8",
        "--workload": arguments.workload is not None,
        "--runtime": arguments.runtime is not None,
        "--held-out": arguments.held_out is not None,
    }
    if wrong := [name for name, there in given.items() if there]:
        raise BadInputError(f"{', '.join(wrong)}: the kit decides this; pack another one with prune-export kit")


def _output(arguments: argparse.Namespace) -> Path:
    output: Path | None = arguments.output
    if output is None:
        raise BadInputError("profile measure needs -o FILE.toml")
    if output.suffix != ".toml":
        raise BadInputError(f"-o {output}: a profile is a .toml file, e.g. -o {output.stem or 'box'}.toml")
    if output.exists() and not arguments.force:
        raise BadInputError(f"{output} exists: choose another -o, or replace it with --force")
    if not output.absolute().parent.is_dir():
        raise BadInputError(f"-o {output}: the directory {output.parent} does not exist")
    return output


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(item.strip() for item in text.split(",")))
    if unknown := [name for name in names if name not in PRECISIONS]:
        raise BadInputError(f'--precision "{unknown[0]}" is not one of {", ".join(PRECISIONS)}')
    return names


def _count(value: int) -> int:
    if value < 0:
        raise BadInputError(f"--held-out {value} must be at least 0")
    return value


def _shape(model: str) -> ModelShape:
    from prune_export.prune.loading import load_config
    from prune_export.prune.shapes import model_shape
    from prune_export.prune.sources import resolve_source

    return model_shape(load_config(resolve_source(model)))
