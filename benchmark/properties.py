"""The OpenVINO properties that each precision runs with: the same for scoring, timing and delivery."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from prune_export.errors import BadInputError, nearest
from prune_export.runtime_versions import dies_in_bf16


@dataclass(frozen=True)
class PrecisionOptions:
    """How the weights of one precision are computed with.

    Attributes:
        compute: INFERENCE_PRECISION_HINT of a CPU; "default" means bf16 where it has that, else f32, which is what
            OpenVINO chooses by itself. Other devices compute fp32 weights in f32 and all others in f16, their own
            default, where they have it.
        kv_cache: KV_CACHE_PRECISION; f16 stands in for bf16 on a device without it.
        quantization_group: DYNAMIC_QUANTIZATION_GROUP_SIZE, activations of compressed weights; 0 is off.
    """

    compute: str
    kv_cache: str
    quantization_group: int


# int8 and int4 take OpenVINO's own defaults for compressed weights on a CPU, written out so that they are recorded:
# bf16 where available, a u8 cache, activations quantized in groups of 32.  bf16 does without the last two.
OPTIONS = {
    "fp32": PrecisionOptions("f32", "f32", 0),
    "fp16": PrecisionOptions("f32", "f16", 0),
    "bf16": PrecisionOptions("default", "bf16", 0),
    "int8": PrecisionOptions("default", "u8", 32),
    "int4": PrecisionOptions("default", "u8", 32),
}
# int4 weights in groups of 128 carry an fp16 scale and a 4-bit zero point each.
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2.5 / 128}
_CACHE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1}


def precision_options(precision: str) -> PrecisionOptions:
    """The options of one precision.

    Raises:
        BadInputError: unknown precision.
    """
    if precision not in OPTIONS:
        raise BadInputError(f'precision "{precision}"{nearest(precision, OPTIONS)} is not one of {", ".join(OPTIONS)}')
    return OPTIONS[precision]


def cache_bytes(precision: str) -> int:
    """Bytes of one KV-cache value."""
    return _CACHE_BYTES[precision_options(precision).kv_cache]


def runtime_properties(
    precision: str,
    *,
    threads: int,
    device: str,
    capabilities: Collection[str],
    kv_cache: str = "",
    isa: Collection[str] = (),
) -> dict[str, str | int | bool]:
    """Properties for `Core.compile_model`.

    Args:
        precision: weight precision of the artifact.
        threads: threads to use, above zero.
        device: OpenVINO device name; thread and cache properties exist on "CPU" alone.
        capabilities: the device's OPTIMIZATION_CAPABILITIES.
        kv_cache: KV_CACHE_PRECISION that the artifact asks for; empty for that of the precision.
        isa: the processor's flags, as `profiles.host.Host.isa`.

    Raises:
        BadInputError: unknown precision.
    """
    options = precision_options(precision)
    has_bf16 = "BF16" in capabilities
    if device == "CPU":
        compute = ("bf16" if has_bf16 else "f32") if options.compute == "default" else options.compute
        if compute == "bf16" and not options.quantization_group and dies_in_bf16(threads, isa):
            compute = "f32"
    else:
        compute = "f16" if "FP16" in capabilities and precision != "fp32" else "f32"
    cache = "f16" if options.kv_cache == "bf16" and not has_bf16 else options.kv_cache
    properties: dict[str, str | int | bool] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": compute,
    }
    if device == "CPU":
        properties |= {
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": True,
            "ENABLE_HYPER_THREADING": False,
            "KV_CACHE_PRECISION": kv_cache or cache,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": options.quantization_group,
        }
    return properties
