"""Stacks timed beside a base: drift cancels, and the table's errors are those of its predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from prune_export.benchmark import bandwidth, panel_worker, stacks, timing, turns
from prune_export.benchmark.bandwidth import read_bandwidth, usable_cache_bytes
from prune_export.benchmark.held_out import held_out_errors
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest, tails_of
from prune_export.benchmark.process import run_panel
from prune_export.benchmark.stacks import PHASES, ExportedStack, Ruler, midmean, time_stacks
from prune_export.benchmark.turns import bootstrap, compare_turns
from prune_export.errors import BadInputError
from prune_export.profiles import load_profile
from prune_export.profiles.host import last_cache_bytes
from prune_export.records import to_json
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload

DENSE = (LayerShape(4, 2, 256),) * 6
SHAPE = ModelShape("llama", 64, 16, 320, True, DENSE)
RULER = Ruler(load_profile("host"), Workload(), "int8", threads=1)
FIXED, PER_HEAD, PER_CHANNEL = 1e-3, 2e-4, 3e-6


def seconds(layers: Sequence[LayerShape]) -> float:
    return FIXED + sum(layer.kv_heads * PER_HEAD + layer.mlp_width * PER_CHANNEL for layer in layers)


def smaller(heads: int, width: int) -> tuple[LayerShape, ...]:
    return (LayerShape(2 * heads, heads, width),) * len(DENSE)


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> list[PanelRequest]:
    """A device that is up to twice as slow from turn to turn; directories are named after their layers' cost."""
    calls: list[PanelRequest] = []
    random = np.random.default_rng(0)

    def fake(request: PanelRequest) -> PanelReply:
        calls.append(request)
        slow = 1.0 + random.random(5)
        tpot = [[float(Path(name).name) * factor for factor in slow] for name in request.directories]
        return PanelReply(
            tuple(tuple(10 * value for value in turns) for turns in tpot),
            tuple(tuple(turns) for turns in tpot),
            {"openvino": "1"},
        )

    monkeypatch.setattr(stacks, "run_panel", fake)
    return calls


def stack(layers: tuple[LayerShape, ...]) -> ExportedStack:
    return ExportedStack(layers, Path(repr(seconds(layers))))


def fitted_stacks() -> list[ExportedStack]:
    gone = tuple(LayerShape(0, 0, 256) if index % 2 else layer for index, layer in enumerate(DENSE))
    bare = tuple(LayerShape(4, 2, 0) if index % 2 else layer for index, layer in enumerate(DENSE))
    return [stack(layers) for layers in (gone, bare, smaller(2, 128), smaller(1, 256), smaller(2, 64))]


def test_drift_from_turn_to_turn_changes_nothing(drifting: list[PanelRequest]) -> None:
    times = time_stacks(stack(DENSE), fitted_stacks(), RULER, total=5)
    # Four beside the base, then one, each twice; the time for each stack is that of the ruler.
    assert [len(call.directories) for call in drifting] == [5, 5, 2, 2]
    assert [call.seconds for call in drifting] == [5 * RULER.seconds] * 2 + [2 * RULER.seconds] * 2
    assert [call.directories[0] for call in drifting[:2]] == [
        str(stack(DENSE).directory),
        str(fitted_stacks()[1].directory),
    ]
    assert times.measurements == 2 * 7
    assert times.versions == {"openvino": "1"}
    scale = times.seconds["decode"][0] / seconds(DENSE)
    assert 1.0 < scale < 2.0
    for layers, found in zip(times.layers, times.seconds["decode"], strict=True):
        assert found == pytest.approx(scale * seconds(layers), rel=1e-9)
    assert times.seconds["prefill"][2] == pytest.approx(10 * times.seconds["decode"][2])


