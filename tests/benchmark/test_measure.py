"""Measuring in fresh processes: samples, memory, and how a worker may end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from prune_export.benchmark import process
from prune_export.benchmark.child import converse
from prune_export.benchmark.measure import Rounds, Subject, measure, measure_together, standing_together
from prune_export.benchmark.memory import watch_memory
from prune_export.benchmark.process import run_in_turns, run_worker
from prune_export.benchmark.worker import Reply, Request
from prune_export.errors import BadInputError, PruneExportError
from prune_export.manifest import Measurement
from prune_export.profiles import host_cores, host_fingerprint, load_profile
from prune_export.target import Workload

HOST = load_profile("host")
WORKLOAD = Workload(batch=2, prompt_tokens=8, new_tokens=5, warmup=1, repeats=2)


def test_an_artifact_is_measured_with_all_its_samples(tiny_ir: Path) -> None:
    found = measure(tiny_ir, profile=HOST, workload=WORKLOAD, precision="fp32", threads=1, processes=1)
    repeats = found.workload.repeats
    assert repeats >= 2
    assert len(found.ttft_s) == repeats
    assert len(found.itl_s) == repeats * 4
    assert min(found.ttft_s + found.itl_s + found.load_s) > 0
    assert len(found.load_s) == 1
    assert found.weights_bytes == (tiny_ir / "openvino_model.bin").stat().st_size
    # A process that imports OpenVINO holds tens of megabytes; this one's torch (hundreds) must not be in it.
    assert 20 << 20 < found.peak_rss_bytes < 300 << 20
    assert 0 < found.rss_rise_bytes < found.peak_rss_bytes
    assert found.options["INFERENCE_PRECISION_HINT"] == "f32"
    assert set(found.versions) == {"python", "openvino", "numpy"}
    assert (found.threads, found.profile, found.host) == (1, "host", host_fingerprint())


def test_artifacts_that_do_not_fit_together_run_one_after_the_other(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def pretend(request: Request) -> Reply:
        asked.append(request)
        repeats = request.repeats or (3 if request.precision == "fp32" else 2)
        return Reply(
            load_s=float(len(asked)),
            ttft_s=(float(len(asked)),) * repeats,
            itl_s=(0.1,) * 4 * repeats,
            peak_bytes=10 + len(asked),
            before_bytes=10,
        )

    monkeypatch.setattr("prune_export.benchmark.measure.run_worker", pretend)
    first, second = measure_together(
        [Subject(tiny_ir, "fp32"), Subject(tiny_ir, "int8")],
        profile=HOST,
        workload=WORKLOAD,
        rounds=Rounds(2),
        threads=1,
        together_bytes=0,
    )
    order = [(request.precision, request.mode, request.repeats) for request in asked]
    assert order == [
        ("fp32", "time", None),
        ("int8", "time", None),
        ("int8", "time", 2),
        ("fp32", "time", 3),
        ("fp32", "memory", 3),
        ("int8", "memory", 2),
    ]
    assert first.ttft_s == (1.0, 1.0, 1.0, 4.0, 4.0, 4.0)
    assert second.ttft_s == (2.0, 2.0, 3.0, 3.0)
    assert (first.load_s, second.load_s) == ((1.0, 4.0), (2.0, 3.0))
    assert (first.peak_rss_bytes, first.rss_rise_bytes, second.peak_rss_bytes) == (15, 5, 16)


def test_artifacts_that_fit_together_take_turns(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of which two fit; later rounds repeat as often as the first."""
    asked: list[list[tuple[str, int | None]]] = []

    def reply(request: Request) -> Reply:
        if request.mode == "memory":
            return Reply(peak_bytes=20, before_bytes=10)
        repeats = request.repeats or {"fp32": 3, "int8": 4, "int4": 2}[request.precision]
        ttft_s, itl_s = (float(len(asked)),) * repeats, (0.1,) * 4 * repeats
        return Reply(load_s=1.0, ttft_s=ttft_s, itl_s=itl_s, turns=1 if request.precision == "int4" else 3)

    def one(request: Request) -> Reply:
        if request.mode == "time":
            asked.append([(request.precision, request.repeats)])
        return reply(request)

    def several(requests: Sequence[Request], _: object, turns: int | None) -> list[Reply]:
        asked.append([(request.precision, request.repeats) for request in requests])
        return [reply(request) for request in requests]

    monkeypatch.setattr("prune_export.benchmark.measure.run_worker", one)
    monkeypatch.setattr("prune_export.benchmark.measure.run_in_turns", several)
    subjects = [Subject(tiny_ir, precision) for precision in ("fp32", "int8", "int4")]
    size = (tiny_ir / "openvino_model.bin").stat().st_size
    settings = {"profile": HOST, "workload": WORKLOAD, "rounds": Rounds(2), "threads": 1}
    found = measure_together(subjects, together_bytes=2 * size, **settings)
    both, alone = [("fp32", None), ("int8", None)], [("int4", None)]
    assert asked == [both, alone, [("int4", 2)], [("int8", 4), ("fp32", 3)]]  # the other way round
    assert [item.ttft_s for item in found] == [
        (1.0, 1.0, 1.0, 4.0, 4.0, 4.0),
        (1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0),
        (2.0, 2.0, 3.0, 3.0),
    ]
    assert [item.turns for item in found] == [3, 3, 1]
    asked.clear()
    measure_together(subjects, together_bytes=3 * size, **settings)
    orders = [[precision for precision, _ in group] for group in asked]
    assert orders == [["fp32", "int8", "int4"], ["int8", "fp32", "int4"]]  # of the first two each is first once


