"""The formats that the main job delivers: how a model becomes one of them, and what plain code runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_export.delivery.resources import free_memory
from prune_export.errors import BadInputError
from prune_export.export import onnx_families, openvino_families
from prune_export.export.files import MODEL_XML
from prune_export.export.onnx_export import export_onnx
from prune_export.export.onnx_quantize import BLOCKS
from prune_export.export.openvino_ir import export_graph_only, export_openvino, graph_in_memory
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.usage import onnx_lines, python_lines, server_command
from prune_export.export.weights import compress, compress_graph
from prune_export.prune.loading import load_model, load_tokenizer


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        name: as the user says it; also the artifact's folder.
        title: for messages.
        check_family: raises BadInputError for a `model_type` that it has no form for.
        plain: writes a model and its tokenizer to a directory in fp32.
        compressed: (directory of the fp32 export, its checkpoint, destination, precision, group size) writes another
            precision.
        stack: (model, directory, precision, group size) writes a graph to be timed, without a tokenizer.
        usage: lines of Python that run the artifact in a directory.
        server: the command that serves it, or nothing.
        groups: the sizes of int4 groups that it has; any where none are named.
    """

    name: str
    title: str
    check_family: Callable[[str], object]
    plain: Callable[[Any, Any, Path], object]
    compressed: Callable[[Path, Path, Path, str, int], None]
    stack: Callable[[Any, Path, str, int], None]
    usage: Callable[[Path], tuple[str, ...]]
    server: Callable[[Path], str]
    groups: tuple[int, ...] = ()

    def check_group(self, group: int, profile: str) -> None:
        """Refuses a profile's group size for int4 that the format lacks.

        Raises:
            BadInputError: it is none of `groups`.
        """
        if self.groups and group not in self.groups:
            known = ", ".join(map(str, self.groups))
            raise BadInputError(
                f"{profile} asks for int4 groups of {group} weights, {self.title} has {known}: "
                "set int4_group in a copy of the profile, or deliver another --precision"
            )


def exporter_of(name: str) -> Exporter:
    """The row of a format.

    Raises:
        BadInputError: unknown.
    """
    if name not in EXPORTERS:
        raise BadInputError(f'--format "{name}" is not one of {", ".join(EXPORTERS)}')
    return EXPORTERS[name]


def _openvino(model: Any, tokenizer: Any, directory: Path) -> None:
    export_openvino(model, tokenizer, directory)


def _compressed_ir(plain: Path, checkpoint: Path, directory: Path, precision: str, group: int) -> None:
    compress(plain, directory, precision=precision, options=OpenVinoOptions(group_size=group))


def _ir_stack(model: Any, directory: Path, precision: str, group: int) -> None:
    directory.mkdir(parents=True)
    if precision == "fp32":
        export_graph_only(model, directory / MODEL_XML)
    else:
        compress_graph(
            graph_in_memory(model), directory, precision=precision, options=OpenVinoOptions(group_size=group)
        )


def _onnx(model: Any, tokenizer: Any, directory: Path) -> None:
    export_onnx(model, tokenizer, directory)


def _compressed_onnx(plain: Path, checkpoint: Path, directory: Path, precision: str, group: int) -> None:
    """From the weights again: a graph of blocks is another one than the fp32 graph."""
    export_onnx(load_model(checkpoint), load_tokenizer(checkpoint), directory, precision=precision, block=_block(group))
    free_memory()


def _onnx_stack(model: Any, directory: Path, precision: str, group: int) -> None:
    export_onnx(model, None, directory, precision=precision, block=_block(group))


def _block(group: int) -> int:
    """The size of blocks, which int8 has too, for a profile's group; one of int4 was checked by `check_group`."""
    return group if group in BLOCKS else BLOCKS[0]


EXPORTERS: dict[str, Exporter] = {
    row.name: row
    for row in (
        Exporter(
            "openvino",
            "OpenVINO",
            openvino_families.row_of,
            _openvino,
            _compressed_ir,
            _ir_stack,
            python_lines,
            server_command,
        ),
        Exporter(
            "onnx",
            "ONNX",
            onnx_families.row_of,
            _onnx,
            _compressed_onnx,
            _onnx_stack,
            onnx_lines,
            lambda _: "",
            groups=BLOCKS,
        ),
    )
}
