"""The projections inside a decoder layer: finding them, their weights as [out, in], and the moments of their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prune_export.errors import BadInputError
from prune_export.prune.layer_walk import LayerWalk, Stop
from prune_export.sparsity import Pattern


def projections_of(layer: nn.Module, *, where: str) -> dict[str, nn.Module]:
    """Name to linear module (`nn.Linear` or GPT-2's `Conv1D`) of a layer; none where the layer is the identity.

    Raises:
        BadInputError: weights that this package would have to leave dense: quantized ones, or fused experts.
    """
    found = {name: module for name, module in layer.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    for name, module in found.items():
        if not module.weight.is_floating_point():
            raise BadInputError(
                f"{where}.{name} holds {module.weight.dtype} weights, plain floating-point ones are needed: "
                "use the model before quantization"
            )
    for name, module in layer.named_modules():
        fused = [part for part, value in module.named_parameters(recurse=False) if value.ndim > 2]
        if fused and not isinstance(module, nn.Conv1d):
            raise BadInputError(
                f"{where}.{name}.{fused[0]} of {type(module).__name__} has more than two dimensions, which one-shot "
                "sparsity does not support: Linear and Conv1D projections only"
            )
    return found


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight as [out, in]; a view."""
    weight: torch.Tensor = module.get_parameter("weight").detach()
    return weight.T if isinstance(module, Conv1D) else weight


def replace_weight(module: nn.Module, weight: torch.Tensor) -> None:
    """Puts in a new weight [out, in]; the old tensor, which may be a file's memory map, is not written to."""
    stored = weight.T if isinstance(module, Conv1D) else weight
    module.register_parameter("weight", nn.Parameter(stored.contiguous(), requires_grad=False))


def check_widths(projections: dict[str, nn.Module], pattern: Pattern, *, where: str) -> None:
    """Raises BadInputError for the first projection whose width the pattern does not fit."""
    for name, module in projections.items():
        width = weight_of(module).shape[1]
        if not pattern.fits(width):
            reason = f"which groups of {pattern.group} do not divide" if pattern.group else "too few for it"
            raise BadInputError(
                f"pattern {pattern} does not fit {where}.{name}: rows of {width} weights, {reason}: "
                "use another pattern, or a share such as 50%"
            )


def input_groups(walk: LayerWalk, index: int, projections: dict[str, nn.Module], *, where: str) -> list[list[str]]:
    """Names of projections that read the same tensor, in the order in which the layer calls them.

    Raises:
        BadInputError: a projection that the layer does not call, or calls twice.
    """
    seen: list[tuple[str, Any]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen.append((name, arguments[0]))

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in projections.items()]
    try:
        walk.run_first(index)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in seen]
    for name in projections:
        if names.count(name) != 1:
            raise BadInputError(
                f"{where}.{name} is called {names.count(name)} times in one pass, one-shot sparsity needs exactly one: "
                "this module is not supported"
            )
    groups: list[tuple[Any, list[str]]] = []
    for name, tensor in seen:
        if groups and groups[-1][0] is tensor:
            groups[-1][1].append(name)
        else:
            groups.append((tensor, [name]))
    return [members for _, members in groups]


def input_moment(walk: LayerWalk, index: int, module: nn.Module, *, where: str) -> torch.Tensor:
    """X X^T [n, n] float64 of a projection's input over all calibration tokens; the pass ends where it is read.

    Raises:
        BadInputError: an input that is not finite.
    """
    width = weight_of(module).shape[1]
    moment = torch.zeros(width, width, dtype=torch.float64)

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        rows = arguments[0].reshape(-1, width).float()
        moment.add_(rows.T @ rows)
        raise Stop

    handle = module.register_forward_pre_hook(hook)
    try:
        walk.run(index)
    finally:
        handle.remove()
    if not bool(torch.isfinite(moment).all()):
        raise BadInputError(
            f"{where} gets activations that are not finite on the calibration text: "
            "the weights are damaged or do not fit the configuration"
        )
    return moment
