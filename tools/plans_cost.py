"""What several plans of the fast search cost beside one: they share its scoring.

    python tools/plans_cost.py [--model DIR --calibration FILE] [--target-ratio 10%,20%,30%]

Counts layers times tokens, moments, gradients and LM head included, as `tools/pruning_table.py` does, from nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from pruning_table import (  # type: ignore[import-not-found]
    ROW_TOKENS,
    head_in_layers,
    parameters,
    search_budget,
)

from prune_export.prune.fast import FastSearch
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.shapes import model_shape
from prune_export.prune.sources import resolve_source
from prune_export.texts import load_text, token_windows
from prune_export.units import parse_share


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--calibration", help="text (default: the standard library's)")
    parser.add_argument("--target-ratio", default="10%,20%,30%")
    parser.add_argument("--rows", type=int, default=256, help="calibration windows (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ratios = [parse_share(part, what="--target-ratio") for part in arguments.target_ratio.split(",")]
    source = resolve_source(arguments.model)
    model = load_model(source)
    text = load_text(arguments.calibration, "calibration")
    rows = token_windows(text, load_tokenizer(source), count=arguments.rows, length=ROW_TOKENS)
    head = head_in_layers(model_shape(model.config))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        search = FastSearch(model, rows, cost=parameters, mlp_group=16, folder=ScoreFolder(Path(folder) / "scores", {}))
        spent = []
        for ratio in ratios:
            search.run(search_budget(model, ratio))
            layers, tokens = search.work
            spent.append((layers + head * tokens, time.perf_counter() - started))
    print("| plans | cost, layer tokens | times one | seconds | times one |\n|---|---|---|---|---|")
    for count, (cost, seconds) in enumerate(spent, 1):
        print(
            f"| {count} | {cost / 1e6:.2f} M | {cost / spent[0][0]:.3f} | {seconds:.0f} | {seconds / spent[0][1]:.3f} |"
        )


if __name__ == "__main__":
    main()
