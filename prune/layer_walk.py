"""Runs a model layer by layer: the stream between layers is kept, each layer is called as the model would call it.

Works for every model whose decoder layers are called in order with the stream as their first argument; whatever else
the model passes (masks, rotations, cache) is recorded once and passed again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prune_export.errors import BadInputError
from prune_export.prune.families import family_of
from prune_export.prune.quiet import quiet

_BATCH_TOKENS = 4096
_STREAM = "hidden_states"


class Stop(Exception):  # noqa: N818 - not an error: ends a forward pass that has served its purpose
    """Raised by a hook to end a forward pass early."""


@dataclass(frozen=True)
class _Call:
    """How the model calls a layer, without the stream."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder layers of a causal language model, in the order in which they run.

    Raises:
        BadInputError: an architecture that is not known.
    """
    return list(model.get_submodule(family_of(model.config).layers))


class LayerWalk:
    """A model's stream at the input of the current layer, for all calibration tokens.

    Args:
        model: causal language model in evaluation mode.
        tokens: [N, T] token ids.

    Attributes:
        layers: the decoder layers.

    Raises:
        BadInputError: as `decoder_layers`.
    """

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        self.layers = decoder_layers(model)
        self._calls: dict[int, list[_Call]] = {}
        self._states: list[torch.Tensor] = []
        step = max(1, _BATCH_TOKENS // tokens.shape[1])
        for batch in tokens.split(step):
            if len(batch) not in self._calls:
                self._calls[len(batch)] = self._record_calls(model, batch)
            self._states.append(self._first_stream(model, batch))

    def run(self, index: int) -> None:
        """Passes every batch through layer `index` for what its hooks see; the stream stays before the layer."""
        for state in self._states:
            with suppress(Stop):
                self._forward(index, state)

    def run_first(self, index: int) -> None:
        """Passes the first batch only."""
        self._forward(index, self._states[0])

    def advance(self, index: int) -> None:
        """Moves the stream behind layer `index`.

        Raises:
            BadInputError: the layer gives values that are not finite.
        """
        for number, state in enumerate(self._states):
            moved = self._forward(index, state)
            if not bool(torch.isfinite(moved.sum(dtype=torch.float64))):
                raise BadInputError(
                    f"layer {index} gives activations that are not finite on the calibration text: "
                    "the weights are damaged or do not fit the configuration"
                )
            self._states[number] = moved

    @torch.inference_mode()
    def _forward(self, index: int, state: torch.Tensor) -> torch.Tensor:
        call = self._calls[len(state)][index]
        result = self.layers[index](state, *call.arguments, **call.named)
        moved: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return moved

    @torch.inference_mode()
    def _record_calls(self, model: Any, batch: torch.Tensor) -> list[_Call]:
        """How each layer is called for a batch of this size: one pass through the whole model."""
        calls: dict[int, _Call] = {}

        def record(index: int) -> Any:
            def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
                rest = {name: value for name, value in named.items() if name != _STREAM}
                calls[index] = _Call(arguments[0 if _STREAM in named else 1 :], rest)

            return hook

        handles = [
            layer.register_forward_pre_hook(record(index), with_kwargs=True) for index, layer in enumerate(self.layers)
        ]
        try:
            _run_model(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return [calls[index] for index in range(len(self.layers))]

    @torch.inference_mode()
    def _first_stream(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.append(named[_STREAM] if _STREAM in named else arguments[0])
            raise Stop

        handle = self.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with suppress(Stop):
                _run_model(model, batch)
        finally:
            handle.remove()
        return found[0]


def _run_model(model: Any, batch: torch.Tensor) -> None:
    with quiet():
        model.base_model(input_ids=batch, use_cache=False)
