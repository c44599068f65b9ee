"""What is kept of each layer: the plan that surgery executes.  Plain JSON; can be saved, edited and replayed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.records import SPARSE, digest, from_json, to_json
from prune_export.shape import LayerShape, ModelShape


@dataclass(frozen=True)
class LayerKeep:
    """What stays of one layer, as indices into the dense layer, ascending.

    Attributes:
        kv_groups: kept KV groups (a KV head with its H/K query heads); empty when the attention goes.
        mlp_channels: kept MLP channels; empty when the MLP goes.
        mixer_units: kept units of a state-space mixer; empty when it goes.
        recurrence: a mixer whose recurrence can go alone keeps it.
    """

    kv_groups: tuple[int, ...]
    mlp_channels: tuple[int, ...]
    mixer_units: tuple[int, ...] = field(default=(), metadata=SPARSE)
    recurrence: bool = field(default=True, metadata=SPARSE)


@dataclass(frozen=True)
class PlanStep:
    """One step of the search.

    Attributes:
        stage: "blocks", "mlp", "attention" or "mixer".
        layer: index of the layer in the dense model.
        part: "attention", "mlp", "mixer" or "recurrence".
        size: KV heads, MLP channels or mixer units left in that sub-block after the step.
        perplexity: calibration perplexity after the step.
        cost: cost of the whole model after the step, in the plan's cost unit.
    """

    stage: str
    layer: int
    part: str
    size: int
    perplexity: float
    cost: float


@dataclass(frozen=True)
class PrunePlan:
    """Everything that surgery needs, and how it came about.

    Attributes:
        source: the model as the user named it.
        source_digest: sha256 over the model's configuration and weights; a plan fits no other model.
        dense: shape of the model before pruning.
        keep: one entry per layer of the dense model.
        method: the search and its settings in words.
        cost_unit: what `PlanStep.cost` counts: "parameters" or "seconds".
        calibration_digest: sha256 of the calibration tokens.
        history: the search's steps in order.
        compensated: the weights that stay are fitted again when the plan is made real, on the calibration text.
        uniform: the layers that stay share one shape, and the model is written as a stock one of its family.
    """

    source: str
    source_digest: str
    dense: ModelShape
    keep: tuple[LayerKeep, ...]
    method: str
    cost_unit: str
    calibration_digest: str
    history: tuple[PlanStep, ...] = ()
    compensated: bool = field(default=False, metadata=SPARSE)
    uniform: bool = field(default=False, metadata=SPARSE)

    def __post_init__(self) -> None:
        if len(self.keep) != len(self.dense.layers):
            raise ValueError(f"keep has {len(self.keep)} layers, the model has {len(self.dense.layers)}")
        for index, (kept, layer) in enumerate(zip(self.keep, self.dense.layers, strict=True)):
            _check_indices(kept.kv_groups, layer.kv_heads, f"layer {index}: kv_groups")
            _check_indices(kept.mlp_channels, layer.mlp_width, f"layer {index}: mlp_channels")
            _check_indices(kept.mixer_units, layer.mixer_width, f"layer {index}: mixer_units")
        if self.uniform and self.target.common_layer is None:
            raise ValueError(
                "the plan says uniform, but its layers differ, or lack an attention or MLP: give all layers the same "
                "number of kv_groups and mlp_channels, or neither, or set uniform to false"
            )

    @property
    def target(self) -> ModelShape:
        """Shape of the pruned model, derived from `dense` and `keep`."""
        return self.dense.with_layers(
            tuple(
                LayerShape(
                    query_heads=len(kept.kv_groups) * (layer.query_heads // layer.kv_heads if layer.kv_heads else 0),
                    kv_heads=len(kept.kv_groups),
                    mlp_width=len(kept.mlp_channels),
                    mixer_width=len(kept.mixer_units),
                    state_size=layer.state_size if kept.mixer_units and kept.recurrence else 0,
                )
                for kept, layer in zip(self.keep, self.dense.layers, strict=True)
            )
        )

    @property
    def ratio(self) -> float:
        """Removed share of the dense model's total parameters."""
        return 1.0 - self.target.parameters() / self.dense.parameters()

    def digest(self) -> str:
        """sha256 of the plan's content."""
        return digest(self)

    def save(self, path: Path) -> None:
        """Writes the plan as JSON; index lists are written as ranges, "0-2,5"."""
        data = to_json(self)
        data["keep"] = [
            {key: _ranges(value) if isinstance(value, list) else value for key, value in kept.items()}
            for kept in data["keep"]
        ]
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf8")

    @classmethod
    def load(cls, path: Path) -> PrunePlan:
        """Reads what `save` wrote, edited or not.

        Raises:
            BadInputError: no such file, no JSON, unknown keys, indices out of range; every mistake at once.
        """
        try:
            data = json.loads(path.read_text(encoding="utf8"))
        except FileNotFoundError:
            raise BadInputError(f"plan {path} does not exist") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInputError(f"plan {path} cannot be read as JSON: {error}") from None
        if isinstance(data, dict) and isinstance(data.get("keep"), list):
            data["keep"] = [_expand(item, f"{path}: layer {i}") for i, item in enumerate(data["keep"])]
        return from_json(cls, data, where=str(path))


def keep_all(shape: ModelShape) -> tuple[LayerKeep, ...]:
    """The plan entries that remove nothing."""
    return tuple(
        LayerKeep(tuple(range(layer.kv_heads)), tuple(range(layer.mlp_width)), tuple(range(layer.mixer_width)))
        for layer in shape.layers
    )


def _check_indices(indices: tuple[int, ...], size: int, where: str) -> None:
    if list(indices) != sorted(set(indices)):
        raise ValueError(f"{where} must be ascending without repeats")
    if indices and (indices[0] < 0 or indices[-1] >= size):
        raise ValueError(f"{where} must lie in 0..{size - 1}, got {indices[0]}..{indices[-1]}")


def _ranges(indices: list[int]) -> str:
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def _expand(item: Any, where: str) -> Any:
    if not isinstance(item, dict):
        return item
    return {key: _indices(value, f"{where}: {key}") if isinstance(value, str) else value for key, value in item.items()}


def _indices(text: str, where: str) -> list[int]:
    found: list[int] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise BadInputError(f'{where}: "{part}" is no index or range such as 0-127')
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found
