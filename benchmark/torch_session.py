"""A checkpoint driven token by token through torch on the CPU: what a deployment without an export would get.

This module and `torch_cuda_session` alone need torch, and only when a session is loaded.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from prune_export.benchmark.checkpoint_files import CONFIG_NAME, check_checkpoint
from prune_export.benchmark.session import Logits, Tokens
from prune_export.benchmark.threads import checked_threads
from prune_export.errors import BadInputError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class TorchSession:
    """Greedy generation with transformers' own cache, eager.

    Args:
        directory: a checkpoint, dense or pruned.
        precision: of the weights in memory, which torch computes in: "fp32", "bf16" or "fp16".
        threads: of torch; 0 for all physical cores.
        device: "CPU", or "cuda" for the current NVIDIA GPU.
        last_token_only: compute the LM head for the last token alone (timing); else for every token (scoring).
    """

    def __init__(
        self, directory: Path, *, precision: str, threads: int = 0, device: str = "CPU", last_token_only: bool = False
    ) -> None:
        self._directory = directory
        self._precision = precision
        self._threads = threads
        self._device = device
        self._keep = 1 if last_token_only else 0
        self._model: Any = None
        self._cache: Any = None
        self._past = 0
        self._batch = 1
        self._load_s = 0.0
        self._options: dict[str, str] = {}

    @property
    def vocab_size(self) -> int:
        """V, from the configuration."""
        return int(self._model.config.vocab_size)

    @property
    def load_s(self) -> float:
        """Seconds that reading took."""
        return self._load_s

    @property
    def options(self) -> dict[str, str]:
        """What torch runs with."""
        return dict(self._options)

    @property
    def device_peak_bytes(self) -> int | None:
        """0: a CPU."""
        return 0

    def load(self) -> None:
        """Reads the checkpoint.

        Raises:
            BadInputError: no checkpoint, an unsupported or damaged one, a precision or device that torch is not timed
                in, more threads than cores, or no torch.
        """
        if self._precision not in DTYPES:
            raise BadInputError(f"precision {self._precision}: torch is timed in {', '.join(DTYPES)}")
        if self._device not in ("CPU", "cuda"):
            raise BadInputError(f'device "{self._device}": torch is driven on CPU or cuda')
        check_checkpoint(self._directory / CONFIG_NAME)
        threads = checked_threads(self._threads)
        try:
            import torch

            from prune_export.prune.checkpoint import load
        except ImportError:
            raise BadInputError(
                'torch is not installed, a checkpoint is timed with it: pip install "prune-export[prune]"'
            ) from None
        torch.set_num_threads(threads)
        begun = time.perf_counter()
        self._model = load(self._directory, dtype=getattr(torch, DTYPES[self._precision])).to(self._device.lower())
        self._load_s = time.perf_counter() - begun
        self._options = {"threads": str(threads), "dtype": DTYPES[self._precision], "attention": "sdpa"}
        self.reset()

    def reset(self) -> None:
        """Empties the KV cache."""
        self._cache, self._past = None, 0

    def prefill(self, ids: Tokens) -> Logits:
        """Appends `ids` [B, T] to the cache; logits [B, T, V], or [B, 1, V] with `last_token_only`."""
        import torch

        with torch.inference_mode():
            found = self._model(
                input_ids=self._on_device(ids),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=self._keep,
            )
        self._cache = found.past_key_values
        self._batch = ids.shape[0]
        self._past += ids.shape[1]
        logits: Logits = found.logits.float().cpu().numpy()
        return logits

    def decode(self, ids: Tokens) -> Logits:
        """Appends one token each, `ids` [B, 1]; logits [B, 1, V]."""
        return self.prefill(ids)

    def touch(self) -> None:
        """Computes a token without a cache."""
        import torch

        with torch.inference_mode():
            self._model(input_ids=self._on_device(np.zeros((self._batch, 1), np.int64)), use_cache=False)

    def _on_device(self, ids: Tokens) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(self._device.lower())
