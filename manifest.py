"""What is written beside an artifact: manifest.json, and the measurement that it rests on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prune_export.errors import BadInputError
from prune_export.hashes import FileRecord, check_seal, write_sealed
from prune_export.records import SPARSE, from_json, to_json
from prune_export.shape import ModelShape
from prune_export.sparsity import SparsityRecord
from prune_export.target import Target, Workload

MANIFEST = "manifest.json"
IR_FOLDER = "openvino"  # of a delivery for OpenVINO; each format's folder has its name
CHECKPOINT_FOLDER = "checkpoint"
PLAN_FILE = "plan.json"
REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"  # the report's figures as PNG
# Beside an IR: what became of its weights, and the cache that was asked for.
OPENVINO_RECORD = "openvino_export.json"
FORMAT_VERSION = 1
Claim = Literal["measured", "predicted"]


def asked_cache(directory: Path) -> str:
    """KV-cache precision that the export of an IR was asked for; empty for the default, or without a record.

    Raises:
        BadInputError: the record beside the IR is no JSON.
    """
    path = directory / OPENVINO_RECORD
    if not path.is_file():
        return ""
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
    return str(data.get("kv_cache", "")) if isinstance(data, dict) else ""


@dataclass(frozen=True)
class Measurement:
    """Raw timings of one artifact; percentiles are computed from them, never stored.

    Attributes:
        artifact: the directory or label that was measured.
        profile: device profile whose thread count and runtime were used.
        host: fingerprint of the measuring host (processor, ISA, cores, memory, operating system).
        runtime: "openvino", ...
        precision: weight precision of the artifact.
        threads: threads given to the runtime.
        workload: what was run.
        ttft_s: time to first token of each repeat.
        itl_s: every inter-token latency, repeat after repeat, `new_tokens - 1` each.
        load_s: reading and compiling the model, once a process; each process timed the same number of repeats.
        weights_bytes: size of the weight files.
        peak_rss_bytes: peak resident memory of the process and its children, from an untimed run; 0 if not sampled.
        rss_rise_bytes: the same minus the memory before loading.
        versions: package name to version.
        options: runtime properties that the model was compiled with, and "affinity", the CPUs that the process had.
        peak_device_bytes: most memory held on a GPU, from an untimed run; 0 on a CPU, None if the runtime does not say.
        turns: into how many parts the samples of a process are cut that generated in step with others, 1 if it ran
            alone: turn t of T has the repeats from R t // T to R (t + 1) // T of the process's R.
    """

    artifact: str
    profile: str
    host: dict[str, str]
    runtime: str
    precision: str
    threads: int
    workload: Workload
    ttft_s: tuple[float, ...]
    itl_s: tuple[float, ...]
    load_s: tuple[float, ...]
    weights_bytes: int
    peak_rss_bytes: int
    rss_rise_bytes: int
    versions: dict[str, str]
    options: dict[str, str] = field(default_factory=dict)
    peak_device_bytes: int | None = field(default=0, metadata=SPARSE)
    turns: int = field(default=1, metadata=SPARSE)

    def samples(self, metric: str) -> tuple[float, ...]:
        """Raw samples in seconds: "tpot" gives every ITL, "ttft" every TTFT, "total" end to end of each repeat."""
        if metric == "tpot":
            return self.itl_s
        if metric == "ttft":
            return self.ttft_s
        per_repeat = len(self.itl_s) // max(1, len(self.ttft_s))
        return tuple(
            first + math.fsum(self.itl_s[i * per_repeat : (i + 1) * per_repeat]) for i, first in enumerate(self.ttft_s)
        )

    def percentile(self, metric: str, statistic: str) -> float:
        """A percentile ("p50", "p90", "p99") of `samples(metric)` in seconds, linearly interpolated."""
        return percentile(self.samples(metric), float(statistic[1:]))


def percentile(samples: tuple[float, ...], percent: float) -> float:
    """Linearly interpolated percentile (numpy's default method), without numpy.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100.0
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class ParityRecord:
    """What the gate before publishing compared.

    Attributes:
        max_logit_error: largest absolute difference between the logits of the fp32 export, an IR or an ONNX graph, and
            torch's over all checks; of a step whose largest logit L is above 30, divided by L / 30.
        tolerance: the limit on it.
        checks: name of each check to its largest error.
        greedy_tokens: greedy tokens that were compared, in the delivered precision.
        greedy_agreement: share of torch's that it chooses too, each after torch's before it.  Of an earlier version:
            that it generates before the first difference, never more.
        prompt: token ids that they continue.
        nll_error: mean token NLL of the delivered precision minus torch's, on held-out text.
        continuation: torch's greedy continuation of the prompt; empty in deliveries of earlier versions.
        window_nll: torch's mean token NLL over prompt and continuation.
        perplexity: held-out perplexity through an export itself; a delivery's candidates have theirs.
        held_out: the text of it, with digests.
        unchecked: what the checks do not reach, in words.
    """

    max_logit_error: float
    tolerance: float
    checks: dict[str, float]
    greedy_tokens: int
    greedy_agreement: float
    prompt: tuple[int, ...] = ()
    nll_error: float = 0.0
    continuation: tuple[int, ...] = field(default=(), metadata=SPARSE)
    window_nll: float = field(default=0.0, metadata=SPARSE)
    perplexity: float = field(default=0.0, metadata=SPARSE)
    held_out: str = field(default="", metadata=SPARSE)
    unchecked: tuple[str, ...] = field(default=(), metadata=SPARSE)


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison: a model in a precision.

    Attributes:
        name: "dense", "pruned", or "sparse" for the dense model with zeros.
        precision: weight precision.
        parameters: total parameters.
        perplexity: held-out perplexity scored through the artifact itself.
        measurement: its timings, or None where only a prediction exists.
        predicted_s: predicted value of the target's metric, or None.
        delivered: this is the one handed over.
    """

    name: str
    precision: str
    parameters: int
    perplexity: float
    measurement: Measurement | None
    predicted_s: float | None = None
    delivered: bool = False


@dataclass(frozen=True)
class Round:
    """One turn of the closed loop.

    Attributes:
        precision: weight precision that was pruned for.
        budget: what the plan was allowed to cost by the latency table.
        predicted: what the table, corrected by what was measured before, said of the plan found.
        measured: what the artifact took; for a speed-up, in the round that decides.
        perplexity: its held-out perplexity.
        met: measured within the limit.
        limit: what it was compared with; for a speed-up, the dense model's figure in that round by the factor.
    """

    precision: str
    budget: float
    predicted: float
    measured: float
    perplexity: float
    met: bool
    limit: float = 0.0


@dataclass(frozen=True)
class PredictedPoint:
    """What the search predicts of a structure.

    Attributes:
        cost: by the latency table, in the unit of the target's metric; not corrected by any measurement.
        rise: calibration perplexity over the dense model's.
    """

    cost: float
    rise: float


@dataclass(frozen=True)
class FurtherTarget:
    """A target that had to hold beside the one that drove the search.

    Attributes:
        target: what was asked for.
        limit, figure: as of the manifest.
    """

    target: Target
    limit: float
    figure: float

    @property
    def met(self) -> bool:
        """Within the limit."""
        return self.figure <= self.limit


@dataclass(frozen=True)
class PlannedDevice:
    """What a claim holds on.

    Attributes:
        runtime: that runs the delivered format.
        device: the runtime's name of the device.
        threads: given to the runtime; 0 for all physical cores.
        match: the hosts, as in the device profile.
    """

    runtime: str
    device: str
    threads: int
    match: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """Everything about a delivered artifact.

    Attributes:
        command: command line that made it.
        created: UTC, ISO 8601.
        source: model as the user named it.
        source_digest: sha256 over its configuration and weights.
        shape: delivered shape.
        dense_parameters: parameters before pruning.
        formats: "openvino" or "onnx", which was measured, and "checkpoint"; the folders of the same names.
        precision: weight precision of what is delivered.
        target: what was asked for; of several targets the one that drove the search.
        further: the others.
        limit: the limit in the metric's unit; of a measured speed-up, what the dense model takes beside the figure by
            the ratio that the rounds agree on (`benchmark.compare.PairedRatio`), divided by the factor.
        claim: "measured" or "predicted".
        met: the claim's figure is within the limit.
        figure: the claim's figure, over all samples; of a measured speed-up, the median over the rounds.
        profile: device profile.
        device: what the claim holds on; None in manifests of earlier versions.
        plan_digest: sha256 of plan.json; empty for a dense delivery.
        calibration: description, digest and Python version of the calibration text.
        evaluation: the same for the held-out text.
        seed: random seed.
        candidates: the comparison.
        rounds: the closed loop's history.
        front: what the search predicts for other budgets than the loop's, the dense model first: structures that none
            of the others beats in both cost and rise; empty where the target is a share of the parameters.
        parity: the gate's result.
        versions: package name to version.
        speedups: of a measured speed-up: dense / delivered in each round of the closing measurement.
        medians: latencies whose predictions here are medians, whatever statistic was asked for.
        workload: what the claim is about; None in manifests of earlier versions.
        timings_s: phase of the run to seconds.
        peak_tree_bytes: peak resident memory of the run's whole process tree, up to the writing of the manifest.
        peak_tree_phase: the phase of the run that had it.
        phases_bytes: phase of the run to the peak of the same in it.
        sparsity: zeros counted in the delivered checkpoint, where some were asked for.
        departures: layer to what its weights are stored in where that is not the artifact's precision, or not in the
            groups that the profile asks for.
        samples: "prompt", and its greedy continuation by "dense" and by "delivered".
        files: relative path to size and hash of every other file.
        content_digest: sha256 of this document as it was written.
    """

    command: str
    created: str
    source: str
    source_digest: str
    shape: ModelShape
    dense_parameters: int
    formats: tuple[str, ...]
    precision: str
    target: Target
    limit: float
    claim: Claim
    met: bool
    figure: float
    profile: str
    plan_digest: str
    calibration: dict[str, str]
    evaluation: dict[str, str]
    seed: int
    candidates: tuple[Candidate, ...]
    rounds: tuple[Round, ...]
    parity: ParityRecord
    versions: dict[str, str]
    speedups: tuple[float, ...] = ()
    further: tuple[FurtherTarget, ...] = field(default=(), metadata=SPARSE)
    front: tuple[PredictedPoint, ...] = field(default=(), metadata=SPARSE)
    medians: tuple[str, ...] = field(default=(), metadata=SPARSE)
    workload: Workload | None = field(default=None, metadata=SPARSE)
    device: PlannedDevice | None = field(default=None, metadata=SPARSE)
    timings_s: dict[str, float] = field(default_factory=dict)
    peak_tree_bytes: int = 0
    peak_tree_phase: str = ""
    phases_bytes: dict[str, int] = field(default_factory=dict)
    sparsity: SparsityRecord | None = field(default=None, metadata=SPARSE)
    departures: dict[str, str] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    content_digest: str = field(default="", compare=False, metadata=SPARSE)

    def save(self, directory: Path) -> None:
        """Writes manifest.json."""
        write_sealed(directory / MANIFEST, to_json(self))

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads manifest.json.

        Raises:
            BadInputError: missing, no JSON, or not a manifest of this format.
        """
        path = directory / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf8"))
        except FileNotFoundError:
            raise BadInputError(f"{directory} is no artifact of prune-export: it has no {MANIFEST}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInputError(f"{path} cannot be read as JSON: {error}") from None
        if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
            raise BadInputError(f"{path} has format {data.get('format_version')}, this version reads {FORMAT_VERSION}")
        return from_json(cls, data, where=str(path))

    @classmethod
    def load_unedited(cls, directory: Path) -> Manifest:
        """Reads manifest.json and holds it against its digest.

        Raises:
            BadInputError: as `load`, or it was edited after it was written.
        """
        found = cls.load(directory)
        check_seal(directory / MANIFEST)
        return found
