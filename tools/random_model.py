"""Writes a randomly initialised checkpoint of a known model's dimensions: for timing, where quality does not matter.

    python tools/random_model.py smollm2-135m -o DIR

The tokenizer is the embedded reference model's, whose ids fit every larger vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.loading import load_tokenizer
from prune_export.prune.sources import resolve_source
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape

SHAPES = {
    "smollm2-135m": ModelShape("llama", 576, 64, 49152, True, (LayerShape(9, 3, 1536),) * 30, context=8192),
    "llama-3.2-1b": ModelShape("llama", 2048, 64, 128256, True, (LayerShape(32, 8, 8192),) * 16, context=8192),
}


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = random_model(SHAPES[arguments.shape], seed=arguments.seed)
    save_checkpoint(model, load_tokenizer(resolve_source("reference")), arguments.output, dtype=torch.float32)


if __name__ == "__main__":
    main()
