"""Held-out perplexity of one-shot sparsity by every method, on the same calibration tokens, as a Markdown table.

    python tools/sparsity_table.py --model reference

The last column is the mean difference of token NLL to the joint method (mrp with its defaults) over the same windows,
with the standard error of the paired differences: positive means worse than the joint method.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import Any

import torch

from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.projection_pruning import SparsityMethod
from prune_export.prune.sources import resolve_source
from prune_export.prune.sparsify import sparsify_model
from prune_export.sparsity import Pattern, parse_pattern
from prune_export.texts import load_text, token_windows

BATCH = 8


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--patterns", default="50%,2:4", help="default 50%%,2:4")
    parser.add_argument("--calibration")
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--eval-text")
    parser.add_argument("--eval-windows", type=int, default=160)
    parser.add_argument("--length", type=int, default=256, help="tokens of every window (default 256)")
    parser.add_argument("--every", action="store_true", help="all masks, compensations and solvers of mrp too")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = resolve_source(arguments.model)
    model, tokenizer = load_model(source), load_tokenizer(source)
    length = arguments.length
    text, held = load_text(arguments.calibration, "calibration"), load_text(arguments.eval_text, "evaluation")
    tokens = torch.from_numpy(token_windows(text, tokenizer, count=arguments.calibration_windows, length=length))
    windows = torch.from_numpy(token_windows(held, tokenizer, count=arguments.eval_windows, length=length))
    print(f"{arguments.model}: {len(tokens)} x {length} tokens of {text.name}; {len(windows)} of {held.name}")
    print(f"dense: perplexity {perplexity(window_nll(model, windows)):.3f}", flush=True)
    print("| pattern | method | mask, compensation | perplexity | NLL above mrp | seconds |\n|---|---|---|---|---|---|")
    for pattern in (parse_pattern(part) for part in arguments.patterns.split(",")):
        base: list[float] | None = None
        for method in methods(pattern, every=arguments.every):
            fresh = load_model(source)
            begun = time.monotonic()
            report = sparsify_model(fresh, tokens, method)
            seconds = time.monotonic() - begun
            nll = window_nll(fresh, windows)
            base = base or nll
            name = f"{method.name} ({method.solver})" if method.solver != "exact" else method.name
            kind = f"{report.mask}, {report.compensation}" if report.mask else ""
            row = f"| {pattern} | {name} | {kind} | {perplexity(nll):.3f} | {difference(nll, base)} | {seconds:.0f} |"
            print(row, flush=True)


def methods(pattern: Pattern, *, every: bool) -> list[SparsityMethod]:
    """The joint method with its defaults first, then the baselines; with `every`, its variants too."""
    chosen = [SparsityMethod(pattern, name) for name in ("mrp", "sparsegpt", "wanda", "magnitude")]
    if every:
        kinds = [("S", "M"), ("M", "S"), ("S", "S")] if pattern.group else [("S", "S")]
        chosen += [SparsityMethod(pattern, mask=mask, compensation=compensation) for mask, compensation in kinds]
        chosen.append(SparsityMethod(pattern, solver="cg"))
    return chosen


@torch.inference_mode()
def window_nll(model: Any, windows: torch.Tensor) -> list[float]:
    """Mean token NLL of each window [N, T]; its first token is context only."""
    result: list[float] = []
    for ids in windows.split(BATCH):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        result += losses.mean(1).tolist()
    return result


def perplexity(nll: list[float]) -> float:
    """exp of the mean over windows."""
    return math.exp(statistics.fmean(nll))


def difference(nll: list[float], base: list[float]) -> str:
    """Mean paired difference and its standard error."""
    gaps = [one - other for one, other in zip(nll, base, strict=True)]
    return f"{statistics.fmean(gaps):+.4f} +- {statistics.stdev(gaps) / math.sqrt(len(gaps)):.4f}"


if __name__ == "__main__":
    main()
