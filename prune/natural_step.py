"""One natural-gradient step of a pruned model's output projections, towards the dense model's predictions.

The refit makes up for what goes in squares of the residual stream.  What counts are the predictions: with p the dense
model's, q the pruned one's and y the output of a sub-block's projection, y becomes (I + M) y with

    M = -s (F + l f I)^-1 B (C + l c I / 10)^-1,    B = E[g y^T],  F = E[d d^T],  C = E[y y^T],

g the gradient of KL(p || q) at y, d that of log q(t) at y for a token t drawn from q (the true Fisher information;
Kunstner, Hennig, Balles 2019, arXiv 1905.12558), f and c the mean diagonals of F and C: K-FAC (Martens, Grosse 2015,
arXiv 1503.05671) for a map of outputs, which has no more than D x D numbers to fit and so overfits little.  All
projections move at once.  How far, s, is the one thing that K-FAC cannot say, since it takes them for independent: the
divergence is measured on windows held out from the gradients, and no step wins ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prune_export.prune.sensitivity import head_pieces, len_out, probed
from prune_export.prune.sub_blocks import SubBlock, all_recorded, matrix, set_matrix, set_parameter, sub_blocks

_DAMPING = 1.0  # of the mean diagonal of F
_OUTPUT_DAMPING = 0.1  # of that of C: outputs are known better than gradients
_DRAWN = 4  # of every so many windows, one for F
_MOST_TRIES = 5  # of the step's size
_RESOLUTION = 1e-7  # nats a token; less is the rounding of float32
_SEED = 20244


@dataclass(frozen=True)
class Step:
    """What became of the step.

    Attributes:
        size: s, 0 where no step was better.
        before: divergence from the dense predictions on the held-out windows, nats a token.
        after: the same with the step.
        layer_tokens: layers run times tokens; a gradient counts as two more passes; a layer is two sub-blocks.
        head_tokens: tokens through the LM head, dense and pruned; a gradient counts as another pass.
    """

    size: float
    before: float
    after: float
    layer_tokens: float
    head_tokens: int


class _Sums:
    """B, F and C of one sub-block, float32 [D, D]."""

    def __init__(self, width: int) -> None:
        self.by_output, self.fisher, self.outputs = (torch.zeros(width, width) for _ in range(3))

    def direction(self) -> torch.Tensor:
        """M [D, D] float64 for a step of size one."""
        left = torch.linalg.solve(_damped(self.fisher, _DAMPING), -self.by_output.double())
        whole: torch.Tensor = torch.linalg.solve(_damped(self.outputs, _OUTPUT_DAMPING), left.T).T
        return whole


def natural_step(
    pruned: Any,
    windows: torch.Tensor,
    held: torch.Tensor,
    dense_logits: Callable[[int], torch.Tensor],
    *,
    stored: torch.dtype,
    passed: Callable[[int], None] | None = None,
) -> Step:
    """Moves a pruned model's output projections, in place, if that brings its predictions closer to the dense ones.

    Args:
        pruned: in evaluation mode; its weights are replaced, never written to.
        windows: [N, T] tokens.
        held: [N] bool, windows that only decide how far to go.
        dense_logits: of a window by its position, [T, V] float32.
        stored: precision in which the weights will be stored.
        passed: called with the number of windows of the gradients that are done.
    """
    blocks = sub_blocks(pruned)
    layers = len(blocks) / 2
    sums = {block.index: _Sums(len_out(block)) for block in blocks}
    generator = torch.Generator().manual_seed(_SEED)
    fitted, checked = (part.nonzero()[:, 0].tolist() for part in (~held, held))
    length = windows.shape[1]
    if not fitted or not checked:
        return Step(0.0, 0.0, 0.0, 0.0, 0)
    for position, at in enumerate(fitted):
        draw = position % _DRAWN == 0
        if not _learn(pruned, blocks, windows[at], dense_logits(at), sums, generator if draw else None):
            return Step(0.0, 0.0, 0.0, 3.0 * layers * position * length, 3 * position * length)
        if passed is not None:
            passed(position + 1)
    drawn = len(fitted[::_DRAWN])
    work = (3 * len(fitted) + 2 * drawn) * length
    head = (3 * len(fitted) + drawn) * length
    for found in sums.values():  # means over tokens
        found.by_output /= len(fitted) * length
        found.outputs /= len(fitted) * length
        found.fisher /= drawn * length
    moves = {index: found.direction().float() for index, found in sums.items()}
    del sums
    targets = [torch.log_softmax(dense_logits(at), -1) for at in checked]

    def divergence(size: float) -> float:
        with moved(blocks, moves, size):
            total = sum(_divergence(pruned, windows[at], log_p) for at, log_p in zip(checked, targets, strict=True))
        return total if math.isfinite(total) else math.inf

    tried = best_size(divergence, start=1.0 / len(blocks))
    count = len(checked) * length
    size = min(tried, key=lambda s: (tried[s], s))
    if not tried[0.0] - tried[size] > _RESOLUTION * count:
        size = 0.0
    after, passes = tried[size], len(tried)
    if size:
        kept = [(block.module, block.module.weight, block.module.bias) for block in blocks]
        for block in blocks:
            _apply(block, size * moves[block.index].double(), stored)
        if stored != torch.float32:  # rounding once more may cost what the step gains
            after, passes = divergence(0.0), passes + 1
            if not tried[0.0] - after > _RESOLUTION * count:
                size, after = 0.0, tried[0.0]
                for module, weight, bias in kept:
                    module.weight, module.bias = weight, bias
    return Step(size, tried[0.0] / count, after / count, layers * (work + passes * count), head + (passes + 1) * count)


def best_size(value: Callable[[float], float], *, start: float) -> dict[float, float]:
    """Values at 0 and a few sizes around the lowest: doubled or quartered from `start`, then the parabola's vertex."""
    tried = {0.0: value(0.0), start: value(start)}
    at = start
    down = tried[start] >= tried[0.0]
    while len(tried) < _MOST_TRIES - 1:
        following = at / 4 if down else 2 * at
        tried[following] = value(following)
        better = tried[following] < tried[0.0 if down else at]
        at = following
        if better == down:
            break
    known = sorted(tried)
    lowest = min(known, key=lambda s: tried[s])
    place = min(max(known.index(lowest), 1), len(known) - 2)
    vertex = _vertex([(s, tried[s]) for s in known[place - 1 : place + 2]])
    if vertex is not None and 0.0 < vertex <= 2 * known[-1] and vertex not in tried:
        tried[vertex] = value(vertex)
    return tried


