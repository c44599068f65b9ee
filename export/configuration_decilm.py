"""Configuration of a Llama whose layers differ, in the layout of Nemotron-NAS models (`block_configs`).

This file is copied beside an exported checkpoint; engines that read the layout load it with `trust_remote_code`.  It
needs transformers and nothing else.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Settings(dict):  # type: ignore[type-arg]
    """A table whose entries are attributes too, as the engines ask for them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's configuration with `block_configs`, one entry a layer: {"attention": {...}, "ffn": {...}}."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            Settings({part: Settings(settings) for part, settings in block.items()}) for block in block_configs or ()
        ]
