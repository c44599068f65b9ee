"""What the target's metric costs, for any pruned form of the model."""

from __future__ import annotations

from prune_export.delivery.latency import latency_table
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.summary import timed_metric
from prune_export.profiles.latency import LatencyTable
from prune_export.shape import ModelShape

# int4 weights in groups of 128 carry an fp16 scale and a 4-bit zero point each.
_WEIGHT_BYTES = {"fp32": 4.0, "int8": 1.0, "int4": 0.5 + 2.5 / 128}


class Cost:
    """Cost in the target metric's unit, by latency table or by arithmetic.

    Args:
        job: the delivery at work.
        dense: the dense model in the precision that is pruned for.
    """

    def __init__(self, job: Job, dense: Variant) -> None:
        self._job = job
        self._dense = dense
        self._table: LatencyTable | None = None
        self.metric = job.request.target.metric

    def predict(self, shape: ModelShape) -> float:
        """Seconds, bytes or parameters."""
        if self.metric == "parameters":
            return float(shape.parameters())
        if self.metric == "memory":
            return self._memory(shape)
        return self.table.predict(shape.layers, timed_metric(self._job.request.target), precision=self._dense.precision)

    @property
    def table(self) -> LatencyTable:
        """Measured or estimated once, when first asked."""
        if self._table is None:
            self._table = latency_table(self._job, self._dense)
        return self._table

    @property
    def unit(self) -> str:
        """What the plan's cost counts."""
        return {"parameters": "parameters", "memory": "bytes"}.get(self.metric, "seconds")

    def _memory(self, shape: ModelShape) -> float:
        removed = (self._job.shape.parameters() - shape.parameters()) * _WEIGHT_BYTES[self._dense.precision]
        measurement = self._dense.measurement
        if measurement is not None:
            return measurement.peak_rss_bytes - removed
        return self._job.shape.parameters() * _WEIGHT_BYTES[self._dense.precision] - removed
