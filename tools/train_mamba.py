"""Trains a small Mamba on the reference model's text, to try one-shot sparsity on a state-space model.

    python tools/train_mamba.py -o DIR --minutes 3

Tokenizer and text are the embedded reference model's; the weights are never part of the repository.  Sequences are
short, since a CPU runs the recurrence step by step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from prune_export.prune.loading import load_tokenizer
from prune_export.prune.quiet import quiet
from prune_export.prune.sources import resolve_source
from prune_export.texts import encode, load_text

WIDTH, LAYERS, STATE, STEP_RANK = 128, 4, 8, 16
BATCH, LENGTH = 8, 64
PEAK, WARMUP_STEPS = 4e-3, 50


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--text", help="text file (default: the standard library)")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="end after this many, whatever the time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = load_tokenizer(resolve_source("reference"))
    stream = torch.from_numpy(encode(load_text(arguments.text, "calibration"), tokenizer))
    model = new_model(len(tokenizer), seed=arguments.seed)
    begun = time.monotonic()

    def progress(step: int) -> float:
        if arguments.steps is not None:
            return step / float(arguments.steps)
        return (time.monotonic() - begun) / (60.0 * float(arguments.minutes))

    steps, loss = train(model, stream, progress, seed=arguments.seed)
    with quiet():
        model.save_pretrained(arguments.output)
        tokenizer.save_pretrained(arguments.output)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {steps} steps of {BATCH * LENGTH} tokens, loss {loss:.3f}: {arguments.output}")


def new_model(vocabulary: int, *, seed: int) -> Any:
    """An untrained Mamba."""
    torch.manual_seed(seed)
    with quiet():
        return MambaForCausalLM(
            MambaConfig(
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                num_hidden_layers=LAYERS,
                state_size=STATE,
                time_step_rank=STEP_RANK,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=0,
            )
        )


def recurrence(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """h_t = decay_t h_(t-1) + inputs_t over dimension 1 of [B, T, F, N].

    Takes the place of mambapy's scan, which `transformers` calls in training: its own loop takes slices, whose
    gradients cost T^2.
    """
    state, states = torch.zeros_like(inputs[:, 0]), []
    for gate, value in zip(decay.unbind(1), inputs.unbind(1), strict=True):
        state = gate * state + value
        states.append(state)
    return torch.stack(states, 1)


def train(model: Any, stream: torch.Tensor, progress: Callable[[int], float], *, seed: int) -> tuple[int, float]:
    """AdamW until `progress(step)` reaches 1; steps taken and the mean loss of the last tenth of them."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.05)
    losses: list[float] = []
    modeling_mamba.pscan = recurrence
    for block in model.backbone.layers:
        block.mixer.use_mambapy = True
    model.train()
    while (done := progress(len(losses))) < 1.0:
        starts = torch.randint(len(stream) - LENGTH - 1, (BATCH,), generator=generator)
        ids = torch.stack([stream[start : start + LENGTH + 1] for start in starts.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1.0, (len(losses) + 1) / WARMUP_STEPS) * min(1.0, (1.0 - done) / 0.5)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return len(losses), sum(last) / len(last)


if __name__ == "__main__":
    main()
