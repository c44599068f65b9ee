"""The model families that can be pruned: one row each.

A family is a row of names (where the layers are, what the projections are called, which of them have biases), never a
fork of the algorithm.  Adding one is a row here, two classes in `modeling.py` and a test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prune_export.errors import BadInputError, nearest

PRUNED_PREFIX = "prune_"


@dataclass(frozen=True)
class Family:
    """Names of one architecture.

    Attributes:
        name: `model_type` of the stock architecture.
        config_class: class of its configuration in `transformers`.
        model_class: class of its causal language model in `transformers`.
        pruned_config_class: class of a pruned model's configuration in `modeling.py`.
        pruned_model_class: class of a pruned model in `modeling.py`.
        fixed_biases: projections that always have a bias, out of q k v o gate up down.
        bias_flags: configuration flag to the projections that get a bias with it.
        layers: path of the list of layers in the model.
        embeddings: path of the embedding table.
        final_norm: path of the norm before the head.
        rotary: path of the rotary embedding, whose buffers are not in checkpoints.
        head: path of the LM head.
        attention: name of the attention in a layer.
        mlp: name of the MLP in a layer.
        attention_norm: name of the norm before the attention.
        mlp_norm: name of the norm before the MLP.
        projections: short name to the name in the sub-block.
    """

    name: str
    config_class: str
    model_class: str
    pruned_config_class: str
    pruned_model_class: str
    fixed_biases: tuple[str, ...] = ()
    bias_flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layers: str = "model.layers"
    embeddings: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    rotary: str = "model.rotary_emb"
    head: str = "lm_head"
    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    projections: dict[str, str] = field(
        default_factory=lambda: {
            "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj",
            "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
        }
    )  # fmt: skip

    @property
    def pruned_type(self) -> str:
        """`model_type` of a pruned model."""
        return PRUNED_PREFIX + self.name


FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        Family(
            name="llama",
            config_class="LlamaConfig",
            model_class="LlamaForCausalLM",
            pruned_config_class="PruneLlamaConfig",
            pruned_model_class="PruneLlamaForCausalLM",
            bias_flags={"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")},
        ),
        Family(
            name="mistral",
            config_class="MistralConfig",
            model_class="MistralForCausalLM",
            pruned_config_class="PruneMistralConfig",
            pruned_model_class="PruneMistralForCausalLM",
        ),
        Family(
            name="qwen2",
            config_class="Qwen2Config",
            model_class="Qwen2ForCausalLM",
            pruned_config_class="PruneQwen2Config",
            pruned_model_class="PruneQwen2ForCausalLM",
            fixed_biases=("q", "k", "v"),
        ),
    )
}


def family_of(config: Any) -> Family:
    """The row for a configuration (object or parsed config.json), dense or pruned.

    Raises:
        BadInputError: an architecture without a row; names those supported.
    """
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    name = str(kind or "").removeprefix(PRUNED_PREFIX)
    if name not in FAMILIES:
        shown = f'architecture "{kind}"' if kind else "a configuration without model_type"
        raise BadInputError(f"{shown} is not supported: use one of {', '.join(FAMILIES)}{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def is_pruned(config: Any) -> bool:
    """Whether a configuration (object or parsed config.json) is of a pruned model."""
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    return str(kind or "").startswith(PRUNED_PREFIX)
