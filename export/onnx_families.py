"""Where the parts of a decoder are found in each family's modules: one row each."""

from __future__ import annotations

from dataclasses import dataclass

from prune_export.errors import BadInputError, nearest

PRUNED_PREFIX = "prune_"


@dataclass(frozen=True)
class Row:
    """Names in the modules of one family; "" where it has no such part.

    Attributes:
        layers: the list of layers.
        embeddings: the token table.
        positions: the table of learned positions.
        position_offset: rows of it before position 0.
        final_norm: before the head.
        head: the LM head.
        rotary: the rotary embedding.
        attention: the attention in a layer.
        attention_norm: before it.
        after_attention: on what it adds.
        q, k, v: its projections, or
        qkv: all three in one, and
        qkv_by_head: whether that one lists q, k, v of each head in turn.
        o: its output projection.
        q_norm, k_norm: norms of each head.
        mlp: the MLP in a layer; "" where its projections are in the layer itself.
        mlp_norm: before it.
        after_mlp: on what it adds.
        gate, up, down: its projections, or
        gate_up: both in one.
        activation: the configuration's field.
        parallel: the configuration's flag for attention and MLP side by side.
        norm_offset: what is added to norm weights.
        scaled_embeddings: embeddings are multiplied by the root of the hidden size.
        unsupported: configuration fields to the only value that is supported.
    """

    layers: str = "model.layers"
    embeddings: str = "model.embed_tokens"
    positions: str = ""
    position_offset: int = 0
    final_norm: str = "model.norm"
    head: str = "lm_head"
    rotary: str = "model.rotary_emb"
    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    after_attention: str = ""
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    qkv: str = ""
    qkv_by_head: bool = False
    o: str = "o_proj"
    q_norm: str = ""
    k_norm: str = ""
    mlp: str = "mlp"
    mlp_norm: str = "post_attention_layernorm"
    after_mlp: str = ""
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str = ""
    activation: str = "hidden_act"
    parallel: str = ""
    norm_offset: float = 0.0
    scaled_embeddings: bool = False
    unsupported: tuple[tuple[str, object], ...] = ()


ROWS: dict[str, Row] = {
    "llama": Row(),
    "mistral": Row(),
    "qwen2": Row(),
    "qwen3": Row(q_norm="q_norm", k_norm="k_norm"),
    "phi3": Row(qkv="qkv_proj", gate_up="gate_up_proj"),
    "gemma2": Row(
        after_attention="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
        activation="hidden_activation",
        norm_offset=1.0,
        scaled_embeddings=True,
    ),
    "gpt_neox": Row(
        layers="gpt_neox.layers",
        embeddings="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        rotary="gpt_neox.rotary_emb",
        attention="attention",
        qkv="query_key_value",
        qkv_by_head=True,
        o="dense",
        gate="",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        parallel="use_parallel_residual",
    ),
    "opt": Row(
        layers="model.decoder.layers",
        embeddings="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        position_offset=2,
        final_norm="model.decoder.final_layer_norm",
        rotary="",
        attention_norm="self_attn_layer_norm",
        o="out_proj",
        mlp="",
        mlp_norm="final_layer_norm",
        gate="",
        up="fc1",
        down="fc2",
        activation="activation_function",
        unsupported=(("do_layer_norm_before", True), ("_remove_final_layer_norm", False)),
    ),
    "gpt2": Row(
        layers="transformer.h",
        embeddings="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        rotary="",
        attention="attn",
        attention_norm="ln_1",
        qkv="c_attn",
        o="c_proj",
        mlp_norm="ln_2",
        gate="",
        up="c_fc",
        down="c_proj",
        activation="activation_function",
    ),
}


def row_of(model_type: str) -> tuple[str, Row]:
    """Stock name and row of an architecture, dense or pruned.

    Raises:
        BadInputError: it has no row.
    """
    name = model_type.removeprefix(PRUNED_PREFIX)
    if name not in ROWS:
        raise BadInputError(
            f'architecture "{model_type}" has no ONNX export: use one of {", ".join(ROWS)}{nearest(name, ROWS)}'
        )
    return name, ROWS[name]
