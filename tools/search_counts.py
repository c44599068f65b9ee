"""What the search of the papers costs here and plainly, side by side, and whether both select the same.

The plain search runs every candidate as a whole, from the embedding to the last logit, over all tokens.  Counts are
sub-blocks run over all tokens, refreshes of cached states included.

    python tools/search_counts.py                  # the embedded model, and 32 random layers
    python tools/search_counts.py --model DIR --ratio 22%
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from prune_export.prune.candidates import Change, apply_change
from prune_export.prune.evaluator import Evaluator, Score
from prune_export.prune.loading import load_model, load_tokenizer
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.search_result import SearchResult
from prune_export.prune.sources import resolve_source
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape
from prune_export.texts import load_text, token_windows
from prune_export.units import parse_share


class PlainEvaluator(Evaluator):
    """Nothing cached, nothing dropped."""

    def score(self, change: Change | None = None, hopeless: Callable[[float], bool] | None = None) -> Score:
        """The structure with the change made current, run from its first block to the last logit."""
        before = self.structure
        self.release()
        self.structure = before if change is None else apply_change(before, change, self.shape)
        found = super().score(None, None)
        self.structure = before
        self.release()
        return found


@dataclass(frozen=True)
class Case:
    """A model with its tokens [N, T] and the search's group sizes."""

    name: str
    model: Any
    tokens: Any
    mlp_group: int


def main() -> int:
    """Prints one line a case and fails where the selections differ or a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or hub id instead of the two cases")
    parser.add_argument("--calibration", help="its text")
    parser.add_argument("--ratio", default="22%")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ratio = parse_share(arguments.ratio)
    if arguments.model:
        cases = [(_trained(arguments.model, arguments), 1.0)]
    else:
        cases = [(_trained("reference", arguments), 0.65), (_random(32, arguments), 0.55)]
    print(
        f"{'':24}{'steps':>6}{'candidates':>11}{'plain':>10}{'here':>10}{'share':>7}{'plain s':>9}{'here s':>8}  same"
    )
    good = True
    for case, limit in cases:
        here, here_s = _timed(case, Evaluator, ratio)
        plain, plain_s = _timed(case, PlainEvaluator, ratio)
        same = [step[:4] for step in _steps(here)] == [step[:4] for step in _steps(plain)]
        share = here.block_evaluations / plain.block_evaluations
        good = good and same and share <= limit
        print(
            f"{case.name:24}{len(here.history):6}{here.evaluations:11}{plain.block_evaluations:10.0f}"
            f"{here.block_evaluations:10.0f}{share:7.2f}{plain_s:9.1f}{here_s:8.1f}  {'yes' if same else 'NO'}"
        )
    return 0 if good else 1


def _timed(case: Case, kind: type[Evaluator], ratio: float) -> tuple[SearchResult, float]:
    search = MultiPruner(kind(case.model, case.tokens), cost=lambda shape: shape.parameters(), mlp_group=case.mlp_group)
    dense = kind(case.model, case.tokens[:1]).shape.parameters()
    begun = time.perf_counter()
    return search.run(dense * (1 - ratio)), time.perf_counter() - begun


def _steps(result: SearchResult) -> list[tuple[str, int, str, int]]:
    return [(step.stage, step.layer, step.part, step.size) for step in result.history]


def _trained(name: str, arguments: argparse.Namespace) -> Case:
    source = resolve_source(name)
    text = load_text(arguments.calibration, "calibration")
    tokens = token_windows(text, load_tokenizer(source), count=arguments.windows, length=arguments.length)
    model = load_model(source)
    return Case(name, model, tokens, max(1, model.config.intermediate_size // 12))


def _random(layers: int, arguments: argparse.Namespace) -> Case:
    """Random weights, larger than initialised so that sub-blocks differ in what they do."""
    shape = ModelShape("llama", 64, 16, 256, True, (LayerShape(4, 2, 192),) * layers)
    model = random_model(shape, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    tokens = torch.randint(3, 256, (arguments.windows, 16), generator=generator)
    return Case(f"{layers} random layers", model, tokens, 32)


if __name__ == "__main__":
    raise SystemExit(main())
