"""The machine that this runs on: its description, and whether a profile stands for it.  Nothing is measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from prune_export.profiles.device import DeviceMatch, DeviceProfile

_ROOT = Path("/")
# The flags that decide which kernels a runtime picks; a fingerprint holds these alone.
_ISA = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
_STAND_IN = "cpu-edge"
_TOOL_S = 20


@dataclass(frozen=True)
class Host:
    """What is known of a machine.

    Attributes:
        processor: name of the CPU.
        vendor: vendor string of the CPU.
        isa: instruction-set flags, those that matter for speed.
        cores: physical cores that this process may use (affinity and cgroup limits respected).
        memory_bytes: memory that this process may use; 0 if unknown.
        system: operating system, release and machine.
        gpu: name of the first NVIDIA GPU, empty if there is none.
    """

    processor: str
    vendor: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    gpu: str = ""


def detect_host(root: Path = _ROOT) -> Host:
    """Describes this machine from /proc and /sys where they exist, else from the standard library."""
    info = _cpuinfo(root / "proc/cpuinfo")
    first = info[0] if info else {}
    flags = set((first.get("flags") or first.get("Features") or "").split())
    return Host(
        processor=first.get("model name") or platform.processor() or platform.machine(),
        vendor=first.get("vendor_id") or first.get("CPU implementer") or "unknown",
        isa=tuple(flag for flag in _ISA if flag in flags),
        cores=_cores(info, root),
        memory_bytes=_memory(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpu=_gpu(root),
    )


def host_cores() -> int:
    """Physical cores that this process may use."""
    return detect_host().cores


def core_cpus(root: Path = _ROOT) -> tuple[int, ...]:
    """One logical CPU of each physical core that this process may use, in order; empty where the system can't tell."""
    allowed = _affinity()
    if allowed is None:
        return ()
    first: dict[tuple[str, str], int] = {}
    for block in sorted(_cpuinfo(root / "proc/cpuinfo"), key=lambda block: int(block["processor"])):
        cpu = int(block["processor"])
        if cpu in allowed and "core id" in block and "physical id" in block:
            first.setdefault((block["physical id"], block["core id"]), cpu)
    return tuple(first.values()) or tuple(sorted(allowed))