def test_on_other_devices_than_a_cpu_each_stands_alone(tiny_ir: Path) -> None:
    size = (tiny_ir / "openvino_model.bin").stat().st_size
    three = [tiny_ir] * 3
    assert standing_together(three, 3 * size, device="CPU") == [[0, 1, 2]]
    assert standing_together(three, 2 * size, device="CPU") == [[0, 1], [2]]
    assert standing_together(three, None, device="cpu") == [[0, 1, 2]]
    assert standing_together(three, 3 * size, device="cuda") == [[0], [1], [2]]


TURN_TAKER = """
import json, os, sys, time
from prune_export.benchmark.child import answer

def handle(request, parent):
    name, once = os.path.basename(request["directory"]), request["workload"]["prompt_tokens"] / 1000
    def log(what):
        with open(os.path.join(os.path.dirname(request["directory"]), "log"), "a") as file:
            file.write(f"{name} {what}\\n")
    log("load")
    parent.wait(0.0)
    log("warm-up begins")
    time.sleep(0.5)
    log("warm-up ends")
    parent.wait(99.0)
    log("warm-up")
    done = 0
    while count := parent.wait(once):
        log(count)
        done += count
        if name == "dies":
            sys.exit("the reason")
    return {"load_s": 1.0, "ttft_s": [once] * (done // request["workload"]["new_tokens"])}

answer(handle)
"""


