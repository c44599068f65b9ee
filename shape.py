"""The dimensions of a decoder, layer by layer.  Legend: D hidden size, H query heads, K KV heads, d head_dim,
F MLP width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer; zero means that the sub-block is gone.

    Attributes:
        query_heads: H, a multiple of `kv_heads`.
        kv_heads: K.
        mlp_width: F.
    """

    query_heads: int
    kv_heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        if min(self.query_heads, self.kv_heads, self.mlp_width) < 0:
            raise ValueError(f"negative dimension in {self.query_heads}/{self.kv_heads}/{self.mlp_width}")
        if (self.query_heads == 0) != (self.kv_heads == 0):
            raise ValueError(f"{self.query_heads} query heads with {self.kv_heads} KV heads")
        if self.kv_heads and self.query_heads % self.kv_heads:
            raise ValueError(f"{self.query_heads} query heads are no multiple of {self.kv_heads} KV heads")


@dataclass(frozen=True)
class ModelShape:
    """A whole decoder with gated MLPs.

    Attributes:
        family: row of the family table, for instance "llama".
        hidden_size: D.
        head_dim: d.
        vocab_size: V.
        tied_embeddings: the LM head is the embedding table.
        layers: one entry per layer of the dense model, removed ones included.
        biases: the projections that have one, out of q k v o gate up down.
        context: the longest sequence that the model takes, in tokens.
    """

    family: str
    hidden_size: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    layers: tuple[LayerShape, ...]
    biases: tuple[str, ...] = ()
    context: int = 2048

    def attention_parameters(self, kv_heads: int, query_heads: int) -> int:
        """Parameters of one attention with its norm: H d D + 2 K d D + D H d (+ biases) + D."""
        if not kv_heads:
            return 0
        rows = {"q": query_heads * self.head_dim, "k": kv_heads * self.head_dim, "v": kv_heads * self.head_dim}
        bias = sum(size for name, size in rows.items() if name in self.biases)
        bias += self.hidden_size if "o" in self.biases else 0
        return (sum(rows.values()) + rows["q"]) * self.hidden_size + bias + self.hidden_size

    def mlp_parameters(self, width: int) -> int:
        """Parameters of one gated MLP with its norm: 3 D F (+ biases) + D."""
        if not width:
            return 0
        bias = sum(width for name in ("gate", "up") if name in self.biases)
        bias += self.hidden_size if "down" in self.biases else 0
        return 3 * width * self.hidden_size + bias + self.hidden_size

    def parameters(self) -> int:
        """Total parameters, embeddings included; a tied LM head counts once."""
        tables = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        layers = sum(
            self.attention_parameters(layer.kv_heads, layer.query_heads) + self.mlp_parameters(layer.mlp_width)
            for layer in self.layers
        )
        return tables + layers + self.hidden_size

    def with_layers(self, layers: tuple[LayerShape, ...]) -> ModelShape:
        """The same model with other layers."""
        return replace(self, layers=layers)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that still have an attention, in order; their rank is the KV-cache index."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.kv_heads)