def last_cache_bytes(root: Path = _ROOT) -> int:
    """Size of the largest cache of the first core, shared or not, from /sys; 0 if unknown."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = 0
    for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
            found = max(found, int(text.rstrip("KMG")) * units.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return found


def host_fingerprint() -> dict[str, str]:
    """This machine without its name: processor, vendor, isa, cores, memory (bytes), os, and gpu where there is one."""
    return fingerprint_of(detect_host())


def fingerprint_of(host: Host) -> dict[str, str]:
    """A host as the text fields that manifests hold."""
    return {
        "processor": host.processor,
        "vendor": host.vendor,
        "isa": " ".join(host.isa),
        "cores": str(host.cores),
        "memory": str(host.memory_bytes),
        "os": host.system,
        **({"gpu": host.gpu} if host.gpu else {}),
    }


def mismatch(profile: DeviceProfile, fingerprint: Mapping[str, str]) -> str:
    """Why a host is not what `profile` stands for; empty if it is."""
    rule = profile.match
    flags = set(fingerprint["isa"].split())
    cores = int(fingerprint["cores"])
    if profile.device == "cuda":
        return _name_mismatch(profile, fingerprint.get("gpu", ""), "this host has no NVIDIA GPU")
    if profile.device != "CPU" and "device" not in fingerprint:
        return f"{profile.name} describes a {profile.device} device, which only benchmark and profile measure look for"
    if profile.device != "CPU":
        return _name_mismatch(profile, fingerprint["device"], "OpenVINO finds none here")
    if rule.vendors and fingerprint["vendor"] not in rule.vendors:
        return f"{profile.name} stands for CPUs of {' or '.join(rule.vendors)}, this one is of {fingerprint['vendor']}"
    if rule.processors and not any(name.lower() in fingerprint["processor"].lower() for name in rule.processors):
        return f"{profile.name} stands for {' or '.join(rule.processors)}, this host has {fingerprint['processor']}"
    if missing := [flag for flag in rule.isa if flag not in flags]:
        return f"{profile.name} needs {', '.join(missing)}, which this CPU lacks"
    if extra := [flag for flag in rule.isa_absent if flag in flags]:
        return f"{profile.name} stands for CPUs without {', '.join(extra)}, which this one has"
    if cores < rule.min_cores:
        return f"{profile.name} stands for at least {rule.min_cores} cores, this host has {cores}"
    if rule.max_cores and cores > rule.max_cores:
        return f"{profile.name} stands for at most {rule.max_cores} cores, this host has {cores}"
    return ""


def _name_mismatch(profile: DeviceProfile, found: str, absent: str) -> str:
    names = profile.match.processors
    if not found:
        return f"{profile.name} describes a {profile.device} device, {absent}"
    if names and not any(_is_named(found.lower(), name.lower()) for name in names):
        return f"{profile.name} stands for {' or '.join(names)}, this host has {found}"
    return ""


def _is_named(found: str, name: str) -> bool:
    """Whole names: "NVIDIA L40S" is no "NVIDIA L4"; "NVIDIA H200*" says that any end will do."""
    return found.startswith(name[:-1]) if name.endswith("*") else found == name


def matches(profile: DeviceProfile, fingerprint: Mapping[str, str]) -> bool:
    """Whether a host is one of those that `profile` stands for, so that measuring there counts."""
    return not mismatch(profile, fingerprint)


def match_of(host: Host) -> DeviceMatch:
    """Hosts of the same processor and as many cores."""
    return DeviceMatch((host.vendor,), (host.processor,), host.isa, (), host.cores, host.cores)


def host_profile(built_in: Sequence[DeviceProfile], *, host: Host | None = None) -> DeviceProfile:
    """The profile "host": this machine, with speeds from the built-in profile that matches it.

    Speeds are scaled to the cores at hand; without a match they are those of the smallest CPU profile.

    Args:
        built_in: profiles to take the speeds from, "cpu-edge" among them.
        host: describes the machine; detected if not given.
    """
    host = detect_host() if host is None else host
    fingerprint = fingerprint_of(host)
    found = next((item for item in built_in if matches(item, fingerprint)), None)
    base = found or next(item for item in built_in if item.name == _STAND_IN)
    scaled = base.limited_to(host.cores)
    precisions = tuple(name for name in ("fp32", "bf16", "int8", "int4") if name != "bf16" or _has_bf16(host))
    origin = f"profile {base.name}, scaled to {scaled.cores} of {base.cores} cores"
    origin += "" if found else " (no built-in profile matches this host)"
    figures = ("bandwidth_bytes_per_s", "peak_flops", "per_block_overhead_s", "width_multiple", "int4_group")
    return replace(
        scaled,
        name="host",
        description=f"this machine: {host.processor}, {host.cores} cores",
        match=match_of(host),
        threads=0,
        precisions=precisions,
        peak_flops={name: _peak(scaled, name) for name in precisions},
        memory_bytes=host.memory_bytes or base.memory_bytes,
        sources={
            **dict.fromkeys(figures, origin),
            "memory_bytes": "detected" if host.memory_bytes else f"unknown here, that of profile {base.name}",
            "precisions": "detected instruction set",
        },
    )


def _peak(profile: DeviceProfile, precision: str) -> float:
    # A base without bf16 units: fp32 is the cautious figure.
    return profile.peak_flops.get(precision, profile.peak_flops["fp32"])


def _has_bf16(host: Host) -> bool:
    return any(flag in host.isa for flag in _BF16)


def _cpuinfo(path: Path) -> list[dict[str, str]]:
    text = _text(path)
    blocks = [block for block in text.split("\n\n") if block.strip()]
    parsed = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in blocks
    ]
    return [block for block in parsed if "processor" in block]


def _cores(info: list[dict[str, str]], root: Path) -> int:
    allowed = _affinity()
    mine = [block for block in info if allowed is None or int(block["processor"]) in allowed]
    named = [block for block in mine if "core id" in block and "physical id" in block]
    physical = {(block["physical id"], block["core id"]) for block in named}
    count = len(physical) or (len(allowed) if allowed is not None else os.cpu_count() or 1)
    return max(1, min([count, *(int(limit) for limit in _cpu_limits(root))]))


def _affinity() -> set[int] | None:
    # Not on macOS and Windows.
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _cpu_limits(root: Path) -> list[float]:
    limits = []
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us").strip()
        period = period or _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return limits


def _memory(root: Path) -> int:
    lines = _text(root / "proc/meminfo").splitlines()
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
    if not sizes and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name).strip()
            sizes += [int(text)] if text.isdigit() and int(text) else []
    return min(sizes, default=0)


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control groups, version 2 and 1, from its own up to the root."""
    base = root / "sys/fs/cgroup"
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = base / names if names else base
        relative = Path(path.lstrip("/"))
        folders += [top / step for step in (relative, *relative.parents)]
    return folders


def _gpu(root: Path) -> str:
    """The driver's own name of the first GPU: its files, else its tool where only that is mounted into a container."""
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in _text(path).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                return value.strip()
    return _gpu_by_tool() if root == _ROOT else ""


@cache
def _gpu_by_tool() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""  # a driver that does not answer runs nothing
    return names.strip().partition("\n")[0]


def _text(path: Path) -> str:
    # Absent on other systems and in some sandboxes: then the next source is asked.
    try:
        return path.read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""