def turn_takers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    (folder / "made_up_worker.py").write_text(TURN_TAKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setattr(process, "_WORKER", "made_up_worker")


def test_processes_take_turns_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats of 300 ms and 200 ms: ten of each leave forty later tokens; 5 tokens each, two at a time."""
    turn_takers(monkeypatch, tmp_path)
    work = replace(WORKLOAD, repeats=2)
    slow, fast = (
        replace(request_for(tmp_path / name), workload=replace(work, prompt_tokens=once), samples=40)
        for name, once in (("slow", 300), ("fast", 200))
    )
    shares: list[float] = []
    replies = run_in_turns([slow, fast], shares.append)
    assert [(reply.ttft_s, reply.turns) for reply in replies] == [((0.3,) * 10, 6), ((0.2,) * 10, 6)]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:2] == ["slow load", "fast load"]
    # Side by side, so that neither is favoured.
    assert {*lines[2:4]} == {"slow warm-up begins", "fast warm-up begins"}
    assert {*lines[4:6]} == {"slow warm-up ends", "fast warm-up ends"}
    assert lines[6:8] == ["slow warm-up", "fast warm-up"]
    there_and_back = [
        *("slow 1", "fast 1"),
        *("fast 2", "slow 2"),
        *("slow 2", "fast 2"),
        *("fast 1", "slow 1"),
        *("slow 2", "fast 2"),
        *("fast 2", "slow 2"),
    ]
    assert lines[8:] == there_and_back * 5
    assert shares == [count / 10 for count in range(10)]
    again = run_in_turns([replace(slow, repeats=2), replace(fast, repeats=3)], lambda _: None)
    assert [(len(reply.ttft_s), reply.turns) for reply in again] == [(3, 3), (3, 3)]
    fewer = run_in_turns([replace(slow, repeats=6)] * 2, lambda _: None, 2)
    assert [(len(reply.ttft_s), reply.turns) for reply in fewer] == [(6, 2), (6, 2)]


def test_a_pipeline_takes_turns_of_whole_generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_takers(monkeypatch, tmp_path)
    requests = [replace(request_for(tmp_path / name), repeats=2, through="genai") for name in ("one", "two")]
    run_in_turns(requests, lambda _: None)
    assert (tmp_path / "log").read_text().splitlines()[8:] == ["one 5", "two 5", "two 5", "one 5"]


@pytest.mark.parametrize(
    ("new_tokens", "token_s", "parts"),
    [(8, 0.02, [1, 2, 2, 2, 1]), (8, 0.5, [1, 2, 2, 2, 1]), (8, 0.01, [1, 4, 3]), (8, 0.001, [1, 7]), (1, 0.1, [1])],
)
def test_a_stretch_takes_forty_milliseconds_and_two_tokens_at_least(
    new_tokens: int, token_s: float, parts: list[int]
) -> None:
    assert process.stretches(new_tokens, token_s) == parts


def test_one_that_dies_in_its_turn_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_takers(monkeypatch, tmp_path)
    requests = [request_for(tmp_path / name) for name in ("lives", "dies")]
    with pytest.raises(PruneExportError, match=r"measuring .*dies: the worker process ended with exit code 1: the rea"):
        run_in_turns(requests, lambda _: None)
    assert not psutil.Process().children()


def test_turns_leave_as_many_samples_as_a_process_alone(tiny_ir: Path) -> None:
    request = replace(request_for(tiny_ir), repeats=3)
    alone, *both = run_worker(request), *run_in_turns([request, request], lambda _: None)
    for reply in both:
        assert (len(reply.ttft_s), len(reply.itl_s)) == (len(alone.ttft_s), len(alone.itl_s)) == (3, 3 * 4)
        assert min(reply.ttft_s + reply.itl_s) > 0
        assert reply.options == alone.options


def test_rounds_are_added_until_they_settle(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked after the second round and after each further one, with the samples so far; memory comes last."""
    modes: list[str] = []

    def pretend(request: Request) -> Reply:
        modes.append(request.mode)
        return Reply(load_s=1.0, ttft_s=(1.0,), itl_s=(0.1,) * 4, peak_bytes=20, before_bytes=10)

    monkeypatch.setattr("prune_export.benchmark.measure.run_worker", pretend)
    seen: list[int] = []

    def settled_after(rounds: int) -> Callable[[Sequence[Measurement]], bool]:
        def settled(found: Sequence[Measurement]) -> bool:
            seen.append(len(found[0].load_s))
            assert len(found[0].itl_s) == 4 * len(found[0].load_s)
            return len(found[0].load_s) >= rounds

        return settled

    for wanted, asked, rounds in ((1, [2], 2), (4, [2, 3, 4], 4), (9, [2, 3, 4], 5)):
        modes.clear()
        seen.clear()
        (found,) = measure_together(
            [Subject(tiny_ir, "fp32")],
            profile=HOST,
            workload=WORKLOAD,
            rounds=Rounds(2, settled_after(wanted), most=5),
            threads=1,
        )
        assert (seen, len(found.load_s)) == (asked, rounds)
        assert modes == ["time"] * rounds + ["memory"]


def test_further_rounds_are_of_the_first_two(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int | None]] = []

    def several(requests: Sequence[Request], _: object, turns: int | None) -> list[Reply]:
        asked.append((len(requests), turns))
        return [Reply(load_s=1.0, ttft_s=(1.0,), itl_s=(0.1,) * 4, turns=3) for _ in requests]

    monkeypatch.setattr("prune_export.benchmark.measure.run_in_turns", several)
    found = measure_together(
        [Subject(tiny_ir, "fp32")] * 3,
        profile=HOST,
        workload=WORKLOAD,
        rounds=Rounds(2, lambda found: len(found[0].load_s) == 4, most=9),
        threads=1,
        sample_memory=False,
    )
    # Two alone might take more turns than the three did: figures are cut by one number.
    assert asked == [(3, None), (3, 3), (2, 3), (2, 3)]
    assert [(len(item.load_s), item.turns) for item in found] == [(4, 3), (4, 3), (2, 3)]


