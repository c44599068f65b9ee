"""Weights of an ONNX model, written one by one to the file beside it.

Everything but scalars goes to `model.onnx.data`, whatever its size: a protobuf file ends at 2 GiB, and loaders map the
data file into memory instead of reading it.  No more than one tensor is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import StringStringEntryProto, TensorProto

# A page: what a loader can map without a copy.
_ALIGNMENT = 4096
_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.uint8: TensorProto.UINT8,
    torch.int64: TensorProto.INT64,
}


class ExternalData:
    """The data file, open for writing.

    Args:
        path: the file; it must not exist.
        written: called with the bytes of each tensor once it is on disk.
    """

    def __init__(self, path: Path, *, written: Callable[[int], None] | None = None) -> None:
        # "x": a link that lies there already is never followed.
        self._file = path.open("xb")
        self._name = path.name
        self._written = written

    def __enter__(self) -> ExternalData:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, tensor: torch.Tensor | NDArray[Any]) -> TensorProto:
        """Appends a tensor and returns the initializer that points to it."""
        values = torch.from_numpy(np.ascontiguousarray(tensor)) if isinstance(tensor, np.ndarray) else tensor
        return self.add_parts(name, (values.contiguous(),), tuple(values.shape))

    def add_parts(self, name: str, parts: Iterable[torch.Tensor], shape: tuple[int, ...]) -> TensorProto:
        """Appends pieces, contiguous in memory, that together are one row-major tensor of `shape`."""
        begin = self._align()
        kind = None
        for part in parts:
            if kind not in (None, part.dtype):
                raise ValueError(f"{name} mixes {kind} and {part.dtype}")
            kind = part.dtype
            self._file.write(part.detach().reshape(-1).view(torch.uint8).numpy().data)
        if kind is None:
            raise ValueError(f"{name} has no parts")
        length = self._file.tell() - begin
        if length != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{name}: {length} bytes were given for {list(shape)} of {kind}")
        if self._written is not None:
            self._written(length)
        return self._pointer(name, _TYPES[kind], shape, begin, length)

    def _align(self) -> int:
        position = self._file.tell()
        self._file.write(b"\0" * (-position % _ALIGNMENT))
        return self._file.tell()

    def _pointer(self, name: str, kind: int, shape: tuple[int, ...], begin: int, length: int) -> TensorProto:
        proto = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._name), ("offset", str(begin)), ("length", str(length))):
            proto.external_data.append(StringStringEntryProto(key=key, value=value))
        return proto
