"""Neural Compressor's rounding of a model's linear layers to int4, and what it chose, matrix by matrix."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prune_export.errors import BadInputError
from prune_export.export.integer_weights import Calibration
from prune_export.export.packed_integers import read_matrix
from prune_export.export.quiet import no_progress, quiet
from prune_export.export.rounded import RoundedWeights
from prune_export.export.rounding_methods import RUN
from prune_export.export.rounding_options import GROUPS, RoundingOptions
from prune_export.prune.families import family_of
from prune_export.prune.projections import projections_of, weight_of

_INSTALL = 'pip install "prune-export[rounding]"'
_PACKAGES = {"autoround": ("neural_compressor", "auto_round")}
_LIBRARIES = {"neural_compressor": "neural-compressor", "auto_round": "auto-round"}


def check_installed(method: str = "rtn") -> None:
    """Raises BadInputError, with the command, where the library is not there; imports nothing."""
    for name in _packages(method):
        if find_spec(name) is None:
            raise BadInputError(f"--rounding {method} needs {_LIBRARIES[name]}, which is not installed: {_INSTALL}")


def check_family(config: Any) -> None:
    """Raises BadInputError for an architecture whose layers the library's methods do not walk through."""
    if family_of(config).mixer:
        raise BadInputError(
            f"--rounding has no form for {config.model_type}: it walks through attentions and MLPs; leave it out"
        )


def round_weights(model: Any, options: RoundingOptions, calibration: Calibration | None) -> RoundedWeights:
    """Rounds the linear layers of the decoder layers; embeddings, head and widths that no group divides stay.

    Args:
        model: causal language model in fp32, dense or pruned; used up.
        options: how.
        calibration: text that the method goes by; None for "rtn".

    Raises:
        BadInputError: the library is not there, cannot be imported or fails on this model, or no width takes a group.
    """
    check_installed(options.method)
    full_name = _without_empty_layers(model)
    layers = linear_layers(model)
    fitting = {name: options.group_for(weight_of(module).shape[1]) for name, module in layers.items()}
    groups = {name: group for name, group in fitting.items() if group}
    if not groups:
        raise BadInputError(
            f"int4 fits no layer of this model: none of their widths is a multiple of {min(GROUPS)}; use --precision "
            "int8"
        )
    before = {name: parameter.detach() for name, parameter in model.named_parameters()}
    _make_ready(model, layers, groups)
    after = _run(model, options.method, groups, calibration)
    found = {name: read_matrix(after.get_submodule(name)) for name in groups}
    matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
    turned = {name for name, module in layers.items() if isinstance(module, Conv1D) and name in groups}
    floats = _changed(before, after, matrices, turned)
    return RoundedWeights(
        method=options.method,
        group_size=options.group_size,
        matrices={full_name(name): matrix for name, matrix in matrices.items()},
        floats={full_name(name): tensor for name, tensor in floats.items()},
        calibration={} if calibration is None else calibration.described,
        library=_versions(options.method),
    )


def _run(model: Any, method: str, groups: Mapping[str, int], calibration: Calibration | None) -> Any:
    """The model with packed layers."""
    tokens = None if calibration is None else torch.from_numpy(calibration.tokens)
    model.config.use_cache = False  # a cache would grow with every pass of the calibration text through a layer
    with quiet(), no_progress(), torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        _import_in(folder)
        try:
            return RUN[method](model, groups, tokens, folder)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise BadInputError(
                f"Neural Compressor's {method} failed on this {model.config.model_type} "
                f"({type(error).__name__}: {_first_line(error)}): use another --rounding, or leave it out"
            ) from error


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Name to `nn.Linear` or GPT-2's `Conv1D` in the decoder layers of a causal language model."""
    path = family_of(model.config).layers
    return {
        f"{path}.{index}.{name}": module
        for index, layer in enumerate(model.get_submodule(path))
        for name, module in projections_of(layer, where=f"layer {index}").items()
    }


def _without_empty_layers(model: Any) -> Callable[[str], str]:
    """Takes out layers that lost all of their matrices, which the library stumbles over.

    Returns:
        From the name of a part of the model that is left to its name in the whole model.
    """
    path = family_of(model.config).layers
    every = model.get_submodule(path)
    kept = [index for index, layer in enumerate(every) if projections_of(layer, where=f"layer {index}")]
    owner, _, own = path.rpartition(".")
    setattr(model.get_submodule(owner), own, nn.ModuleList(every[index] for index in kept))

    def full_name(name: str) -> str:
        if not name.startswith(f"{path}."):
            return name
        index, _, rest = name.removeprefix(f"{path}.").partition(".")
        return f"{path}.{kept[int(index)]}.{rest}"

    return full_name


def _packages(method: str) -> tuple[str, ...]:
    return _PACKAGES.get(method, ("neural_compressor",))


def _versions(method: str) -> str:
    return ", ".join(f"{_LIBRARIES[name]} {metadata.version(_LIBRARIES[name])}" for name in _packages(method))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


class _Unrounded(nn.Module):
    """A linear layer that no method recognizes as one; GPTQ rounds every one that it finds, asked for or not."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = (module,)  # no sub-module

    @property
    def weight(self) -> Any:
        """As the layer holds it."""
        return self._held[0].weight

    @property
    def bias(self) -> Any:
        """As the layer holds it."""
        return self._held[0].bias

    def forward(self, inputs: torch.Tensor) -> Any:
        return self._held[0](inputs)


def _make_ready(model: Any, layers: Mapping[str, nn.Module], groups: Mapping[str, int]) -> None:
    """Copies parameters that may be a file's memory map, and shows the library what it shall round as `nn.Linear`."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    for name, module in layers.items():
        owner, _, own = name.rpartition(".")
        if name not in groups:
            setattr(model.get_submodule(owner), own, _Unrounded(module))
        elif isinstance(module, Conv1D):
            width, rows = module.weight.shape
            linear = nn.Linear(width, rows).requires_grad_(False)
            linear.weight.data, linear.bias.data = module.weight.data.t().contiguous(), module.bias.data
            setattr(model.get_submodule(owner), own, linear)


def _import_in(folder: str) -> None:
    """Imports the library; the folders that it makes in the current directory, now and at first use, lie in `folder`.

    Raises:
        BadInputError: it cannot be imported; without its extra it declares no dependencies.
    """
    try:
        with contextlib.chdir(folder):
            import neural_compressor.torch.quantization  # noqa: F401
            from neural_compressor.common import options
        options.workspace = folder
    except ImportError as error:
        raise BadInputError(f"Neural Compressor cannot be imported ({_first_line(error)}): {_INSTALL}") from error


def _changed(
    before: Mapping[str, torch.Tensor], after: Any, matrices: Collection[str], turned: Collection[str]
) -> dict[str, torch.Tensor]:
    """Parameters that were not rounded to integers and differ now, in the layout that they had.

    Args:
        before: parameters of the model.
        after: what became of the model.
        matrices: names of the layers that were rounded.
        turned: names of the layers whose weight lay the other way round.
    """
    rounded = {f"{name}.weight" for name in matrices}
    found = {}
    for name, old in before.items():
        if name in rounded:
            continue
        owner, _, own = name.rpartition(".")
        new = getattr(after.get_submodule(owner), own).detach()
        new = new.t() if owner in turned and own == "weight" else new
        # Packed layers hold biases in fp16; one that is only that is no change.
        if not torch.equal(new, old.to(new.dtype)):
            found[name] = new.to(old.dtype).clone()
    return found
