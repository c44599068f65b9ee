"""A 2:4 sparse model on a CUDA GPU's sparse tensor cores, through torch's semi-structured tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from prune_export.errors import BadInputError
from prune_export.prune.layer_walk import decoder_layers
from prune_export.prune.sparsify import pattern_holds
from prune_export.sparsity import Pattern

_TWO_FOUR = Pattern(0.5, 2, 4)
_AMPERE = (8, 0)


def to_semi_structured(model: Any) -> int:
    """Moves a model to the GPU in float16 and packs the decoder's 2:4 projections, in place; how many were packed.

    Raises:
        BadInputError: no GPU with sparse tensor cores, or no projection that is 2:4 sparse.
    """
    linears = [module for layer in decoder_layers(model) for module in layer.modules() if isinstance(module, nn.Linear)]
    fitting = [module for module in linears if _is_two_four(module.weight)]
    if not fitting:
        raise BadInputError("no projection is 2:4 sparse: make one with sparsify --pattern 2:4")
    if not torch.cuda.is_available():
        raise BadInputError("no CUDA device: torch computes with 2:4 sparse weights on an NVIDIA GPU only")
    if torch.cuda.get_device_capability() < _AMPERE:
        raise BadInputError(
            f"{torch.cuda.get_device_name()} has no sparse tensor cores: compute capability 8.0 is needed"
        )
    model.to("cuda", torch.float16)
    for module in fitting:
        module.weight = nn.Parameter(to_sparse_semi_structured(module.weight.detach()), requires_grad=False)
    return len(fitting)


def _is_two_four(weight: torch.Tensor) -> bool:
    return weight.shape[1] % _TWO_FOUR.group == 0 and pattern_holds(weight, _TWO_FOUR)
