"""What a runtime must offer to be timed and scored."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


class Session(Protocol):
    """One model in one runtime with one KV cache. Legend: B batch, T tokens, V vocabulary.

    Logits may be views of the runtime's memory: they hold until the next call.
    """

    @property
    def vocab_size(self) -> int:
        """V, known once loaded."""
        ...

    @property
    def load_s(self) -> float:
        """Seconds that reading and compiling took."""
        ...

    def load(self) -> None:
        """Reads and compiles the model."""
        ...

    def reset(self) -> None:
        """Empties the KV cache."""
        ...

    def prefill(self, ids: Tokens) -> Logits:
        """Appends `ids` [B, T] to the cache; logits [B, T, V], or [B, 1, V] of the last token in a timing session."""
        ...

    def decode(self, ids: Tokens) -> Logits:
        """Appends one token each, `ids` [B, 1]; logits [B, 1, V]."""
        ...

    def touch(self) -> None:
        """Computes a token that is nobody's, for as many sequences; the KV cache stays as it is.

        After a rest, others had the processor's caches and the runtime's threads sleep: the next token would be slow.
        """
        ...


@runtime_checkable
class Pipeline(Protocol):
    """Generation end to end, timed token by token."""

    @property
    def vocab_size(self) -> int:
        """V, known once loaded."""
        ...

    @property
    def load_s(self) -> float:
        """Seconds that loading took."""
        ...

    @property
    def options(self) -> dict[str, str]:
        """The runtime's options."""
        ...

    def load(self) -> None:
        """Reads and compiles the model."""
        ...

    def generate(self, prompt: Tokens, new_tokens: int) -> list[float]:
        """Times (s) at the start and after each token, for `prompt` [B, T]."""
        ...
