"""ONNX decoder with past of a dense or pruned model, with everything that its loaders want beside it.

The graph is written from the weights directly, without tracing: the operators that ONNX Runtime has fused kernels for,
each layer with its own sizes.  The directory loads unchanged in `onnxruntime` and `onnxruntime_genai`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prune_export.errors import BadInputError, nearest
from prune_export.export.files import MODEL_ONNX, MODEL_ONNX_DATA, ONNX_RECORD
from prune_export.export.genai_config import write_genai_config
from prune_export.export.onnx_decoder import write_decoder
from prune_export.export.onnx_graph import IR_VERSION, OPSET, Graph
from prune_export.export.onnx_limits import check_widths
from prune_export.export.onnx_linear import Linears, Scheme
from prune_export.export.onnx_quantize import BLOCKS, check_block
from prune_export.export.onnx_read import read_decoder
from prune_export.export.onnx_spec import Decoder
from prune_export.export.onnx_weights import ExternalData
from prune_export.export.quiet import quiet
from prune_export.export.rounded import RoundedWeights
from prune_export.export.stock_config import save_configs
from prune_export.progress import Progress

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
# The first ONNX Runtime whose CPU kernels take all operators used: 8-bit MatMulNBits came last.
OLDEST_RUNTIME = "1.22"


@dataclass(frozen=True)
class OnnxRecord:
    """What became of the weights; written to `onnx_export.json`.

    Attributes:
        precision: as asked for.
        block_size: weights that share a scale, as asked for; 0 where nothing is quantized.
        smaller_blocks: layer to its block where the one asked for does not divide the layer's input width.
        int8_layers: layers in 8 bits of an int4 artifact.
        fp32_layers: layers left in fp32, since no block divides their width.
        weights_bytes: size of the data file.
        opset: of the graph.
        ir_version: of the file.
        oldest_runtime: the ONNX Runtime that it needs at least.
        rounding: Neural Compressor's method that chose the integers, taken over as they are; empty for ONNX Runtime's
            own rounding.
        calibration: name and digests of the text that it went by; empty without one.
    """

    precision: str
    block_size: int = 0
    smaller_blocks: dict[str, int] = field(default_factory=dict)
    int8_layers: tuple[str, ...] = ()
    fp32_layers: tuple[str, ...] = ()
    weights_bytes: int = 0
    opset: int = OPSET
    ir_version: int = IR_VERSION
    oldest_runtime: str = OLDEST_RUNTIME
    rounding: str = ""
    calibration: dict[str, str] = field(default_factory=dict)

    def departures(self) -> dict[str, str]:
        """Layer to what it is stored in, where that is not the precision, or the block, that was asked for."""
        kinds = {**dict.fromkeys(self.smaller_blocks, self.precision), **dict.fromkeys(self.int8_layers, "int8")}
        blocks = {name: f" in groups of {block}" for name, block in self.smaller_blocks.items()}
        return {
            **{name: f"{kind}{blocks.get(name, '')}" for name, kind in kinds.items()},
            **dict.fromkeys(self.fp32_layers, "fp32"),
        }


def export_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    *,
    precision: str = "fp32",
    block: int = BLOCKS[0],
    head_bits: int = 4,
    rounded: RoundedWeights | None = None,
    progress: Progress | None = None,
) -> OnnxRecord:
    """Writes model.onnx, model.onnx.data, genai_config.json, configurations and tokenizer files.

    fp32, fp16 and bf16 are the types that matrices are stored in; all three are computed in fp32.  int8 and int4 are
    ONNX Runtime's MatMulNBits, asymmetric in blocks, with activations in int8; norms and biases stay in fp32.

    Args:
        model: stock or pruned decoder in fp32 on the CPU; left as it is.
        tokenizer: its tokenizer, or None for none.
        directory: where to write; made if missing, without a model in it.
        precision: of the weights.
        block: for int8 and int4: 128, 64 or 32; smaller ones are used for the layers that it does not fit.
        head_bits: of embeddings and head of an int4 artifact: 4, or 8.
        rounded: int4 weights that were chosen before, whose values the model has: taken over as they are; what was not
            rounded, embeddings and head included, gets 8 bits.  They decide `block` and `head_bits`.
        progress: is told the share of the weights that is written.

    Raises:
        BadInputError: unknown precision or block, an architecture without ONNX form, no attention left, integer weights
            that fit no layer, a weight that fp16 cannot hold, or a model that lies in the directory already.
    """
    check_precision(precision)
    check_block(block)
    if rounded is not None and precision != "int4":
        raise BadInputError(f"weights that were rounded to int4 cannot be exported in {precision}: use int4")
    decoder = read_decoder(model, rounded)
    check_widths(_widths(decoder), precision)
    scheme = Scheme(precision, block, head_bits) if rounded is None else Scheme(precision, rounded.group_size, 8, 8)
    directory.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_ONNX, MODEL_ONNX_DATA):
        if (directory / name).exists() or (directory / name).is_symlink():
            raise BadInputError(f"{directory / name} exists already: export to an empty directory")
    with nullcontext() if progress is None else progress.phase(f"writing ONNX in {precision}"):
        record = _write_model(decoder, directory, scheme, progress)
    if rounded is not None:
        record = replace(record, rounding=rounded.method, calibration=rounded.calibration)
    with quiet():
        save_configs(model, directory, decoder.family)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
    write_genai_config(decoder, directory, generation=model.generation_config)
    (directory / ONNX_RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf8")
    return record


def check_precision(precision: str) -> None:
    """Refuses what is no precision of this format.

    Raises:
        BadInputError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise BadInputError(
            f'ONNX has no precision "{precision}"{nearest(precision, PRECISIONS)}: use one of {", ".join(PRECISIONS)}'
        )


