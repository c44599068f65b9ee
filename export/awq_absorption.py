"""Which neighbour of a linear layer can absorb the factors that AWQ multiplies its inputs with.

Neural Compressor looks for them in a trace of the model, where it finds nothing in today's transformers.  They are
known from the family: the norm before the projections that read it, the up projection before the down projection that
reads its product with the gate, the value projection before the output projection where each head has its own values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from prune_export.prune.families import family_of
from prune_export.prune.family import Family

# The norms of these multiply by 1 + weight, which the library does not know.
_OFFSET_NORMS = ("gemma2",)


def absorbers(model: Any, rounded: Collection[str]) -> list[dict[tuple[str, ...], str]]:
    """For each decoder layer, the linear layers that share an input, to what absorbs its factors.

    Args:
        model: causal language model.
        rounded: names of the linear layers that are rounded; others take no factors.
    """
    family = family_of(model.config)
    found = []
    for index, layer in enumerate(model.get_submodule(family.layers)):
        prefix = f"{family.layers}.{index}"
        pairs = {
            tuple(f"{prefix}.{name}" for name in names): f"{prefix}.{absorber}"
            for names, absorber in _pairs(family, layer)
        }
        found.append({names: absorber for names, absorber in pairs.items() if set(names) <= set(rounded)})
    return found


def _pairs(family: Family, layer: nn.Module) -> Iterator[tuple[tuple[str, ...], str]]:
    modules = dict(layer.named_modules())

    def there(part: str, *shorts: str) -> tuple[str, ...]:
        names = tuple(family.path(part, short) for short in shorts)
        return names if all(hasattr(modules.get(name), "weight") for name in names) else ()

    if family.name not in _OFFSET_NORMS:
        qkv = ("qkv",) if "qkv" in family.projections else ("q", "k", "v")
        for norm, readers in (
            (family.attention_norm, there("attention", *qkv)),
            (family.mlp_norm, there("mlp", *family.in_modules)),
        ):
            if readers and getattr(modules.get(norm), "weight", None) is not None:
                yield readers, norm
    if family.mlp_layout == "separate" and there("mlp", "up", "down"):
        yield there("mlp", "down"), family.path("mlp", "up")
    if family.heads == "separate" and there("attention", "v", "o"):
        (o,), (v,) = there("attention", "o"), there("attention", "v")
        if modules[o].weight.shape[1] == modules[v].weight.shape[0]:
            yield (o,), v


@contextmanager
def told(found: list[dict[tuple[str, ...], str]]) -> Iterator[None]:
    """The library asks this instead of its trace, for the block."""
    from neural_compressor.torch.algorithms.weight_only import awq

    def answer(*_arguments: Any, **_settings: Any) -> tuple[dict[int, list[tuple[str, ...]]], dict[Any, str]]:
        merged = {names: absorber for pairs in found for names, absorber in pairs.items()}
        return {index: list(pairs) for index, pairs in enumerate(found)}, merged

    before = awq._get_absorb_per_block
    awq._get_absorb_per_block = answer
    try:
        yield
    finally:
        awq._get_absorb_per_block = before
