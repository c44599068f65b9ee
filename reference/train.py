"""Trains the embedded reference model: a small Llama with grouped KV heads, on the standard library's own text.

    python -m prune_export.reference.train --output DIR [--tokens 45e6] [--threads 2]

About an hour on two cores (75 minutes beside other work).  Twenty tokens a parameter: an undertrained model is so
redundant that every pruning method looks good on it.  A run that was stopped goes on from DIR/checkpoint.pt.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prune_export.reference import corpus

VOCABULARY = 2048
CONTEXT = 512
END_OF_TEXT = "<|endoftext|>"
LONG_SHARE = 0.2  # the last part of training uses full-context sequences, the rest half of it
WARMUP_STEPS = 200
CHECKPOINT_EVERY = 250
MICRO_TOKENS = 4096  # gradients accumulate over parts of this size, whose logits stay in cache


def config() -> LlamaConfig:
    """2.2 million parameters: 10 layers, hidden 128, 4 query and 2 KV heads of 32, MLP 384, tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.04,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        dtype="float32",
        attn_implementation="eager",  # the CPU's fused attention spends most of a training step in its backward pass
    )


def train_tokenizer(documents: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `documents` with one special token, which opens every text and ends every document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: tuple[str, ...]) -> NDArray[np.uint16]:
    """All documents, each opened by the end-of-text token, as one stream of token ids."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(documents))
    return np.concatenate([np.asarray(item.ids, dtype=np.uint16) for item in encoded])


def batches(stream: NDArray[np.uint16], *, seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """Non-overlapping rows of `length + 1` tokens in shuffled order, from a random offset: [rows, length + 1]."""
    generator = np.random.default_rng([seed, epoch])
    offset = int(generator.integers(length))
    rows = (len(stream) - offset - 1) // length
    starts = offset + length * generator.permutation(rows)
    return np.stack([stream[start : start + length + 1] for start in starts]).astype(np.int64)


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Warm-up, a plateau over the first 60%, then linear decay to zero."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * warm * min(1.0, (1.0 - progress) / 0.4)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, stream: NDArray[np.uint16], *, windows: int) -> float:
    """exp of the mean token NLL over the first non-overlapping windows of the model's context."""
    total, count = 0.0, 0
    for start in range(0, min(windows * CONTEXT, len(stream) - CONTEXT), CONTEXT):
        ids = torch.from_numpy(stream[start : start + CONTEXT].astype(np.int64))[None]
        loss = model(input_ids=ids, labels=ids).loss
        total += float(loss) * (CONTEXT - 1)
        count += CONTEXT - 1
    return math.exp(total / count)


def parameter_groups(model: LlamaForCausalLM) -> list[dict[str, object]]:
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    plain = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]


def run(output: Path, *, tokens: int, batch_tokens: int, peak: float, seed: int, compiled: bool) -> None:
    """Trains, logs to `output/training.jsonl`, and writes model, tokenizer and figures to `output`."""
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    documents = corpus.training_documents()
    tokenizer = train_tokenizer(documents)
    stream, held = encode(tokenizer, documents), encode(tokenizer, corpus.heldout().documents)
    model = LlamaForCausalLM(config())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=peak, betas=(0.9, 0.95))
    checkpoint = output / "checkpoint.pt"
    state = {"step": 0, "seen": 0, "epoch": 0, "row": 0, "seconds": 0}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    print(f"{parameters} parameters, {len(stream)} training tokens, {tokens / parameters:.1f} tokens a parameter")
    forward = torch.compile(model) if compiled else model
    length, rows = 0, np.empty((0, 0), dtype=np.int64)
    begun = time.perf_counter() - state["seconds"]
    with (output / "training.jsonl").open("a", encoding="utf8") as log:
        while state["seen"] < tokens:
            progress = state["seen"] / tokens
            wanted = CONTEXT if progress >= 1 - LONG_SHARE else CONTEXT // 2
            if length != wanted or state["row"] + batch_tokens // length > len(rows):
                if length:
                    state["epoch"], state["row"] = state["epoch"] + 1, 0
                length = wanted
                rows = batches(stream, seed=seed, epoch=state["epoch"], length=length)
            size = batch_tokens // length
            ids = torch.from_numpy(rows[state["row"] : state["row"] + size])
            rate = learning_rate(progress, state["step"], peak)
            loss = train_step(forward, model, optimizer, ids, rate)
            state["row"] += size
            state["seen"] += ids[:, 1:].numel()
            state["step"] += 1
            state["seconds"] = round(time.perf_counter() - begun)
            if state["step"] % 50 == 0:
                entry: dict[str, float] = {
                    "step": state["step"],
                    "tokens": state["seen"],
                    "loss": round(loss, 4),
                    "lr": round(rate, 6),
                }
                if state["step"] % 500 == 0:
                    entry["heldout_perplexity"] = round(perplexity(model, held, windows=40), 3)
                entry["seconds"] = round(state["seconds"])
                print(json.dumps(entry), file=log, flush=True)
            if state["step"] % CHECKPOINT_EVERY == 0:
                saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
                torch.save(saved, output / "checkpoint.new")
                (output / "checkpoint.new").replace(checkpoint)
    publish(model, tokenizer, held, output, tokens=state["seen"], seconds=state["seconds"], unique=len(stream))


def train_step(
    forward: Callable[..., Any], model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids: Tensor, rate: float
) -> float:
    """One AdamW step on ids [rows, T + 1]; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    total = 0.0
    for part in ids.split(max(1, MICRO_TOKENS // (ids.shape[1] - 1))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(input_ids=part[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
        loss = loss * (len(part) / len(ids))
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def publish(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    held: NDArray[np.uint16],
    output: Path,
    *,
    tokens: int,
    seconds: float,
    unique: int,
) -> None:
    """Writes bf16 safetensors, tokenizer and `training.json`; the perplexity is that of the bf16 weights."""
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_tokens": tokens,
        "unique_tokens": unique,
        "seconds": round(seconds),
        "heldout_tokens": len(held),
        "heldout_perplexity": round(perplexity(model.float(), held, windows=10**6), 4),
        "heldout_digest": corpus.heldout().digest,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    (output / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf8")
    print(json.dumps(figures, indent=2))


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=45e6)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run(
        arguments.output,
        tokens=int(arguments.tokens),
        batch_tokens=arguments.batch_tokens,
        peak=arguments.learning_rate,
        seed=arguments.seed,
        compiled=not arguments.no_compile,
    )


if __name__ == "__main__":
    main()
