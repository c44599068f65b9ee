"""Block costs of one model's dimensions on one device: what a plan's latency is predicted from."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

from prune_export.errors import BadInputError
from prune_export.records import SPARSE

Phase = Literal["prefill", "decode"]
# Mean errors of the roofline estimate, in seconds and in the ratio to the dense model, each the largest of the seven
# that were measured, with two models' dimensions on three machines: docs/devices.md, "How far predictions were off".
ROOFLINE_ERRORS: dict[Phase, tuple[float, float]] = {"prefill": (0.897, 0.112), "decode": (0.724, 0.084)}


class Layer(Protocol):
    """A decoder layer; zero means that the sub-block is gone."""

    @property
    def kv_heads(self) -> int: ...

    @property
    def mlp_width(self) -> int: ...


@dataclass(frozen=True)
class CostCurve:
    """Cost of one block against its size.

    Attributes:
        sizes: KV heads or MLP channels, ascending, above zero.
        seconds: cost of one block of each size.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.seconds):
            raise ValueError(f"{len(self.sizes)} sizes with {len(self.seconds)} costs: each size needs one")
        if self.sizes[0] <= 0 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes must be ascending, without repeats and above zero, got {list(self.sizes)}")
        if wrong := [cost for cost in self.seconds if not 0 <= cost < math.inf]:
            raise ValueError(f"costs must be finite and not negative, got {wrong[0]}")

    def at(self, size: int) -> float:
        """Seconds of one block: 0 for size 0, else linear between the points.

        Below the first point the first segment is continued (not below zero): a small block still costs its
        overhead.

        Raises:
            BadInputError: `size` is above the last point.
        """
        if size == 0:
            return 0.0
        if size < 0 or size > self.sizes[-1]:
            raise BadInputError(
                f"the latency table ends at size {self.sizes[-1]}, asked for {size}: measure one for this model"
            )
        if len(self.sizes) == 1:
            return self.seconds[0]
        right = max(1, bisect.bisect_left(self.sizes, size))
        low, high = self.sizes[right - 1], self.sizes[right]
        weight = (size - low) / (high - low)
        return max(0.0, self.seconds[right - 1] * (1 - weight) + self.seconds[right] * weight)


