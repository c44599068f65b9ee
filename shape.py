"""The dimensions of a decoder, layer by layer.  Legend: D hidden size, H query heads, K KV heads, d head_dim,
F MLP width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from prune_export.records import SPARSE


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer; zero means that the sub-block is gone.

    Attributes:
        query_heads: H, a multiple of `kv_heads`.
        kv_heads: K.
        mlp_width: F.
        mixer_width: units of a state-space mixer: channels (Mamba) or heads of a group (Mamba-2).
        state_size: state of a recurrence that can go alone (Mamba-2); zero when it is gone, or cannot go alone.
    """

    query_heads: int
    kv_heads: int
    mlp_width: int
    mixer_width: int = field(default=0, metadata=SPARSE)
    state_size: int = field(default=0, metadata=SPARSE)

    def __post_init__(self) -> None:
        if min(self.query_heads, self.kv_heads, self.mlp_width, self.mixer_width, self.state_size) < 0:
            raise ValueError(
                f"negative dimension in {self.query_heads}/{self.kv_heads}/{self.mlp_width}/{self.mixer_width}"
            )
        if self.state_size and not self.mixer_width:
            raise ValueError(f"a recurrence with {self.state_size} states without a mixer")
        if (self.query_heads == 0) != (self.kv_heads == 0):
            raise ValueError(f"{self.query_heads} query heads with {self.kv_heads} KV heads")
        if self.kv_heads and self.query_heads % self.kv_heads:
            raise ValueError(f"{self.query_heads} query heads are no multiple of {self.kv_heads} KV heads")


@dataclass(frozen=True)
class MixerShape:
    """What the parameters of a state-space mixer with its norm are made of.

    Attributes:
        fixed: parameters that every mixer has.
        unit: parameters of one unit.
        state_fixed: parameters that go with the recurrence, whatever the width.
        state_unit: parameters of one unit that go with the recurrence.
        unit_columns: columns of the output projection that one unit has.
        heads: units are heads, not channels.
    """

    fixed: int
    unit: int
    state_fixed: int = 0
    state_unit: int = 0
    unit_columns: int = 1
    heads: bool = False


@dataclass(frozen=True)
class ModelShape:
    """A whole decoder.

    Attributes:
        family: row of the family table, for instance "llama".
        hidden_size: D.
        head_dim: d.
        vocab_size: V.
        tied_embeddings: the LM head is the embedding table.
        layers: one entry per layer of the dense model, removed ones included.
        biases: the projections that have one, out of q k v o gate up down.
        context: the longest sequence that the model takes, in tokens.
        gated: the MLPs have a gate projection.
        attention_fixed: parameters of an attention that its size does not change (its norms); D unless told.
        mlp_fixed: the same of an MLP.
        other: parameters outside of the layers, the embedding table and the head; D (the last norm) unless told.
        mixer: of a state-space model.
    """

    family: str
    hidden_size: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    layers: tuple[LayerShape, ...]
    biases: tuple[str, ...] = ()
    context: int = 2048
    gated: bool = field(default=True, metadata=SPARSE)
    attention_fixed: int | None = field(default=None, metadata=SPARSE)
    mlp_fixed: int | None = field(default=None, metadata=SPARSE)
    other: int | None = field(default=None, metadata=SPARSE)
    mixer: MixerShape | None = field(default=None, metadata=SPARSE)

    def attention_parameters(self, kv_heads: int, query_heads: int) -> int:
        """Parameters of one attention with its norms: H d D + 2 K d D + D H d (+ biases) + the fixed ones."""
        if not kv_heads:
            return 0
        rows = {"q": query_heads * self.head_dim, "k": kv_heads * self.head_dim, "v": kv_heads * self.head_dim}
        bias = sum(size for name, size in rows.items() if name in self.biases)
        bias += self.hidden_size if "o" in self.biases else 0
        return (sum(rows.values()) + rows["q"]) * self.hidden_size + bias + self._fixed(self.attention_fixed)

    def mlp_parameters(self, width: int) -> int:
        """Parameters of one MLP with its norms: 3 D F, 2 D F without a gate (+ biases) + the fixed ones."""
        if not width:
            return 0
        bias = sum(width for name in ("gate", "up") if name in self.biases)
        bias += self.hidden_size if "down" in self.biases else 0
        return (3 if self.gated else 2) * width * self.hidden_size + bias + self._fixed(self.mlp_fixed)

    def mixer_parameters(self, width: int, state_size: int) -> int:
        """Parameters of one state-space mixer with its norm."""
        if not width or self.mixer is None:
            return 0
        state = self.mixer.state_fixed + width * self.mixer.state_unit if state_size else 0
        return self.mixer.fixed + width * self.mixer.unit + state

    def parameters(self) -> int:
        """Total parameters, embeddings included; a tied LM head counts once."""
        tables = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        layers = sum(
            self.attention_parameters(layer.kv_heads, layer.query_heads)
            + self.mlp_parameters(layer.mlp_width)
            + self.mixer_parameters(layer.mixer_width, layer.state_size)
            for layer in self.layers
        )
        return tables + layers + self._fixed(self.other)

    def with_layers(self, layers: tuple[LayerShape, ...]) -> ModelShape:
        """The same model with other layers."""
        return replace(self, layers=layers)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that still have an attention, in order; their rank is the KV-cache index."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.kv_heads)

    @property
    def common_layer(self) -> LayerShape | None:
        """The shape of all layers that are not gone whole, where it is one, with attention and MLP; else None."""
        shapes = {layer for layer in self.layers if layer.kv_heads or layer.mlp_width or layer.mixer_width}
        only = next(iter(shapes)) if len(shapes) == 1 else None
        return only if only is not None and only.kv_heads and only.mlp_width and not only.mixer_width else None

    @property
    def mixer_layers(self) -> tuple[int, ...]:
        """The same for state-space mixers."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.mixer_width)

    def _fixed(self, count: int | None) -> int:
        return self.hidden_size if count is None else count
