"""What a decoder consists of, whatever its family: the parts that the ONNX graph is written from.

Tensors are those of the model, or views of them: nothing is copied until it is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prune_export.export.rounded import RoundedMatrix


@dataclass(frozen=True)
class Norm:
    """RMS normalization, or layer normalization where there is a bias.

    Attributes:
        weight: [D].
        bias: [D], or None for RMS.
        epsilon: added to the mean square, or the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b.

    Attributes:
        weight: [out, in].
        bias: [out], or None.
        rounded: the integers that the weight is the value of, where it was rounded before the export.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    rounded: RoundedMatrix | None = None


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention.

    Attributes:
        q: [H d, D].
        k: [K d, D].
        v: [K d, D].
        o: [D, H d].
        heads: H.
        kv_heads: K.
        head_dim: d.
        scale: factor on q k^T.
        window: tokens that a token attends to, itself included; 0 for all before it.
        softcap: c of c tanh(x / c) on the scores; 0 for none.
        q_norm: per head, before the rotation.
        k_norm: the same.
    """

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class Mlp:
    """down(act(gate x) * up x), or down(act(up x)) without a gate.

    Attributes:
        gate: [F, D], or None.
        up: [F, D].
        down: [D, F].
        activation: name as in config.json.
    """

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str


@dataclass(frozen=True)
class Layer:
    """A decoder layer; a part that is None is left out, its norm with it.

    Attributes:
        attention: the attention.
        attention_norm: before it.
        after_attention: on what it adds to the residual stream.
        mlp: the MLP.
        mlp_norm: before it.
        after_mlp: on what it adds.
        parallel: attention and MLP both see the layer's input.
    """

    attention: Attention | None
    attention_norm: Norm | None
    mlp: Mlp | None
    mlp_norm: Norm | None
    after_attention: Norm | None = None
    after_mlp: Norm | None = None
    parallel: bool = False


@dataclass(frozen=True)
class Decoder:
    """A whole causal language model.

    Attributes:
        family: stock model type.
        embeddings: [V, D].
        embedding_scale: factor on them.
        positions: [context, D] of learned positions, or None.
        rotary: cosines and sines [context, r / 2] of rotary positions, or None.
        layers: in order, removed ones included.
        final_norm: before the head.
        head: [V, D], or None where it is the embedding table.
        head_softcap: c of c tanh(x / c) on the logits; 0 for none.
        context: longest sequence.
    """

    family: str
    embeddings: torch.Tensor
    embedding_scale: float
    positions: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor] | None
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear | None
    head_softcap: float
    context: int

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Those that remain, in the order of their caches."""
        return tuple(layer.attention for layer in self.layers if layer.attention is not None)

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.embeddings.shape[1])

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.embeddings.shape[0])
