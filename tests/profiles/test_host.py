"""Detection of the host on made-up machines, and matching."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune_export.profiles import core_cpus, host_cores, host_fingerprint, load_profile, matches, mismatch
from prune_export.profiles import host as host_module
from prune_export.profiles.host import Host, detect_host, fingerprint_of, host_profile, last_cache_bytes
from prune_export.profiles.load import built_in_profiles

XEON = Host("Intel(R) Xeon(R) Platinum 8480+", "GenuineIntel",
            ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
            28, 2**36, "Linux 6 x86_64")  # fmt: skip
OLDER = replace(XEON, isa=("avx2", "avx512f", "avx512_vnni"))
EPYC = Host("AMD EPYC 9654", "AuthenticAMD", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), 96, 2**38, "Linux")
SMALL = Host("Intel(R) N100", "GenuineIntel", ("avx2", "avx_vnni"), 4, 2**33, "Linux 6 x86_64")


def machine(root: Path, *, processors: int, siblings: int = 1, flags: str = "sse2 avx2 fma sgx") -> Path:
    """A file tree with a /proc/cpuinfo of `processors` logical CPUs, `siblings` of them to a core."""
    (root / "proc/self").mkdir(parents=True)
    blocks = [
        f"processor\t: {index}\nvendor_id\t: GenuineIntel\nmodel name\t: Test CPU\nphysical id\t: 0\n"
        f"core id\t\t: {index // siblings}\nflags\t\t: {flags}\n"
        for index in range(processors)
    ]
    (root / "proc/cpuinfo").write_text("\n".join(blocks))
    (root / "proc/meminfo").write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
    return root


@pytest.fixture
def all_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_affinity", lambda: set(range(64)))


@pytest.mark.usefixtures("all_cpus")
def test_a_made_up_machine_is_described(tmp_path: Path) -> None:
    host = detect_host(machine(tmp_path, processors=8, siblings=2))
    assert (host.processor, host.vendor) == ("Test CPU", "GenuineIntel")
    assert host.isa == ("fma", "avx2")
    assert host.cores == 4
    assert host.memory_bytes == 16384 * 1024


def test_affinity_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_affinity", lambda: {0, 1, 4})
    # CPUs 0 and 1 share core 0, CPU 4 is core 2.
    assert detect_host(machine(tmp_path, processors=8, siblings=2)).cores == 2


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        ("0::/box/run\n", {"box/run/cpu.max": "250000 100000", "box/memory.max": "4194304"}, 2, 4194304),
        ("0::/box\n", {"cpu.max": "max 100000", "box/cpu.max": "50000 100000"}, 1, 16384 * 1024),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, 8, 16384 * 1024),
        ("2:cpu:/a\n4:memory:/a\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000",
                                     "memory/a/memory.limit_in_bytes": "1048576"}, 3, 1048576),
        ("2:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8, 16384 * 1024),
    ],
)  # fmt: skip
def test_control_groups_limit_cores_and_memory(
    tmp_path: Path, groups: str, files: dict[str, str], cores: int, memory: int
) -> None:
    root = machine(tmp_path, processors=8)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    host = detect_host(root)
    assert (host.cores, host.memory_bytes) == (cores, memory)


def test_without_proc_the_standard_library_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_affinity", lambda: None)
    host = detect_host(tmp_path)
    assert host.cores == os.cpu_count()
    assert host.processor in (platform.processor(), platform.machine())
    assert host.isa == ()


def test_arm_names_its_flags_differently(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nFeatures\t: asimd bf16 i8mm crc32\nCPU implementer\t: 0x41\n"
    )
    host = detect_host(tmp_path)
    assert (host.vendor, host.isa) == ("0x41", ("asimd", "bf16", "i8mm"))


def test_the_fingerprint_does_not_name_the_machine() -> None:
    fingerprint = host_fingerprint()
    assert list(fingerprint)[:6] == ["processor", "vendor", "isa", "cores", "memory", "os"]
    assert platform.node() not in fingerprint.values()
    assert int(fingerprint["cores"]) == host_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("host", "fitting"),
    [(XEON, "cpu-xeon"), (OLDER, "cpu-xeon-avx512"), (EPYC, "cpu-epyc"), (SMALL, "cpu-edge")],
)
def test_each_machine_matches_its_profile_alone(host: Host, fitting: str) -> None:
    found = [profile.name for profile in built_in_profiles() if matches(profile, fingerprint_of(host))]
    assert found == [fitting]


@pytest.mark.parametrize(
    ("profile", "host", "words"),
    [
        ("cpu-xeon", EPYC, "stands for CPUs of GenuineIntel, this one is of AuthenticAMD"),
        ("cpu-xeon", OLDER, "needs amx_tile, amx_bf16, amx_int8, which this CPU lacks"),
        ("cpu-xeon-avx512", XEON, "stands for CPUs without amx_tile, which this one has"),
        ("cpu-epyc", replace(EPYC, processor="AMD Ryzen 9 7950X"), "stands for EPYC, this host has AMD Ryzen"),
        ("cpu-edge", replace(SMALL, cores=16), "stands for at most 8 cores, this host has 16"),
        ("gpu-cuda", XEON, "describes a cuda device, this host has no NVIDIA GPU"),
        ("gpu-cuda", replace(XEON, gpu="NVIDIA H200"), "stands for NVIDIA L4, this host has NVIDIA H200"),
        ("gpu-cuda", replace(XEON, gpu="NVIDIA L40S"), "stands for NVIDIA L4, this host has NVIDIA L40S"),
        ("gpu-intel", XEON, "describes a GPU device, which only benchmark and profile measure look for"),
    ],
)
def test_a_mismatch_says_why(profile: str, host: Host, words: str) -> None:
    assert words in mismatch(load_profile(profile), fingerprint_of(host))


def test_a_gpu_is_known_by_its_whole_name() -> None:
    profile = load_profile("gpu-cuda")
    for names, gpu, fits in (
        (("NVIDIA H200",), "NVIDIA H200", True),
        (("nvidia l4", "NVIDIA H200"), "NVIDIA H200", True),
        (("NVIDIA H200",), "NVIDIA H200 NVL", False),
        (("NVIDIA H200*",), "NVIDIA H200 NVL", True),
        (("NVIDIA H200*",), "NVIDIA H100", False),
        ((), "NVIDIA H100", True),
    ):
        found = replace(profile, match=replace(profile.match, processors=names))
        assert matches(found, fingerprint_of(replace(XEON, gpu=gpu))) is fits


def test_another_device_of_openvino_counts_where_openvino_finds_it() -> None:
    profile = load_profile("gpu-intel")
    host = fingerprint_of(XEON)
    assert mismatch(profile, host | {"device": ""}) == "gpu-intel describes a GPU device, OpenVINO finds none here"
    assert mismatch(profile, host | {"device": "Intel(R) Arc(TM) A770 Graphics (dGPU)"}) == ""
    other = replace(profile, match=replace(profile.match, processors=("Intel(R) Arc(TM) A770*",)))
    assert matches(other, host | {"device": "Intel(R) Arc(TM) A770 Graphics (dGPU)"})
    assert "this host has Intel(R) UHD" in mismatch(other, host | {"device": "Intel(R) UHD Graphics (iGPU)"})


@pytest.mark.parametrize(
    ("siblings", "allowed", "cpus"),
    [(2, range(8), (0, 2, 4, 6)), (2, {1, 3, 4, 5}, (1, 3, 4)), (1, {2, 5}, (2, 5)), (2, None, ())],
)
def test_each_core_has_one_logical_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: int, allowed: Any, cpus: tuple[int, ...]
) -> None:
    monkeypatch.setattr(host_module, "_affinity", lambda: None if allowed is None else set(allowed))
    assert core_cpus(machine(tmp_path, processors=8, siblings=siblings)) == cpus
    # Without a list of cores each logical CPU counts as one.
    assert core_cpus(tmp_path / "gone") == (() if allowed is None else tuple(sorted(allowed)))


def test_the_gpu_is_named_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect_host(machine(tmp_path, processors=2)).gpu == ""
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA L4\nIRQ:   \t\t 42\n")
    host = detect_host(tmp_path)
    assert host.gpu == fingerprint_of(host)["gpu"] == "NVIDIA L4"
    assert mismatch(load_profile("gpu-cuda"), fingerprint_of(host)) == ""
    # Where only the tool is mounted it is asked, and one that fails means no GPU.
    tool = tmp_path / "nvidia-smi"
    for script, expected in (("echo NVIDIA L40S; echo NVIDIA L4", "NVIDIA L40S"), ("exit 9", "")):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        host_module._gpu_by_tool.cache_clear()
        assert host_module._gpu_by_tool() == expected
    host_module._gpu_by_tool.cache_clear()


def test_the_last_cache_is_read_from_the_system(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path) == 0
    for index, size in enumerate(("32K", "1M", "36M", "odd")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert last_cache_bytes(tmp_path) == 36 * 2**20


def test_too_few_cores_are_a_mismatch() -> None:
    profile = load_profile("cpu-xeon")
    demanding = replace(profile, match=replace(profile.match, min_cores=32))
    assert "at least 32 cores, this host has 28" in mismatch(demanding, fingerprint_of(XEON))


def test_the_host_profile_matches_its_host_and_no_other() -> None:
    profile = host_profile(built_in_profiles(), host=XEON)
    assert matches(profile, fingerprint_of(XEON))
    assert not matches(profile, fingerprint_of(replace(XEON, cores=14)))
    assert not matches(profile, fingerprint_of(OLDER))


def test_the_host_profile_takes_its_speeds_from_the_matching_one() -> None:
    profile = host_profile(built_in_profiles(), host=XEON)
    base = load_profile("cpu-xeon")
    assert profile.peak_flops["bf16"] == pytest.approx(base.peak_flops["bf16"] * 28 / 56)
    assert profile.precisions == ("fp32", "bf16", "int8", "int4")
    assert profile.memory_bytes == 2**36
    assert "scaled to 28 of 56 cores" in profile.sources["peak_flops"]


def test_an_unmatched_host_gets_cautious_speeds_and_says_so() -> None:
    desktop = Host("Apple M9", "unknown", (), 2, 0, "Darwin 25 arm64")
    profile, edge = host_profile(built_in_profiles(), host=desktop), load_profile("cpu-edge")
    assert "no built-in profile matches" in profile.sources["peak_flops"]
    assert profile.memory_bytes == edge.memory_bytes
    assert "unknown here" in profile.sources["memory_bytes"]
    assert profile.precisions == ("fp32", "int8", "int4")
    assert profile.peak_flops["fp32"] == pytest.approx(edge.peak_flops["fp32"] / 2)


def test_bf16_on_a_host_whose_stand_in_has_none_counts_as_fp32() -> None:
    laptop = Host("Zen 5 laptop", "AuthenticAMD", ("avx2", "avx512f", "avx512_bf16"), 4, 2**34, "Linux")
    profile = host_profile(built_in_profiles(), host=laptop)
    assert profile.peak_flops["bf16"] == profile.peak_flops["fp32"]


def test_this_machine_has_a_profile_that_it_matches() -> None:
    profile = load_profile("host")
    assert matches(profile, host_fingerprint())
    assert profile.threads == 0
