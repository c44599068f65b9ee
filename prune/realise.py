"""Makes a plan real: surgery, and where the plan asks for it, the fit of what stays to what goes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open

from prune_export.files import release_pages
from prune_export.plan import PrunePlan
from prune_export.prune.loading import load_model, weight_files
from prune_export.prune.refit import refit
from prune_export.prune.stock import stock_model
from prune_export.prune.streams import DenseStreams
from prune_export.prune.surgery import prune_model

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def realise(
    source: Path,
    plan: PrunePlan,
    tokens: NDArray[Any] | None,
    *,
    streams: DenseStreams | None = None,
    progress: Callable[[float, float, str], None] | None = None,
) -> Any:
    """The physically smaller model of a plan, in fp32; fitted weights are rounded to the source's stored precision.

    A uniform plan gives a model of its family's stock class.

    Args:
        source: directory of the dense checkpoint.
        plan: of that model.
        tokens: [N, T] calibration tokens; None will do where the plan is not compensated.
        streams: the dense model's on these tokens, as far as a search has kept them.
        progress: called with (done, total, detail).

    Raises:
        BadInputError: as `load_model`, `prune_model` and `stock_model`, or activations that are not finite.
    """
    dense = load_model(source)
    pruned = prune_model(dense, plan)
    release_pages(source)  # the surgery looked at every weight; the refit needs few of them again
    if plan.compensated:
        assert tokens is not None, "a compensated plan needs calibration tokens"
        windows = torch.as_tensor(tokens).long()
        refit(dense, pruned, windows, stored=stored_dtype(source), streams=streams, progress=progress)
    return stock_model(pruned) if plan.uniform else pruned


def stored_precision(source: Path) -> str:
    """`stored_dtype` by the name of the precision."""
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(stored_dtype(source), "fp32")


def stored_dtype(source: Path) -> torch.dtype:
    """The checkpoint's own weight type: kept weights are unchanged, so nothing is gained by a wider one.

    That of most of its weights: norms and the like are often wider, masks are no weights at all.
    """
    counts: Counter[torch.dtype] = Counter()
    with safe_open(weight_files(source)[0], framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  the file is no mapping
            tensor = file.get_slice(name)
            if tensor.get_dtype() in _STORED:
                counts[_STORED[tensor.get_dtype()]] += math.prod(tensor.get_shape())
    return counts.most_common(1)[0][0] if counts else torch.float32