def test_the_scale_is_that_of_the_first_stack_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group all are faster by a quarter (huge pages): their ratios count, the seconds are those of one alone."""
    calls: list[PanelRequest] = []

    def fake(request: PanelRequest) -> PanelReply:
        calls.append(request)
        faster = 0.8 if request.huge_pages else 1.0
        tpot = [faster * float(Path(name).name) for name in request.directories]
        return PanelReply(tuple((10 * each,) for each in tpot), tuple((each,) for each in tpot), {})

    monkeypatch.setattr(stacks, "run_panel", fake)
    times = time_stacks(stack(DENSE), fitted_stacks(), replace(RULER, alone=2, most=14, rounds=3), total=5)
    alone = [call for call in calls if not call.huge_pages]
    assert calls[:2] == alone
    assert [call.directories for call in alone] == [(str(stack(DENSE).directory),)] * 2
    for layers, found in zip(times.layers, times.seconds["decode"], strict=True):
        assert found == pytest.approx(seconds(layers), rel=1e-9)
    # Fourteen timings in all: two alone, so one round is left for four beside the base, and three for the last.
    assert times.measurements == 2 + 5 + 3 * 2


def test_tails_are_those_of_the_largest_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small stacks jitter more; a table from shallow stacks is timed with the whole model among the others."""
    shallow, few = DENSE[:2], stack((LayerShape(4, 2, 0), *DENSE[1:2]))
    others = [few, stack(smaller(2, 128)[:2]), stack(smaller(1, 256)[:2]), stack(DENSE), stack(smaller(2, 64)[:2])]
    processes: list[int] = []

    def fake(request: PanelRequest) -> PanelReply:
        processes.append(len(request.directories))
        costs = [float(Path(name).name) for name in request.directories]
        ratios = [0.1 / cost for cost in costs]
        spread = [(cost,) * 9 + (cost * 3,) * 2 for cost in costs]
        return PanelReply(
            tuple(spread),
            tuple((cost,) * 11 for cost in costs),
            {},
            tuple({"p90": 1 + each, "p99": 1 + 2 * each + (len(processes) % 2) / 10} for each in ratios),
        )

    monkeypatch.setattr(stacks, "run_panel", fake)
    times = time_stacks(stack(shallow), others, RULER, total=5)
    dense = 0.1 / seconds(DENSE)
    # One process had 0.1 more than the other; the 90th percentile of eleven values is the tenth.
    assert times.tails["decode"] == {"p90": pytest.approx(1 + dense), "p99": pytest.approx(1.05 + 2 * dense)}
    assert times.tails["prefill"]["p90"] == pytest.approx(3.0)
    prefill, decode = times.costs("int8")
    assert (prefill.p90, prefill.p99) == (3.0, 3.0)
    assert (decode.p90, decode.p99) == (round(1 + dense, 4), round(1.05 + 2 * dense, 4))


def test_without_tails_costs_have_none(drifting: list[PanelRequest]) -> None:
    times = time_stacks(stack(DENSE), fitted_stacks(), RULER, total=5)
    assert times.tails == {}
    assert [(costs.p90, costs.p99) for costs in times.costs("int8")] == [(0.0, 0.0)] * 2


def test_a_tail_is_relative_to_the_median() -> None:
    # 101 values from 1 to 2: the median is 1.5, p90 1.9 and p99 1.99.
    assert tails_of([1 + share / 100 for share in range(101)]) == {
        "p90": pytest.approx(1.9 / 1.5), "p99": pytest.approx(1.99 / 1.5),
    }  # fmt: skip


def test_errors_on_other_models_and_of_the_bytes_alone(drifting: list[PanelRequest]) -> None:
    times = time_stacks(stack(DENSE), fitted_stacks(), RULER, total=5)
    others = [stack((LayerShape(2, 1, 200), LayerShape(0, 0, 96), *DENSE[2:])), stack(smaller(1, 96))]
    found = held_out_errors(times.costs("int8"), stack(DENSE), others, SHAPE, RULER, total=2)
    assert [item.phase for item in found] == list(PHASES)
    for item in found:
        # Costs are linear in the sizes, so a table that interpolates is exact, and what counts bytes is not.
        assert item.models == 2
        assert item.mean <= item.p95 <= item.worst < 1e-9
        assert item.bytes_mean > 0.02
        assert item.noise < 1e-12


def test_a_machine_of_another_hour_changes_the_error_in_seconds_alone(drifting: list[PanelRequest]) -> None:
    costs = time_stacks(stack(DENSE), fitted_stacks(), RULER, total=5).costs("int8")
    slower = [
        replace(
            item, fixed_s=3 * item.fixed_s,
            attention=replace(item.attention, seconds=tuple(3 * value for value in item.attention.seconds)),
            mlp=replace(item.mlp, seconds=tuple(3 * value for value in item.mlp.seconds)),
        )
        for item in costs
    ]  # fmt: skip
    for item in held_out_errors(slower, stack(DENSE), [stack(smaller(1, 96))], SHAPE, RULER, total=1):
        assert item.worst < 1e-9
        assert 0.5 < item.seconds_mean < 5.0  # 2, give or take what this device drifts


