"""Latency from a device's figures alone, where the device is not at hand.

Each block takes max(bytes / bandwidth, operations / peak) plus an overhead: the roofline model (Williams, Waterman,
Patterson 2009).  Legend: B batch, T tokens, D hidden size, H query heads, K KV heads, d head_dim, F MLP width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prune_export.benchmark.properties import cache_bytes
from prune_export.errors import BadInputError
from prune_export.profiles import CostCurve, DeviceProfile, LatencyTable, PhaseCosts, TableKey
from prune_export.profiles.latency import ROOFLINE_ERRORS, Phase
from prune_export.shape import ModelShape
from prune_export.target import Workload

_WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}
# An int4 group carries an fp16 scale and a 4-bit zero point.
_GROUP_BYTES = 2.5
_ACTIVATION_BYTES = 4
# Points of an MLP's curve: enough that a straight line between them follows the bend of the roofline.
_WIDTH_STEP = 32
_PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class _Pass:
    """One forward pass: `tokens` of each sequence, each looking at `context` positions on average."""

    batch: int
    tokens: int
    context: float

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


def roofline(profile: DeviceProfile, shape: ModelShape, workload: Workload, precision: str) -> dict[str, float]:
    """Estimated time to first token and time per output token.

    Counted are the weights, the KV cache, the activations at block boundaries and the LM head (for one token); the
    embedding look-up is not.

    Returns:
        `ttft_s` and `tpot_s`.

    Raises:
        BadInputError: the profile gives no peak for this precision, or the model is a state-space one.
    """
    names = {"prefill": "ttft_s", "decode": "tpot_s"}
    return {names[phase]: _Estimate(profile, shape, workload, precision, phase).seconds() for phase in _PHASES}


def roofline_table(
    profile: DeviceProfile, shape: ModelShape, workload: Workload, precisions: Sequence[str]
) -> LatencyTable:
    """The same estimate as a latency table for every pruned form of `shape`.

    Raises:
        BadInputError: as `roofline`; or layers with different query heads per KV head.
    """
    costs = [
        _Estimate(profile, shape, workload, precision, phase).costs() for precision in precisions for phase in _PHASES
    ]
    return LatencyTable(table_key(shape, workload), "roofline", tuple(costs))


def table_key(shape: ModelShape, workload: Workload) -> TableKey:
    """What a latency table for this model and workload is made for.

    Raises:
        BadInputError: layers with different query heads per KV head.
    """
    groups = {layer.query_heads // layer.kv_heads for layer in shape.layers if layer.kv_heads}
    if len(groups) > 1:
        raise BadInputError(f"layers with {sorted(groups)} query heads per KV head: a latency table needs one number")
    return TableKey(
        hidden_size=shape.hidden_size,
        head_dim=shape.head_dim,
        heads_per_group=next(iter(groups), 1),
        vocab_size=shape.vocab_size,
        batch=workload.batch,
        prompt_tokens=workload.prompt_tokens,
        new_tokens=workload.new_tokens,
    )


class _Estimate:
    """Block costs of one model in one phase and precision."""

    def __init__(
        self, profile: DeviceProfile, shape: ModelShape, workload: Workload, precision: str, phase: Phase
    ) -> None:
        if shape.mixer is not None:
            raise BadInputError(f"no estimate knows what the mixers of a {shape.family} model cost")
        device = profile.limited_to(profile.threads)
        if precision not in device.peak_flops:
            known = ", ".join(device.peak_flops)
            raise BadInputError(f"profile {profile.name} gives no peak_flops for {precision}: it has {known}")
        self._shape = shape
        self._precision = precision
        self._phase: Phase = phase
        self._bandwidth = device.bandwidth_bytes_per_s
        self._peak = device.peak_flops[precision]
        self._overhead = device.per_block_overhead_s
        self._weight_bytes = _WEIGHT_BYTES[precision]
        if precision == "int4":
            self._weight_bytes += _GROUP_BYTES / device.int4_group
        self._run = _forward_pass(workload, phase)

    def seconds(self) -> float:
        """Fixed cost and every block of the model itself."""
        blocks = sum(
            self.attention(layer.query_heads, layer.kv_heads) + self.mlp(layer.mlp_width)
            for layer in self._shape.layers
        )
        return self.fixed() + blocks

    def costs(self) -> PhaseCosts:
        """The curves up to the model's largest blocks."""
        layers = self._shape.layers
        group = max((layer.query_heads // layer.kv_heads for layer in layers if layer.kv_heads), default=1)
        heads = tuple(range(1, max(1, *(layer.kv_heads for layer in layers)) + 1))
        widest = max(1, *(layer.mlp_width for layer in layers))
        widths = tuple(sorted({*range(_WIDTH_STEP, widest, _WIDTH_STEP), widest}))
        return PhaseCosts(
            phase=self._phase,
            precision=self._precision,
            fixed_s=self.fixed(),
            attention=CostCurve(heads, tuple(self.attention(group * count, count) for count in heads)),
            mlp=CostCurve(widths, tuple(self.mlp(width) for width in widths)),
            error=ROOFLINE_ERRORS[self._phase][0],
        )

    def fixed(self) -> float:
        """LM head and final norm for the last token of each sequence."""
        parameters = self._shape.vocab_size * self._shape.hidden_size
        logits = self._run.batch * self._shape.vocab_size * _ACTIVATION_BYTES
        return self._block(parameters * self._weight_bytes + logits, 2.0 * parameters * self._run.batch)

    def attention(self, query_heads: int, kv_heads: int) -> float:
        """Projections, scores and values of one attention: 2 B T P + 4 B T H d C operations, C the mean context."""
        if not kv_heads:
            return 0.0
        run, shape = self._run, self._shape
        parameters = shape.attention_parameters(kv_heads, query_heads)
        head_size = shape.head_dim * query_heads
        operations = 2.0 * parameters * run.rows + 4.0 * run.rows * head_size * run.context
        # The cache is written once; decoding reads all of it, prefill attends to what it has just computed.
        positions = run.tokens + (run.context if run.tokens == 1 else 0)
        cache = 2.0 * run.batch * kv_heads * shape.head_dim * positions * cache_bytes(self._precision)
        return self._block(parameters * self._weight_bytes + cache + self._activations(), operations)

    def mlp(self, width: int) -> float:
        """One gated MLP: 2 B T P operations."""
        if not width:
            return 0.0
        parameters = self._shape.mlp_parameters(width)
        return self._block(parameters * self._weight_bytes + self._activations(), 2.0 * parameters * self._run.rows)

    def _activations(self) -> float:
        return 2.0 * self._run.rows * self._shape.hidden_size * _ACTIVATION_BYTES

    def _block(self, moved: float, operations: float) -> float:
        return max(moved / self._bandwidth, operations / self._peak) + self._overhead


def _forward_pass(workload: Workload, phase: Phase) -> _Pass:
    if phase == "prefill":
        return _Pass(workload.batch, workload.prompt_tokens, (workload.prompt_tokens + 1) / 2)
    # The timed tokens see prompt + 1 up to prompt + new - 1 positions.
    return _Pass(workload.batch, 1, workload.prompt_tokens + workload.new_tokens / 2)
