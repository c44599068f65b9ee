"""A checkpoint on an NVIDIA GPU: transformers' static cache, one CUDA graph for each new token, timed by CUDA events.

The graph feeds itself: the token that it chose is its next input, so nothing waits for the host between two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prune_export.benchmark.session import Tokens
from prune_export.benchmark.torch_session import DTYPES, TorchSession
from prune_export.errors import BadInputError

_READ_BYTES = 2 << 30
_SQUARE = 8192
_TRIES = 10
_WARM_UP = 3  # steps before a capture, as torch asks for: libraries allocate their workspaces in the first ones


class Cuda(Protocol):
    """What the session needs of the device; CUDA's in `DeviceCuda`."""

    name: str

    def captured(self, step: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of `step`; running it replays the same kernels on the same memory."""
        ...

    def mark(self) -> Any:
        """An event at this point of the stream."""
        ...

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Waits for the last mark; seconds of each since the first."""
        ...

    def peak_bytes(self) -> int:
        """Most memory that torch has held on the device."""
        ...


class DeviceCuda:
    """The current CUDA device.

    Raises:
        BadInputError: there is none.
    """

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise BadInputError(
                f'device "cuda": torch {torch.__version__} finds no NVIDIA GPU here: measure on the GPU itself, with a '
                "CUDA build of torch"
            )
        self.name = torch.cuda.get_device_name()

    def captured(self, step: Callable[[], None]) -> Callable[[], None]:
        """As torch's notes on CUDA graphs say: warmed up on a side stream, then captured."""
        import torch

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay: Callable[[], None] = graph.replay
        return replay

    def mark(self) -> Any:
        """A recorded event."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """By `Event.elapsed_time`, which has a resolution of half a microsecond."""
        import torch

        torch.cuda.synchronize()
        return [0.0, *(marks[0].elapsed_time(mark) / 1000 for mark in marks[1:])]

    def memory_bytes(self) -> int:
        """Memory of the device."""
        import torch

        return int(torch.cuda.get_device_properties().total_memory)

    def bandwidth(self) -> float:
        """Bytes a second that a reduction reads; the best of a few tries, as McCalpin's STREAM counts."""
        import torch

        data = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device="cuda")
        return _READ_BYTES / self._best_s(data.sum)

    def flops(self, precision: str) -> float:
        """Operations a second of a large square product in one type (a multiply-add counts as two)."""
        import torch

        data = torch.ones((_SQUARE, _SQUARE), dtype=getattr(torch, DTYPES[precision]), device="cuda")
        return float(2 * _SQUARE**3) / self._best_s(lambda: data @ data)

    def _best_s(self, work: Callable[[], object]) -> float:
        marks = []
        for _ in range(_TRIES):
            marks.append(self.mark())
            work()
        marks.append(self.mark())
        times = self.seconds(marks)
        return min(later - earlier for earlier, later in pairwise(times))

    def peak_bytes(self) -> int:
        """What the caching allocator reserved; the CUDA context comes on top."""
        import torch

        return int(torch.cuda.max_memory_reserved())


class TorchCudaSession(TorchSession):
    """Greedy generation on the GPU; prefill eager, every further token a replayed CUDA graph.

    `prefill` and `decode` (for scoring) use transformers' growing cache; `generate` is what is timed.

    Args:
        directory: a checkpoint, dense or pruned.
        precision: of the weights in memory, which torch computes in: "fp32", "bf16" or "fp16".
        threads: of torch on the host; 0 for all physical cores.
        device: "cuda".
        last_token_only: compute the LM head for the last token alone (timing); else for every token (scoring).
        cuda: the device; the current one unless given.
    """

    def __init__(
        self,
        directory: Path,
        *,
        precision: str,
        threads: int = 0,
        device: str = "cuda",
        last_token_only: bool = False,
        cuda: Cuda | None = None,
    ) -> None:
        super().__init__(
            directory, precision=precision, threads=threads, device=device, last_token_only=last_token_only
        )
        self._cuda = cuda
        self._steps: _Steps | None = None

    def load(self) -> None:
        """Reads the checkpoint onto the device.

        Raises:
            BadInputError: as `TorchSession.load`; or no GPU.
        """
        cuda = self._cuda or DeviceCuda()
        super().load()
        self._cuda = cuda
        self._options |= {"device": cuda.name, "cache": "static", "decoding": "CUDA graph"}

    @property
    def device_peak_bytes(self) -> int | None:
        """Most memory that was held on the device."""
        return 0 if self._cuda is None else self._cuda.peak_bytes()

    def generate(self, prompt: Tokens, new_tokens: int) -> list[float]:
        """Times (s) at the start and after each of exactly `new_tokens` greedy tokens, on the device's clock.

        Args:
            prompt: [B, T].
            new_tokens: how many.
        """
        assert self._cuda is not None, "load first"
        steps = self._ready(prompt.shape, new_tokens)
        ids = self._on_device(prompt)
        marks = [self._cuda.mark()]
        steps.prefill(ids)
        marks.append(self._cuda.mark())
        for _ in range(new_tokens - 1):
            steps.decode()
            marks.append(self._cuda.mark())
        return self._cuda.seconds(marks)

    def tokens(self) -> Tokens:
        """The last token of each sequence, [B, 1], for tests."""
        assert self._steps is not None, "generate first"
        found: Tokens = self._steps.token.cpu().numpy().astype(np.int64)
        return found

    def _ready(self, shape: tuple[int, ...], new_tokens: int) -> _Steps:
        """Cache and graph of this batch and length; a graph holds for its own addresses only."""
        assert self._cuda is not None, "load first"
        if self._steps is None or self._steps.key != (*shape, new_tokens):
            self._steps = None  # the old cache goes before the new one comes
            self._steps = _Steps(self._model, self._cuda, (*shape, new_tokens))
            self._options["decoding"] = "CUDA graph" if self._steps.graph else "eager: a sliding window ends before"
        return self._steps


class _Steps:
    """Static inputs, a static cache, and the decoding step on them.

    Args:
        model: on the device.
        cuda: the device.
        key: (B, T, new tokens).
    """

    def __init__(self, model: Any, cuda: Cuda, key: tuple[int, ...]) -> None:
        import torch
        from transformers import StaticCache

        batch, prompt_tokens, new_tokens = key
        self.key = key
        self._model = model
        # The warm-up and the capture write behind the prompt too.
        capacity = prompt_tokens + max(new_tokens, _WARM_UP + 2)
        self.cache = StaticCache(config=model.config, max_cache_len=capacity)
        self.token = torch.zeros((batch, 1), dtype=torch.int64, device=model.device)
        self._position = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        # A sliding window counts its tokens on the host, which a graph cannot follow once it is full.
        self.graph = all(not layer.is_sliding or layer.max_cache_len >= capacity for layer in self.cache.layers)
        self.prefill(torch.zeros((batch, prompt_tokens), dtype=torch.int64, device=model.device))
        self.decode: Callable[[], None] = cuda.captured(self.step) if self.graph else self.step

    def prefill(self, ids: Any) -> None:
        """Empties the cache and appends `ids` [B, T]."""
        import torch

        with torch.inference_mode():
            self.cache.reset()
            self._position.fill_(ids.shape[1] - 1)
            self._choose(ids, None)

    def step(self) -> None:
        """Appends the last token; nothing of it may ask the host."""
        import torch

        with torch.inference_mode():
            self._choose(self.token, self._position)

    def _choose(self, ids: Any, position: Any) -> None:
        found = self._model(
            input_ids=ids, position_ids=position, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.token.copy_(found.logits[:, -1].argmax(dim=-1, keepdim=True))
        self._position.add_(1)