def test_files_are_deleted_once_they_are_timed(drifting: list[PanelRequest], tmp_path: Path) -> None:
    made = []

    def built() -> Any:
        for number in range(1, 6):
            folder = tmp_path / str(number)
            folder.mkdir()
            made.append((number, len(list(tmp_path.iterdir()))))
            yield ExportedStack(DENSE, folder)

    base = tmp_path / "6"
    base.mkdir()
    time_stacks(ExportedStack(DENSE, base), built(), Ruler(RULER.profile, Workload(), "int8", discard=True), total=5)
    assert made == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 2)]  # never more than four beside the base
    assert [path.name for path in tmp_path.iterdir()] == ["6"]


def test_a_budget_is_shared_by_what_is_left(drifting: list[PanelRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(stacks.time, "monotonic", lambda: clock[0])

    def built() -> Any:
        for item in fitted_stacks():
            clock[0] += 3.0  # to build it
            yield item

    time_stacks(stack(DENSE), built(), replace(RULER, budget_s=100.0), total=5)
    # After four stacks 12 s are gone and one more will take 3: 85 s for two groups in two processes each.
    assert [call.seconds for call in drifting] == [85 / 4] * 2 + [85 / 2] * 2


@pytest.mark.parametrize(("most", "timings"), [(0, [3, 3]), (21, [3, 3]), (20, [2, 3]), (14, [2, 2]), (1, [1, 1])])
def test_there_are_no_more_timings_than_asked_for(drifting: list[PanelRequest], most: int, timings: list[int]) -> None:
    """Five stacks: four and the base in a process, then one and the base."""
    found = time_stacks(stack(DENSE), fitted_stacks(), replace(RULER, rounds=3, most=most), total=5)
    sizes = [len(call.directories) for call in drifting]
    assert sizes == [5] * timings[0] + [2] * timings[1]
    assert found.measurements == sum(sizes)


def test_the_middle_half_is_averaged() -> None:
    assert midmean([1.0, 2.0, 3.0, 100.0]) == 2.5
    assert midmean([3.0, 1.0]) == 2.0
    assert midmean(list(range(8))) == 3.5


@pytest.mark.alone
def test_a_panel_times_its_models_turn_by_turn(tiny_ir: Path) -> None:
    work = Workload(prompt_tokens=8, new_tokens=4)
    begun = time.monotonic()
    found = run_panel(PanelRequest((str(tiny_ir),) * 3, "fp32", 1, "CPU", work, 0.0))
    loading_s = time.monotonic() - begun  # counts in a panel's seconds
    assert [len(turns) for turns in (*found.ttft_s, *found.tpot_s)] == [2] * 6
    assert min(value for turns in (*found.ttft_s, *found.tpot_s) for value in turns) > 0
    assert "openvino" in found.versions
    assert [tail.keys() for tail in found.token_tails] == [{"p90", "p99"}] * 3
    assert all(1.0 <= tail["p90"] <= tail["p99"] for tail in found.token_tails)
    longer = run_panel(PanelRequest((str(tiny_ir),), "fp32", 1, "CPU", work, loading_s + 1.0))
    assert len(longer.ttft_s[0]) > 2
    with pytest.raises(BadInputError, match="gone is not a directory"):
        run_panel(PanelRequest((str(tiny_ir / "gone"),), "fp32", 1, "CPU", work, 0.0))


def test_the_models_of_a_panel_generate_in_step_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Recorder:
        vocab_size, load_s = 8, 0.0

        def __init__(self, directory: Path, **_: Any) -> None:
            self.name = directory.name

        def load(self) -> None: ...

        def reset(self) -> None: ...

        def touch(self) -> None:
            calls.append(f"{self.name} wakes")

        def prefill(self, ids: np.ndarray) -> np.ndarray:
            calls.append(f"{self.name} {ids.shape[1]}")
            time.sleep(0.02)
            return np.zeros((1, 1, 8), np.float32)

        decode = prefill

    runtime = SimpleNamespace(open_session=Recorder, packages=[])
    monkeypatch.setattr(panel_worker, "find_model", lambda _: SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(panel_worker, "pin", lambda *_: None)
    monkeypatch.setattr(timing, "_WAKE_S", 0.0)
    work = Workload(prompt_tokens=3, new_tokens=4)  # tokens of 20 ms: two at a time
    request = PanelRequest((str(tmp_path / "a"), str(tmp_path / "b")), "fp32", 1, "CPU", work, 0.0)
    reply = panel_worker._handle(to_json(request), lambda *_: None)
    assert calls[:8] == ["a 3", *["a 1"] * 3, "b 3", *["b 1"] * 3]  # the warm-up
    a = {count: ["a wakes", *["a 1"] * count] for count in (1, 2)} | {3: ["a wakes", "a 3"]}
    b = {count: [call.replace("a ", "b ") for call in found] for count, found in a.items()}
    once = [*a[3], *b[3], *b[2], *a[2], *a[1], *b[1]]
    back = [*b[3], *a[3], *a[2], *b[2], *b[1], *a[1]]
    assert calls[8:] == once + back
    assert [len(turns) for turns in (*reply["ttft_s"], *reply["tpot_s"])] == [2] * 4
    assert min(map(min, reply["tpot_s"])) > 0.02


def test_two_models_are_compared_in_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random, orders = np.random.default_rng(0), []

    def fake(request: PanelRequest) -> PanelReply:
        """The second model takes 2% longer; what runs second is slowed down by 5%, and the machine by up to a half."""
        names = [Path(name).name for name in request.directories]
        orders.append(names)
        slow = 1.0 + random.random(40) / 2
        found = [[(1.02 if name == "b" else 1.0) * factor * (1.0 + 0.05 * place) for factor in slow]
                 for place, name in enumerate(names)]  # fmt: skip
        return PanelReply((), tuple(map(tuple, found)))

    monkeypatch.setattr(turns, "run_panel", fake)
    profile = load_profile("host")
    found = compare_turns(
        tmp_path / "a", tmp_path / "b", profile=profile, workload=Workload(), precision="int8", threads=1
    )
    assert orders == [["a", "b"], ["b", "a"]]
    assert found.ratio == pytest.approx(1.02, rel=0.002)
    low, high = found.interval
    assert low <= found.ratio <= high
    assert str(found).endswith("80 turns in 2 processes)")
    values = (1 + 0.01 * random.standard_normal(400)).tolist()
    low, high = bootstrap(values)
    # The standard error of an interquartile mean of Gaussian values is about 1.09 s / sqrt(n) (efficiency 0.84).
    assert (high - low) / 2 == pytest.approx(1.96 * 1.09 * 0.01 / 20, rel=0.25)


def test_bandwidth_takes_a_part_of_the_free_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def ones(count: int, kind: type) -> np.ndarray:
        sizes.append(count * np.dtype(kind).itemsize)
        return np.zeros(count, kind)

    free = psutil.virtual_memory()._replace(available=64 << 20)
    monkeypatch.setattr(bandwidth.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(bandwidth, "np", SimpleNamespace(ones=ones, int64=np.int64, max=np.max))
    assert read_bandwidth(2) > 0
    assert sizes == [8 << 20] * 2


@pytest.mark.parametrize(
    ("reported", "fast", "usable"),
    [
        (0, 0, 0), (12, 12, 12),  # unknown, or too small to look closer
        (480, 480, 256), (480, 64, 64), (480, 4, 8),  # MiB, doubled from 8
        (4096, 64, 4096),  # twice of it is more than a quarter of the free memory
    ],
)  # fmt: skip
def test_a_shared_cache_counts_as_far_as_it_is_at_hand(
    monkeypatch: pytest.MonkeyPatch, reported: int, fast: int, usable: int
) -> None:
    """Rates of a machine that reads arrays of up to `fast` MiB at twice the rate of memory, once in a while slower."""
    mebibyte = 1 << 20
    slow = iter([False, False, True, False] * 100)

    def rate(pool: object, threads: int, array: np.ndarray) -> float:
        return 1.0 if array.nbytes > fast * mebibyte or next(slow) else 2.0

    free = psutil.virtual_memory()._replace(available=8 << 30)
    monkeypatch.setattr(bandwidth.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(bandwidth, "last_cache_bytes", lambda: reported * mebibyte)
    monkeypatch.setattr(bandwidth, "np", SimpleNamespace(ones=np.empty, int64=np.int64))
    monkeypatch.setattr(bandwidth, "_rate", rate)
    assert usable_cache_bytes(2) == usable * mebibyte


@pytest.mark.alone
def test_a_cache_of_this_machine_is_no_larger_than_it_says() -> None:
    assert 0 <= usable_cache_bytes(1) <= max(last_cache_bytes(), 8 << 20)


@pytest.mark.alone
def test_bandwidth_is_that_of_memory_not_of_caches() -> None:
    # Between a slow single channel and anything sold: a wrong unit or a cached array would be outside.
    assert 1e9 < read_bandwidth(1) < 1e12
