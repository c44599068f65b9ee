"""What the search may do next: the candidates of each stage, in canonical order (attention before MLP, layer order)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from prune_export.shape import LayerShape, ModelShape

Structure: TypeAlias = tuple[LayerShape, ...]
Part: TypeAlias = Literal["attention", "mlp", "mixer", "recurrence"]
Stage: TypeAlias = Literal["blocks", "mlp", "attention"]


@dataclass(frozen=True)
class Change:
    """One sub-block gets a smaller size.

    Attributes:
        stage: the kind of candidate.
        layer: index of the layer.
        part: which sub-block of it, or the recurrence of a state-space mixer.
        size: KV heads, MLP channels or mixer units that are left.
    """

    stage: Stage
    layer: int
    part: Part
    size: int

    @property
    def block(self) -> int:
        """Number of the sub-block along the residual stream."""
        return 2 * self.layer + (self.part == "mlp")


def apply_change(structure: Structure, change: Change, dense: ModelShape) -> Structure:
    """The structure after a change; query heads follow their KV heads."""
    layer = structure[change.layer]
    if change.part == "mlp":
        layer = replace(layer, mlp_width=change.size)
    elif change.part == "mixer":
        layer = replace(layer, mixer_width=change.size, state_size=layer.state_size if change.size else 0)
    elif change.part == "recurrence":
        layer = replace(layer, state_size=0)
    else:
        whole = dense.layers[change.layer]
        layer = replace(layer, kv_heads=change.size, query_heads=change.size * (whole.query_heads // whole.kv_heads))
    return (*structure[: change.layer], layer, *structure[change.layer + 1 :])


def block_changes(structure: Structure) -> list[Change]:
    """Removal of each remaining attention (the last one stays) and of each remaining MLP.

    In a state-space model, of each remaining mixer (the last one stays) and of each recurrence that can go alone.
    """
    attentions = [index for index, layer in enumerate(structure) if layer.kv_heads]
    mlps = [index for index, layer in enumerate(structure) if layer.mlp_width]
    found = [Change("blocks", index, "attention", 0) for index in attentions if len(attentions) > 1]
    found += [Change("blocks", index, "mlp", 0) for index in mlps]
    mixers = [index for index, layer in enumerate(structure) if layer.mixer_width]
    found += [Change("blocks", index, "mixer", 0) for index in mixers if len(mixers) > 1]
    return found + [Change("blocks", index, "recurrence", 0) for index in mixers if structure[index].state_size]


def mlp_changes(structure: Structure, group: int) -> list[Change]:
    """The last group of channels of each remaining MLP that is wider than a group."""
    return [
        Change("mlp", index, "mlp", layer.mlp_width - group)
        for index, layer in enumerate(structure)
        if layer.mlp_width > group
    ]


def kv_changes(structure: Structure, group: int) -> list[Change]:
    """The last KV groups of each remaining attention that has more of them."""
    return [
        Change("attention", index, "attention", layer.kv_heads - group)
        for index, layer in enumerate(structure)
        if layer.kv_heads > group
    ]


def mixer_changes(structure: Structure, group: int, stage: Stage) -> list[Change]:
    """The last units of each remaining mixer that has more of them."""
    return [
        Change(stage, index, "mixer", layer.mixer_width - group)
        for index, layer in enumerate(structure)
        if layer.mixer_width > group
    ]


def smallest_structures(
    structure: Structure, dense: ModelShape, kv_group: int, mixer_group: int = 1
) -> list[Structure]:
    """What is left when all candidates are taken: a single attention or mixer, cut or whole, and nothing else."""
    found = []
    for index, layer in enumerate(structure):
        if layer.mixer_width:
            least = LayerShape(0, 0, 0, (layer.mixer_width - 1) % mixer_group + 1)
            found.append(tuple(least if at == index else LayerShape(0, 0, 0) for at in range(len(structure))))
    for index, layer in enumerate(structure):
        for heads in sorted({(layer.kv_heads - 1) % kv_group + 1, layer.kv_heads} if layer.kv_heads else ()):
            bare = (LayerShape(0, 0, 0),) * len(structure)
            found.append(apply_change(bare, Change("attention", index, "attention", heads), dense))
    return found
