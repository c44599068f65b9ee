"""The least that runs an exported ONNX model for a check: feed tokens, mask and positions, read logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.export.checks import Step
from prune_export.export.files import MODEL_ONNX
from prune_export.runtime_versions import check_onnxruntime, onnx_refusal

# A cache of that many bytes at most is made up to reach a late position.
_MADE_UP_BYTES = 1 << 29


class OnnxRunner:
    """A decoder with past in plain `onnxruntime`, its cache passed in and out as arrays.

    Args:
        directory: holds model.onnx.
        threads: threads of the runtime; 0 leaves the choice to it.

    Raises:
        BadInputError: ONNX Runtime is too old, or cannot load the model.
    """

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        import onnxruntime

        check_onnxruntime(onnxruntime.__version__)
        self._directory = directory
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        path = directory / MODEL_ONNX
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - a dozen unrelated classes, all for a model that cannot be used
            raise onnx_refusal(path, error) from None
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

    def reachable(self, position: int) -> int:
        """Any where positions are an input; else as far as a made-up cache goes."""
        return position if self._positions else self._room(position, 1)

    def rotary_rows(self, begin: int, end: int) -> NDArray[np.float32] | None:
        """Cosines and sines [2, T, d / 2] of these positions, from the table that the attentions are given."""
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(self._directory / MODEL_ONNX, load_external_data=False).graph
        given = (tuple(node.input[7:9]) for node in graph.node if node.op_type == "GroupQueryAttention")
        names: tuple[str, ...] = next(given, ())
        tables = {item.name: item for item in graph.initializer if item.name in names}
        if len(tables) != 2:
            return None
        rows = [numpy_helper.to_array(tables[name], str(self._directory))[begin:end] for name in names]
        return np.stack(rows).astype(np.float32)

    def _room(self, position: int, batch: int) -> int:
        row_bytes: int = sum(batch * heads * width * 4 for _, heads, _, width in self._caches.values())
        return min(position, _MADE_UP_BYTES // row_bytes)

    def _begin(self, batch: int, first_position: int) -> None:
        """An empty cache, or one of padding up to the first position: tokens after it are rotated as later ones are."""
        self._skipped = self._room(first_position, batch)
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
