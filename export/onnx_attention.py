"""Attention as ONNX Runtime's GroupQueryAttention, with rotation and cache inside the operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import TensorProto

from prune_export.export.onnx_graph import MICROSOFT, Graph
from prune_export.export.onnx_linear import Linears
from prune_export.export.onnx_spec import Attention, Norm

# What is added to the scores of padding: finite, since a row of nothing but padding must not become NaN.
_MASKED = np.finfo(np.float32).min


@dataclass(frozen=True)
class Masks:
    """What every attention takes, computed once for each call.

    Attributes:
        lengths: int32 [B], index of each sequence's last token in the cache.
        total: int32 scalar, tokens in the cache after the call.
        bias: [B, 1, T, total], added to the scores.
        rotary: names of cosines and sines, or None.
    """

    lengths: str
    total: str
    bias: str
    rotary: tuple[str, str] | None


def write_masks(graph: Graph, ids: str, mask: str, *, rotary: tuple[torch.Tensor, torch.Tensor] | None) -> Masks:
    """Lengths and bias from the attention mask.

    Padding on the left (the way of transformers) stays in the cache and is masked; padding on the right (the way of
    ONNX Runtime GenAI) is overwritten by what follows, as the operator does by itself.  With P zeros in front of the
    first one and S ones, the last token of a sequence lies at P + S - 1 in either case.
    """
    one, name = graph.constant([1]), "model.masks"
    ones = graph.node("ReduceSum", [mask, one], f"{name}/ones", keepdims=0)
    # The first of the largest values: the first 1.
    front = graph.node("ArgMax", [mask], f"{name}/front", axis=1, keepdims=0)
    after = graph.node("Add", [ones, front], f"{name}/after")
    last = graph.node("Sub", [after, one], f"{name}/last")
    lengths = graph.node("Cast", [last], f"{name}/lengths", to=TensorProto.INT32)

    long_total = graph.node("Gather", [graph.node("Shape", [mask], f"{name}/shape"), graph.constant(1)], f"{name}/long")
    total = graph.node("Cast", [long_total], f"{name}/total", to=TensorProto.INT32)
    columns = graph.node("Range", [graph.constant(0), long_total, graph.constant(1)], f"{name}/columns")
    fronts = graph.node("Unsqueeze", [front, graph.constant([1, 2, 3])], f"{name}/fronts")
    padding = graph.node("Less", [columns, fronts], f"{name}/padding")
    values = [graph.constant(_MASKED, np.float32), graph.constant(0.0, np.float32)]
    row = graph.node("Where", [padding, *values], f"{name}/row")
    tokens = graph.node("Shape", [ids], f"{name}/tokens", start=1, end=2)
    shape = graph.node("Concat", [one, one, tokens, one], f"{name}/bias_shape", axis=0)
    bias = graph.node("Expand", [row, shape], f"{name}/bias")
    tables = None
    if rotary is not None:
        tables = graph.weight("cos_cache", rotary[0]), graph.weight("sin_cache", rotary[1])
    return Masks(lengths, total, bias, tables)


def write_attention(
    graph: Graph, attention: Attention, linears: Linears, masks: Masks, value: str, name: str, rank: int
) -> str:
    """One attention with its output projection; declares its cache as inputs and outputs.

    Args:
        graph: where nodes go.
        attention: the attention.
        linears: writes the projections.
        masks: of this call.
        value: normalized hidden states [B, T, D].
        name: prefix of the nodes.
        rank: index of its cache.
    """
    pasts, presents = _caches(graph, attention, rank)
    outputs = [f"{name}/GroupQueryAttention/output_0", *presents]
    attended = graph.node(
        "GroupQueryAttention",
        [
            *_projected(graph, attention, linears, value, name),
            *pasts,
            masks.lengths,
            masks.total,
            *(masks.rotary or ("", "")),
            "",
            masks.bias,
        ],
        f"{name}/GroupQueryAttention",
        domain=MICROSOFT,
        outputs=outputs,
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        scale=attention.scale,
        softcap=attention.softcap,
        local_window_size=attention.window or -1,
        do_rotary=int(masks.rotary is not None),
    )
    return linears.apply(attended, [attention.o], f"{name}.o_proj")


def _projected(graph: Graph, attention: Attention, linears: Linears, value: str, name: str) -> tuple[str, str, str]:
    """Queries, keys and values: one product for all where no norm comes between."""
    parts = (attention.q, attention.k, attention.v)
    if attention.q_norm is None or attention.k_norm is None:
        return linears.apply(value, parts, f"{name}.qkv_proj"), "", ""
    q, k, v = (linears.apply(value, [part], f"{name}.{kind}_proj") for kind, part in zip("qkv", parts, strict=True))
    q = _head_norm(graph, attention.q_norm, q, attention.heads, attention.head_dim, f"{name}.q_norm")
    k = _head_norm(graph, attention.k_norm, k, attention.kv_heads, attention.head_dim, f"{name}.k_norm")
    return q, k, v


def _head_norm(graph: Graph, norm: Norm, value: str, heads: int, width: int, name: str) -> str:
    """Normalizes each head of [B, T, heads * d]."""
    split = graph.node("Reshape", [value, graph.constant([0, 0, heads, width])], f"{name}/split")
    weight = graph.weight(f"{name}.weight", norm.weight)
    normed = graph.node(
        "SimplifiedLayerNormalization", [split, weight], name, axis=-1, epsilon=norm.epsilon, stash_type=1
    )
    return graph.node("Reshape", [normed, graph.constant([0, 0, heads * width])], f"{name}/join")


def _caches(graph: Graph, attention: Attention, rank: int) -> tuple[list[str], list[str]]:
    pasts: list[str] = []
    presents: list[str] = []
    for part in ("key", "value"):
        for names, declare, prefix, length in (
            (pasts, graph.input, "past_key_values", "past_sequence_length"),
            (presents, graph.output, "present", "total_sequence_length"),
        ):
            shape = ("batch_size", attention.kv_heads, length, attention.head_dim)
            names.append(declare(f"{prefix}.{rank}.{part}", TensorProto.FLOAT, shape))
    return pasts, presents
