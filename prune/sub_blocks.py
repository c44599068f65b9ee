"""The sub-blocks of a model along its residual stream, and the projection through which each one writes to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prune_export.errors import BadInputError
from prune_export.prune.families import family_of
from prune_export.prune.layout import output_units, row_matrix
from prune_export.prune.shapes import model_shape
from prune_export.shape import LayerShape

BlockPart: TypeAlias = Literal["attention", "mlp", "mixer"]


@dataclass(frozen=True)
class SubBlock:
    """One attention, MLP or mixer.

    Attributes:
        index: 2 i for the attention or mixer of layer i, 2 i + 1 for its MLP.
        part: which of them.
        module: the output projection, a Linear or GPT-2's Conv1D.
        columns: [units, columns of one], its input columns by unit (KV group, MLP channel, mixer unit).
    """

    index: int
    part: BlockPart
    module: Any
    columns: torch.Tensor

    @property
    def layer(self) -> int:
        """Index of the layer."""
        return self.index // 2

    @property
    def units(self) -> int:
        """Units of the dense sub-block."""
        return len(self.columns)

    @property
    def name(self) -> str:
        """For messages."""
        return block_name(self.index, self.part)

    def resized(self, layer: LayerShape, dense: LayerShape, size: int) -> LayerShape:
        """The layer's shape with `size` units in this sub-block."""
        if self.part == "mlp":
            return replace(layer, mlp_width=size)
        if self.part == "mixer":
            return replace(layer, mixer_width=size, state_size=layer.state_size if size else 0)
        return replace(layer, kv_heads=size, query_heads=size * (dense.query_heads // dense.kv_heads))

    def size_in(self, layer: LayerShape) -> int:
        """Units of this sub-block in a layer."""
        return {"mlp": layer.mlp_width, "mixer": layer.mixer_width, "attention": layer.kv_heads}[self.part]


def block_name(index: int, part: str) -> str:
    """Sub-block `index` along the residual stream, for messages."""
    return f"layer {index // 2}: its {'MLP' if part == 'mlp' else part}"


def sub_blocks(model: Any) -> list[SubBlock]:
    """All sub-blocks that a model has, in the order of the residual stream."""
    family, shape = family_of(model.config), model_shape(model.config)
    found = []
    for index, (layer, dims) in enumerate(zip(model.get_submodule(family.layers), shape.layers, strict=True)):
        present: list[tuple[BlockPart, int]] = [
            ("attention", dims.kv_heads),
            ("mixer", dims.mixer_width),
            ("mlp", dims.mlp_width),
        ]
        for part, size in present:
            if size:
                path, columns = output_units(layer, family, shape, index, part)
                found.append(SubBlock(2 * index + (part == "mlp"), part, layer.get_submodule(path), columns))
    return found


def set_matrix(module: Any, matrix: torch.Tensor) -> None:
    """Gives a projection the weight `matrix` [out, in], in its own layout and precision; no memory is shared."""
    data = matrix.T if isinstance(module, Conv1D) else matrix
    set_parameter(module, "weight", data)


def set_parameter(module: Any, name: str, values: torch.Tensor) -> None:
    """Replaces a parameter in its own precision; an ordinary tensor even in inference mode: it may be trained."""
    with torch.inference_mode(False):
        data = values.to(getattr(module, name).dtype).contiguous().clone()
        setattr(module, name, nn.Parameter(data, requires_grad=False))


@contextmanager
def matrix_replaced(module: Any, matrix: torch.Tensor) -> Iterator[None]:
    """The projection has the weight `matrix` [out, in] while the context is open."""
    kept = module.weight
    set_matrix(module, matrix)
    try:
        yield
    finally:
        module.weight = kept


@contextmanager
def recorded(module: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collects (input [..., in], output [..., out]) of a projection's calls while the context is open."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def all_recorded(blocks: Sequence[SubBlock]) -> Iterator[list[list[tuple[torch.Tensor, torch.Tensor]]]]:
    """`recorded` for the projections of several sub-blocks at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(recorded(block.module)) for block in blocks]


def not_finite(name: str) -> BadInputError:
    """What to raise where the activations of a sub-block overflow."""
    return BadInputError(
        f"{name} gives activations that are not finite on the calibration text: "
        "the weights are damaged or do not fit the configuration"
    )


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are, without a mask as large as they are."""
    return bool(torch.isfinite(values.sum(dtype=torch.float64)))


def matrix(module: Any) -> torch.Tensor:
    """Weight [out, in] of an output projection."""
    return row_matrix(module)
