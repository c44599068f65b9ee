"""The description of a device that plans are made for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prune_export.profiles.latency import LatencyTable

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")
RUNTIMES = ("openvino", "onnxruntime", "torch")
_POSITIVE = ("memory_bytes", "bandwidth_bytes_per_s", "width_multiple", "int4_group")
_NOT_NEGATIVE = ("threads", "cores", "core_bandwidth_bytes_per_s", "per_block_overhead_s", "avoid_multiple")


@dataclass(frozen=True)
class DeviceMatch:
    """Which hosts a profile stands for; an empty field accepts every host.

    Attributes:
        vendors: CPU vendor strings, one of which the host must have ("GenuineIntel").
        processors: texts, one of which the processor's name must contain; of a GPU its whole name, or its beginning and
            "*".
        isa: CPU flags as in /proc/cpuinfo, all of which the host must have.
        isa_absent: CPU flags, none of which the host may have.
        min_cores: fewest cores.
        max_cores: most cores; 0 for no limit.
    """

    vendors: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    isa: tuple[str, ...] = ()
    isa_absent: tuple[str, ...] = ()
    min_cores: int = 0
    max_cores: int = 0


@dataclass(frozen=True)
class DeviceProfile:
    """A device: what to run on it and how fast it can be.

    Attributes:
        name: what `--device` takes.
        description: one line.
        match: the hosts that it stands for.
        runtime: one of `RUNTIMES`.
        device: the runtime's name of the device ("CPU").
        threads: threads given to the runtime; 0 for all physical cores.
        precisions: weight precisions to try, out of `PRECISIONS`.
        memory_bytes: memory that a model may use.
        bandwidth_bytes_per_s: sustained memory bandwidth of all cores together.
        peak_flops: operations per second by precision, all cores together (a multiply-add counts as two).
        per_block_overhead_s: time that an attention or an MLP takes beyond moving and computing.
        cores: cores that the figures are for; 0 where they do not scale with cores (GPUs).
        core_bandwidth_bytes_per_s: most that one core draws from memory; 0 where it does not apply.
        width_multiple: MLP widths should be a multiple of this.
        avoid_multiple: MLP widths should not be a multiple of this; 0 for none.
        int4_group: group size of int4 weights.
        latency_table: measured block costs, or None.
        sources: figure to where it comes from.
    """

    name: str
    description: str
    match: DeviceMatch
    runtime: str
    device: str
    threads: int
    precisions: tuple[str, ...]
    memory_bytes: int
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float]
    per_block_overhead_s: float
    cores: int
    core_bandwidth_bytes_per_s: float
    width_multiple: int
    avoid_multiple: int
    int4_group: int
    latency_table: LatencyTable | None = None
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if mistakes := range_mistakes(vars(self)):
            raise ValueError("; ".join(mistakes))

    def limited_to(self, threads: int) -> DeviceProfile:
        """The same device when only `threads` of its cores are used; 0 or a GPU changes nothing.

        Operations scale with the cores; bandwidth is what those cores can draw, at most the whole.
        """
        if not threads or not self.cores or threads >= self.cores:
            return self
        share = threads / self.cores
        bandwidth = self.bandwidth_bytes_per_s
        if self.core_bandwidth_bytes_per_s:
            bandwidth = min(bandwidth, threads * self.core_bandwidth_bytes_per_s)
        return replace(
            self,
            bandwidth_bytes_per_s=bandwidth,
            peak_flops={name: flops * share for name, flops in self.peak_flops.items()},
            cores=threads,
        )


def range_mistakes(values: Mapping[str, Any]) -> list[str]:
    """Every value of a profile that is out of range, one text each; values of a wrong type are passed over."""
    mistakes = [
        f"{name} must be {_bound(_number(values, name), 'above zero')}, got {values[name]}"
        for name in _POSITIVE
        if not 0 < _number(values, name) < math.inf
    ]
    mistakes += [
        f"{name} must {_bound(_number(values, name), 'not be negative', 'be finite')}, got {values[name]}"
        for name in _NOT_NEGATIVE
        if not 0 <= _number(values, name) < math.inf
    ]
    if values.get("runtime", "openvino") not in RUNTIMES:
        mistakes.append(f'runtime "{values["runtime"]}" is not one of {", ".join(RUNTIMES)}')
    precisions = values.get("precisions", ())
    peaks = values.get("peak_flops", {})
    if not isinstance(precisions, (tuple, list)) or not isinstance(peaks, Mapping):
        return mistakes
    if not precisions and "precisions" in values:
        mistakes.append("precisions must name at least one")
    for name in [*precisions, *(peak for peak in peaks if peak not in precisions)]:
        if name not in PRECISIONS:
            mistakes.append(f'precision "{name}" is not one of {", ".join(PRECISIONS)}')
        elif name not in peaks:
            mistakes.append(f'peak_flops lacks the precision "{name}"')
        elif not 0 < _number(peaks, name) < math.inf:
            mistakes.append(
                f"peak_flops of {name} must be {_bound(_number(peaks, name), 'above zero')}, got {peaks[name]}"
            )
    return mistakes


def _bound(value: float, bound: str, finite: str = "finite") -> str:
    return bound if math.isfinite(value) else finite


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name, 1)
    return value if isinstance(value, (int, float)) else 1
