"""A graph under construction: nodes in order, named as they are made, and the model around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from prune_export.export.onnx_weights import ExternalData

# Operators of ONNX Runtime itself.
MICROSOFT = "com.microsoft"
# Nothing newer than these is used, so that older runtimes load the model too.
OPSET, IR_VERSION = 21, 10
PRODUCER = "prune-export"

Dimension = int | str


class Graph:
    """Collects nodes, constants and weights.

    Args:
        data: where weights go.
    """

    def __init__(self, data: ExternalData) -> None:
        self._data = data
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: Sequence[Dimension]) -> str:
        """Declares an input of the model."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Sequence[Dimension]) -> str:
        """Declares an output; a node must be given the same name."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def weight(self, name: str, tensor: torch.Tensor | NDArray[Any]) -> str:
        """A weight in the data file; the same name again gives the one that is there."""
        if name not in self._initializers:
            self._initializers[name] = self._data.add(name, tensor)
        return name

    def constant(self, values: Any, dtype: type[np.generic] | np.dtype[Any] = np.int64) -> str:
        """A scalar or a short list, kept in the graph; equal ones are shared."""
        array = np.asarray(values, dtype=dtype)
        name = f"constants/{array.dtype}/{array.tolist()}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        outputs: Sequence[str] | None = None,
        **attributes: Any,
    ) -> str:
        """Appends a node and returns the name of its first output.

        Args:
            kind: operator.
            inputs: names; "" leaves an optional one out.
            name: of the node; its output is `name`/output_0 unless told.
            domain: "" for ONNX's own operators.
            outputs: names of the outputs, "" for one that is not wanted.
            attributes: of the operator.
        """
        given = list(outputs) if outputs is not None else [f"{name}/output_0"]
        self._nodes.append(helper.make_node(kind, list(inputs), given, name=name, domain=domain, **attributes))
        return given[0]

    def model(self, metadata: dict[str, str]) -> ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model: ModelProto = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=PRODUCER
        )
        helper.set_model_props(model, metadata)
        return model
