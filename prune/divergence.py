"""How far a changed model's predictions are from the dense model's, on fixed tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prune_export.prune.candidates import Structure
from prune_export.prune.layer_runner import LayerRunner
from prune_export.prune.sub_blocks import block_name, is_finite, not_finite

_BATCH_TOKENS = 2048
_HEAD_BYTES = 16 << 20
# Numbers that an effect is kept in.  Inner products are off by about 1 / sqrt(8192) of the norms where tokens change in
# ways of their own, by more where they change alike, since all share the same signs.
_SKETCH = 8192
_SEED = 20241


@dataclass(frozen=True)
class Effect:
    """What a change does to the predictions.

    Attributes:
        per_sequence: [N] mean over a sequence's tokens of KL(dense || changed), in nats.
        sketch: [S] random projection of sqrt(p) (z - E_p z) / sqrt(2 tokens), where z = log q - log p: to second order
            |sketch|^2 is the divergence, and effects of several changes add up.
    """

    per_sequence: torch.Tensor
    sketch: torch.Tensor

    @property
    def divergence(self) -> float:
        """Mean over all tokens, in nats; infinite when something overflowed."""
        value = float(self.per_sequence.mean())
        return value if math.isfinite(value) else math.inf


class Divergence:
    """Runs suffixes of the model from cached states of the dense one.

    Args:
        runner: of the model; its weights may be changed between calls.
        tokens: [N, T].

    Attributes:
        block_evaluations: sub-blocks run over all tokens so far, the dense pass included.
        evaluations: times that all tokens went through the LM head; a fraction where some were not needed.
    """

    def __init__(self, runner: LayerRunner, tokens: torch.Tensor) -> None:
        self._runner = runner
        self._dense: Structure = runner.shape.layers
        self._tokens = tokens
        self._blocks = 2 * len(self._dense)
        self._states: dict[int, torch.Tensor] = {0: runner.embed(tokens)}
        self._log_p: torch.Tensor | None = None
        generator = torch.Generator().manual_seed(_SEED)
        width = math.ceil(_SKETCH / tokens.numel())
        signs = torch.randint(0, 2, (runner.shape.vocab_size, width), generator=generator, dtype=torch.int8)
        self._signs = (2 * signs - 1).float() / math.sqrt(width)
        self.block_evaluations = 0
        self.evaluations = 0.0

    @torch.inference_mode()
    def learn_dense(self) -> float:
        """Runs the dense model once; returns its mean NLL.  Every later divergence is from it.

        Raises:
            BadInputError: activations that are not finite; names the sub-block.
        """
        self.evaluations += 1
        hidden = self._states[0]
        for block in range(self._blocks):
            hidden = self._run_block(hidden, block, self._dense)
            if not is_finite(hidden):
                layer = self._dense[block // 2]
                part = "mlp" if block % 2 and layer.mlp_width else "attention" if layer.kv_heads else "mixer"
                raise not_finite(block_name(block, part))
        # Filled piece by piece: of a large vocabulary it is the largest tensor of the search.
        log_p = torch.empty(self._tokens.numel(), self._runner.shape.vocab_size)
        at = 0
        for rows in self._rows(hidden):
            torch.log_softmax(self._runner.logits(rows), -1, out=log_p[at : at + len(rows)])
            at += len(rows)
        self._log_p = log_p
        return self._nll(log_p)

    @torch.inference_mode()
    def keep_state(self, block: int) -> None:
        """Caches the dense residual stream at the input of a sub-block; those two and more before it are dropped."""
        self._states = {index: state for index, state in self._states.items() if index >= block - 3 or index == 0}
        if block not in self._states:
            self._states[block] = self._advance(block, self._dense)

    @torch.inference_mode()
    def of(self, start: int, structure: Structure) -> Effect:
        """The effect of what was changed from sub-block `start` on."""
        effect = self.within(math.inf, start, structure)
        assert effect is not None, "everything is within infinity"
        return effect

    @torch.inference_mode()
    def within(self, limit: float, start: int, structure: Structure) -> Effect | None:
        """The effect of what was changed from sub-block `start` on, or None once it is sure to exceed a divergence.

        No token's divergence is negative, so what the tokens so far add to the mean is a lower bound of it.
        """
        assert self._log_p is not None, "learn_dense comes first"
        hidden = self.run(start, structure)
        at, total, count = 0, 0.0, self._tokens.numel()
        sketches, divergences = [], []
        for rows in self._rows(hidden):
            log_p = self._log_p[at : at + len(rows)]
            log_q = torch.log_softmax(self._runner.logits(rows), -1)
            p = log_p.exp()
            z = log_q - log_p
            mean = (p * z).sum(-1, keepdim=True)
            divergences.append(-mean[:, 0].double())
            total += float(divergences[-1].sum())
            at += len(rows)
            self.evaluations += len(rows) / count
            if total / count > limit:
                return None
            sketches.append((p.sqrt() * (z - mean)) @ self._signs)
        sketch = torch.cat(sketches).reshape(-1) / math.sqrt(2 * at)
        return Effect(torch.cat(divergences).view(len(self._tokens), -1).mean(1), sketch)

    def run(self, start: int, structure: Structure) -> torch.Tensor:
        """Last residual stream [N, T, D] with the sub-blocks from `start` on as in `structure`."""
        return self._advance(self._blocks, structure, start=start)

    def _advance(self, end: int, structure: Structure, *, start: int | None = None) -> torch.Tensor:
        limit = end if start is None else start
        known = max(index for index in self._states if index <= limit)
        state = self._states[known]
        for block in range(known, limit):
            state = self._run_block(state, block, self._dense)
        for block in range(limit, end):
            state = self._run_block(state, block, structure)
        return state

    def _run_block(self, state: torch.Tensor, block: int, structure: Structure) -> torch.Tensor:
        if not self._runner.changes(block, structure):
            return state
        self.block_evaluations += 1
        step = max(1, _BATCH_TOKENS // state.shape[1])
        return torch.cat([self._runner.run_block(part, block, structure) for part in state.split(step)])

    def _rows(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        step = max(1, _HEAD_BYTES // (4 * self._runner.shape.vocab_size))
        rows: tuple[torch.Tensor, ...] = hidden.reshape(-1, hidden.shape[-1]).split(step)
        return rows

    def _nll(self, log_q: torch.Tensor) -> float:
        """Mean NLL of the text's own next tokens; the last token of a sequence predicts nothing."""
        rows = log_q.view(*self._tokens.shape, -1)[:, :-1]
        return float(-rows.gather(2, self._tokens[:, 1:, None]).mean(dtype=torch.float64))
