"""Stateful fp32 OpenVINO IR of a dense or pruned model, with everything that its loaders want beside it.

The directory loads unchanged in `openvino.Core`, `optimum.intel.OVModelForCausalLM` and `openvino_genai.LLMPipeline`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prune_export.errors import BadInputError
from prune_export.export.files import DETOKENIZER_XML, MODEL_XML, TOKENIZER_XML
from prune_export.export.openvino_families import row_of
from prune_export.export.quiet import quiet
from prune_export.export.stock_config import save_configs
from prune_export.progress import Progress
from prune_export.prune.families import family_of, needs_eager
from prune_export.prune.shapes import model_shape


def export_openvino(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Writes the IR, tokenizer and detokenizer IR, configurations, tokenizer files and chat template.

    Weights are stored in fp32; `prune_export.export.weights.compress` makes the other precisions from this directory.
    The model is traced where it lies in memory, without a copy of its weights, and is left as it was.

    Args:
        model: stock or pruned model in fp32 on the CPU.
        tokenizer: its tokenizer.
        directory: where to write; made if missing.
        progress: reports the two phases.

    Raises:
        BadInputError: an architecture or a tokenizer without OpenVINO form, no attention or mixer left, or weights that
            are not fp32.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _phase(progress, "exporting the graph"):
        export_graph_only(model, directory / MODEL_XML)
    with _phase(progress, "exporting the tokenizer"):
        save_configs(model, directory, model_shape(model.config).family)
        export_tokenizer(tokenizer, directory)


def export_graph_only(model: PreTrainedModel, path: Path) -> None:
    """Writes the IR alone (`path` and the .bin beside it): enough for `openvino.Core`, for timing of many small stacks.

    Args:
        model: as for `export_openvino`.
        path: ends in .xml.

    Raises:
        BadInputError: as for `export_openvino`.
    """
    _export(model, path)


def graph_in_memory(model: PreTrainedModel) -> Any:
    """The `openvino.Model` that `export_graph_only` writes, unwritten; its constants are the weights of `model`.

    Spares stacks that are compressed at once the writing of fp32 weights, which no timing reads.

    Args:
        model: as for `export_openvino`; must live as long as the graph does.

    Raises:
        BadInputError: as for `export_openvino`.
    """
    with quiet():
        from optimum.exporters.openvino import convert
    kept: list[Any] = []
    before = convert.save_model
    convert.save_model = lambda graph, *_: kept.append(graph)  # its exporter writes whatever it makes
    try:
        _export(model, Path(MODEL_XML))
    finally:
        convert.save_model = before
    (graph,) = kept
    return graph


def _export(model: PreTrainedModel, path: Path) -> None:
    _, row = row_of(str(model.config.model_type))
    wrong = sorted({str(weight.dtype) for weight in model.parameters() if weight.dtype != torch.float32})
    if wrong:
        raise BadInputError(f"the model has weights in {', '.join(wrong)}, the export needs float32: load it in fp32")
    with quiet():
        from optimum.exporters.openvino.convert import export_pytorch

        config = _CONFIGS[row.state](model)
    with quiet(), _unchanged(model), _frozen_garbage():
        export_pytorch(model, config, path, stateful=True, library_name="transformers")


def _attention_config(model: PreTrainedModel) -> Any:
    from prune_export.export.optimum_config import DecoderExportConfig

    shape = model_shape(model.config)
    kv_heads = tuple(shape.layers[index].kv_heads for index in shape.attention_layers)
    _check_left(kv_heads, len(shape.layers), "attention")
    return DecoderExportConfig(model.config, kv_heads=kv_heads, head_dim=shape.head_dim)


def _mixer_config(model: PreTrainedModel) -> Any:
    from prune_export.export.optimum_config import MambaExportConfig

    layers = model_shape(model.config).layers
    widths = tuple(layer.mixer_width for layer in layers if layer.mixer_width)
    _check_left(widths, len(layers), "mixer")
    return MambaExportConfig(model.config, widths=widths)


_CONFIGS = {"attention": _attention_config, "mixer": _mixer_config}


def _check_left(sizes: tuple[int, ...], layers: int, what: str) -> None:
    if not sizes:
        raise BadInputError(
            f"the model's {layers} layers have no {what} left; OpenVINO's stateful text models need at least 1: keep "
            "one in the plan"
        )


def export_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes the tokenizer's own files with its chat template, and its OpenVINO tokenizer and detokenizer.

    Raises:
        BadInputError: the tokenizer has no OpenVINO form.
    """
    tokenizer.save_pretrained(directory)
    with quiet(), _padding_left(tokenizer):
        import openvino
        from openvino.exceptions import OVError
        from openvino_tokenizers import convert_tokenizer
        from optimum.exporters.openvino.utils import set_simplified_chat_template

        try:
            encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
        except (OVError, NotImplementedError, RuntimeError, KeyError, ValueError) as error:
            reason = str(error).strip().splitlines()
            raise BadInputError(
                f"tokenizer {type(tokenizer).__name__} has no OpenVINO form ({reason[0] if reason else 'no reason'}): "
                "use a byte-level BPE, WordPiece, Unigram or SentencePiece tokenizer"
            ) from error
        set_simplified_chat_template(encoder)
        openvino.save_model(encoder, directory / TOKENIZER_XML, compress_to_fp16=False)
        openvino.save_model(decoder, directory / DETOKENIZER_XML, compress_to_fp16=False)


@contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Puts back what the exporter changes on the model: `forward`, configuration, training mode, attention."""
    config, own_forward = model.config, model.__dict__.get("forward")
    before = dict(config.__dict__)
    training = model.training
    attention = config._attn_implementation
    # The runtime fuses torch's fused attention with its cache; soft caps have no fused form.
    eager = needs_eager(config) or family_of(config).mixer
    wanted = "eager" if eager else "sdpa"
    if attention != wanted:
        model.set_attn_implementation(wanted)
    # The exporter makes the states of the architectures that it knows by name.
    config.model_type = row_of(str(config.model_type))[0]
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        if own_forward is not None:
            model.__dict__["forward"] = own_forward
        if attention != wanted:
            model.set_attn_implementation(attention)
        config.__dict__.clear()
        config.__dict__.update(before)
        model.train(training)


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Spares the exporter's two full collections the walk over everything imported: most of a small export's time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _padding_left(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Batches of prompts to be continued are padded on the left."""
    before = tokenizer.padding_side, tokenizer.truncation_side
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = before


def _phase(progress: Progress | None, name: str) -> Any:
    return nullcontext() if progress is None else progress.phase(name)
