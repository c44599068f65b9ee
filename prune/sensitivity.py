"""Which directions of a sub-block's output the predictions depend on: its Fisher information.

F = E[g g^T], g the gradient of log p(y) at the output, y drawn from the model's own predictions (the true Fisher, not
the empirical one; Kunstner, Hennig, Balles 2019, arXiv 1905.12558).  An output error e costs about e^T F e / 2 nats, so
W^T F W in the place of W^T W ranks units by what the predictions lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prune_export.prune.families import family_of
from prune_export.prune.sub_blocks import SubBlock

# Of the mean diagonal: a few thousand gradients do not show every direction, and later fits aim at all of them.
_DAMPING = 0.1
PROBE_TOKENS = 8192  # that gradients are taken of
_SEED = 20242
_HEAD_BYTES = 16 << 20


def output_sensitivity(model: Any, blocks: list[SubBlock], windows: torch.Tensor) -> dict[int, torch.Tensor]:
    """Symmetric roots [D, D] float32 of each sub-block's Fisher information, by index; their scale means nothing.

    Args:
        model: in evaluation mode, parameters without gradients.
        blocks: of the model.
        windows: [N, T] tokens, about `PROBE_TOKENS`; a forward and a backward pass each.
    """
    generator = torch.Generator().manual_seed(_SEED)
    sums = {block.index: torch.zeros(len_out(block), len_out(block)) for block in blocks}
    for row in windows:
        with probed(blocks) as probes, torch.enable_grad():
            hidden = model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0]
            above = drawn_gradients(model, hidden.detach(), generator)
            if above is None:
                continue  # the walk over the same tokens names the layer
            gradients = torch.autograd.grad(hidden, list(probes.values()), above[0])
        for index, gradient in zip(probes, gradients, strict=True):
            rows = gradient.reshape(-1, gradient.shape[-1]).float()
            sums[index] += rows.T @ rows
    return {index: _root(total) for index, total in sums.items()}


@torch.no_grad()
def drawn_gradients(
    model: Any, hidden: torch.Tensor, generator: torch.Generator, *, draws: int = 1
) -> torch.Tensor | None:
    """Gradients of log p(y) at the head's input, y drawn from p: [draws, T, D]; None where logits are not finite.

    By hand, a piece at a time: autograd would keep several tensors of the vocabulary's size.

    Args:
        model: whose head it is.
        hidden: [T, D], what enters the head.
        generator: of the draws.
        draws: of each token.
    """
    parts = []
    for piece in head_pieces(model, hidden):
        if piece is None:
            return None
        parts.append(piece.drawn(generator, draws).transpose(0, 1))
    return torch.cat(parts, 1).to(hidden.dtype)


@dataclass(frozen=True)
class HeadPiece:
    """Predictions of some tokens, and the way back from their logits to the head's input.

    Attributes:
        rows: which tokens.
        p: [R, V] predictions.
        slope: [R, V] of the soft cap, or None without one.
        table: [V, D].
    """

    rows: slice
    p: torch.Tensor
    slope: torch.Tensor | None
    table: torch.Tensor

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """Gradient [R, D] at the head's input of one at the logits, [R, V]."""
        return (gradient if self.slope is None else gradient * self.slope) @ self.table

    def drawn(self, generator: torch.Generator, draws: int = 1) -> torch.Tensor:
        """Gradients [R, draws, D] at the head's input of log p(y), y drawn from p."""
        tokens = torch.multinomial(self.p, draws, replacement=True, generator=generator)
        towards = self.table[tokens]
        if self.slope is not None:
            towards = towards * self.slope.gather(1, tokens)[..., None]
        return towards - self.back(self.p)[:, None]


def head_pieces(model: Any, hidden: torch.Tensor) -> Iterator[HeadPiece | None]:
    """What enters the head, [T, D], a piece at a time; None in the place of logits that are not finite."""
    head, at = model.get_output_embeddings(), 0
    name = family_of(model.config).softcap
    cap = getattr(model.config, name) if name else None
    table = head.weight.float()
    for rows in hidden.split(max(1, _HEAD_BYTES // (4 * len(table)))):
        logits, slope = head(rows).float(), None
        if not bool(torch.isfinite(logits).all()):
            yield None
            return
        if cap is not None:
            bent = torch.tanh(logits / cap)
            logits, slope = cap * bent, 1.0 - bent.square()
        yield HeadPiece(slice(at, at + len(rows)), torch.softmax(logits, -1), slope, table)
        at += len(rows)


@contextmanager
def probed(blocks: Sequence[SubBlock]) -> Iterator[dict[int, torch.Tensor]]:
    """Zeros on the outputs of the sub-blocks' projections that ask for a gradient, by index, once the model has run."""
    probes: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.module.register_forward_hook(_probe(probes, block.index)).remove)
        yield probes


def len_out(block: SubBlock) -> int:
    """Outputs of a sub-block's projection."""
    return int(block.module.weight.numel() // block.columns.numel())


def _probe(probes: dict[int, torch.Tensor], index: int) -> Any:
    """Adds zeros that ask for a gradient to a module's output."""

    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        probes[index] = torch.zeros_like(output, requires_grad=True)
        return output + probes[index]

    return hook


def _root(information: torch.Tensor) -> torch.Tensor:
    """Symmetric root of the damped matrix."""
    system = information.double()
    mean = float(system.diagonal().mean()) or 1.0
    system.diagonal().add_(_DAMPING * mean)
    values, vectors = torch.linalg.eigh(system / mean)
    root: torch.Tensor = ((vectors * values.clamp_min(0.0).sqrt()) @ vectors.T).float()
    return root
