"""What one row of the family table says about an architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

PRUNED_PREFIX = "prune_"

# How the rows of q, k and v lie: three projections, one with q, k, v after each other, or one with q, k, v of the first
# head, then of the second, ...
HeadLayout: TypeAlias = Literal["separate", "concatenated", "interleaved"]
# The same for the MLP: gate and up, one projection with both after each other, or no gate.
MlpLayout: TypeAlias = Literal["separate", "concatenated", "plain"]

SEPARATE = {
    "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj",
    "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """A setting that the family must have to be pruned here.

    Attributes:
        flag: name in the configuration; one that is not there counts as fulfilled.
        value: what it must be; for `same_as` set, of no meaning.
        why: end of the sentence "... is not supported: ".
        same_as: setting that it must equal.
    """

    flag: str
    value: Any
    why: str
    same_as: str | None = None


@dataclass(frozen=True)
class Family:
    """Names of one architecture.

    Attributes:
        name: `model_type` of the stock architecture.
        config_class: class of its configuration in `transformers`; empty for code that comes with the checkpoint.
        model_class: class of its causal language model in `transformers`; empty likewise.
        pruned_config_class: class of a pruned model's configuration in `module`.
        pruned_model_class: class of a pruned model in `module`.
        module: file of this package that defines the pruned classes and is copied beside a checkpoint.
        llama_like: `Decoder` can run it: separate projections, two norms a layer, rotary positions over whole heads.
        fixed_biases: projections that always have a bias, by the short names of `projections`.
        bias_flags: configuration flag to the projections that get a bias with it.
        requirements: settings without which a model of the family is refused.
        layers: path of the list of layers in the model.
        embeddings: path of the embedding table.
        positions: path of the table of learned positions, if there is one.
        final_norm: path of the norm before the head.
        rotary: path of the rotary embedding, whose buffers are not in checkpoints, if there is one.
        head: path of the LM head.
        softcap: configuration name of the soft cap of the logits, if the family has one.
        eager_with: configuration setting with which eager attention alone computes what the family defines: the fused
            ones leave soft caps of the attention scores out without a word.
        parallel: configuration flag that lets attention and MLP read the same input, if there is one.
        attention: path of the attention in a layer.
        mlp: path of the MLP in a layer; empty when its projections lie in the layer itself.
        mixer: path of the state-space mixer in a layer, in a family that has neither attention nor MLP; else empty.
        attention_norm: path of the norm before the attention.
        attention_post_norm: path of the norm after it, before the residual addition, if there is one.
        mlp_norm: path of the norm before the MLP.
        mlp_post_norm: path of the norm after it, if there is one.
        mixer_norm: path of the norm before the mixer.
        norm_vectors: parameters of a norm over D: 1 (weight) or 2 (weight and bias).
        norm_offset: what the norms add to their weight.
        norm_flag: configuration flag without which the norms have no parameters, if there is one.
        head_norms: norms over d in an attention.
        position_offset: rows of the table of learned positions beyond the longest sequence.
        activation: name of the MLP's activation, beside its projections.
        width_setting: configuration name of the MLP width.
        uniform: its stock configuration says head width, heads and MLP width apart, so that fewer of them need no code.
        one_kv_head_each: the family knows no grouped KV heads, and its head width is hidden size / heads.
        heads: how the rows of q, k and v lie.
        mlp_layout: how the MLP's input projections lie.
        mixer_units: what is removed of a mixer: channels (Mamba) or heads (Mamba-2).
        recurrence: parameters in a mixer that go with its recurrence; empty when it cannot go alone.
        projections: short name (q k v o, qkv, gate up down, gate_up, in out) to the name in the sub-block.
    """

    name: str
    config_class: str
    model_class: str
    pruned_config_class: str
    pruned_model_class: str
    module: str = "modeling"
    llama_like: bool = False
    fixed_biases: tuple[str, ...] = ()
    bias_flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()
    layers: str = "model.layers"
    embeddings: str = "model.embed_tokens"
    positions: str | None = None
    final_norm: str = "model.norm"
    rotary: str | None = "model.rotary_emb"
    head: str = "lm_head"
    softcap: str | None = None
    eager_with: str | None = None
    parallel: str | None = None
    attention: str = "self_attn"
    mlp: str = "mlp"
    mixer: str = ""
    attention_norm: str = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    mixer_norm: str = "norm"
    norm_vectors: int = 1
    norm_offset: float = 0.0
    norm_flag: str | None = None
    head_norms: int = 0
    position_offset: int = 0
    activation: str = "act_fn"
    width_setting: str = "intermediate_size"
    uniform: bool = False
    one_kv_head_each: bool = False
    heads: HeadLayout = "separate"
    mlp_layout: MlpLayout = "separate"
    mixer_units: Literal["channels", "heads"] = "channels"
    recurrence: tuple[str, ...] = ()
    projections: dict[str, str] = field(default_factory=lambda: dict(SEPARATE))

    @property
    def pruned_type(self) -> str:
        """`model_type` of a pruned model."""
        return PRUNED_PREFIX + self.name

    @property
    def in_modules(self) -> tuple[str, ...]:
        """Short names of the MLP's input projections."""
        return {"separate": ("gate", "up"), "concatenated": ("gate_up",), "plain": ("up",)}[self.mlp_layout]

    def path(self, part: str, short: str) -> str:
        """Path in a layer of a projection of `part` ("attention", "mlp" or "mixer")."""
        block = {"attention": self.attention, "mlp": self.mlp, "mixer": self.mixer}[part]
        return f"{block}.{self.projections[short]}".lstrip(".")

    def norms(self, part: str) -> tuple[str, ...]:
        """Paths in a layer of the norms that come and go with a sub-block."""
        found = {
            "attention": (self.attention_norm, self.attention_post_norm),
            "mlp": (self.mlp_norm, self.mlp_post_norm),
            "mixer": (self.mixer_norm,),
        }[part]
        return tuple(name for name in found if name)
