"""Tiny pruned models of Llama's kind (Llama, Mistral, Qwen2) and a tiny tokenizer, for the export tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "def main() -> int:\n    return 0\n",
    "Größe, naïve café, 東京 and 🙂 are bytes too.",
)
BIASES = {"llama": (), "mistral": (), "qwen2": ("q", "k", "v")}
# No attention; no MLP; both; neither; both with other sizes.
PRUNED_LAYERS = (
    LayerShape(0, 0, 64),
    LayerShape(4, 2, 0),
    LayerShape(2, 1, 128),
    LayerShape(0, 0, 0),
    LayerShape(4, 4, 96),
)
DENSE_LAYER = LayerShape(4, 2, 128)
CONTEXT = 384


@dataclass(frozen=True)
class Exported:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    shape: ModelShape
    directory: Path

    def prompt(self, index: int = 0) -> np.ndarray:
        return np.array(self.tokenizer(SENTENCES[index])["input_ids"], dtype=np.int64)


def make_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def make_model(shape: ModelShape, *, seed: int = 0) -> PreTrainedModel:
    """Weights far larger than usual, so that logits differ enough for greedy tokens to be certain."""
    model = random_model(shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.15, generator=generator)
            else:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model


def make_shape(family: str, layers: tuple[LayerShape, ...], *, tied: bool = True) -> ModelShape:
    return ModelShape(family, 64, 16, 320, tied, layers, BIASES[family], CONTEXT)


def with_exact_activations(directory: Path) -> None:
    """The delivered graph rounds activations to int8 as well."""
    graph = onnx.load(directory / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    (directory / "model.onnx").write_bytes(graph.SerializeToString())
