"""Measures artifacts in fresh processes; every raw sample is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from prune_export.benchmark.devices import device_fingerprint
from prune_export.benchmark.process import run_in_turns, run_worker
from prune_export.benchmark.properties import precision_options
from prune_export.benchmark.runtimes import RUNTIMES, find_model
from prune_export.benchmark.threads import checked_threads
from prune_export.benchmark.timing import samples_for
from prune_export.benchmark.worker import Reply, Request, Through
from prune_export.errors import BadInputError
from prune_export.manifest import Measurement
from prune_export.profiles import DeviceProfile, host_fingerprint
from prune_export.progress import Progress
from prune_export.target import Workload

_JUDGED = 2  # subjects that further rounds are of: the baseline and what is compared with it


@dataclass(frozen=True)
class Subject:
    """What is measured: a directory with a model, and the precision of its weights.

    Attributes:
        directory: holds openvino_model.xml or model.onnx, or one sub-folder that does.
        precision: weight precision.
        sample_memory: its memory is sampled where the measurement samples memory at all; else it reads 0.
        through: the runtime itself, or its GenAI pipeline.
    """

    directory: Path
    precision: str
    sample_memory: bool = True
    through: Through = "session"


@dataclass(frozen=True)
class Rounds:
    """How many fresh processes time each artifact, and how long each of them.

    Attributes:
        least: processes for each subject.
        settled: asked after `least` rounds, and after every further one, whether the measurements so far are enough;
            None for no further rounds.
        most: ends the further rounds.
        samples: of later tokens that a process should leave (`timing.repeats_for`); None for those of a tpot p90.
    """

    least: int
    settled: Callable[[Sequence[Measurement]], bool] | None = None
    most: int = 0
    samples: int | None = None


def measure(
    directory: Path,
    *,
    profile: DeviceProfile,
    workload: Workload,
    precision: str,
    threads: int = 0,
    processes: int = 2,
    sample_memory: bool = True,
    progress: Progress | None = None,
) -> Measurement:
    """Times one artifact, each process fresh, then samples its memory in a further, untimed one.

    Args:
        directory: holds openvino_model.xml or model.onnx, or one sub-folder that does; the file decides the runtime.
        profile: names the device.
        workload: what to run; its `repeats` is the least number of repeats a process.
        precision: weight precision, decides the runtime's properties.
        threads: 0 takes the profile's, and that being 0 all physical cores.
        processes: fresh processes to time in; each leaves one `load_s` and the same number of repeats.
        sample_memory: run the memory process too.
        progress: is told the share done.

    Raises:
        BadInputError: missing directory, unusable IR, absent device, more threads than cores, foreign runtime.
        PruneExportError: the worker died.
    """
    return measure_together(
        [Subject(directory, precision)],
        profile=profile,
        workload=workload,
        rounds=Rounds(processes),
        threads=threads,
        sample_memory=sample_memory,
        progress=progress,
    )[0]


def measure_together(
    subjects: Sequence[Subject],
    *,
    profile: DeviceProfile,
    workload: Workload,
    rounds: Rounds,
    threads: int = 0,
    sample_memory: bool = True,
    together_bytes: int | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Times several artifacts in turns, so that what slows the machine slows all of them alike.

    On a CPU, processes of a round that fit into memory together stand together and generate in step, some tokens of
    each, there and back (A B B A); others run one after the other.  Every other round is loaded and begun the other
    way round.

    Args:
        subjects: the artifacts; further rounds are of the first two alone.
        profile, workload, threads, sample_memory, progress: as in `measure`.
        rounds: how many and how long.
        together_bytes: weights, in bytes, of what may stand in memory together; None takes a quarter of what is free.

    Returns:
        One measurement a subject, in order, with the samples of its rounds one after the other; round r holds
        the r-th of `len(load_s)` equal parts.

    Raises:
        BadInputError, PruneExportError: as in `measure`.
    """
    samples = samples_for("tpot", "p90", workload) if rounds.samples is None else rounds.samples
    requests = [replace(_request(subject, profile, workload, threads), samples=samples) for subject in subjects]
    sampled = [index for index, subject in enumerate(subjects) if sample_memory and subject.sample_memory]
    groups = standing_together([subject.directory for subject in subjects], together_bytes, device=profile.device)
    replies: list[list[Reply]] = [[] for _ in subjects]
    done = 0
    total = rounds.least * len(subjects) + len(sampled)
    for turn in range(max(rounds.least, rounds.most)):
        if turn >= rounds.least and (
            rounds.settled is None or rounds.settled(_measurements(requests, replies, profile))
        ):
            break
        if turn == rounds.least:
            groups = [pair for group in groups if (pair := [index for index in group if index < _JUDGED])]
        total += sum(map(len, groups)) if turn >= rounds.least else 0
        for group in groups if turn % 2 == 0 else [_other_way(group) for group in groups[::-1]]:

            def tell(share: float, group: Sequence[int] = group, done: int = done, total: int = total) -> None:
                _tell(progress, done + share * len(group), total, requests[group[0]])

            # As many turns in each round: a measurement's figures are cut by one number.
            turns = replies[group[0]][0].turns if turn else None
            found = _timed([requests[index] for index in group], tell, turns)
            for index, reply in zip(group, found, strict=True):
                replies[index].append(reply)
                # Later rounds repeat as often as the first, so that the rounds' samples can be told apart.
                requests[index] = replace(requests[index], repeats=len(reply.ttft_s))
            done += len(group)
            _tell(progress, done, total, requests[group[-1]])
    memory = [Reply() for _ in subjects]
    for index in sampled:
        memory[index] = run_worker(replace(requests[index], mode="memory"))
        done += 1
        _tell(progress, done, total, requests[index])
    return _measurements(requests, replies, profile, memory)


