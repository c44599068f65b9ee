"""The recurrence of Mamba (Gu and Dao 2023, arXiv 2312.00752, algorithm 2) as an OpenVINO loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from openvino.op import loop
from torch import nn

OPERATION = "PruneExportSelectiveScan"


class SelectiveScan(nn.Module):
    """h_t = exp(step_t A) h_(t-1) + step_t x_t B_t and y_t = C_t h_t, token by token.

    Runs in torch while a model is traced; `convert_scan` makes the graph's loop of it.  Legend: B batch, T tokens, C
    channels, N states of a channel.
    """

    def forward(
        self,
        step: torch.Tensor,
        inputs: torch.Tensor,
        to_state: torch.Tensor,
        from_state: torch.Tensor,
        decay: torch.Tensor,
        state: torch.Tensor,
    ) -> torch.Tensor:
        """Outputs and last state after each other, since the converter takes a module with one result only.

        Args:
            step: [B, T, C].
            inputs: x, [B, T, C].
            to_state: B, [B, N, T].
            from_state: C, [B, N, T].
            decay: A, [N, C].
            state: [B, N, C].

        Returns:
            [B, T + N, C].
        """
        outputs = []
        for index in range(step.shape[1]):
            now = slice(index, index + 1)
            state = torch.exp(step[:, now] * decay) * state + step[:, now] * inputs[:, now] * to_state[..., now]
            outputs.append((state * from_state[..., now]).sum(1, keepdim=True))
        return torch.cat([*outputs, state], dim=1)


def convert_scan(context: Any) -> list[Any]:
    """The same as an OpenVINO Loop.

    Args:
        context: the converter's node, with the arguments of `SelectiveScan.forward` as inputs.
    """
    step, inputs, to_state, from_state, decay, state = (context.get_input(index) for index in range(6))
    body = _Body()
    zero, one = (ops.constant(np.array(value, np.int64)) for value in (0, 1))
    tokens = ops.gather(ops.shape_of(step), one, zero)
    result = loop(tokens.output(0), ops.constant(np.array(True)).output(0))
    result.set_function(body.model)
    result.set_special_body_ports([-1, 0])  # no port for the iteration's number; output 0 is the condition
    for parameter, values, axis in (
        (body.step, step, 1),
        (body.inputs, inputs, 1),
        (body.to_state, to_state, 2),
        (body.from_state, from_state, 2),
    ):
        result.set_sliced_input(parameter, values, 0, 1, 1, -1, axis)
    result.set_invariant_input(body.decay, decay)
    result.set_merged_input(body.state, state, body.next_state.output(0))
    last = result.get_iter_value(body.next_state.output(0), -1)
    outputs = result.get_concatenated_slices(body.outputs.output(0), 0, 1, 1, -1, 1)
    return [ops.concat([outputs, last], 1).output(0)]


class _Body:
    """One token of the loop.

    Attributes:
        step, inputs: [B, 1, C].
        to_state, from_state: [B, N, 1].
        decay: [N, C].
        state, next_state: [B, N, C].
        outputs: [B, 1, C].
        model: all of it; its first output is the condition to go on.
    """

    def __init__(self) -> None:
        kind = np.float32
        self.step = ops.parameter([-1, 1, -1], kind, "step")
        self.inputs = ops.parameter([-1, 1, -1], kind, "inputs")
        self.to_state = ops.parameter([-1, -1, 1], kind, "to_state")
        self.from_state = ops.parameter([-1, -1, 1], kind, "from_state")
        self.decay = ops.parameter([-1, -1], kind, "decay")
        self.state = ops.parameter([-1, -1, -1], kind, "state")
        kept = ops.multiply(ops.exp(ops.multiply(self.step, self.decay)), self.state)
        self.next_state = ops.add(kept, ops.multiply(ops.multiply(self.step, self.inputs), self.to_state))
        channels = ops.constant(np.array([1], np.int64))
        self.outputs = ops.reduce_sum(ops.multiply(self.next_state, self.from_state), channels, True)
        parameters = [self.step, self.inputs, self.to_state, self.from_state, self.decay, self.state]
        results = [ops.constant(np.array([True])), self.next_state, self.outputs]
        self.model = openvino.Model(results, parameters, "selective_scan")
