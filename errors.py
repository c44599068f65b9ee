"""What can go wrong, as the exit code that the command line returns for it.

Every message is one line: what is wrong, the value, the limit, the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneExportError(Exception):
    """Base of every error that is reported as one line."""

    exit_code = 1


class BadInputError(PruneExportError):
    """The user's input cannot be used: unknown device, malformed target, broken checkpoint, ..."""

    exit_code = 2


class InfeasibleError(PruneExportError):
    """No plan reaches the target; the message holds the best reachable figure and what quality it costs."""

    exit_code = 3


class ParityError(PruneExportError):
    """The exported artifact does not compute what the model computes."""

    exit_code = 4


# What brings a package that a command may find missing; what is not here is a mistake of this package.
_BRINGS = {
    **dict.fromkeys(("openvino", "openvino_tokenizers", "numpy", "psutil"), "prune-export"),
    "onnxruntime": "prune-export[onnx]",
    **dict.fromkeys(
        (
            *("torch", "transformers", "optimum", "nncf", "safetensors", "tokenizers", "huggingface_hub", "matplotlib"),
            *("openvino_genai", "onnx", "onnxruntime_genai", "scipy", "pymoo"),
        ),
        "prune-export[prune]",
    ),
}


def missing_package(error: ModuleNotFoundError) -> BadInputError | None:
    """The line about a package that is not installed, or None where it is none of those that a user installs."""
    name = (error.name or "").split(".")[0]
    if name not in _BRINGS:
        return None
    return BadInputError(f'{name} is not installed, this command needs it: pip install "{_BRINGS[name]}"')


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean "x"?)' for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""
