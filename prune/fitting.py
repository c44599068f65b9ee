"""Ridge regressions whose strength is chosen on tokens that were held out, from moments alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from prune_export.prune.closed_form import mean_diagonal, regression

_PROJECTED = 256  # outputs that a ridge is chosen by: of more, so many random sums of them serve as well
_SEED = 20245
_FIRST = 3  # of RIDGES, the one that is most often best
RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


@dataclass(frozen=True)
class Update:
    """What to add to a projection.

    Attributes:
        ridge: share of the moment's mean diagonal.
        weight: [R, n] float64.
        bias: [R] float64; zeros for a projection without one.
        gain: by how much it lowers the summed squared error of the held-out tokens.
    """

    ridge: float
    weight: torch.Tensor
    bias: torch.Tensor
    gain: float


class Sums:
    """Moments of a fit, float64, of the tokens that are fitted and of those held out; a bias makes them central."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0.0
        self.x, self.r = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.rx = torch.zeros(outputs, inputs, dtype=torch.float64)
        self.rr = 0.0

    def add(self, x: torch.Tensor, r: torch.Tensor, weight: torch.Tensor) -> None:
        """x [n, inputs], r [n, outputs], weight [n, 1] of the squared errors."""
        wx = x * weight
        self.count += float(weight.sum())
        self.x += wx.sum(0, dtype=torch.float64)
        self.r += (r * weight).sum(0, dtype=torch.float64)
        self.xx += x.T @ wx
        self.rx += r.T @ wx
        self.rr += float((r * r * weight).sum(dtype=torch.float64))

    def __add__(self, other: Sums) -> Sums:
        total = Sums(len(self.x), len(self.r))
        for name in ("count", "x", "r", "xx", "rx", "rr"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def projected(self) -> Sums:
        """The same fit of fewer outputs: random sums that keep inner products and squares on average."""
        outputs = len(self.r)
        if outputs <= _PROJECTED:
            return self
        generator = torch.Generator().manual_seed(_SEED)
        signs = torch.randint(0, 2, (_PROJECTED, outputs), generator=generator).double().mul_(2.0).sub_(1.0)
        signs /= math.sqrt(_PROJECTED)
        few = copy.copy(self)
        few.r, few.rx = signs @ self.r, signs @ self.rx
        return few

    def solve(self, ridge: float, *, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(weight update, bias update)."""
        system, wanted = self.xx, self.rx
        if bias:
            system = self.xx - torch.outer(self.x, self.x) / self.count
            wanted = self.rx - torch.outer(self.r, self.x) / self.count
        delta = regression(system, wanted, ridge=ridge, scale=mean_diagonal(system))
        shift = (self.r - delta @ self.x) / self.count if bias else torch.zeros_like(self.r)
        return delta, shift

    def best_share(self, delta: torch.Tensor, shift: torch.Tensor) -> tuple[float, float]:
        """(share of an update between 0 and 1 that lowers the summed squared error most, by how much)."""
        slope = float((delta * self.rx).sum()) + float(shift @ self.r)
        curve = float(((delta @ self.xx) * delta).sum()) + 2.0 * float(shift @ (delta @ self.x))
        curve += self.count * float(shift @ shift)
        if slope <= 0.0 or curve <= 0.0:
            return 0.0, 0.0
        share = min(1.0, slope / curve)
        return share, 2.0 * share * slope - share * share * curve


def climbed(value: Callable[[int], float], *, start: int, last: int) -> int:
    """Position of a peak of `value` on 0..last, uphill from `start`: too weak and too strong a ridge both cost.

    Where nothing is gained at the start, the way is downhill from the last: what the strongest ridge does not gain, a
    weaker one overfits.
    """
    start = start if value(start) > 0.0 else last
    best = start
    for step in (1, -1):
        while 0 <= best + step <= last and value(best + step) > value(best):
            best += step
        if best != start:
            break
    return best


def best_update(fitted: Sums, held: Sums, *, bias: bool) -> Update | None:
    """The update that serves the held-out tokens best, fitted to all of them, or None where no update is better.

    A fit is also scaled down by the share of it that holds on the held-out tokens.

    Args:
        fitted, held: moments of the two parts of the tokens.  With nothing held out the strongest ridge is taken.
        bias: the projection has one.
    """
    if held.count == 0:
        return Update(RIDGES[-1], *fitted.solve(RIDGES[-1], bias=bias), 0.0)
    few, others = fitted.projected(), held.projected()
    tried: dict[int, tuple[float, float]] = {}  # position of a ridge to (gain, share)

    def gain_at(position: int) -> float:
        if position not in tried:
            share, gain = others.best_share(*few.solve(RIDGES[position], bias=bias))
            tried[position] = (gain, share)
        return tried[position][0]

    best = climbed(gain_at, start=_FIRST, last=len(RIDGES) - 1)
    gain, share = tried[best]
    if gain <= 0.0:
        return None
    ridge = RIDGES[best]
    weight, shift = (fitted + held).solve(ridge, bias=bias)
    return Update(ridge, share * weight, share * shift, gain)