def _write_model(decoder: Decoder, directory: Path, scheme: Scheme, progress: Progress | None) -> OnnxRecord:
    # int4 and int8 files are smaller than this; the share is of what is expected in the scheme.
    expected = _expected_bytes(decoder, scheme)
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress.update(done, expected)

    with ExternalData(directory / MODEL_ONNX_DATA, written=written) as data, torch.inference_mode():
        graph = Graph(data)
        linears = Linears(graph, scheme)
        write_decoder(graph, decoder, linears)
    model = graph.model({"precision": scheme.precision, "oldest_onnxruntime": OLDEST_RUNTIME})
    (directory / MODEL_ONNX).write_bytes(model.SerializeToString())
    return OnnxRecord(
        precision=scheme.precision,
        block_size=scheme.block if scheme.bits else 0,
        smaller_blocks=dict(linears.smaller_blocks),
        int8_layers=tuple(linears.int8),
        fp32_layers=tuple(linears.fp32),
        weights_bytes=(directory / MODEL_ONNX_DATA).stat().st_size,
    )


def _widths(decoder: Decoder) -> Iterator[int]:
    """Of the inputs of all products."""
    yield decoder.hidden_size
    for layer in decoder.layers:
        if layer.attention is not None:
            yield int(layer.attention.o.weight.shape[1])
        if layer.mlp is not None:
            yield int(layer.mlp.down.weight.shape[1])


def _expected_bytes(decoder: Decoder, scheme: Scheme) -> float:
    """Size of the data file, roughly: its matrices at the scheme's width."""
    count = decoder.embeddings.numel() + (decoder.head.weight.numel() if decoder.head is not None else 0)
    for layer in decoder.layers:
        attention, mlp = layer.attention, layer.mlp
        parts: list[Any] = [attention.q, attention.k, attention.v, attention.o] if attention is not None else []
        parts += [part for part in (mlp.gate, mlp.up, mlp.down) if part is not None] if mlp is not None else []
        count += sum(part.weight.numel() for part in parts)
    scales = 5.0 / scheme.block if scheme.bits else 0.0
    return count * ((scheme.bits / 8 if scheme.bits else scheme.storage.itemsize) + scales)
