"""Does a pruned artifact's decode get faster by as much as fewer bytes of weights are read for a token?

    python tools/pruned_speed.py llama-3.2-1b --format openvino --precision int8 --rounds 5

Exports random models of the dense shape and of a heterogeneous pruned one, which loses whole sub-blocks, MLP channels
and KV groups, and measures them in fresh processes that take turns.  Prints a Markdown row; the share is the speed-up
over the ratio of the weights that a token reads (an embedding table that is only looked up doesn't count).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from prune_export.benchmark.run import run_benchmark
from prune_export.delivery.exporters import EXPORTERS, exporter_of
from prune_export.delivery.resources import free_memory
from prune_export.formats import PRECISIONS
from prune_export.profiles.load import load_profile
from prune_export.progress import Progress
from prune_export.prune.synthetic import KNOWN_SHAPES, random_model
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import parse_workload
from prune_export.units import format_duration

_GROUP = 128  # of int4 weights
# What a layer keeps of its (KV groups, MLP width), in turns: plans of the search look like this.
_KEPT = ((1.0, 0.75), (0.0, 1.0), (1.0, 0.5), (0.75, 0.875), (1.0, 0.0), (0.5, 0.75))


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=KNOWN_SHAPES)
    parser.add_argument("--format", choices=EXPORTERS, default="openvino")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    parser.add_argument("--workload", default="prompt=32,new=64,batch=1")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="default: all physical cores")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the models are written (default: temporary)")
    arguments = parser.parse_args()
    progress = Progress()
    dense = KNOWN_SHAPES[arguments.shape]
    shapes = {"dense": dense, "pruned": pruned(dense)}
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        paths = {name: Path(folder) / name for name in shapes}
        for name, shape in shapes.items():
            with progress.phase(f"exporting the {name} model"):
                exporter_of(arguments.format).stack(
                    random_model(shape, seed=0), paths[name], arguments.precision, _GROUP
                )
                free_memory()
        with progress.phase("measuring"):
            found = run_benchmark(
                paths["dense"],
                compare=paths["pruned"],
                precision=arguments.precision,
                profile=load_profile("host"),
                workload=parse_workload(arguments.workload),
                rounds=arguments.rounds,
                threads=arguments.threads,
            )
    for note in found.notes:
        progress.note(f"note: {note}")
    ratio = found.ratios["tpot p50"]
    less = read(shapes["dense"]) / read(shapes["pruned"])
    times = " | ".join(format_duration(item.percentile("tpot", "p50")) for item in found.measurements)
    print("| model | format | weights | dense, tpot p50 | pruned | speed-up | weights read, ratio | share |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.shape} | {arguments.format} | {arguments.precision} | {times} | {ratio} | {less:.3f} "
        f"| {ratio.ratio / less:.3f} |"
    )


def pruned(dense: ModelShape) -> ModelShape:
    """A shape as plans have it: multiples of the group in the MLPs, some sub-blocks gone."""
    layers = []
    for index, layer in enumerate(dense.layers):
        heads, width = _KEPT[index % len(_KEPT)]
        groups = round(layer.kv_heads * heads)
        channels = round(layer.mlp_width * width / _GROUP) * _GROUP
        layers.append(LayerShape(groups * (layer.query_heads // layer.kv_heads), groups, channels))
    return replace(dense, layers=tuple(layers))


def read(shape: ModelShape) -> int:
    """Weights that a token reads: all but a table that is only looked up."""
    looked_up = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    return shape.parameters() - looked_up


if __name__ == "__main__":
    main()
