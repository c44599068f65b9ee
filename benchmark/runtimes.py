"""The runtimes that artifacts are measured and scored through: one row each.

To add one: a file with its session and what it reads off its files, a row here, and its name in `profiles/device.py`,
which must not import this: what a profile may say is known without any runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prune_export.benchmark.artifact import IR_NAME, weight_precision, weights_bytes
from prune_export.benchmark.checkpoint_files import (
    CONFIG_NAME,
    check_checkpoint,
    checkpoint_bytes,
    checkpoint_precision,
)
from prune_export.benchmark.onnx_artifact import MODEL_NAME, check_files, onnx_precision, onnx_weights_bytes
from prune_export.benchmark.session import Pipeline, Session
from prune_export.errors import BadInputError


class OpenedSession(Session, Protocol):
    """A session that tells what it runs with."""

    @property
    def options(self) -> dict[str, str]:
        """The runtime's options."""
        ...

    @property
    def device_peak_bytes(self) -> int | None:
        """Most memory held on a GPU; 0 on a CPU, None where the runtime does not say."""
        ...


class OpenedPipeline(Pipeline, Protocol):
    """A pipeline that tells what it holds; apart from `Pipeline`, whose attributes are looked up while timing."""

    @property
    def device_peak_bytes(self) -> int | None:
        """Most memory held on a GPU; 0 on a CPU, None where the runtime does not say."""
        ...


class OpenPipeline(Protocol):
    """Makes a pipeline, not loaded yet."""

    def __call__(self, directory: Path, *, precision: str, threads: int, device: str) -> OpenedPipeline:
        """Arguments as of `OpenVINOPipeline`."""
        ...


class OpenSession(Protocol):
    """Makes a session, not loaded yet."""

    def __call__(
        self, directory: Path, *, precision: str, threads: int, device: str, last_token_only: bool
    ) -> OpenedSession:
        """Arguments as of `OpenVINOSession`."""
        ...


@dataclass(frozen=True)
class Runtime:
    """A runtime and the files that it loads.

    Attributes:
        name: as in profiles and measurements.
        format: what exports call it.
        model_file: the file that marks an artifact's folder.
        check: refuses a model file whose companions are missing or unsafe.
        precision: weight precision by the files alone.
        weights_bytes: size of the weights.
        open_session: makes a session; imports the runtime.
        packages: whose versions a measurement records.
        open_pipeline: makes its GenAI pipeline, or None where there is none.
        pipeline_package: of the pipeline.
        pipeline_batch: most sequences that the pipeline streams at once; 0 for any number.
        memory_per_byte: bytes of peak memory that go with each byte of weights removed (docs/measurements.md): what a
            search for a limit of memory begins with, and trials correct.
    """

    name: str
    format: str
    model_file: str
    check: Callable[[Path], None]
    precision: Callable[[Path], str]
    weights_bytes: Callable[[Path], int]
    open_session: OpenSession
    packages: tuple[str, ...]
    open_pipeline: OpenPipeline | None = None
    pipeline_package: str = ""
    pipeline_batch: int = 0
    memory_per_byte: float = 1.0


def _openvino(directory: Path, *, precision: str, threads: int, device: str, last_token_only: bool) -> OpenedSession:
    from prune_export.benchmark.openvino_session import OpenVINOSession

    return OpenVINOSession(
        directory, precision=precision, threads=threads, device=device, last_token_only=last_token_only
    )


def _onnxruntime(directory: Path, *, precision: str, threads: int, device: str, last_token_only: bool) -> OpenedSession:
    from prune_export.benchmark.ort_session import OrtSession

    return OrtSession(directory, precision=precision, threads=threads, device=device, last_token_only=last_token_only)


def _torch(directory: Path, *, precision: str, threads: int, device: str, last_token_only: bool) -> OpenedSession:
    if device == "cuda":
        from prune_export.benchmark.torch_cuda_session import TorchCudaSession

        return TorchCudaSession(directory, precision=precision, threads=threads, last_token_only=last_token_only)
    from prune_export.benchmark.torch_session import TorchSession

    return TorchSession(directory, precision=precision, threads=threads, device=device, last_token_only=last_token_only)


