"""Held-out perplexity of an artifact, through the session that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_export.benchmark.session import Logits, Session, Tokens
from prune_export.errors import BadInputError, PruneExportError

# Logits of one forward pass: small models take several windows at once, large ones a window in pieces.
_LOGITS_BYTES = 32 << 20
_FEWEST_TOKENS = 16
# Rows of logits that are exponentiated at once: bounds the working copy to 64 V 4 bytes.
_ROWS = 64


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood of held-out windows.

    Attributes:
        nll_per_window: mean NLL of a token in nats, one entry per window.
        tokens_per_window: predicted tokens of each window, T - 1.
    """

    nll_per_window: tuple[float, ...]
    tokens_per_window: int

    @property
    def perplexity(self) -> float:
        """exp of the mean NLL; all windows have the same length, so their mean is the tokens' mean."""
        return math.exp(math.fsum(self.nll_per_window) / len(self.nll_per_window))

    @property
    def standard_error(self) -> float:
        """Standard error of the perplexity over windows: exp(m) s / sqrt(N) (delta method); nan for one window."""
        count = len(self.nll_per_window)
        if count < 2:
            return math.nan
        mean = math.fsum(self.nll_per_window) / count
        variance = math.fsum((value - mean) ** 2 for value in self.nll_per_window) / (count - 1)
        return math.exp(mean) * math.sqrt(variance / count)


def score(session: Session, windows: Tokens, *, report: Callable[[int, int], None] | None = None) -> Score:
    """Perplexity over windows of tokens, each from an empty cache.

    Args:
        session: loaded, with logits for every token.
        windows: [N, T], T at least 2; the first token of each window is given, the others are predicted.
        report: called with windows done and windows in all.

    Raises:
        BadInputError: no windows, windows of one token, or token ids outside the vocabulary.
        PruneExportError: the artifact returns logits that are not finite.
    """
    if windows.ndim != 2 or not windows.shape[0] or windows.shape[1] < 2:
        raise BadInputError(f"scoring needs windows of at least 2 tokens, got an array of shape {list(windows.shape)}")
    if windows.min() < 0 or windows.max() >= session.vocab_size:
        raise BadInputError(
            f"token ids {windows.min()}..{windows.max()} do not fit the artifact's vocabulary of {session.vocab_size}: "
            "use the tokenizer that belongs to it"
        )
    count, length = windows.shape
    at_once = max(1, _LOGITS_BYTES // (length * session.vocab_size * 4))
    values: list[float] = []
    for begin in range(0, count, at_once):
        batch = windows[begin : begin + at_once]
        values += _batch_nll(session, batch)
        if report is not None:
            report(len(values), count)
    session.reset()
    if not all(math.isfinite(value) for value in values):
        raise PruneExportError(
            "the artifact returns logits that are not finite: export it again, or in another precision"
        )
    return Score(tuple(values), length - 1)


def _batch_nll(session: Session, batch: Tokens) -> list[float]:
    """Mean NLL of each sequence of [B, T]; the cache lets a long one go in pieces whose logits stay small."""
    session.reset()
    rows, length = batch.shape
    piece = max(_FEWEST_TOKENS, _LOGITS_BYTES // (rows * session.vocab_size * 4))
    totals = np.zeros(rows, np.float64)
    for begin in range(0, length, piece):
        logits = session.prefill(batch[:, begin : begin + piece])
        fed = min(piece, length - begin)
        if logits.shape[1] != fed:
            raise ValueError(f"{logits.shape[1]} rows of logits for {fed} tokens: score with every token's logits")
        targets = batch[:, begin + 1 : begin + piece + 1]
        for row in range(rows):
            totals[row] += _sum_nll(logits[row, : targets.shape[1]], targets[row])
    means: list[float] = (totals / (length - 1)).tolist()
    return means


def _sum_nll(logits: Logits, targets: Tokens) -> float:
    """Sum of the NLL of targets [T] under logits [T, V], in chunks of rows."""
    chunks = (slice(begin, begin + _ROWS) for begin in range(0, len(targets), _ROWS))
    return float(sum(token_nll(logits[chunk], targets[chunk]).sum() for chunk in chunks))


def token_nll(logits: Logits, targets: Tokens) -> NDArray[np.float64]:
    """-log softmax(logits)[target], shifted by the row's maximum so that nothing overflows.

    Args:
        logits: [T, V].
        targets: [T].
    """
    peak = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=-1, dtype=np.float64)
    chosen = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    nll: NDArray[np.float64] = np.log(total) + peak[:, 0].astype(np.float64) - chosen.astype(np.float64)
    return nll
