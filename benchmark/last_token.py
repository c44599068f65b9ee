"""Computes the LM head for the last token alone, as generation pipelines do."""

from __future__ import annotations

from typing import Any

import numpy as np

from prune_export.errors import BadInputError
from prune_export.telemetry import import_openvino

ops = import_openvino().opset13

# What may lie between the LM head's MatMul and the logits: a bias, a scale, a soft cap, a conversion.
_ELEMENTWISE = ("Add", "Multiply", "Divide", "Tanh", "Convert")


def keep_last_token(model: Any) -> None:
    """Puts a slice of the token axis in front of the LM head, in place: logits [B, T, V] become [B, 1, V].

    OpenVINO GenAI applies the same transformation before it compiles a model; without it, prefill would time T
    LM-head rows that no generation needs.

    Raises:
        BadInputError: the logits do not come from a MatMul over [B, T, D].
    """
    head = _lm_head(model)
    hidden = head.input_value(0)
    if hidden.get_partial_shape().rank.get_length() != 3:
        raise BadInputError(f"the LM head takes {hidden.get_partial_shape()}, expected [batch, tokens, hidden size]")
    last = ops.slice(
        hidden,
        ops.constant(np.array([-1], np.int64)),
        ops.constant(np.array([np.iinfo(np.int64).max], np.int64)),
        ops.constant(np.array([1], np.int64)),
        ops.constant(np.array([1], np.int64)),
    )
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def _lm_head(model: Any) -> Any:
    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() in _ELEMENTWISE:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        raise BadInputError(f"the logits come from {node.get_type_name()}, expected the LM head's MatMul")
    return node
