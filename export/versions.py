"""Versions of the packages that an artifact's content or speed depends on."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = (
    "prune-export",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "optimum",
    "optimum-intel",
    "nncf",
    "openvino",
    "openvino-tokenizers",
    "openvino-genai",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "neural-compressor",
    "auto-round",
    "numpy",
)


def package_versions() -> dict[str, str]:
    """Version of Python and of each of these packages that is installed; imports none of them."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
