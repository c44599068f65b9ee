"""prune-export: prunes a language model to meet a target on a device and hands over the measured artifact.

`prune_export.api` has the command line's verbs as functions.  Importing the package loads neither torch nor openvino.
"""

from __future__ import annotations

import importlib
from typing import Any

from prune_export.chatter import silence_torchao

__version__ = "0.1.0"
__all__ = ["__version__", "api", "load"]

silence_torchao()  # before anything of ours imports transformers


def __getattr__(name: str) -> Any:
    """`load` and `api` on first use: the model that a checkpoint holds, and the other verbs."""
    if name == "api":
        return importlib.import_module("prune_export.api")
    if name == "load":
        return importlib.import_module("prune_export.prune.checkpoint").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
