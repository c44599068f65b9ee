"""A stateful OpenVINO IR, driven token by token through `openvino.Core`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prune_export.benchmark.artifact import find_ir
from prune_export.benchmark.last_token import keep_last_token
from prune_export.benchmark.properties import runtime_properties
from prune_export.benchmark.session import Logits, Tokens
from prune_export.benchmark.threads import checked_threads
from prune_export.errors import BadInputError, PruneExportError
from prune_export.manifest import asked_cache
from prune_export.profiles.host import detect_host
from prune_export.runtime_versions import ir_refusal, last_line
from prune_export.telemetry import import_openvino

ov = import_openvino()

_INPUTS = ("input_ids", "attention_mask", "position_ids", "beam_idx")
_FIRST_CAPACITY = 1024


class OpenVINOSession:
    """Greedy generation over an IR with its KV cache inside, as optimum-intel exports it.

    Args:
        directory: holds openvino_model.xml, itself or in its only sub-folder that does.
        precision: weight precision; decides the runtime properties.
        threads: threads of the runtime; 0 for all physical cores.
        device: OpenVINO device name.
        last_token_only: compute the LM head for the last token alone (timing); else for every token (scoring).
        extra_properties: runtime properties beside those of the precision.
    """

    def __init__(
        self,
        directory: Path,
        *,
        precision: str,
        threads: int = 0,
        device: str = "CPU",
        last_token_only: bool = False,
        extra_properties: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        self._directory = directory
        self._precision = precision
        self._threads = threads
        self._device = device
        self._last_token_only = last_token_only
        self._extra_properties = dict(extra_properties or {})
        self._core: Any = None
        self._request: Any = None
        self._aside: Any = None  # a request with a KV cache of its own
        self._present: frozenset[str] = frozenset()
        self._past = 0
        self._batch = 0
        self._capacity = 0
        self._vocab_size = 0
        self._load_s = 0.0
        self._options: dict[str, str] = {}

    @property
    def vocab_size(self) -> int:
        """V, from the logits' last dimension."""
        return self._vocab_size

    @property
    def load_s(self) -> float:
        """Seconds that reading and compiling took."""
        return self._load_s

    @property
    def options(self) -> dict[str, str]:
        """The runtime properties that it was compiled with."""
        return dict(self._options)

    @property
    def device_peak_bytes(self) -> int | None:
        """Memory held on a GPU, which the plugin keeps for the next request: most of it once the longest one ran."""
        return held_bytes(self._core, self._device)

    def property(self, name: str) -> str:
        """A property that is in force in the compiled model, as text."""
        return str(self._request.get_compiled_model().get_property(name))

    def load(self) -> None:
        """Reads and compiles the IR.

        Raises:
            BadInputError: no IR, an IR without cache state or that cannot be read, an absent device, more threads
                than cores.
        """
        threads = checked_threads(self._threads)
        ir = find_ir(self._directory)
        core = ov.Core()
        check_device(core, self._device)
        self._core = core
        capabilities = core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        properties = self._extra_properties | runtime_properties(
            self._precision,
            threads=threads,
            device=self._device,
            capabilities=capabilities,
            kv_cache=asked_cache(ir.parent),
            isa=detect_host().isa,
        )
        begun = time.perf_counter()
        model = _read(core, ir)
        self._check_model(model, ir)
        if self._last_token_only:
            keep_last_token(model)
        try:
            self._request = core.compile_model(model, self._device, properties).create_infer_request()
        except RuntimeError as error:
            raise PruneExportError(f"{ir} could not be compiled for {self._device}: {last_line(error)}") from None
        self._load_s = time.perf_counter() - begun
        self._options = {name: str(value) for name, value in properties.items()}
        self._aside = None
        self._batch = self._past = 0

    def reset(self) -> None:
        """Empties the KV cache."""
        self._request.reset_state()
        self._past = 0

    def prefill(self, ids: Tokens) -> Logits:
        """Appends `ids` [B, T]; logits [B, T, V], or [B, 1, V] with `last_token_only`; a view until the next call."""
        batch, tokens = ids.shape
        self._prepare(batch, self._past + tokens)
        positions = np.arange(self._past, self._past + tokens, dtype=np.int64)
        self._set("input_ids", ov.Tensor(np.ascontiguousarray(ids, dtype=np.int64)))
        self._set("position_ids", ov.Tensor(np.ascontiguousarray(np.broadcast_to(positions, (batch, tokens)))))
        logits = self._infer(tokens)
        self._set("input_ids", self._token)
        self._set("position_ids", self._position)
        return logits

    def decode(self, ids: Tokens) -> Logits:
        """Appends one token each, `ids` [B, 1]; logits [B, 1, V]; a view until the next call.

        Nothing is allocated here: the tensors stay, the mask grows within its buffer.
        """
        self._prepare(ids.shape[0], self._past + 1)
        self._token_view[:] = ids
        self._position_view[:] = self._past
        return self._infer(1)

    def touch(self) -> None:
        """Computes a token in another request of the same compiled model, whose state is its own."""
        if self._aside is None:
            self._aside = self._request.get_compiled_model().create_infer_request()
        one = np.zeros((max(self._batch, 1), 1), np.int64)
        for name, value in zip(_INPUTS, (one, one + 1, one, np.arange(len(one), dtype=np.int32)), strict=True):
            if name in self._present:
                self._aside.set_tensor(name, ov.Tensor(value))
        self._aside.reset_state()
        self._aside.infer(share_outputs=True)

    def _infer(self, tokens: int) -> Logits:
        self._past += tokens
        self._mask.shape = (self._batch, self._past)
        self._request.infer(share_outputs=True)
        logits: Logits = self._request.get_output_tensor(0).data
        return logits

    def _prepare(self, batch: int, length: int) -> None:
        """Makes the persistent tensors for this batch, with room for `length` tokens in the mask."""
        if batch == self._batch and length <= self._capacity:
            return
        if self._past and batch != self._batch:
            raise ValueError(f"the cache holds a batch of {self._batch}, got {batch}: reset first")
        self._capacity = max(_FIRST_CAPACITY, 2 * length)
        self._mask = ov.Tensor(ov.Type.i64, ov.Shape([batch, self._capacity]))
        self._mask.data[:] = 1
        self._token = ov.Tensor(ov.Type.i64, ov.Shape([batch, 1]))
        self._position = ov.Tensor(ov.Type.i64, ov.Shape([batch, 1]))
        self._token_view, self._position_view = self._token.data, self._position.data
        self._batch = batch
        self._set("beam_idx", ov.Tensor(np.arange(batch, dtype=np.int32)))
        self._set("attention_mask", self._mask)
        self._set("input_ids", self._token)
        self._set("position_ids", self._position)

    def _set(self, name: str, tensor: Any) -> None:
        if name in self._present:
            self._request.set_tensor(name, tensor)

    def _check_model(self, model: Any, ir: Path) -> None:
        names = {port.any_name for port in model.inputs}
        if not model.get_sinks():
            raise BadInputError(f"{ir} keeps no KV cache (it has no state): export it again as a stateful model")
        if "input_ids" not in names or (unknown := names - set(_INPUTS)):
            extra = f"; unknown: {', '.join(sorted(unknown))}" if "input_ids" in names else ""
            raise BadInputError(f"{ir} has inputs {', '.join(sorted(names))}{extra}: expected {', '.join(_INPUTS)}")
        if not any("logits" in port.names for port in model.outputs):
            raise BadInputError(f"{ir} has no output named logits: it is no language model")
        self._present = frozenset(names)
        self._vocab_size = model.output("logits").get_partial_shape()[-1].get_length()


def is_present(core: Any, device: str) -> bool:
    """Whether OpenVINO finds a device, which may be one of several: "GPU" where there is a "GPU.0"."""
    return any(name == device or name.startswith(f"{device}.") for name in core.available_devices)


def check_device(core: Any, device: str) -> None:
    """Refuses a device that is not there.

    Raises:
        BadInputError: absent.
    """
    if not is_present(core, device):
        found = ", ".join(core.available_devices) or "none"
        raise BadInputError(
            f'device "{device}" is absent here: OpenVINO finds {found}; use a profile of what is there, e.g. '
            "--device host"
        )


def held_bytes(core: Any, device: str) -> int | None:
    """What a core holds on a device: 0 on the CPU, None on a device that does not say.

    The GPU plugin counts what is allocated now, by kind; its host memory is resident in the process already.
    """
    if device == "CPU":
        return 0
    try:
        kinds = core.get_property(device, "GPU_MEMORY_STATISTICS")
    except RuntimeError:
        return None
    return sum(int(size) for kind, size in kinds.items() if kind != "usm_host")


def _read(core: Any, ir: Path) -> Any:
    try:
        return core.read_model(ir)
    except RuntimeError as error:
        raise ir_refusal(ir, error, ov.__version__) from None
