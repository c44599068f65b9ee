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
from prune_export.prune.synthetic import KNOWN_SHAPES, random_model


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=KNOWN_SHAPES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = random_model(KNOWN_SHAPES[arguments.shape], seed=arguments.seed)
    save_checkpoint(model, load_tokenizer(resolve_source("reference")), arguments.output, dtype=torch.float32)


if __name__ == "__main__":
    main()