def _openvino_genai(directory: Path, *, precision: str, threads: int, device: str) -> OpenedPipeline:
    from prune_export.benchmark.genai_session import OpenVINOPipeline

    return OpenVINOPipeline(directory, precision=precision, threads=threads, device=device)


def _ort_genai(directory: Path, *, precision: str, threads: int, device: str) -> OpenedPipeline:
    from prune_export.benchmark.genai_session import OrtPipeline

    return OrtPipeline(directory, precision=precision, threads=threads, device=device)


def _check_ir(ir: Path) -> None:
    if not ir.with_suffix(".bin").is_file():
        raise BadInputError(f"{ir} has no weights beside it ({ir.with_suffix('.bin').name} is missing)")


TORCH = "torch"
_CHECKPOINT = "checkpoint"

RUNTIMES: tuple[Runtime, ...] = (
    Runtime(
        "openvino",
        "openvino",
        IR_NAME,
        _check_ir,
        weight_precision,
        weights_bytes,
        _openvino,
        ("openvino", "numpy"),
        _openvino_genai,
        "openvino-genai",
        pipeline_batch=1,
        memory_per_byte=2.3,
    ),
    Runtime(
        "onnxruntime",
        "onnx",
        MODEL_NAME,
        check_files,
        onnx_precision,
        onnx_weights_bytes,
        _onnxruntime,
        ("onnxruntime", "numpy"),
        _ort_genai,
        "onnxruntime-genai",
    ),
    Runtime(
        TORCH,
        _CHECKPOINT,
        CONFIG_NAME,
        check_checkpoint,
        checkpoint_precision,
        checkpoint_bytes,
        _torch,
        ("torch", "transformers", "numpy"),
    ),
)


def runtime_of(format: str) -> Runtime:
    """The runtime that an artifact of a format is measured with."""
    return next(runtime for runtime in RUNTIMES if runtime.format == format)


@dataclass(frozen=True)
class Found:
    """A model on disk.

    Attributes:
        runtime: what runs it.
        path: its model file.
    """

    runtime: Runtime
    path: Path

    @property
    def precision(self) -> str:
        """Weight precision by the files alone."""
        return self.runtime.precision(self.path)

    @property
    def weights_bytes(self) -> int:
        """Size of the weights."""
        return self.runtime.weights_bytes(self.path)


def find_model(directory: Path) -> Found:
    """The exported model in `directory`, else in the one sub-folder that has one, else the checkpoint in `directory`.

    Raises:
        BadInputError: no such directory, no model, several models, or files missing beside it.
    """
    exports = [runtime for runtime in RUNTIMES if runtime.format != _CHECKPOINT]
    # Last: exports lie beside a configuration of the same name.
    checkpoints = [runtime for runtime in RUNTIMES if runtime.format == _CHECKPOINT]
    names = " or ".join(runtime.model_file for runtime in exports)
    if not directory.is_dir():
        raise BadInputError(f"artifact {directory} is not a directory: give one that holds {names}")
    found = _within(exports, directory, "") or _within(exports, directory, "*/") or _within(checkpoints, directory, "")
    if not found:
        raise BadInputError(f"artifact {directory} holds no {names}: export the model first")
    if len(found) > 1:
        folders = ", ".join(sorted({item.path.parent.name for item in found}))
        raise BadInputError(f"artifact {directory} holds several models ({folders}): give one of these folders")
    found[0].runtime.check(found[0].path)
    return found[0]


def _within(runtimes: Sequence[Runtime], directory: Path, prefix: str) -> list[Found]:
    return [
        Found(runtime, path)
        for runtime in runtimes
        for path in sorted(directory.glob(f"{prefix}{runtime.model_file}"))
        if path.is_file()
    ]
