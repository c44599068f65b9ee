"""What the parity gate feeds to both sides: random tokens in every situation that generation meets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Longest sequence that is run: the checks stay within seconds for models of a few billion parameters.  Rotary positions
# up to the context's last are reached with short sequences that begin there.
LONGEST = 256
# Tokens at the context's last positions.
LAST = 8
_SEED = 20250119


@dataclass(frozen=True)
class Step:
    """Inputs of one call.

    Attributes:
        ids: [B, T].
        mask: [B, past + T], 0 where a token is padding.
        positions: [B, T].
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Check:
    """Sequences fed in chunks: the first chunk fills the cache, each later one meets what came before.

    Attributes:
        name: for messages and the manifest.
        padding: padding tokens on the left of each sequence of the batch.
        chunks: tokens of each chunk.
        first_position: position of the first token.
    """

    name: str
    padding: tuple[int, ...]
    chunks: tuple[int, ...]
    first_position: int = 0

    def steps(self, vocab_size: int) -> Iterator[Step]:
        """The inputs of each chunk; the same tokens every time."""
        length = sum(self.chunks)
        random = np.random.default_rng(_SEED)
        ids = random.integers(0, vocab_size, (len(self.padding), length), dtype=np.int64)
        # A short context leaves less room for padding: one real token at least.
        padding = np.minimum(np.array(self.padding), self.chunks[0] - 1)
        mask = (np.arange(length)[None, :] >= padding[:, None]).astype(np.int64)
        # As the runtimes' own pipelines number them: real tokens from the first position on, padding anything valid.
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0) + self.first_position
        begin = 0
        for chunk in self.chunks:
            end = begin + chunk
            yield Step(*map(np.ascontiguousarray, (ids[:, begin:end], mask[:, :end], positions[:, begin:end])))
            begin = end


def parity_checks(context: int) -> tuple[Check, ...]:
    """The checks for a model whose longest sequence is `context` tokens."""
    one, three = (0,), (0, 3, 7)
    length = min(context, LONGEST)
    checks = [
        Check("prefill, batch 1", one, _within(context, 17)),
        Check("prefill, batch 3, left padding", three, _within(context, 17)),
        Check("decode, batch 1", one, _within(context, 9, 1, 1, 1)),
        Check("decode, batch 3, left padding", three, _within(context, 9, 1, 1, 1)),
        Check("several tokens onto a cache, batch 1", one, _within(context, 9, 6)),
        Check("several tokens onto a cache, batch 3, left padding", three, _within(context, 9, 6)),
        # In two halves: a large vocabulary's logits for all of it at once would be the largest memory of the gate.
        Check(f"long prompt, {length} tokens", one, (length - length // 2 - 1, length // 2, 1)),
    ]
    if context > LONGEST:
        checks.append(Check(f"last positions, up to {context - 1}", one, (LAST - 1, 1), first_position=context - LAST))
    return tuple(checks)


def reached(check: Check, begin: int, context: int) -> str:
    """Name of a check of the last positions that had to begin earlier."""
    return f"late positions, up to {begin + sum(check.chunks) - 1} of {context - 1}"


def unreached(context: int, window: int) -> tuple[str, ...]:
    """What no check looks at, for the record.

    Args:
        context: longest sequence of the model.
        window: tokens of its sliding window; 0 for none.
    """
    longest = min(context, LONGEST)
    if not longest <= window < context:
        return ()
    return (f"a sliding window of {window} tokens, since sequences end at {longest}",)


def _within(context: int, *chunks: int) -> tuple[int, ...]:
    """The chunks, the first one shortened so that all fit the context."""
    first = min(chunks[0], context - sum(chunks[1:]))
    return (max(1, first), *chunks[1:])
