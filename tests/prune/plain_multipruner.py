"""A deliberately plain MultiPruner: nothing cached, nothing cut, nothing reordered.

Every candidate is the whole dense model of `transformers` with masks, run from the first token to the last logit.  It
shares no code with the package's search.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tiny_models import masked  # type: ignore[import-not-found]

from prune_export.plan import LayerKeep


class PlainMultiPruner:
    """The paper's rule, step by step; `steps` holds (stage, layer, part, size, perplexity)."""

    def __init__(
        self,
        model: Any,
        ids: torch.Tensor,
        *,
        mlp_group: int,
        kv_group: int,
        order: str = "l1",
        width_ids: torch.Tensor | None = None,
    ) -> None:
        self.model, self.ids = model, ids
        self.width_ids = ids if width_ids is None else width_ids
        self.mlp_group, self.kv_group = mlp_group, kv_group
        self.order = order
        self.layers = list(model.model.layers)
        self.kv_count = model.config.num_key_value_heads
        self.inputs = self._inputs()
        self.channel_order = [self._channels(layer) for layer in self.layers]
        self.group_order = [self._groups(layer) for layer in self.layers]
        self.kv = [self.kv_count] * len(self.layers)
        self.width = [model.config.intermediate_size] * len(self.layers)
        self.steps: list[tuple[str, int, str, int, float]] = []
        self.blocks_run = 0

    def run(self, ratio: float, distribution: tuple[float, float, float]) -> None:
        total = sum(parameter.numel() for parameter in self.model.parameters())
        shares = [share / sum(distribution) for share in distribution]
        for stage, goal in (("blocks", shares[0]), ("mlp", shares[0] + shares[1]), ("attention", 1.0)):
            while self.removed() / total < ratio * goal - 1e-12:
                best = None
                for candidate in self.candidates(stage):
                    perplexity = self.perplexity(*candidate, self.ids if stage == "blocks" else self.width_ids)
                    if best is None or perplexity < best[1]:
                        best = (candidate, perplexity)
                if best is None:
                    break
                part, index, size = best[0]
                (self.width if part == "mlp" else self.kv)[index] = size
                self.steps.append((stage, index, part, size, best[1]))

    def candidates(self, stage: str) -> list[tuple[str, int, int]]:
        found = []
        for index in range(len(self.layers)):
            if stage == "blocks" and self.kv[index] and sum(size > 0 for size in self.kv) > 1:
                found.append(("attention", index, 0))
            if stage == "attention" and self.kv[index] - self.kv_group > 0:
                found.append(("attention", index, self.kv[index] - self.kv_group))
        for index in range(len(self.layers)):
            if stage == "blocks" and self.width[index]:
                found.append(("mlp", index, 0))
            if stage == "mlp" and self.width[index] - self.mlp_group > 0:
                found.append(("mlp", index, self.width[index] - self.mlp_group))
        return found

    def perplexity(self, part: str, index: int, size: int, ids: torch.Tensor) -> float:
        kv, width = list(self.kv), list(self.width)
        (width if part == "mlp" else kv)[index] = size
        self.blocks_run += sum(value > 0 for value in kv) + sum(value > 0 for value in width)
        keep = tuple(
            LayerKeep(tuple(groups[:heads]), tuple(channels[:count]))
            for groups, heads, channels, count in zip(self.group_order, kv, self.channel_order, width, strict=True)
        )
        with masked(self.model, keep):
            return plain_perplexity(self.model, ids)

    def removed(self) -> int:
        count = 0
        for layer, kv, width in zip(self.layers, self.kv, self.width, strict=True):
            attention, mlp = _numel(layer.self_attn), _numel(layer.mlp)
            if kv == 0:
                count += attention + _numel(layer.input_layernorm)
            else:
                # The bias of the output projection stays with the block.
                fixed = 0 if layer.self_attn.o_proj.bias is None else layer.self_attn.o_proj.bias.numel()
                count += (attention - fixed) * (self.kv_count - kv) // self.kv_count
            if width == 0:
                count += mlp + _numel(layer.post_attention_layernorm)
            else:
                whole = layer.mlp.gate_proj.out_features
                fixed = 0 if layer.mlp.down_proj.bias is None else layer.mlp.down_proj.bias.numel()
                count += (mlp - fixed) * (whole - width) // whole
        return count

    def _inputs(self) -> dict[tuple[int, str], list[float]]:
        """L2 norm of each input channel of gate_proj and q_proj over all tokens, or ones for weights alone."""
        found: dict[tuple[int, str], list[float]] = {}
        handles = []
        for index, layer in enumerate(self.layers):
            for name, module in (("mlp", layer.mlp.gate_proj), ("attention", layer.self_attn.q_proj)):
                found[index, name] = [1.0] * module.in_features
                if self.order == "wanda":

                    def keep(_module: Any, inputs: Any, key: tuple[int, str] = (index, name)) -> None:
                        found[key] = inputs[0].double().flatten(0, -2).norm(dim=0).tolist()

                    handles.append(module.register_forward_pre_hook(keep))
        self.model(self.ids)
        for handle in handles:
            handle.remove()
        return found

    def _channels(self, layer: Any) -> list[int]:
        gate, up = layer.mlp.gate_proj.weight.tolist(), layer.mlp.up_proj.weight.tolist()
        if self.order == "none":
            return list(range(len(gate)))
        inputs = self.inputs[self.layers.index(layer), "mlp"]
        scores = [_sum(gate[row], inputs) + _sum(up[row], inputs) for row in range(len(gate))]
        return sorted(range(len(scores)), key=lambda row: -scores[row])

    def _groups(self, layer: Any) -> list[int]:
        if self.order == "none":
            return list(range(self.kv_count))
        q, k, v = (getattr(layer.self_attn, f"{name}_proj").weight.tolist() for name in "qkv")
        head, repeats = layer.self_attn.head_dim, layer.self_attn.num_key_value_groups
        inputs = self.inputs[self.layers.index(layer), "attention"]
        scores = []
        for group in range(self.kv_count):
            rows = [
                _sum(q[(group * repeats + copy) * head + row], inputs)
                + _sum(k[group * head + row], inputs)
                + _sum(v[group * head + row], inputs)
                for copy in range(repeats)
                for row in range(head)
            ]
            scores.append(math.fsum(rows) / len(rows))
        return sorted(range(len(scores)), key=lambda group: -scores[group])


def plain_perplexity(model: Any, ids: torch.Tensor) -> float:
    """exp(mean over sequences of the mean token NLL) from the model's full logits, in float64."""
    log_probabilities = model(ids).logits.double().log_softmax(-1)[:, :-1]
    nll = -log_probabilities.gather(-1, ids[:, 1:, None])[..., 0]
    return math.exp(float(nll.mean(1).mean()))


def _sum(row: list[float], inputs: list[float]) -> float:
    return math.fsum(abs(value) * size for value, size in zip(row, inputs, strict=True))


def _numel(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
