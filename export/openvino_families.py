"""How each family is traced to OpenVINO: one row each.

The graph comes from the family's own modules, so a row holds only what the tracer must be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prune_export.errors import BadInputError

_PRUNED_PREFIX = "prune_"


@dataclass(frozen=True)
class Row:
    """What the tracer must be told about a family.

    Attributes:
        state: what a layer keeps between calls: keys and values, or the states of a convolution and a recurrence.
    """

    state: Literal["attention", "mixer"] = "attention"


ROWS: dict[str, Row] = {
    "llama": Row(),
    "mistral": Row(),
    "qwen2": Row(),
    "qwen3": Row(),
    "phi3": Row(),
    "gemma2": Row(),
    "gpt_neox": Row(),
    "opt": Row(),
    "gpt2": Row(),
    "mamba": Row(state="mixer"),
}


def row_of(model_type: str) -> tuple[str, Row]:
    """Stock name and row of an architecture, dense or pruned.

    Raises:
        BadInputError: it has no row.
    """
    name = model_type.removeprefix(_PRUNED_PREFIX)
    if name not in ROWS:
        raise BadInputError(f'architecture "{model_type}" has no OpenVINO export: use one of {", ".join(ROWS)}')
    return name, ROWS[name]
