"""Which runner of single sub-blocks a model gets."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from prune_export.prune.candidates import Structure
from prune_export.prune.decoder import Decoder
from prune_export.prune.families import family_of
from prune_export.prune.layer_runner import LayerRunner
from prune_export.prune.reorder import LayerOrder
from prune_export.shape import ModelShape


class Runner(Protocol):
    """Runs a model sub-block by sub-block, at any width; `Decoder` and `LayerRunner` say how.

    Attributes:
        shape: of the model.
        dtype: of its parameters.
    """

    shape: ModelShape
    dtype: torch.dtype

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [N, T] to the first residual stream [N, T, D]."""
        ...

    def changes(self, block: int, structure: Structure) -> bool:
        """Whether `run_block` returns anything else than its input."""
        ...

    def run_block(self, hidden: torch.Tensor, block: int, structure: Structure) -> torch.Tensor:
        """hidden [B, T, D] through sub-block `block` at its width."""
        ...

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Last residual stream [R, D] to logits [R, V] in fp32."""
        ...


def make_runner(model: Any, orders: tuple[LayerOrder, ...]) -> Runner:
    """The fastest runner that knows the model's family.

    Args:
        model: of a supported family, in evaluation mode.
        orders: importance orders that widths are counted in.
    """
    return Decoder(model, orders) if family_of(model.config).llama_like else LayerRunner(model, orders)
