"""Compares the fast search with the exact ones on one model: rise of held-out log-perplexity and cost.

    python tools/pruning_table.py --model reference --output DIR
    python tools/pruning_table.py --model DIR --calibration FILE --eval-text FILE --eval-length 256 --output DIR

The exact searches calibrate as the paper does, on 256 rows for blocks and 128 for widths; rows are windows of 115
tokens, evenly spread over the text.  The fast search gets the same 256 rows, and 512 in a second run, and has to remove
as many parameters as the exact one did.  Results are
kept in DIR, a JSON file a run, so an interrupted table goes on where it was; --table prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune_export.evaluate import torch_nll
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.fast import FastSearch
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.planning import make_plan
from prune_export.prune.refit import refit
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.search_result import SearchResult
from prune_export.prune.sources import resolve_source
from prune_export.prune.surgery import prune_model
from prune_export.shape import ModelShape
from prune_export.texts import load_text, token_windows

ROW_TOKENS = 115
BLOCK_ROWS, WIDTH_ROWS = 256, 128
RATIOS = (0.2, 0.3, 0.4)
EXACT = {
    "exact 44:52:4": (44.0, 52.0, 4.0),
    "exact 10:90:0": (10.0, 90.0, 0.0),
    "BlockPruner": (1.0, 0.0, 0.0),
}
FAST = {"fast, 256 rows": 256, "fast, 512 rows": 512}


@dataclass(frozen=True)
class Case:
    """What every run of a table shares."""

    source: Path
    name: str
    calibration: str | None
    evaluation: NDArray[np.int64]
    mlp_group: int
    output: Path

    def rows(self, count: int) -> NDArray[np.int64]:
        """Calibration windows [count, 115]."""
        text = load_text(self.calibration, "calibration")
        return token_windows(text, load_tokenizer(self.source), count=count, length=ROW_TOKENS)

    def rise(self, model: Any) -> float:
        """Mean held-out NLL in nats a token."""
        return statistics.fmean(torch_nll(model, self.evaluation))


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--calibration")
    parser.add_argument("--eval-text")
    parser.add_argument("--eval-length", type=int, default=512)
    parser.add_argument("--eval-windows", type=int, default=128)
    parser.add_argument("--mlp-group", type=int, default=32, help="step of the exact searches")
    parser.add_argument("--only", nargs="*", help="searches to run (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        source = resolve_source(arguments.model)
        held_out = load_text(arguments.eval_text, "evaluation")
        windows = token_windows(
            held_out, load_tokenizer(source), count=arguments.eval_windows, length=arguments.eval_length
        )
        case = Case(source, arguments.model, arguments.calibration, windows, arguments.mlp_group, arguments.output)
        for name in arguments.only or (*EXACT, *FAST):
            run_fast(case, name, FAST[name]) if name in FAST else run_exact(case, name, EXACT[name])
    print_table(arguments.output)


def run_exact(case: Case, name: str, distribution: tuple[float, float, float]) -> None:
    """MultiPruner or BlockPruner for every ratio that is not there yet; each from nothing: its cost is whole."""
    rows = case.rows(BLOCK_ROWS)
    for ratio in RATIOS:
        if record_file(case, name, ratio).exists():
            continue
        model = load_model(case.source)
        started = time.perf_counter()
        search = MultiPruner(
            Evaluator(model, rows),
            cost=parameters,
            distribution=distribution,
            mlp_group=case.mlp_group,
            blocks_only=distribution[1:] == (0.0, 0.0),
            width_tokens=rows[::2][:WIDTH_ROWS],
        )
        result = search.run(search_budget(model, ratio))
        seconds = time.perf_counter() - started
        pruned = prune_model(model, plan_of(case, result))
        keep(case, name, ratio, result, case.rise(pruned), seconds, result.block_tokens / 2, result.head_tokens)


def run_fast(case: Case, name: str, count: int) -> None:
    """The fast search with compensation; one scoring serves all ratios, and each ratio is charged all of it."""
    if all(record_file(case, name, ratio).exists() for ratio in RATIOS):
        return
    rows = case.rows(count)
    model = load_model(case.source)
    with tempfile.TemporaryDirectory(dir=case.output) as folder:
        started = time.perf_counter()
        search = FastSearch(
            model, rows, cost=parameters, mlp_group=max(1, case.mlp_group // 2), folder=ScoreFolder(Path(folder), {})
        )
        scored, scoring = search.work, time.perf_counter() - started
        for ratio in RATIOS:
            before, started = search.work, time.perf_counter()
            result = search.run(search_budget(model, max(ratio, removed_by_exact(case, ratio))))
            pruned = prune_model(model, plan_of(case, result))
            fitted = refit(model, pruned, torch.as_tensor(rows).long(), streams=search.streams)
            seconds = scoring + time.perf_counter() - started
            layers = scored[0] + search.work[0] - before[0] + fitted.layer_tokens
            head = scored[1] + search.work[1] - before[1] + fitted.head_tokens
            keep(case, name, ratio, result, case.rise(pruned), seconds, layers, head)


def keep(
    case: Case, name: str, ratio: float, result: SearchResult, nll: float, seconds: float, layers: float, head: float
) -> None:
    """Writes one result."""
    dense = case.rise(load_model(case.source))
    record = {
        "search": name,
        "asked": ratio,
        "removed": 1.0 - result.shape.parameters() / result.dense.parameters(),
        "dense_nll": dense,
        "rise": nll - dense,
        "seconds": seconds,
        "layer_tokens": layers,
        "head_tokens": head,
        "head_layers": head_in_layers(result.dense),
    }
    record_file(case, name, ratio).write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    print(json.dumps(record), flush=True)


def print_table(output: Path) -> None:
    """What is known so far, in Markdown."""
    records = [json.loads(path.read_text(encoding="utf8")) for path in sorted(output.glob("*.json"))]
    exact = {record["asked"]: record for record in records if record["search"] == "exact 44:52:4"}
    print("| search | asked | removed | rise, nats | share of exact | cost, layer tokens | share of exact | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for record in sorted(records, key=lambda item: (item["asked"], item["search"])):
        base = exact.get(record["asked"])
        quality = f"{record['rise'] / base['rise']:.3f}" if base else "-"
        share = f"{cost(record) / cost(base):.3f}" if base else "-"
        print(
            f"| {record['search']} | {record['asked']:.0%} | {record['removed']:.2%} | {record['rise']:.4f} "
            f"| {quality} | {cost(record) / 1e6:.2f} M | {share} | {record['seconds']:.0f} |"
        )


def cost(record: dict[str, Any]) -> float:
    """Layers times tokens, the LM head counted by its parameters."""
    return float(record["layer_tokens"] + record["head_layers"] * record["head_tokens"])


def head_in_layers(shape: ModelShape) -> float:
    """Parameters of the LM head over those of one layer."""
    layer = shape.layers[0]
    whole = shape.attention_parameters(layer.kv_heads, layer.query_heads) + shape.mlp_parameters(layer.mlp_width)
    return shape.vocab_size * shape.hidden_size / whole


def removed_by_exact(case: Case, ratio: float) -> float:
    """What the exact search really removed, once it is known: the fast one has to remove as much."""
    path = record_file(case, "exact 44:52:4", ratio)
    return float(json.loads(path.read_text(encoding="utf8"))["removed"]) if path.exists() else 0.0


def search_budget(model: Any, ratio: float) -> float:
    """Parameters that may stay."""
    from prune_export.prune.shapes import model_shape

    return model_shape(model.config).parameters() * (1.0 - ratio)


def parameters(shape: ModelShape) -> float:
    """Cost by the papers' measure."""
    return float(shape.parameters())


def plan_of(case: Case, result: SearchResult) -> Any:
    """The plan that surgery executes."""
    return make_plan(result, source=case.name, source_digest="", calibration_digest="")


def record_file(case: Case, name: str, ratio: float) -> Path:
    """Where one result is kept."""
    return case.output / f"{name.replace(' ', '-').replace(',', '').replace(':', '-')}-{ratio:.0%}.json"


if __name__ == "__main__":
    main()
