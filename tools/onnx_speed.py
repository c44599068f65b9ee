"""Decode speed of our dense ONNX artifact beside what ONNX Runtime GenAI's model builder makes of the same checkpoint.

    python tools/onnx_speed.py --model DIR --precisions fp32,int8,int4

Both graphs run in the same session (past and present in one buffer), turn by turn in one process, and in another one in
the other order.  Integer weights are in blocks of the same size in both, unless `--builder-block 0` leaves the builder
its own default; the table has the blocks that are in the graphs.  Prints a Markdown table; a ratio above 1 means that
ours is faster.  `tools/random_model.py` writes checkpoints of known dimensions; keep the machine quiet meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.turns import compare_turns
from prune_export.errors import PruneExportError
from prune_export.export.files import MODEL_ONNX
from prune_export.export.onnx_export import export_onnx
from prune_export.profiles.load import load_profile
from prune_export.progress import Progress
from prune_export.prune.checkpoint import load
from prune_export.prune.loading import load_tokenizer
from prune_export.target import parse_workload
from prune_export.units import format_bytes, format_duration

# What the builder makes on a CPU.
PRECISIONS = ("fp32", "int8", "int4")


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="dense checkpoint")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), metavar="fp32,int8,int4")
    parser.add_argument("--workload", default="prompt=128,new=64,batch=1")
    parser.add_argument("--rounds", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seconds", type=float, default=120, help="of each process, loading included (default 120)")
    parser.add_argument("--threads", type=int, default=0, help="default: all physical cores")
    parser.add_argument("--block", type=int, default=128, help="of our integer weights (default 128)")
    parser.add_argument(
        "--builder-block",
        type=int,
        metavar="N",
        help="of the builder's (default as ours, 0 for the builder's own default)",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the models are written (default: temporary)")
    arguments = parser.parse_args()
    print("| precision | our blocks | builder's | ours, tpot | builder's | builder's / ours | our bytes | builder's |")
    print("|---|---|---|---|---|---|---|---|")
    for precision in arguments.precisions.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            print(row(arguments, precision, Path(folder)), flush=True)


def row(arguments: argparse.Namespace, precision: str, folder: Path) -> str:
    """Exports both ways and measures them in turns."""
    progress = Progress()
    ours, theirs = folder / "ours", folder / "builder"
    export_onnx(
        load(arguments.model),
        load_tokenizer(arguments.model),
        ours,
        precision=precision,
        block=arguments.block,
        progress=progress,
    )
    with progress.phase(f"running the builder in {precision}"):
        block = arguments.block if arguments.builder_block is None else arguments.builder_block
        build(arguments.model, theirs, precision, folder / "cache", block=block)
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
    times = [format_duration(seconds) for seconds in found.seconds]
    sizes = [format_bytes(find_model(item).weights_bytes) for item in (ours, theirs)]
    inner = [", ".join(map(str, blocks(item))) or "none" for item in (ours, theirs)]
    return f"| {' | '.join([precision, *inner, *times, str(found), *sizes])} |"


def blocks(directory: Path) -> tuple[int, ...]:
    """The block sizes of a graph's products, in falling order; none where its weights are no integers."""
    graph = onnx.load(directory / MODEL_ONNX, load_external_data=False).graph
    found = {
        attribute.i
        for node in graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "block_size"
    }
    return tuple(sorted(found, reverse=True))


def build(model: Path, output: Path, precision: str, cache: Path, *, block: int = 0) -> None:
    """The builder as people run it, on a local directory, offline.

    Args:
        model: the checkpoint.
        output: where it writes to.
        precision: one of `PRECISIONS`.
        cache: a folder for its temporary files.
        block: of integer weights, 0 for its own default.

    Raises:
        PruneExportError: it failed.
    """
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(output)]
    command += ["-p", precision, "-e", "cpu", "-c", str(cache)]
    if precision != "fp32" and block:
        command += ["--extra_options", f"block_size={block}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    shutil.rmtree(cache, ignore_errors=True)
    if done.returncode:
        last = done.stderr.strip().splitlines() or ["no message"]
        raise PruneExportError(f"the builder ended with exit code {done.returncode}: {last[-1]}")


if __name__ == "__main__":
    main()
