"""A tiny random Llama and its stateful IR, exported by optimum-intel once a session."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, CONTEXT = 96, 64


@pytest.fixture(scope="session")
def tiny_model() -> LlamaForCausalLM:
    """2 layers, vocabulary 96, context 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # Wide enough that logits differ by far more than the tolerances.
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_ir(tiny_model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of its stateful IR."""
    directory = tmp_path_factory.mktemp("tiny") / "openvino"
    with warnings.catch_warnings():
        # torch's tracer warns about constants of the modelling code; nothing of ours.
        warnings.simplefilter("ignore")
        from optimum.exporters.openvino import export_from_model

        export_from_model(tiny_model, output=directory, task="text-generation-with-past", stateful=True)
    assert json.loads((directory / "config.json").read_text())["max_position_embeddings"] == CONTEXT
    return directory
