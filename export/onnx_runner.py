"""The least that runs an exported ONNX model for a check: feed tokens, mask and positions, read logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.export.checks import Step
from prune_export.export.files import MODEL_ONNX

# A cache of that many bytes at most is made up to reach a late position.
_MADE_UP_BYTES = 1 << 29


class OnnxRunner:
    """A decoder with past in plain `onnxruntime`, its cache passed in and out as arrays.

    Args:
        directory: holds model.onnx.
        threads: threads of the runtime; 0 leaves the choice to it.
    """

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            directory / MODEL_ONNX, options, providers=["CPUExecutionProvider"]
        )
        self._caches = {
            port.name: tuple(port.shape)
            for port in self._session.get_inputs()
            if port.name.startswith("past_key_values.")
        }
        self._positions = any(port.name == "position_ids" for port in self._session.get_inputs())
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._caches)]
        self._past: dict[str, NDArray[np.float32]] = {}
        self._skipped = 0

    def reset(self) -> None:
        """Empties the cache."""
        self._past = {}

    def step(self, step: Step) -> NDArray[np.float32]:
        """Appends tokens to the cache and gives their logits [B, T, V].

        GroupQueryAttention takes several tokens onto a filled cache for one sequence at a time only; several sequences
        are fed token by token.
        """
        batch, tokens = step.ids.shape
        if not self._past:
            self._begin(batch, 0 if self._positions else int(step.positions[0, 0]))
        mask = np.pad(step.mask, ((0, 0), (self._skipped, 0)))
        begin = mask.shape[1] - tokens
        if batch == 1 or not begin:
            return self._run(step.ids, mask, step.positions)
        parts = [
            self._run(step.ids[:, [index]], mask[:, : begin + index + 1], step.positions[:, [index]])
            for index in range(tokens)
        ]
        return np.concatenate(parts, axis=1)

    def _begin(self, batch: int, first_position: int) -> None:
        """An empty cache, or one of padding up to the first position: tokens after it are rotated as later ones are."""
        row_bytes = sum(batch * heads * width * 4 for _, heads, _, width in self._caches.values())
        self._skipped = min(first_position, _MADE_UP_BYTES // row_bytes)
        self._past = {
            name: np.zeros((batch, heads, self._skipped, width), np.float32)
            for name, (_, heads, _, width) in self._caches.items()
        }

    def _run(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        feed: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **self._past}
        if self._positions:
            feed["position_ids"] = positions
        logits, *presents = self._session.run(self._outputs, feed)
        self._past = dict(zip(self._caches, presents, strict=True))
        result: NDArray[np.float32] = logits
        return result