def _other_way(group: list[int]) -> list[int]:
    """What is loaded first is slower for it (docs/devices.md): of the two that are judged, each as often."""
    judged = [index for index in group if index < _JUDGED]
    return judged[::-1] + group[len(judged) :][::-1]


def check_measurable(subjects: Sequence[Subject], profile: DeviceProfile, workload: Workload, threads: int) -> None:
    """Refuses without starting a process what `measure_together` would refuse.

    Raises:
        BadInputError: as in `measure`.
    """
    for subject in subjects:
        _request(subject, profile, workload, threads)


def standing_together(directories: Sequence[Path], most_bytes: int | None, *, device: str) -> list[list[int]]:
    """Which of several artifacts stand in memory together while they are measured: indices, in order.

    Args:
        directories: of the artifacts.
        most_bytes: as `together_bytes` of `measure_together`.
        device: on others than a CPU each stands alone: how much memory is free there is not known.
    """
    if most_bytes is None:
        most_bytes = int(psutil.virtual_memory().available / 4)
    groups: list[list[int]] = []
    held = 0
    for index, directory in enumerate(directories):
        size = find_model(directory).weights_bytes
        if groups and device.lower() == "cpu" and held + size <= most_bytes:
            groups[-1].append(index)
            held += size
        else:
            groups.append([index])
            held = size
    return groups


def _timed(requests: Sequence[Request], tell: Callable[[float], None], turns: int | None) -> list[Reply]:
    return [run_worker(requests[0])] if len(requests) == 1 else run_in_turns(requests, tell, turns)


def _measurements(
    requests: Sequence[Request],
    replies: Sequence[Sequence[Reply]],
    profile: DeviceProfile,
    memory: Sequence[Reply] | None = None,
) -> list[Measurement]:
    untimed = memory or [Reply() for _ in requests]
    return [
        _measurement(request, timed, sample, profile)
        for request, timed, sample in zip(requests, replies, untimed, strict=True)
    ]


def _request(subject: Subject, profile: DeviceProfile, workload: Workload, threads: int) -> Request:
    """Refuses in this process what can be refused without starting another."""
    known = [runtime.name for runtime in RUNTIMES]
    if profile.runtime in known and profile.device == "cuda" and not host_fingerprint().get("gpu"):
        raise BadInputError(f"profile {profile.name} needs an NVIDIA GPU, and none is found here: run it there")
    if profile.runtime not in known:
        raise BadInputError(
            f"profile {profile.name} runs {profile.runtime} on {profile.device}, which cannot be measured here: "
            f"use a profile of {' or '.join(known)}, e.g. --device host"
        )
    precision_options(subject.precision)
    runtime = find_model(subject.directory).runtime
    if subject.through == "genai" and runtime.open_pipeline is None:
        raise BadInputError(f"{subject.directory} is a {runtime.format}, which no GenAI pipeline runs: export it first")
    if subject.through == "genai" and 0 < runtime.pipeline_batch < workload.batch:
        raise BadInputError(
            f"batch {workload.batch}: the pipeline of {runtime.pipeline_package} streams the tokens of "
            f"{runtime.pipeline_batch} sequence: take batch 1, or --through session"
        )
    count = checked_threads(threads or profile.threads)
    return Request(
        str(subject.directory), subject.precision, count, profile.device, workload, "time", through=subject.through
    )


def _measurement(request: Request, timed: Sequence[Reply], memory: Reply, profile: DeviceProfile) -> Measurement:
    found = find_model(Path(request.directory))
    return Measurement(
        artifact=request.directory,
        profile=profile.name,
        host=device_fingerprint(profile),
        runtime=found.runtime.pipeline_package if request.through == "genai" else found.runtime.name,
        precision=request.precision,
        threads=request.threads,
        workload=replace(request.workload, repeats=len(timed[0].ttft_s)),
        ttft_s=tuple(value for reply in timed for value in reply.ttft_s),
        itl_s=tuple(value for reply in timed for value in reply.itl_s),
        load_s=tuple(reply.load_s for reply in timed),
        weights_bytes=found.weights_bytes,
        peak_rss_bytes=memory.peak_bytes,
        rss_rise_bytes=memory.peak_bytes - memory.before_bytes,
        peak_device_bytes=memory.device_peak_bytes,
        versions=timed[0].versions,
        options=timed[0].options,
        # One that stood together with others that have no further rounds has its later rounds alone.
        turns=timed[0].turns if len({reply.turns for reply in timed}) == 1 else 1,
    )


def _tell(progress: Progress | None, done: float, total: int, request: Request) -> None:
    if progress is not None:
        progress.update(done, total, f"{Path(request.directory).name} {request.precision}")
