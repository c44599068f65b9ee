"""What the target's metric costs, for any pruned form of the model."""

from __future__ import annotations

from prune_export.benchmark.properties import WEIGHT_BYTES, cache_bytes
from prune_export.benchmark.runtimes import find_model
from prune_export.delivery.latency import latency_table, tail
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.state import RunState
from prune_export.delivery.summary import timed_metric
from prune_export.profiles.latency import LatencyTable
from prune_export.shape import ModelShape
from prune_export.target import Workload


def footprint(shape: ModelShape, workload: Workload, precision: str) -> float:
    """Bytes of the weights and of the full KV cache; the runtime's own memory comes on top."""
    positions = workload.batch * (workload.prompt_tokens + workload.new_tokens)
    heads = sum(layer.kv_heads for layer in shape.layers)
    cache = 2 * positions * heads * shape.head_dim * cache_bytes(precision)
    return shape.parameters() * WEIGHT_BYTES[precision] + cache


class Cost:
    """Cost in the target metric's unit, by latency table or by arithmetic.

    Args:
        job: the delivery at work.
        variant: the dense model in the precision that is pruned for.
        state: where a measured table is kept for a later run, or None.
    """

    def __init__(self, job: Job, variant: Variant, state: RunState | None) -> None:
        self._job = job
        self._variant = variant
        self._state = state
        self._table = state.known.table if state is not None else None
        self._metric = job.request.target.metric

    @property
    def unit(self) -> str:
        """What the plan's cost counts."""
        return {"parameters": "parameters", "memory": "bytes"}.get(self._metric, "seconds")

    def predict(self, shape: ModelShape) -> float:
        """Seconds, bytes of peak resident memory, or parameters."""
        if self._metric == "parameters":
            return float(shape.parameters())
        if self._metric == "memory":
            return self._memory(shape)
        return self.latency(shape)

    def latency(self, shape: ModelShape) -> float:
        """Seconds of the latency that the target's tables show, in its statistic where that is known (`tail`)."""
        target, precision = self._job.request.target, self._variant.precision
        found = self._latency_table().predict(shape.layers, timed_metric(target), precision=precision)
        return found * (tail(self._job, target, precision) or 1.0)

    def _latency_table(self) -> LatencyTable:
        """Measured or estimated once, when first asked."""
        if self._table is None:
            self._table = latency_table(self._job, self._variant)
            if self._state is not None:
                self._state.learn(table=self._table)
        return self._table

    def _memory(self, shape: ModelShape) -> float:
        measurement = self._variant.measurement
        assert measurement is not None, "memory targets are for a measured host"
        removed = self._job.shape.parameters() - shape.parameters()
        each = find_model(self._variant.directory).runtime.memory_per_byte
        return measurement.peak_rss_bytes - each * removed * WEIGHT_BYTES[self._variant.precision]
