"""What stays of one parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cut:
    """What stays of one parameter.

    Attributes:
        dim: dimension that is cut.
        indices: kept ones along it, in the order that they get.
        scale: factor for what is kept.
    """

    dim: int
    indices: torch.Tensor
    scale: float = 1.0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The kept part; the tensor itself when that is all of it, in its own order."""
        whole = torch.equal(self.indices, torch.arange(tensor.shape[self.dim]))
        kept = tensor if whole else tensor.index_select(self.dim, self.indices)
        return kept if self.scale == 1.0 else kept * self.scale


def expand(units: Sequence[int], size: int) -> torch.Tensor:
    """Indices of units of `size` neighbours each."""
    return (torch.tensor(units, dtype=torch.long)[:, None] * size + torch.arange(size)).reshape(-1)