@dataclass(frozen=True)
class PhaseCosts:
    """Costs of one phase in one precision.

    Attributes:
        phase: "prefill" (the whole prompt) or "decode" (one token).
        precision: weight precision.
        fixed_s: embedding, final norm, LM head, sampling.
        attention: cost of one attention against its KV heads.
        mlp: cost of one MLP against its width.
        error: mean relative error on the stacks that it was fitted to; of an estimate, on the machines where estimates
            were checked.
        p90, p99: percentiles of the phase as multiples of the median, which the costs are of, as measured with the
            model that is nearest to the dense one; 0 where they were not.
    """

    phase: Phase
    precision: str
    fixed_s: float
    attention: CostCurve
    mlp: CostCurve
    error: float = 0.0
    p90: float = field(default=0.0, metadata=SPARSE)
    p99: float = field(default=0.0, metadata=SPARSE)

    def __post_init__(self) -> None:
        for name in ("fixed_s", "error"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        # A percentile above the median is no less than it; nothing else keeps a plan from removing everything.
        if self.p90 and not 1 <= self.p90 < math.inf:
            raise ValueError(f"p90 must be 0 (not measured) or at least 1, a multiple of the median, got {self.p90}")
        if self.p99 and not max(1.0, self.p90) <= self.p99 < math.inf:
            raise ValueError(f"p99 must be 0 (not measured) or at least p90 ({self.p90}) and 1, got {self.p99}")

    def seconds(self, layers: Iterable[Layer]) -> float:
        """Fixed cost plus the sum over the blocks."""
        blocks = sum(self.attention.at(layer.kv_heads) + self.mlp.at(layer.mlp_width) for layer in layers)
        return self.fixed_s + blocks


@dataclass(frozen=True)
class TableKey:
    """The model dimensions and the workload that a table holds for.

    Attributes:
        hidden_size: D.
        head_dim: d.
        heads_per_group: query heads per KV head, H / K.
        vocab_size: V.
        batch: B.
        prompt_tokens: T of the prefill.
        new_tokens: tokens generated.
    """

    hidden_size: int
    head_dim: int
    heads_per_group: int
    vocab_size: int
    batch: int
    prompt_tokens: int
    new_tokens: int

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise ValueError(f"{item.name} must be at least 1, got {getattr(self, item.name)}")


@dataclass(frozen=True)
class HeldOutError:
    """Relative errors |predicted / measured - 1| of one phase in one precision, on models that were not fitted.

    A prediction is first scaled by what the table's base took beside the model: but for `seconds_mean`, the errors are
    those of the ratio to it, free of what the machine drifted between the table and the check.

    Attributes:
        phase, precision: what was predicted.
        models: heterogeneous models of the same dimensions, measured whole.
        mean, p95, worst: of the table's errors over them.
        bytes_mean: mean error of the one-parameter baseline, time in proportion to the bytes of the weights read.
        noise: mean |second / first - 1| of a model beside copies of itself: no table can be better than the ruler.
        errors: predicted / measured - 1 of each model, in the order of their making.
        roofline_mean: mean error of the roofline estimate that the profile gave before; 0 where it gave none.
        roofline_ratio_mean: the same of the ratio to the dense model, which is what a speed-up is planned by.
        seconds_mean: mean error of the table's own seconds, drift included; 0 where it was not recorded.
    """

    phase: Phase
    precision: str
    models: int
    mean: float
    p95: float
    worst: float
    bytes_mean: float
    noise: float
    errors: tuple[float, ...] = field(default=(), metadata=SPARSE)
    roofline_mean: float = field(default=0.0, metadata=SPARSE)
    roofline_ratio_mean: float = field(default=0.0, metadata=SPARSE)
    seconds_mean: float = field(default=0.0, metadata=SPARSE)


@dataclass(frozen=True)
class TimedStack:
    """What a table was fitted to: one stack of blocks in one precision, on the scale of the first.

    Attributes:
        precision: of its weights.
        kv_heads: of each layer, 0 where the attention is gone.
        mlp_widths: of each layer, 0 where the MLP is gone.
        prefill_s, decode_s: what it took.
    """

    precision: str
    kv_heads: tuple[int, ...]
    mlp_widths: tuple[int, ...]
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class TableRecord:
    """Where a measured table comes from.

    Attributes:
        host: fingerprint of the machine.
        versions: package to version.
        date: ISO date, UTC.
        runtime: that was timed.
        threads: given to it.
        measurements: timed processes that the table was fitted to.
        seconds: how long these took.
        held_out: errors on other models; empty where none were measured.
        stacks: what the costs were fitted to; empty in tables made before this was kept.
    """

    host: dict[str, str]
    versions: dict[str, str]
    date: str
    runtime: str
    threads: int
    measurements: int
    seconds: float
    held_out: tuple[HeldOutError, ...] = ()
    stacks: tuple[TimedStack, ...] = field(default=(), metadata=SPARSE)


@dataclass(frozen=True)
class LatencyTable:
    """Predicts the latency of every pruned form of one model.

    Attributes:
        key: what it holds for.
        source: "measured" or "roofline".
        costs: one entry for each phase and precision.
        record: where a table in a profile comes from, or None.
    """

    key: TableKey
    source: Literal["measured", "roofline"]
    costs: tuple[PhaseCosts, ...]
    record: TableRecord | None = field(default=None, metadata=SPARSE)

    def __post_init__(self) -> None:
        seen = [f"{costs.phase} in {costs.precision}" for costs in self.costs]
        if twice := [name for name in seen if seen.count(name) > 1]:
            raise ValueError(f"costs of {twice[0]} are there twice: one of each phase and precision is possible")

    def check(self, key: TableKey) -> None:
        """Refuses a model or a workload that the table does not hold for.

        Raises:
            BadInputError: some dimension differs; all of them are named.
        """
        different = [
            f"{field.name} {getattr(self.key, field.name)} (here {getattr(key, field.name)})"
            for field in fields(TableKey)
            if getattr(self.key, field.name) != getattr(key, field.name)
        ]
        if different:
            raise BadInputError(f"the latency table was made for {', '.join(different)}: measure one for this model")

    def check_threads(self, threads: int) -> None:
        """Refuses another number of threads than the table was measured with, where that is known.

        Raises:
            BadInputError: it differs.
        """
        if self.record is not None and self.record.threads != threads:
            raise BadInputError(
                f"the latency table was measured with {self.record.threads} threads, asked for are {threads}: leave "
                f"out --threads, or measure one with `prune-export profile measure --threads {threads}`"
            )

    def precisions(self, metrics: Iterable[str]) -> tuple[str, ...]:
        """Weight precisions in which the table predicts all of these: "tpot", "ttft" or "total"."""
        phases = {phase for metric in metrics for phase in _phases(metric)}
        found = dict.fromkeys(costs.precision for costs in self.costs)
        known = {(costs.phase, costs.precision) for costs in self.costs}
        return tuple(item for item in found if all((phase, item) in known for phase in phases))

    def trust(self, metric: str, *, precision: str) -> str:
        """One sentence on how far the table's predictions of a metric were off where that is known.

        Args:
            metric: "tpot", "ttft" or "total", of which the worse of the other two is told.
            precision: weight precision.

        Raises:
            BadInputError: precision not in the table.
        """
        phases = _phases(metric)
        costs = max((self.phase(phase, precision) for phase in phases), key=lambda item: item.error)
        if self.source == "roofline":
            of_ratio = ROOFLINE_ERRORS[costs.phase][1]
            return (
                f"predicted from the device's figures alone (roofline): up to {costs.error:.0%} off on average, "
                f"{of_ratio:.0%} in the ratio to the dense model, where that was checked (docs/devices.md)"
            )
        held_out = self.record.held_out if self.record else ()
        checked = [item for item in held_out if item.phase in phases and item.precision == precision]
        if not checked:
            return f"predicted by a measured table, {costs.error:.1%} off on average on what it was fitted to"
        worst = max(checked, key=lambda item: max(item.mean, item.seconds_mean))
        in_seconds = f" ({worst.seconds_mean:.1%} in seconds)" if worst.seconds_mean else ""
        return (
            f"predicted by a measured table: {worst.mean:.1%} off on average, {worst.p95:.1%} at the 95th percentile, "
            f"in the ratio to the dense model timed beside{in_seconds}, on {worst.models} models that it was not "
            "fitted to; how much faster or slower the device is on another day comes on top"
        )

    def phase(self, phase: Phase, precision: str) -> PhaseCosts:
        """The costs of one phase in one precision.

        Raises:
            BadInputError: the table lacks them.
        """
        for costs in self.costs:
            if costs.phase == phase and costs.precision == precision:
                return costs
        known = ", ".join(f"{costs.phase} {costs.precision}" for costs in self.costs)
        raise BadInputError(f"the latency table has no {phase} costs in {precision}; it has {known}")

    def tail(self, metric: str, statistic: str, *, precision: str) -> float:
        """A percentile of a latency as a multiple of its median; 0 where that is not known.

        The sum of many tokens spreads less than each of them, so nothing is known of "total".

        Args:
            metric: "tpot", "ttft" or "total".
            statistic: "p50", "p90" or "p99".
            precision: weight precision.

        Raises:
            BadInputError: precision not in the table.
        """
        phases = _phases(metric)
        costs = self.phase(phases[0], precision)
        known = {"p90": costs.p90, "p99": costs.p99} if len(phases) == 1 else {}
        return 1.0 if statistic == "p50" else known.get(statistic, 0.0)

    def predict(self, layers: Iterable[Layer], metric: str, *, precision: str) -> float:
        """Median seconds of a model with these layers.

        Args:
            layers: any `LayerShape`s; zero sizes cost nothing.
            metric: "prefill" or "ttft"; "decode" or "tpot"; "total" = ttft + (new_tokens - 1) tpot.
            precision: weight precision.

        Raises:
            BadInputError: unknown metric, precision not in the table, a block above the table's largest.
        """
        stack = tuple(layers)
        if metric in ("prefill", "ttft"):
            return self.phase("prefill", precision).seconds(stack)
        if metric in ("decode", "tpot"):
            return self.phase("decode", precision).seconds(stack)
        if metric == "total":
            later = (self.key.new_tokens - 1) * self.phase("decode", precision).seconds(stack)
            return self.phase("prefill", precision).seconds(stack) + later
        raise BadInputError(f'a latency table predicts ttft, tpot or total, not "{metric}"')


def _phases(metric: str) -> tuple[Phase, ...]:
    """What a latency is made of."""
    named: dict[str, tuple[Phase, ...]] = {"ttft": ("prefill",), "tpot": ("decode",)}
    return named.get(metric, ("prefill", "decode"))