def _vertex(points: list[tuple[float, float]]) -> float | None:
    """Where the parabola through three points is lowest, if it opens upwards."""
    (a, fa), (b, fb), (c, fc) = points
    first, second = (fb - fa) / (b - a), (fc - fb) / (c - b)
    bend = (second - first) / (c - a)
    return (a + b) / 2 - first / (2 * bend) if bend > 0.0 else None


@contextmanager
def moved(blocks: list[SubBlock], moves: dict[int, torch.Tensor], size: float) -> Iterator[None]:
    """The model with a step of some size, as long as the context is open."""

    def hook(move: torch.Tensor) -> Any:
        return lambda _module, _inputs, output: output + size * (output @ move.T.to(output.dtype))

    with ExitStack() as stack:
        for block in blocks if size else ():
            stack.callback(block.module.register_forward_hook(hook(moves[block.index])).remove)
        yield


def _apply(block: SubBlock, move: torch.Tensor, stored: torch.dtype) -> None:
    module = block.module
    weight = matrix(module).double()
    set_matrix(module, (weight + move @ weight).to(stored))
    if module.bias is not None:
        bias = module.bias.double()
        set_parameter(module, "bias", (bias + move @ bias).to(stored))


def _damped(system: torch.Tensor, share: float) -> torch.Tensor:
    wide = system.double()
    wide.diagonal().add_(share * (float(wide.diagonal().mean()) or 1.0))
    return wide


def _learn(
    model: Any,
    blocks: list[SubBlock],
    row: torch.Tensor,
    dense: torch.Tensor,
    sums: dict[int, _Sums],
    generator: torch.Generator | None,
) -> bool:
    """Adds a window [T] to the sums, with drawn gradients if there is a generator; whether everything was finite."""
    with torch.inference_mode(False), all_recorded(blocks) as seen, probed(blocks) as probes, torch.enable_grad():
        hidden = model.base_model(input_ids=row[None].clone(), use_cache=False).last_hidden_state
        pulls = _pulls(model, hidden[0].detach(), dense, generator)
        if pulls is None:
            return False
        found = [
            torch.autograd.grad(hidden, list(probes.values()), pull[None], retain_graph=rank + 1 < len(pulls))
            for rank, pull in enumerate(pulls)
        ]
    outputs = {block.index: calls[-1][1].detach() for block, calls in zip(blocks, seen, strict=True)}
    for position, index in enumerate(probes):
        output, mine = outputs[index].flatten(0, -2).float(), sums[index]
        gradient = found[0][position].reshape(output.shape).float()
        mine.by_output += gradient.T @ output
        mine.outputs += output.T @ output
        if len(found) > 1:
            gradient = found[1][position].reshape(output.shape).float()
            mine.fisher += gradient.T @ gradient
    return True


@torch.no_grad()
def _pulls(
    model: Any, hidden: torch.Tensor, dense: torch.Tensor, generator: torch.Generator | None
) -> list[torch.Tensor] | None:
    """Gradients [T, D] at the head's input [T, D] of the divergence and, if asked for, of log q(t), t drawn from q."""
    parts: list[list[torch.Tensor]] = []
    for piece in head_pieces(model, hidden):
        if piece is None:
            return None
        pulls = [piece.back(piece.p - torch.softmax(dense[piece.rows], -1))]
        parts.append(pulls if generator is None else [*pulls, piece.drawn(generator)[:, 0]])
    return [torch.cat(part).to(hidden.dtype) for part in zip(*parts, strict=True)]


@torch.inference_mode()
def _divergence(model: Any, row: torch.Tensor, log_p: torch.Tensor) -> float:
    """KL(dense || pruned) summed over a window's tokens, in nats."""
    log_q = torch.log_softmax(model(input_ids=row[None], use_cache=False).logits[0].float(), -1)
    return float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
