"""Matrix products and embedding lookups in the precision of the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from onnx import TensorProto

from prune_export.errors import BadInputError
from prune_export.export.onnx_graph import MICROSOFT, Graph
from prune_export.export.onnx_quantize import Quantized, block_for, packed, quantize
from prune_export.export.onnx_spec import Linear
from prune_export.export.rounded import RoundedMatrix, stacked

# The least precise activations that MatMulNBits may compute with: int8, the fastest on a CPU.
_INT8_ACTIVATIONS = 4
_FP16_LARGEST = torch.finfo(torch.float16).max
_STORED = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Scheme:
    """How weights are stored.

    Attributes:
        precision: "fp32", "fp16" and "bf16" (stored so, computed in fp32), "int8" or "int4".
        block: of int8 and int4, the weights that share a scale, as asked for.
        head_bits: of embeddings and head of an int4 artifact: 4, or 8 for less loss and more bytes.
        other_bits: of the other matrices of an int4 artifact that were not rounded before: 4, or 8.
    """

    precision: str
    block: int = 128
    head_bits: int = 4
    other_bits: int = 4

    @property
    def bits(self) -> int:
        """8, 4, or 0 for unquantized weights."""
        return {"int8": 8, "int4": 4}.get(self.precision, 0)

    @property
    def own_bits(self) -> int:
        """Of a matrix that ONNX Runtime rounds."""
        return self.other_bits if self.bits == 4 else self.bits

    @property
    def table_bits(self) -> int:
        """Of the head, and of embeddings that are the head too."""
        return self.head_bits if self.bits == 4 else self.bits

    @property
    def storage(self) -> torch.dtype:
        """Type of unquantized matrices in the file."""
        return _STORED.get(self.precision, torch.float32)


@dataclass
class Linears:
    """Writes products into a graph and keeps a record of what is stored otherwise than asked for.

    Attributes:
        graph: where nodes and weights go.
        scheme: how weights are stored.
        smaller_blocks: layer to its block where the one asked for does not divide the layer's input width.
        int8: layers in 8 bits of an int4 artifact.
        fp32: layers left in fp32 of a quantized artifact, since no block divides their width.
    """

    graph: Graph
    scheme: Scheme
    smaller_blocks: dict[str, int] = field(default_factory=dict)
    int8: list[str] = field(default_factory=list)
    fp32: list[str] = field(default_factory=list)
    _widened: dict[str, str] = field(default_factory=dict)
    _done: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    _tied: dict[str, str] = field(default_factory=dict)

    def apply(self, value: str, parts: Sequence[Linear], name: str, *, bits: int = 0) -> str:
        """One product for all parts, which share their input; outputs lie side by side.

        Args:
            value: [B, T, in].
            parts: with biases all or none.
            name: of the product.
            bits: of weights that are quantized here, 0 for the scheme's.
        """
        block = self._block(int(parts[0].weight.shape[1]), name) if self.scheme.bits else 0
        if block:
            product = self._quantized_product(value, parts, name, bits or self.scheme.own_bits, block)
        else:
            turned = torch.cat([part.weight.t() for part in parts], dim=1)
            product = self.graph.node("MatMul", [value, self._float(f"{name}.weight", turned)], f"{name}/MatMul")
        if parts[0].bias is None:
            return product
        biases = [part.bias.float() for part in parts if part.bias is not None]
        bias = self.graph.weight(f"{name}.bias", torch.cat(biases))
        return self.graph.node("Add", [product, bias], f"{name}/Add")

    def embed(self, ids: str, table: torch.Tensor, name: str, *, tied: bool) -> str:
        """Rows of an embedding table [V, D]; [B, T, D].

        Args:
            ids: [B, T].
            table: the embeddings.
            name: of the weight.
            tied: the head uses the same table, in the head's bits; otherwise 8 bits are kept.
        """
        block = self._block(int(table.shape[1]), name) if self.scheme.bits else 0
        if not block and tied:
            # Stored as the head multiplies with it: with a transposed matrix it reads at nine tenths of the speed.  The
            # runtime turns it once, when it loads the model.
            rows = self.graph.node("Transpose", [self._head(table, name)], f"{name}/Transpose", perm=[1, 0])
            return self.graph.node("Gather", [rows, ids], f"{name}/Gather")
        if not block:
            return self.graph.node("Gather", [self._float(f"{name}.weight", table), ids], f"{name}/Gather")
        bits = self.scheme.table_bits if tied else 8
        self._note_bits(bits, name)
        packed, scales, zeros = self._quantized(f"{name}.weight", table, bits, block)
        flat = self.graph.constant([table.shape[0], table.shape[1] * bits // 8])
        rows = self.graph.node("Reshape", [packed, flat], f"{name}/Reshape")
        return self.graph.node(
            "GatherBlockQuantized",
            [rows, ids, scales, zeros],
            f"{name}/Gather",
            domain=MICROSOFT,
            bits=bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )

    def tied_head(self, value: str, table: torch.Tensor, name: str, head: str) -> str:
        """The product with the embedding table that `embed` has written; [B, T, V]."""
        block = block_for(int(table.shape[1]), self.scheme.block) if self.scheme.bits else 0
        if block:
            bits = self.scheme.table_bits
            weights = self._quantized(f"{name}.weight", table, bits, block)
            return self._blocks_product(value, weights, table.shape, bits, block, head)
        return self.graph.node("MatMul", [value, self._head(table, name)], head)

    def _quantized_product(self, value: str, parts: Sequence[Linear], name: str, bits: int, block: int) -> str:
        given = _given(parts, name)
        if given is not None:
            bits, block, shape = 4, given.group, torch.Size(given.integers.shape)
            weights = self._written(f"{name}.weight", packed(given))
        else:
            whole = parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts])
            shape, weights = whole.shape, self._quantized(f"{name}.weight", whole, bits, block)
        self._note_bits(bits, name)
        return self._blocks_product(value, weights, shape, bits, block, f"{name}/MatMul")

    def _block(self, width: int, name: str) -> int:
        block = block_for(width, self.scheme.block)
        if not block:
            self.fp32.append(name)
        elif block < self.scheme.block:
            self.smaller_blocks[name] = block
        return block

    def _note_bits(self, bits: int, name: str) -> None:
        if bits != self.scheme.bits:
            self.int8.append(name)

    def _float(self, name: str, matrix: torch.Tensor) -> str:
        """Name of an fp32 value; a narrower stored matrix is widened when the runtime loads it."""
        if self.scheme.storage == torch.float32:
            return self.graph.weight(name, matrix.float())
        if name not in self._widened:
            if self.scheme.storage == torch.float16:
                _check_fp16(matrix, name)
            stored = self.graph.weight(name, matrix.to(self.scheme.storage))
            self._widened[name] = self.graph.node("Cast", [stored], f"{name}/Cast", to=TensorProto.FLOAT)
        return self._widened[name]

    def _head(self, table: torch.Tensor, name: str) -> str:
        """Name of a tied table's transpose [D, V] in fp32."""
        key = f"{name}.head"
        if key not in self._tied:
            self._tied[key] = self._float(f"{name}.transposed", table.t().contiguous())
        return self._tied[key]

    def _quantized(self, name: str, matrix: torch.Tensor, bits: int, block: int) -> tuple[str, str, str]:
        if name not in self._done:
            self._done[name] = self._written(name, quantize(matrix, bits=bits, block=block))
        return self._done[name]

    def _written(self, name: str, made: Quantized) -> tuple[str, str, str]:
        return (
            self.graph.weight(f"{name}_Q{made.bits}", made.packed),
            self.graph.weight(f"{name}_scales", made.scales),
            self.graph.weight(f"{name}_zero_points", made.zero_points),
        )

    def _blocks_product(
        self, value: str, weights: Sequence[str], shape: Sequence[int], bits: int, block: int, name: str
    ) -> str:
        return self.graph.node(
            "MatMulNBits",
            [value, *weights],
            name,
            domain=MICROSOFT,
            N=int(shape[0]),
            K=int(shape[1]),
            bits=bits,
            block_size=block,
            accuracy_level=_INT8_ACTIVATIONS,
        )


def _given(parts: Sequence[Linear], name: str) -> RoundedMatrix | None:
    """The integers of all parts, one below the other, where they were rounded before."""
    given = [part.rounded for part in parts if part.rounded is not None]
    if not given:
        return None
    if len(given) != len(parts) or len({part.group for part in given}) > 1:
        raise BadInputError(f"{name} is one product of matrices that were not rounded alike: round all of them or none")
    return stacked(given)


def _check_fp16(matrix: torch.Tensor, name: str) -> None:
    """Refuses a value that would become infinite."""
    largest = max(abs(float(end)) for end in torch.aminmax(matrix)) if matrix.numel() else 0.0
    if largest > _FP16_LARGEST:
        raise BadInputError(
            f"{name} has a weight of size {largest:g}, fp16 holds {_FP16_LARGEST:g} at most: use --precision bf16"
        )
