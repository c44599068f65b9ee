"""A model's own sub-modules as functions of the residual stream, with the removed units masked.

Runs every family: nothing is known about attention but the arguments that the model itself hands to it, which are
recorded once for each sequence length.  Units are silenced where they enter the output projection, so a smaller width
takes as long as the whole one; `Decoder` is faster for the families that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from prune_export.prune.candidates import Structure
from prune_export.prune.families import family_of
from prune_export.prune.layout import attention_columns
from prune_export.prune.mixers import unit_columns
from prune_export.prune.reorder import LayerOrder
from prune_export.prune.shapes import model_shape
from prune_export.shape import LayerShape


class _FirstLayerReachedError(Exception):
    """Ends a forward pass at the first layer."""


class LayerRunner:
    """Runs single sub-blocks; sequences have no padding and start at position 0.

    In a model whose attention and MLP read the same input, the layer runs as a whole in the place of its MLP.

    Args:
        model: of a supported family, in evaluation mode; it is not changed.
        orders: importance orders that widths are counted in.

    Attributes:
        orders: the same, one a layer; may be replaced between calls.
    """

    def __init__(self, model: Any, orders: tuple[LayerOrder, ...]) -> None:
        self._family = family_of(model.config)
        self.shape = model_shape(model.config)
        self.dtype: torch.dtype = model.dtype
        self._model = model
        self.orders = list(orders)
        self._layers = list(model.get_submodule(self._family.layers))
        self._parallel = self._family.parallel is not None and bool(getattr(model.config, self._family.parallel))
        self._arguments: dict[tuple[int, int], dict[str, Any]] = {}

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [N, T] to the first residual stream [N, T, D]."""
        found: list[torch.Tensor] = []

        def stop(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.append(inputs[0] if inputs else named["hidden_states"])
            raise _FirstLayerReachedError

        with _hooked(self._layers[0], stop):
            try:
                self._model(tokens, use_cache=False)
            except _FirstLayerReachedError:
                return found[0]
        raise AssertionError(f"{type(self._model).__name__} never called its first layer")

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Last residual stream [R, D] to logits [R, V] in fp32."""
        normed = self._model.get_submodule(self._family.final_norm)(rows)
        scores: torch.Tensor = self._model.get_submodule(self._family.head)(normed).float()
        cap = getattr(self._model.config, self._family.softcap) if self._family.softcap else None
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def changes(self, block: int, structure: Structure) -> bool:
        """Whether `run_block` returns anything else than its input."""
        layer = structure[block // 2]
        if self._parallel:
            return block % 2 == 1 and bool(layer.kv_heads or layer.mlp_width)
        return bool(layer.mlp_width if block % 2 else layer.kv_heads or layer.mixer_width)

    def run_block(self, hidden: torch.Tensor, block: int, structure: Structure) -> torch.Tensor:
        """hidden [B, T, D] through sub-block `block` (2 i: attention or mixer, 2 i + 1: MLP) at its width."""
        if not self.changes(block, structure):
            return hidden
        index, dims = block // 2, structure[block // 2]
        result = hidden
        if dims.kv_heads and (self._parallel or block % 2 == 0):
            result = result + self._attention(hidden, index, dims.kv_heads)
        if dims.mixer_width and block % 2 == 0:
            result = result + self._mixer(hidden, index, dims)
        if dims.mlp_width and block % 2:
            result = result + self._mlp(hidden, index, dims.mlp_width)
        return result

    def _attention(self, hidden: torch.Tensor, index: int, kv_heads: int) -> torch.Tensor:
        layer, dense = self._layers[index], self.shape.layers[index]
        normed = layer.get_submodule(self._family.attention_norm)(hidden)
        removed = attention_columns(dense, self.shape.head_dim, self.orders[index].kv_groups[kv_heads:])
        arguments = self._attention_arguments(index, hidden.shape[1])
        with _without(layer.get_submodule(self._family.path("attention", "o")), removed):
            attended = layer.get_submodule(self._family.attention)(normed, **arguments)[0]
        return self._after(layer, self._family.attention_post_norm, attended)

    def _mlp(self, hidden: torch.Tensor, index: int, width: int) -> torch.Tensor:
        layer, family = self._layers[index], self._family
        inner = layer.get_submodule(family.mlp_norm)(hidden)
        down = layer.get_submodule(family.path("mlp", "down"))
        with _without(down, torch.tensor(self.orders[index].mlp_channels[width:], dtype=torch.long)):
            if family.mlp:
                result = layer.get_submodule(family.mlp)(inner)
            else:
                activation = getattr(layer, family.activation)
                result = down(activation(layer.get_submodule(family.path("mlp", "up"))(inner)))
        return self._after(layer, family.mlp_post_norm, result)

    def _mixer(self, hidden: torch.Tensor, index: int, dims: LayerShape) -> torch.Tensor:
        """Units are silenced before anything mixes them: the projection to B, C and the time step (Mamba) or the gated
        norm (Mamba-2); the recurrence by C = 0.
        """
        layer, dense, family = self._layers[index], self.shape.layers[index], self._family
        mixer = layer.get_submodule(family.mixer)
        normed = layer.get_submodule(family.mixer_norm)(hidden.to(self.dtype))
        units = torch.tensor(self.orders[index].mixer_units[dims.mixer_width :], dtype=torch.long)
        removed = unit_columns(mixer, family, dense)[units].reshape(-1)
        places = ("x_proj", "out_proj") if family.mixer_units == "channels" else ("norm",)
        with ExitStack() as stack:
            for place in places:
                stack.enter_context(_without(mixer.get_submodule(place), removed))
            if dense.state_size and not dims.state_size:
                stack.enter_context(_no_output(mixer.act, mixer.n_groups * dense.state_size))
            mixed: torch.Tensor = mixer(normed)
            return mixed

    def _after(self, layer: Any, norm: str | None, output: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = output if norm is None else layer.get_submodule(norm)(output)
        return normed

    def _attention_arguments(self, index: int, length: int) -> dict[str, Any]:
        """What the model hands to an attention beside the hidden states, for one sequence of `length` tokens.

        Rotations and masks broadcast over the batch.
        """
        if (index, length) not in self._arguments:
            self._record(length)
        return self._arguments[index, length]

    def _record(self, length: int) -> None:
        def recorder(index: int) -> Callable[..., None]:
            def record(_module: Any, _inputs: Any, named: dict[str, Any]) -> None:
                self._arguments[index, length] = {key: value for key, value in named.items() if key != "hidden_states"}

            return record

        handles = [
            self._layers[index]
            .get_submodule(self._family.attention)
            .register_forward_pre_hook(recorder(index), with_kwargs=True)
            for index in self.shape.attention_layers
        ]
        try:
            self._model(torch.zeros((1, length), dtype=torch.long), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _hooked(module: Any, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _no_output(module: Any, columns: int) -> Iterator[None]:
    """Sets the last columns of a module's output to zero."""

    def silence(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[..., :-columns], torch.zeros_like(output[..., -columns:])], -1)

    handle = module.register_forward_hook(silence)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _without(projection: Any, columns: torch.Tensor) -> Iterator[None]:
    """Sets input columns of an output projection to zero."""

    def silence(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].index_fill(-1, columns, 0.0), *inputs[1:])

    if not len(columns):
        yield
        return
    handle = projection.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()
