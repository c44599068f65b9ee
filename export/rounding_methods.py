"""The methods of Neural Compressor, each with the settings that let an exporter take its integers over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from prune_export.export.awq_absorption import absorbers, told

_SEED = 42
# AutoRound's own defaults: steps of signed gradient descent for each decoder layer, and windows a step.
_STEPS, _BATCH = 200, 8


def _rtn(model: Any, groups: Mapping[str, int], tokens: torch.Tensor | None, folder: str) -> Any:
    from neural_compressor.torch.quantization import RTNConfig

    return _converted(model, _by_layer(RTNConfig, groups, use_layer_wise=False), None)


def _gptq(model: Any, groups: Mapping[str, int], tokens: torch.Tensor | None, folder: str) -> Any:
    from neural_compressor.torch.quantization import GPTQConfig

    # It wants a path of a model even where it reads none; columns must stay in their order for groups to be groups.
    settings = {"use_layer_wise": False, "model_path": folder, "act_order": False}
    return _converted(model, _by_layer(GPTQConfig, groups, **settings), tokens)


def _awq(model: Any, groups: Mapping[str, int], tokens: torch.Tensor | None, folder: str) -> Any:
    from neural_compressor.torch.quantization import AWQConfig

    # Folding: a factor that no neighbour absorbs would need a product of its own in the graph.
    config = _by_layer(AWQConfig, groups, use_layer_wise=False, folding=True)
    with told(absorbers(model, groups)):
        return _converted(model, config, tokens)


def _autoround(model: Any, groups: Mapping[str, int], tokens: torch.Tensor | None, folder: str) -> Any:
    from neural_compressor.torch.quantization import AutoRoundConfig

    if tokens is None:
        raise ValueError("AutoRound goes by calibration tokens")
    plain = {"bits": 4, "sym": False, "data_type": "int"}
    layers = {name: {**plain, "group_size": group} for name, group in groups.items()}
    config = AutoRoundConfig(
        bits=4,
        use_sym=False,
        dtype="int",
        group_size=max(groups.values()),
        layer_config=layers,
        iters=_STEPS,
        batch_size=min(_BATCH, len(tokens)),
        nsamples=len(tokens),
        seqlen=int(tokens.shape[1]),
        seed=_SEED,
        amp=False,
        device_map="cpu",
        enable_torch_compile=False,
        use_layer_wise=False,
        export_format="auto_round",
        output_dir=folder,
        reloading=False,
    )
    return _converted(model, config, tokens)


# Each takes a model, groups by name of the linear layer, calibration tokens [N, T] and an empty folder.
RUN: dict[str, Callable[[Any, Mapping[str, int], torch.Tensor | None, str], Any]] = {
    "rtn": _rtn,
    "gptq": _gptq,
    "awq": _awq,
    "autoround": _autoround,
}


def _by_layer(kind: Any, groups: Mapping[str, int], **settings: Any) -> Any:
    """A configuration with one of its own for each layer."""
    config = kind(bits=4, use_sym=False, group_size=max(groups.values()), **settings)
    for name, group in groups.items():
        config.set_local(name, kind(bits=4, use_sym=False, group_size=group, **settings))
    return config


def _converted(model: Any, config: Any, tokens: torch.Tensor | None) -> Any:
    from neural_compressor.torch.quantization import convert, prepare

    torch.manual_seed(_SEED)
    example = None if tokens is None else tokens[:1]
    prepared = prepare(model, config, example_inputs=example)
    if tokens is not None:
        with torch.no_grad():
            for window in tokens:
                prepared(window[None])
    return convert(prepared)
