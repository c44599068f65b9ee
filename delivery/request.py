"""What one delivery is asked for, and what is known before any work starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prune_export.delivery.resources import TreeMemory
from prune_export.delivery.settings import SearchSettings
from prune_export.manifest import Measurement
from prune_export.plan import PrunePlan
from prune_export.profiles.device import DeviceProfile
from prune_export.progress import Progress
from prune_export.shape import ModelShape
from prune_export.sparsity import Sparsity
from prune_export.target import Target, Workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prune_export.prune.calibration import CalibrationTokens
    from prune_export.texts import Text

__all__ = ["PRECISIONS", "Job", "Request", "SearchSettings", "Variant", "default_output"]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")


@dataclass(frozen=True)
class Request:
    """The user's wishes, parsed but not yet checked against a model or a device.

    Attributes:
        model: directory, hub id, or "reference".
        device: name of a profile, path of a TOML file, or "host".
        target: the limit to meet.
        workload: what is timed.
        output: destination, or None for a fresh directory named after model, device and target.
        precisions: weight precisions that may be delivered, best quality first; empty for `default_precisions`, as far
            as a table in the profile of another device has them.
        default_precisions: see there.
        format: that is delivered, measured and scored: "openvino" or "onnx".
        search: search settings.
        sparsity: zeros in what is delivered, on top of its structure, or None.
        plan: replay this plan instead of searching.
        calibration: text for the search, or None for the standard library's.
        eval_text: text for perplexity, or None.
        eval_tokens: tokens of it, or None for the default of the model's size.
        max_quality_loss: allowed relative rise of perplexity, or None.
        rounds: turns of the closed loop at most.
        threads: runtime threads, 0 for the profile's.
        seed: of everything random.
        force: replace an existing output.
        require_measured: refuse a delivery that is only predicted.
        command: the command line, for the manifest.
    """

    model: str
    device: str
    target: Target
    further: tuple[Target, ...] = ()
    workload: Workload = Workload()
    output: Path | None = None
    precisions: tuple[str, ...] = ()
    default_precisions: tuple[str, ...] = ("fp32", "int8")
    format: str = "openvino"
    search: SearchSettings = SearchSettings()
    sparsity: Sparsity | None = None
    plan: Path | None = None
    calibration: str | None = None
    eval_text: str | None = None
    eval_tokens: int | None = None
    max_quality_loss: float | None = None
    rounds: int = 5
    threads: int = 0
    seed: int = 42
    force: bool = False
    require_measured: bool = False
    command: str = ""


@dataclass(frozen=True)
class Job:
    """A request whose inputs were all found good.

    Attributes:
        request: what was asked.
        source: directory of the dense checkpoint.
        source_digest: sha256 over its configuration and weights.
        shape: its dimensions.
        profile: the device.
        measured: the host is the device, so figures are measured here.
        mismatch: why it is not, else empty.
        workload: the request's, shortened to the context.
        threads: runtime threads.
        output: where the artifact will appear.
        work: scratch directory, removed at the end.
        calibration: tokens for the search.
        calibration_text: where they come from.
        evaluation: held-out windows [N, T].
        evaluation_text: where they come from.
        plan: the plan to replay, or None to search one.
        progress: where phases report to.
        memory: samples the run's memory.
    """

    request: Request
    source: Path
    source_digest: str
    shape: ModelShape
    profile: DeviceProfile
    measured: bool
    mismatch: str
    workload: Workload
    threads: int
    output: Path
    work: Path
    calibration: CalibrationTokens
    calibration_text: Text
    evaluation: NDArray[np.int64]
    evaluation_text: Text
    plan: PrunePlan | None
    progress: Progress
    memory: TreeMemory


@dataclass(frozen=True)
class Variant:
    """A model in a precision, exported.

    Attributes:
        name: "dense", "pruned", or "sparse" for the dense model with zeros.
        precision: weight precision.
        directory: the IR or ONNX model with its tokenizer.
        shape: its dimensions.
        perplexity: held-out perplexity through that.
        measurement: its timings, or None where the host is not the device.
    """

    name: str
    precision: str
    directory: Path
    shape: ModelShape
    perplexity: float
    measurement: Measurement | None = None


def default_output(request: Request) -> Path:
    """A fresh directory under the current one, named after model, device and target: "reference-host-1.3x"."""
    target = request.target
    if target.speedup is not None:
        wanted = f"{target.speedup:g}x"
    elif target.metric == "parameters":
        wanted = f"{target.limit or 0:.0%}"
    else:
        wanted = str(target).rpartition("<= ")[2].replace(" ", "")
    parts = (Path(request.model).name or "model", Path(request.device).stem, wanted)
    base = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)
    path, number = Path(base), 2
    while path.exists():
        path, number = Path(f"{base}-{number}"), number + 1
    return path
