"""Tiny models for one-shot sparsity: every family, dense and pruned in its structure."""

from __future__ import annotations

from typing import Any

from tiny_models import ONE_OF_EACH, plan_of, tiny_model  # type: ignore[import-not-found]

from prune_export.plan import LayerKeep, keep_all
from prune_export.prune.shapes import model_shape
from prune_export.prune.surgery import prune_model

PRUNED = tuple(f"{variant}-pruned" for variant in ONE_OF_EACH)
KINDS = (*ONE_OF_EACH, *PRUNED)


def sparse_model(kind: str, *, seed: int = 0) -> Any:
    """Two layers, hidden 32; of a pruned model four, of which one has nothing left and the others parts."""
    if not kind.endswith("-pruned"):
        return tiny_model(kind, seed=seed, layers=2)
    dense = tiny_model(kind.removesuffix("-pruned"), seed=seed, layers=4)
    shape, whole = model_shape(dense.config), keep_all(model_shape(dense.config))[0]
    if shape.mixer is not None:
        cuts = {1: LayerKeep((), ()), 2: LayerKeep((), (), whole.mixer_units[1::2])}
    else:
        cuts = {0: LayerKeep((), whole.mlp_channels), 1: LayerKeep((1,), whole.mlp_channels[::3]),
                2: LayerKeep(whole.kv_groups, ()), 3: LayerKeep((), ())}  # fmt: skip
    return prune_model(dense, plan_of(dense, cuts))
