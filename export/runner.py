"""The least that runs an exported IR for a check: feed tokens, mask and positions, read logits."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prune_export.export.checks import Step
from prune_export.export.files import MODEL_ONNX, MODEL_XML
from prune_export.export.quiet import quiet
from prune_export.files import release_pages
from prune_export.manifest import asked_cache
from prune_export.profiles.host import detect_host, host_cores
from prune_export.runtime_versions import dies_in_bf16, ir_refusal

# Without these the CPU runtime computes in bf16 where it can, keeps the cache in 8 or 16 bits and quantizes
# activations.
FP32_PROPERTIES: dict[str, str | int] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


class Runner(Protocol):
    """One exported model with one KV cache."""

    def reset(self) -> None:
        """Empties the cache."""
        ...

    def step(self, step: Step) -> NDArray[np.float32]:
        """Appends tokens to the cache and gives their logits [B, T, V]."""
        ...

    def reachable(self, position: int) -> int:
        """The position nearest to this one that a sequence with nothing before it can begin at."""
        ...

    def rotary_rows(self, begin: int, end: int) -> NDArray[np.float32] | None:
        """Cosines and sines [2, T, d / 2] of these positions in the model's table; None where it has none."""
        ...


def open_runner(directory: Path, *, precision: str, threads: int = 0, exact: bool = False) -> Runner:
    """The runner for the model file in `directory`.

    Args:
        directory: holds openvino_model.xml or model.onnx.
        precision: of the weights; an ONNX file says all of it itself.
        threads: threads of the runtime; 0 leaves the choice to it.
        exact: an IR's cache is kept as its precision says, whatever the export was asked for.
    """
    if not (directory / MODEL_ONNX).is_file():
        return IrRunner(directory, precision=precision, threads=threads, exact=exact)
    from prune_export.export.onnx_runner import OnnxRunner

    return OnnxRunner(directory, threads=threads)


class IrRunner:
    """A compiled stateful IR on the CPU, its KV cache inside.

    Args:
        directory: holds openvino_model.xml.
        precision: "fp32" computes in fp32 throughout; for any other the runtime's defaults apply.  A cache precision
            that the export was asked for holds beside both.
        threads: threads of the runtime; 0 leaves the choice to it.
        exact: that cache precision does not hold.

    Raises:
        BadInputError: OpenVINO cannot read it.
    """

    def __init__(self, directory: Path, *, precision: str, threads: int = 0, exact: bool = False) -> None:
        with quiet():
            import openvino
        properties: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
        properties |= FP32_PROPERTIES if precision == "fp32" else {}
        if not exact and (cache := asked_cache(directory)):
            properties["KV_CACHE_PRECISION"] = cache
        properties |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        if precision == "bf16" and dies_in_bf16(threads or host_cores(), detect_host().isa):
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        core = openvino.Core()
        try:
            model = core.read_model(directory / MODEL_XML)
        except RuntimeError as error:
            raise ir_refusal(directory / MODEL_XML, error, openvino.__version__) from None
        compiled = core.compile_model(model, "CPU", properties)
        del model
        release_pages(directory)  # the compiled model has its own copy of most weights
        self._names = {name for port in compiled.inputs for name in port.get_names()}
        self._request = compiled.create_infer_request()

    def reset(self) -> None:
        """Empties the cache."""
        self._request.reset_state()

    def reachable(self, position: int) -> int:
        """Any: positions are an input."""
        return position

    def rotary_rows(self, begin: int, end: int) -> NDArray[np.float32] | None:
        """None: rotations are computed."""
        return None

    def step(self, step: Step) -> NDArray[np.float32]:
        """Appends tokens to the cache and gives their logits [B, T, V], a copy."""
        values = {
            "input_ids": step.ids,
            "attention_mask": step.mask,
            "position_ids": step.positions,
            "beam_idx": np.arange(len(step.ids), dtype=np.int32),
        }
        self._request.infer({name: value for name, value in values.items() if name in self._names})
        logits: NDArray[np.float32] = np.array(self._request.get_tensor("logits").data)
        return logits