def test_rounds_of_which_some_had_no_turns_are_not_cut(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of the first two stands beside the third, which has no further rounds."""

    def reply(turns: int) -> Reply:
        return Reply(load_s=1.0, ttft_s=(1.0,) * 3, itl_s=(0.1,) * 12, turns=turns)

    monkeypatch.setattr("prune_export.benchmark.measure.standing_together", lambda *_, **__: [[0], [1, 2]])
    monkeypatch.setattr("prune_export.benchmark.measure.run_worker", lambda _: reply(1))
    monkeypatch.setattr(
        "prune_export.benchmark.measure.run_in_turns", lambda requests, *_: [reply(3) for _ in requests]
    )
    found = measure_together(
        [Subject(tiny_ir, "fp32")] * 3, profile=HOST, workload=WORKLOAD, threads=1, sample_memory=False,
        rounds=Rounds(1, lambda _: False, most=2),
    )  # fmt: skip
    assert [item.turns for item in found] == [1, 1, 3]


def refusal(directory: Path, *, profile: str = "host", threads: int = 1, precision: str = "fp32") -> str:
    with pytest.raises(BadInputError) as caught:
        measure(directory, profile=load_profile(profile), workload=WORKLOAD, precision=precision, threads=threads)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_measured_is_refused(tiny_ir: Path, tmp_path: Path) -> None:
    assert "gone is not a directory" in refusal(tmp_path / "gone")
    assert f"use --threads 1 to {host_cores()}, or 0 for all" in refusal(tiny_ir, threads=999)
    assert 'precision "int9"' in refusal(tiny_ir, precision="int9")
    assert "profile gpu-cuda needs an NVIDIA GPU, and none is found here" in refusal(tiny_ir, profile="gpu-cuda")


def test_a_mistake_found_by_the_worker_keeps_its_class_and_text(tiny_ir: Path, tmp_path: Path) -> None:
    assert 'device "GPU" is absent here' in refusal(tiny_ir, profile="gpu-intel")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_ir, copy)
    (copy / "openvino_model.bin").write_bytes(b"short")
    assert "cannot be read, it is damaged or incomplete" in refusal(copy)


def request_for(directory: Path) -> Request:
    return Request(str(directory), "fp32", 1, "CPU", WORKLOAD, "time")


def other_worker(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    (folder / "made_up_worker.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(process, "_WORKER", "made_up_worker")


def test_a_worker_that_fails_leaves_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_worker(monkeypatch, tmp_path, "import sys; print('chatter\\nthe reason', file=sys.stderr); sys.exit(7)")
    with pytest.raises(PruneExportError, match=r"worker process ended with exit code 7: the reason$"):
        run_worker(request_for(tmp_path))


def test_a_worker_that_is_killed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_worker(monkeypatch, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(PruneExportError, match=r"was killed by signal 9 \(out of memory\?\)$"):
        run_worker(request_for(tmp_path))
    other_worker(monkeypatch, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGFPE)")
    with pytest.raises(PruneExportError, match=r"was killed by signal 8$"):
        run_worker(request_for(tmp_path))


def test_an_interrupt_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a worker is at work: raised by the listener, since a signal's moment cannot be chosen."""
    code = 'import os, time; print(\'{"done": %d, "total": 1}\' % os.getpid(), flush=True); time.sleep(60)'
    (tmp_path / "made_up_worker.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen: list[int] = []

    def interrupted(done: float, _: float) -> None:
        seen.append(int(done))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converse("made_up_worker", {}, subject="testing", report=interrupted)
    assert not psutil.pid_exists(seen[0])


def test_nothing_but_the_reply_reaches_standard_output(tiny_ir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_worker(Request(str(tiny_ir), "fp32", 1, "CPU", WORKLOAD, "time", repeats=1))
    assert capfd.readouterr() == ("", "")


def test_the_working_directory_is_not_imported_from(
    tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert run_worker(Request(str(tiny_ir), "fp32", 1, "CPU", WORKLOAD, "time", repeats=1)).ttft_s


@pytest.mark.alone
def test_the_memory_watch_sees_what_is_allocated_and_given_back() -> None:
    size = 64 << 20
    with watch_memory() as watch:
        block = bytearray(os.urandom(1)) * size
        time.sleep(0.05)
        del block
    assert watch.peak_bytes - watch.before_bytes > 0.9 * size


@pytest.mark.alone
def test_the_memory_watch_sees_child_processes() -> None:
    size = 64 << 20
    code = f"import sys; block = b'1' * {size}; print('there', flush=True); sys.stdin.read()"
    with watch_memory() as watch:
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"there\n"
            held = psutil.Process(child.pid).memory_info().rss
            time.sleep(0.1)
            child.communicate()
        assert child.returncode == 0
    assert watch.peak_bytes - watch.before_bytes > 0.9 * held > 0.9 * size
