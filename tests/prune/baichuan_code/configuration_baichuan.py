"""Stands for the configuration that a Baichuan2 checkpoint brings along."""

from typing import Any

from transformers import PretrainedConfig


class BaichuanConfig(PretrainedConfig):
    model_type = "baichuan"

    def __init__(
        self,
        vocab_size: int = 61,
        hidden_size: int = 32,
        intermediate_size: int = 24,
        num_hidden_layers: int = 5,
        num_attention_heads: int = 4,
        max_position_embeddings: int = 64,
        rms_norm_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        super().__init__(**kwargs)
