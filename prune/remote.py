"""Models whose code comes with the checkpoint: admitted only when the caller says that the code may run."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers.dynamic_module_utils import get_relative_import_files

from prune_export.errors import BadInputError
from prune_export.prune import modeling_remote
from prune_export.prune.families import Family, is_pruned, pruned_classes


def is_remote(family: Family) -> bool:
    """Whether the family's classes are not in `transformers`."""
    return not family.config_class


def remote_config(directory: Path, family: Family, *, trust_remote_code: bool) -> Any:
    """The configuration in a directory, as an object of the class that the directory brings along.

    Raises:
        BadInputError: the code may not run.
    """
    if not trust_remote_code:
        raise BadInputError(
            f"{directory} brings its own code for {family.name} models, which is not run unasked: "
            "read it, then allow it with trust_remote_code"
        )
    return transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True, local_files_only=True)


def remote_model(config: Any) -> Any:
    """A model of a configuration from `remote_config`, with random weights.

    Its parameters take memory, unlike those of other empty models: the code may compute tables when it is constructed.
    """
    if is_pruned(config):
        return type(config).model_class(config)
    return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)


def pruned_config_class(model: Any, family: Family) -> Any:
    """Class of the configuration of what a model, dense or pruned, is pruned to."""
    if not is_remote(family):
        return pruned_classes(family)[0]
    if is_pruned(model.config):
        return type(model.config)
    bases: tuple[Any, Any] = type(model.config), type(model)
    return modeling_remote.pruned_classes(*bases)[0]


def copy_remote_code(model: Any, directory: Path, module: str) -> None:
    """Puts the code of a remote model into a directory: its own and, for a pruned one, `module` with its classes.

    Args:
        model: dense or pruned, of a family whose code comes with the checkpoint.
        directory: of the checkpoint.
        module: name of the file with the pruned classes, without its ending.
    """
    bases: list[Any] = [type(model.config), type(model)]
    if not is_pruned(model.config):
        for base in bases:
            _copy_sources(base, directory)
        return
    bases = [base.__mro__[1] for base in bases]
    imports = [f"from .{_copy_sources(base, directory)} import {base.__name__}  # noqa: E402" for base in bases]
    names = ", ".join(base.__name__ for base in bases)
    last = f"PruneBaichuanConfig, PruneBaichuanForCausalLM = pruned_classes({names})"
    text = Path(modeling_remote.__file__).read_text(encoding="utf8")
    (directory / f"{module}.py").write_text("\n".join([text, "", *imports, "", last, ""]), encoding="utf8")


def _copy_sources(kind: Any, directory: Path) -> str:
    """Copies the file that defines a class and those that it imports; its name without the ending."""
    path = Path(inspect.getfile(kind))
    for source in (path, *map(Path, get_relative_import_files(str(path)))):
        if source.parent.resolve() != directory.resolve():
            shutil.copyfile(source, directory / source.name)
    return path.stem
