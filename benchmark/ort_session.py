"""An ONNX decoder with past, driven token by token through `onnxruntime`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.benchmark.onnx_artifact import check_files, computes_last_token, head_size
from prune_export.benchmark.properties import precision_options
from prune_export.benchmark.session import Logits, Tokens
from prune_export.benchmark.threads import checked_threads
from prune_export.errors import BadInputError
from prune_export.runtime_versions import check_onnxruntime, onnx_refusal

# The initializer that limits the logits to the last tokens.
_KEEP = "logits_to_keep"
_FIRST_CAPACITY = 1024
_PROVIDERS = {"CPU": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OrtSession:
    """Greedy generation with the KV cache in place: past and present are the same memory, as in ONNX Runtime GenAI.

    Args:
        directory: holds model.onnx, itself or in its only sub-folder that does.
        precision: weight precision; checked only: the graph decides what is computed.
        threads: threads of the runtime; 0 for all physical cores.
        device: "CPU", or "cuda" where ONNX Runtime's CUDA provider is installed.
        last_token_only: compute the LM head for the last token alone where the graph allows it (timing); else for every
            token (scoring).
    """

    def __init__(
        self, directory: Path, *, precision: str, threads: int = 0, device: str = "CPU", last_token_only: bool = False
    ) -> None:
        self._directory = directory
        self._precision = precision
        self._threads = threads
        self._device = device
        self._last_token_only = last_token_only
        self._session: Any = None
        self._binding: Any = None
        self._shapes: dict[str, tuple[int, int, Any]] = {}
        self._runtime: Any = None
        self._caches: dict[str, Any] = {}  # OrtValues on the device
        self._has_positions = False
        self._rows: int | None = None
        self._past = self._batch = self._capacity = self._vocab_size = 0
        self._load_s = 0.0
        self._options: dict[str, str] = {}

    @property
    def vocab_size(self) -> int:
        """V, from the logits' last dimension."""
        return self._vocab_size

    @property
    def load_s(self) -> float:
        """Seconds that reading and preparing took."""
        return self._load_s

    @property
    def options(self) -> dict[str, str]:
        """What the session was made with."""
        return dict(self._options)

    @property
    def device_peak_bytes(self) -> int | None:
        """0 on a CPU; what ONNX Runtime holds on a GPU it does not say."""
        return 0 if self._device == "CPU" else None

    def load(self) -> None:
        """Reads the model.

        Raises:
            BadInputError: no model, one that is no decoder with past or that cannot be read, a device that this ONNX
                Runtime has no provider for or cannot load it, more threads than cores, no ONNX Runtime or one that is
                too old.
        """
        precision_options(self._precision)
        if self._device not in _PROVIDERS:
            raise BadInputError(f'device "{self._device}": ONNX Runtime is driven on {" or ".join(_PROVIDERS)}')
        threads = checked_threads(self._threads)
        from prune_export.benchmark.runtimes import find_model

        path = find_model(self._directory).path
        self._runtime = runtime = _runtime()
        provider = _PROVIDERS[self._device]
        if provider not in runtime.get_available_providers():
            raise BadInputError(
                f'device "{self._device}": this ONNX Runtime has no {provider}: install onnxruntime-gpu in its place'
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self._last_token_only and computes_last_token(path, _KEEP):
            one = runtime.OrtValue.ortvalue_from_numpy(np.ones(1, np.int64))
            options.add_external_initializers([_KEEP], [one])
        begun = time.perf_counter()
        self._session = _open(runtime, path, options, provider)
        if (found := self._session.get_providers()[0]) != provider:
            raise BadInputError(
                f'device "{self._device}": ONNX Runtime could not load its {provider} and fell back to {found}: '
                "install the CUDA and cuDNN versions that this onnxruntime-gpu asks for"
            )
        self._load_s = time.perf_counter() - begun
        self._read_ports(path)
        self._options = {"intra_op_num_threads": str(threads), "execution_provider": provider}
        self._batch = self._past = self._capacity = 0

    def reset(self) -> None:
        """Empties the KV cache; what lies beyond its length is never read."""
        self._past = 0

    def prefill(self, ids: Tokens) -> Logits:
        """Appends `ids` [B, T]; logits [B, T, V], or [B, 1, V] with `last_token_only`; a view until the next call.

        The attention operator takes several tokens onto a filled cache for one sequence at a time only; several
        sequences go token by token.
        """
        batch, tokens = ids.shape
        if self._past and batch > 1:
            parts = [self.decode(ids[:, [index]]).copy() for index in range(tokens)]
            return parts[-1] if self._last_token_only else np.concatenate(parts, axis=1)
        self._prepare(batch, self._past + tokens)
        rows = tokens if self._rows is None else self._rows
        logits = np.empty((batch, rows, self._vocab_size), np.float32)
        self._run(np.ascontiguousarray(ids, dtype=np.int64), logits)
        return logits

    def decode(self, ids: Tokens) -> Logits:
        """Appends one token each, `ids` [B, 1]; logits [B, 1, V]; a view until the next call."""
        self._prepare(ids.shape[0], self._past + 1)
        self._token[:] = ids
        self._run(self._token, self._logits)
        return self._logits

    def touch(self) -> None:
        """Computes a token behind the last one, where the next one will be written over it."""
        past = self._past
        self.decode(np.zeros((max(self._batch, 1), 1), np.int64))
        self._past = past

    def _run(self, ids: Tokens, logits: Logits) -> None:
        batch, tokens = ids.shape
        total = self._past + tokens
        self._bind_input("input_ids", ids)
        self._bind_input("attention_mask", self._ones[: batch * total].reshape(batch, total))
        if self._has_positions:
            positions = np.arange(self._past, total, dtype=np.int64)
            self._positions = np.ascontiguousarray(np.broadcast_to(positions, (batch, tokens)))
            self._bind_input("position_ids", self._positions)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        self._past = total

    def _bind_input(self, name: str, array: NDArray[np.int64]) -> None:
        self._binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)

    def _prepare(self, batch: int, length: int) -> None:
        """Makes the buffers for this batch, with room for `length` tokens; a larger cache takes the old one over."""
        if batch == self._batch and length <= self._capacity:
            return
        if self._past and batch != self._batch:
            raise ValueError(f"the cache holds a batch of {self._batch}, got {batch}: reset first")
        capacity = max(_FIRST_CAPACITY, 2 * length)
        caches = {
            name: np.zeros((batch, heads, capacity, width), kind) for name, (heads, width, kind) in self._shapes.items()
        }
        for name, cache in caches.items() if self._past else ():
            cache[:, :, : self._past] = self._caches[name].numpy()[:, :, : self._past]
        place = self._device.lower()
        self._caches = {
            name: self._runtime.OrtValue.ortvalue_from_numpy(cache, place, 0) for name, cache in caches.items()
        }
        self._batch, self._capacity = batch, capacity
        self._ones = np.ones(batch * capacity, np.int64)
        self._token = np.empty((batch, 1), np.int64)
        self._logits = np.empty((batch, 1, self._vocab_size), np.float32)
        self._binding = self._session.io_binding()
        for name, cache in caches.items():
            where = (place, 0, cache.dtype.type, cache.shape, self._caches[name].data_ptr())
            self._binding.bind_input(name, *where)
            self._binding.bind_output(name.replace("past_key_values", "present"), *where)

    def _read_ports(self, path: Path) -> None:
        ports = {port.name: port for port in self._session.get_inputs()}
        outputs = {port.name: port for port in self._session.get_outputs()}
        caches = {name: port for name, port in ports.items() if name.startswith("past_key_values.")}
        known = {"input_ids", "attention_mask", "position_ids"}
        unknown = sorted(set(ports) - set(caches) - known)
        if not {"input_ids", "attention_mask"} <= set(ports) or not caches or unknown or "logits" not in outputs:
            raise BadInputError(
                f"{path} has inputs {', '.join(sorted(ports))}: expected input_ids, attention_mask, "
                "past_key_values.N.key and .value, and an output named logits"
            )
        self._shapes = {}
        for name, port in caches.items():
            width = port.shape[3] if isinstance(port.shape[3], int) else head_size(path)
            if port.type not in _TYPES or not isinstance(port.shape[1], int) or width is None:
                raise BadInputError(f"{path}: cache {name} is {port.type} {port.shape}, of unknown size or type")
            self._shapes[name] = (port.shape[1], width, _TYPES[port.type])
        logits = outputs["logits"]
        if logits.type != "tensor(float)" or not isinstance(logits.shape[-1], int):
            raise BadInputError(f"{path}: logits are {logits.type} {logits.shape}, expected fp32 of known width")
        self._vocab_size = logits.shape[-1]
        self._has_positions = "position_ids" in ports
        self._rows = 1 if self._last_token_only and computes_last_token(path, _KEEP) else None


def _runtime() -> Any:
    """The module `onnxruntime`.

    Raises:
        BadInputError: it is not installed, or too old.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BadInputError(
            'this artifact needs ONNX Runtime, which is not installed: pip install "prune-export[onnx]"'
        ) from None
    check_onnxruntime(onnxruntime.__version__)
    return onnxruntime


def _open(runtime: Any, path: Path, options: Any, provider: str) -> Any:
    check_files(path)
    try:
        return runtime.InferenceSession(path, options, providers=list(dict.fromkeys((provider, _PROVIDERS["CPU"]))))
    except Exception as error:  # noqa: BLE001 - a dozen unrelated classes, all for a model that cannot be used
        raise onnx_refusal(path, error) from None
