"""The nodes of a decoder: embeddings, layers, head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from prune_export.errors import BadInputError
from prune_export.export.onnx_attention import Masks, write_attention, write_masks
from prune_export.export.onnx_graph import MICROSOFT, Graph
from prune_export.export.onnx_linear import Linears
from prune_export.export.onnx_spec import Decoder, Layer, Linear, Mlp, Norm

# An initializer that a session may replace (`add_external_initializers`): logits are computed for that many of the last
# tokens, 0, the default, for all.
LOGITS_TO_KEEP = "logits_to_keep"
_LAST = np.iinfo(np.int64).max


def write_decoder(graph: Graph, decoder: Decoder, linears: Linears) -> None:
    """Writes everything between `input_ids` and `logits`."""
    ids = graph.input("input_ids", TensorProto.INT64, ("batch_size", "sequence_length"))
    mask = graph.input("attention_mask", TensorProto.INT64, ("batch_size", "total_sequence_length"))
    masks = write_masks(graph, ids, mask, rotary=decoder.rotary)
    stream = _Stream(graph, _embeddings(graph, decoder, linears, ids))
    for index, layer in enumerate(decoder.layers):
        rank = sum(1 for other in decoder.layers[:index] if other.attention is not None)
        _write_layer(stream, layer, linears, masks, f"model.layers.{index}", rank)
    hidden = _last_tokens(graph, stream.normalized(decoder.final_norm, "model.norm"))
    _write_head(graph, decoder, linears, hidden)


@dataclass
class _Stream:
    """The residual stream: a value, and what is still to be added to it, so that sum and norm become one node."""

    graph: Graph
    value: str
    pending: str = ""

    def normalized(self, norm: Norm, name: str) -> str:
        """The stream after a norm; what was pending is added first."""
        weights = [self.graph.weight(f"{name}.weight", norm.weight)]
        if norm.bias is not None:
            weights.append(self.graph.weight(f"{name}.bias", norm.bias))
        if not self.pending:
            return write_norm(self.graph, norm, self.value, name)
        kind = "SkipSimplifiedLayerNormalization" if norm.bias is None else "SkipLayerNormalization"
        normed, total = f"{name}/output_0", f"{name}/output_3"
        self.graph.node(
            kind,
            [self.value, self.pending, *weights],
            name,
            domain=MICROSOFT,
            outputs=[normed, "", "", total],
            epsilon=norm.epsilon,
        )
        self.value, self.pending = total, ""
        return normed

    def add(self, value: str, name: str) -> None:
        """Adds to the stream."""
        if self.pending:
            value = self.graph.node("Add", [self.pending, value], f"{name}/Add")
        self.pending = value


def write_norm(graph: Graph, norm: Norm, value: str, name: str) -> str:
    """A norm over the last axis."""
    weight = graph.weight(f"{name}.weight", norm.weight)
    if norm.bias is None:
        kind, inputs = "SimplifiedLayerNormalization", [value, weight]
    else:
        kind, inputs = "LayerNormalization", [value, weight, graph.weight(f"{name}.bias", norm.bias)]
    return graph.node(kind, inputs, name, axis=-1, epsilon=norm.epsilon, stash_type=1)


def _write_layer(stream: _Stream, layer: Layer, linears: Linears, masks: Masks, name: str, rank: int) -> None:
    """A layer; in a parallel one the MLP sees the stream without what the attention adds."""
    graph, attended = stream.graph, ""
    if layer.attention is not None and layer.attention_norm is not None:
        normed = stream.normalized(layer.attention_norm, f"{name}.input_layernorm")
        attended = write_attention(graph, layer.attention, linears, masks, normed, f"{name}.attn", rank)
        if layer.after_attention is not None:
            attended = write_norm(graph, layer.after_attention, attended, f"{name}.after_attention")
        if not layer.parallel:
            stream.add(attended, f"{name}.attn")
    if layer.mlp is not None and layer.mlp_norm is not None:
        normed = stream.normalized(layer.mlp_norm, f"{name}.post_attention_layernorm")
        added = _write_mlp(graph, layer.mlp, linears, normed, f"{name}.mlp")
        if layer.after_mlp is not None:
            added = write_norm(graph, layer.after_mlp, added, f"{name}.after_mlp")
        stream.add(added, f"{name}.mlp")
    if layer.parallel and attended:
        stream.add(attended, f"{name}.attn")


def _write_mlp(graph: Graph, mlp: Mlp, linears: Linears, value: str, name: str) -> str:
    if mlp.gate is None:
        inner = _activation(graph, mlp.activation, linears.apply(value, [mlp.up], f"{name}.up_proj"), name)
    else:
        gate, up = _gate_and_up(graph, mlp.gate, mlp.up, linears, value, name)
        inner = graph.node("Mul", [_activation(graph, mlp.activation, gate, name), up], f"{name}/Mul")
    return linears.apply(inner, [mlp.down], f"{name}.down_proj")


def _gate_and_up(graph: Graph, gate: Linear, up: Linear, linears: Linears, value: str, name: str) -> tuple[str, str]:
    """Both products; as one where weights are in blocks, since their input is rounded only once then."""
    if not linears.scheme.bits:
        return linears.apply(value, [gate], f"{name}.gate_proj"), linears.apply(value, [up], f"{name}.up_proj")
    both = linears.apply(value, [gate, up], f"{name}.gate_up_proj")
    parts = f"{name}/gate", f"{name}/up"
    graph.node("Split", [both], f"{name}/Split", outputs=parts, axis=-1, num_outputs=2)
    return parts


def _activation(graph: Graph, kind: str, value: str, name: str) -> str:
    if kind in ("silu", "swish"):
        # x sigmoid(x): one pass over the values where Sigmoid and Mul take two.
        return graph.node("QuickGelu", [value], f"{name}/act", domain=MICROSOFT, alpha=1.0)
    if kind in ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"):
        return graph.node("Gelu", [value], f"{name}/act", approximate="tanh")
    if kind == "gelu":
        return graph.node("Gelu", [value], f"{name}/act", approximate="none")
    if kind == "relu":
        return graph.node("Relu", [value], f"{name}/act")
    raise BadInputError(f'activation "{kind}" has no ONNX export: supported are silu, gelu, gelu_pytorch_tanh, relu')


def _embeddings(graph: Graph, decoder: Decoder, linears: Linears, ids: str) -> str:
    name = "model.embed_tokens"
    value = linears.embed(ids, decoder.embeddings, name, tied=decoder.head is None)
    if decoder.embedding_scale != 1.0:
        # Rounded to fp32 as torch's buffer is.
        scale = graph.constant(np.float32(decoder.embedding_scale), np.float32)
        value = graph.node("Mul", [value, scale], f"{name}/Mul")
    if decoder.positions is None:
        return value
    positions = graph.input("position_ids", TensorProto.INT64, ("batch_size", "sequence_length"))
    table = graph.weight("model.embed_positions.weight", decoder.positions.float())
    rows = graph.node("Gather", [table, positions], "model.embed_positions/Gather")
    return graph.node("Add", [value, rows], f"{name}/Add")


def _last_tokens(graph: Graph, hidden: str) -> str:
    """The tokens that logits are computed for."""
    kept, end = graph.weight(LOGITS_TO_KEEP, np.zeros(1, np.int64)), graph.constant([_LAST])
    begin = graph.node("Neg", [kept], "model.last_tokens/Neg")
    return graph.node("Slice", [hidden, begin, end, graph.constant([1])], "model.last_tokens/Slice")


def _write_head(graph: Graph, decoder: Decoder, linears: Linears, hidden: str) -> None:
    if decoder.head is None:
        logits = linears.tied_head(hidden, decoder.embeddings, "model.embed_tokens", "lm_head/MatMul")
    else:
        logits = linears.apply(hidden, [decoder.head], "lm_head", bits=linears.scheme.table_bits)
    if decoder.head_softcap:
        cap = graph.constant(decoder.head_softcap, np.float32)
        inner = graph.node("Div", [logits, cap], "lm_head/softcap/Div")
        inner = graph.node("Tanh", [inner], "lm_head/softcap/Tanh")
        logits = graph.node("Mul", [inner, cap], "lm_head/softcap/Mul")
    shape = ("batch_size", "sequence_length", decoder.vocab_size)
    name = graph.output("logits", TensorProto.FLOAT, shape)
    graph.node("Identity", [logits], "logits", outputs=[name])
