"""Decode speed of our dense OpenVINO IR beside what `optimum-cli export openvino` makes of the same checkpoint.

    python tools/openvino_speed.py --model DIR --precisions fp32,int8,int4

Both IRs run in the same session, turn by turn in one process, and in another one in the other order.  Prints a Markdown
table; a ratio above 1 means that ours is faster.  `tools/random_model.py` writes checkpoints of known dimensions; keep
the machine quiet meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.turns import compare_turns
from prune_export.errors import PruneExportError
from prune_export.export.openvino_ir import export_openvino
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.weights import compress
from prune_export.profiles.load import load_profile
from prune_export.progress import Progress
from prune_export.prune.checkpoint import load
from prune_export.prune.loading import load_tokenizer
from prune_export.target import parse_workload
from prune_export.units import format_bytes, format_duration

PRECISIONS = ("fp32", "int8", "int4")


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="dense checkpoint")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), metavar="fp32,int8,int4")
    parser.add_argument("--group-size", type=int, default=128, help="of int4 weights, of both (default 128)")
    parser.add_argument(
        "--kv-cache-precision", default="", help="of ours; optimum-cli asks for f16 (default: none, the runtime's own)"
    )
    parser.add_argument("--workload", default="prompt=128,new=64,batch=1")
    parser.add_argument("--rounds", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seconds", type=float, default=120, help="of each process, loading included (default 120)")
    parser.add_argument("--threads", type=int, default=0, help="default: all physical cores")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the models are written (default: temporary)")
    arguments = parser.parse_args()
    progress = Progress()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        plain = Path(folder) / "fp32"
        with progress.phase("exporting"):
            export_openvino(load(arguments.model), load_tokenizer(arguments.model), plain)
        print("| precision | ours, tpot | optimum-cli's | optimum-cli's / ours | our bytes | optimum-cli's bytes |")
        print("|---|---|---|---|---|---|")
        for precision in arguments.precisions.split(","):
            print(row(arguments, precision, plain, progress), flush=True)


def row(arguments: argparse.Namespace, precision: str, plain: Path, progress: Progress) -> str:
    """Exports both ways and measures them in turns."""
    with tempfile.TemporaryDirectory(dir=plain.parent) as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        with progress.phase(f"writing {precision}"):
            options = OpenVinoOptions(group_size=arguments.group_size, kv_cache=arguments.kv_cache_precision)
            compress(plain, ours, precision=precision, options=options)
        with progress.phase(f"running optimum-cli in {precision}"):
            optimum(arguments.model, theirs, precision, arguments.group_size)
        with progress.phase(f"measuring {precision}"):
            found = compare_turns(
                ours,
                theirs,
                precision=precision,
                profile=load_profile("host"),
                workload=parse_workload(arguments.workload),
                processes=arguments.rounds,
                threads=arguments.threads,
                seconds=arguments.seconds,
            )
        sizes = [format_bytes(find_model(item).weights_bytes) for item in (ours, theirs)]
    times = [format_duration(seconds) for seconds in found.seconds]
    return f"| {precision} | {times[0]} | {times[1]} | {found} | {' | '.join(sizes)} |"


def optimum(model: Path, output: Path, precision: str, group: int) -> None:
    """The command as people run it, with its defaults for a precision, on a local directory, offline."""
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", str(model)]
    command += ["--task", "text-generation-with-past", "--weight-format", precision]
    command += [*(["--group-size", str(group)] if precision == "int4" else []), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        last = done.stderr.strip().splitlines() or ["no message"]
        raise PruneExportError(f"optimum-cli ended with exit code {done.returncode}: {last[-1]}")


if __name__ == "__main__":
    main()
