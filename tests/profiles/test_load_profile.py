"""Built-in profiles, their loader and writer."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from prune_export.errors import BadInputError
from prune_export.profiles import (
    CostCurve,
    LatencyTable,
    PhaseCosts,
    TableKey,
    list_profiles,
    load_profile,
    to_toml,
)

BUILT_IN = ["cpu-edge", "cpu-epyc", "cpu-xeon", "cpu-xeon-avx512", "gpu-cuda", "gpu-intel"]
FIGURES = (
    "memory_bytes",
    "bandwidth_bytes_per_s",
    "peak_flops",
    "per_block_overhead_s",
    "width_multiple",
    "int4_group",
)


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf8")
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(BadInputError) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_built_in_profiles_are_the_promised_ones() -> None:
    assert list_profiles() == ("host", *BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_figure_of_a_built_in_profile_names_its_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert set(profile.precisions) == set(profile.peak_flops)
    assert all(profile.sources.get(figure) for figure in FIGURES)
    assert profile.width_multiple % 128 == 0


def test_amx_is_what_tells_the_xeons_apart() -> None:
    assert {"amx_bf16", "amx_int8"} <= set(load_profile("cpu-xeon").match.isa)
    older = load_profile("cpu-xeon-avx512")
    assert older.match.isa == ("avx512_vnni",)
    assert older.match.isa_absent == ("amx_tile",)


def test_bandwidth_is_channels_times_rate_times_bytes_times_the_stated_share() -> None:
    # 8 channels DDR5-4800, 12 channels DDR5-4800, 8 channels DDR4-3200, 1 channel DDR5-4800; 8 bytes a transfer.
    for name, channels, rate in (
        ("cpu-xeon", 8, 4.8e9),
        ("cpu-epyc", 12, 4.8e9),
        ("cpu-xeon-avx512", 8, 3.2e9),
        ("cpu-edge", 1, 4.8e9),
    ):
        expected = 0.8 * channels * rate * 8
        assert load_profile(name).bandwidth_bytes_per_s == pytest.approx(expected, rel=2e-3)


def test_extends_merges_tables_and_replaces_the_rest() -> None:
    base, older = load_profile("cpu-xeon"), load_profile("cpu-xeon-avx512")
    assert older.memory_bytes == base.memory_bytes
    assert older.match.vendors == base.match.vendors
    assert older.sources["int4_group"] == base.sources["int4_group"]
    assert "bf16" in base.peak_flops
    assert "bf16" not in older.peak_flops


def test_a_file_may_extend_a_built_in_profile_or_a_neighbour(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "cpu-edge"\nname = "box"\nthreads = 2\n', "box.toml")
    path = write(tmp_path, 'extends = "box.toml"\nname = "box2"\nmemory_bytes = 4294967296\n')
    profile = load_profile(path)
    assert (profile.name, profile.threads, profile.memory_bytes) == ("box2", 2, 2**32)
    assert profile.bandwidth_bytes_per_s == load_profile("cpu-edge").bandwidth_bytes_per_s


def test_an_unknown_device_is_answered_with_near_misses_and_the_list() -> None:
    message = refusal("cpu-xeno")
    assert 'unknown device "cpu-xeno"' in message
    assert "did you mean cpu-xeon" in message
    assert all(name in message for name in ("host", *BUILT_IN))
    assert "did you mean" not in refusal("zzzzzzzz")


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    message = refusal(
        write(
            tmp_path,
            'extends = "cpu-edge"\nname = "bad"\nbandwith_bytes_per_s = 1\nthreads = "four"\nmemory_bytes = -1\n'
            'precisions = ["fp32", "int9"]\n[match]\nvendor = ["x"]\n',
        )
    )
    assert 'unknown key "bandwith_bytes_per_s" (did you mean "bandwidth_bytes_per_s"?)' in message
    assert 'unknown key "vendor" (did you mean "vendors"?)' in message
    assert 'threads: expected int, got "four"' in message
    assert "memory_bytes must be above zero, got -1" in message
    assert 'precision "int9" is not one of fp32' in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "is not valid TOML"),
        ('extends = "cpu-xeno"\nname = "a"\n', 'unknown device "cpu-xeno" (did you mean cpu-xeon'),
        ('extends = "mine.toml"\nname = "a"\n', "extends itself"),
        ('extends = "host"\nname = "a"\n', "would differ on each machine"),
        ("extends = 3\n", "extends must be the name or path"),
        ('name = "a"\n', 'missing key "runtime"'),
        ('extends = "cpu-edge"\nruntime = "tvm"\n', 'runtime "tvm" is not one of openvino'),
        ('extends = "cpu-edge"\nprecisions = []\n', "precisions must name at least one"),
        ('extends = "cpu-edge"\nprecisions = ["bf16"]\n', 'peak_flops lacks the precision "bf16"'),
        (
            'extends = "cpu-edge"\npeak_flops = {fp32 = 0, int8 = 1, int4 = 1}\n',
            "peak_flops of fp32 must be above zero",
        ),
        ('extends = "cpu-edge"\nbandwidth_bytes_per_s = inf\n', "bandwidth_bytes_per_s must be finite, got inf"),
        ('extends = "cpu-edge"\nper_block_overhead_s = nan\n', "per_block_overhead_s must be finite, got nan"),
    ],
)
def test_a_broken_profile_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "gone.toml does not exist" in refusal(tmp_path / "gone.toml")


@pytest.mark.parametrize("name", ["host", *BUILT_IN])
def test_what_is_written_reads_back_the_same(tmp_path: Path, name: str) -> None:
    profile = load_profile(name)
    assert load_profile(write(tmp_path, to_toml(profile))) == profile


def test_a_latency_table_and_odd_text_survive_the_round_trip(tmp_path: Path) -> None:
    costs = PhaseCosts("decode", "int8", 1e-5, CostCurve((1, 2), (1e-6, 3e-6)), CostCurve((64,), (2e-7,)), 0.01)
    key = TableKey(64, 16, 3, 100, 1, 32, 8)
    table = LatencyTable(key, "measured", (costs, replace(costs, phase="prefill")))
    odd = {'quote " \\ and \t tab': "line\nbreak \x7f \u00e9 \U0001f600", "plain": ""}
    profile = replace(load_profile("cpu-edge"), name="box", latency_table=table, sources=odd)
    text = to_toml(profile)
    assert tomllib.loads(text)["latency_table"]["costs"][1]["phase"] == "prefill"
    assert load_profile(write(tmp_path, text)) == profile


def test_fewer_threads_scale_the_figures() -> None:
    profile = load_profile("cpu-xeon")
    half = profile.limited_to(28)
    assert half.peak_flops["int8"] == pytest.approx(profile.peak_flops["int8"] / 2)
    # 28 cores can still draw the whole bandwidth, one core cannot.
    assert half.bandwidth_bytes_per_s == profile.bandwidth_bytes_per_s
    assert profile.limited_to(1).bandwidth_bytes_per_s == profile.core_bandwidth_bytes_per_s
    assert profile.limited_to(0) is profile
    assert load_profile("gpu-cuda").limited_to(1) == load_profile("gpu-cuda")
