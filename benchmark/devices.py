"""The device that a profile names, as this machine has it: OpenVINO is asked for those that are no CPU."""

from __future__ import annotations

from functools import cache

from prune_export.profiles import DeviceProfile, host_fingerprint


def device_fingerprint(profile: DeviceProfile) -> dict[str, str]:
    """The host's fingerprint; of an OpenVINO device other than the CPU with its name as "device", empty if absent."""
    asked = profile.runtime == "openvino" and profile.device not in ("CPU", "cuda")
    return host_fingerprint() | ({"device": openvino_name(profile.device)} if asked else {})


@cache
def openvino_name(device: str) -> str:
    """OpenVINO's full name of one of its devices; empty where it finds none of them."""
    from prune_export.benchmark.openvino_session import is_present
    from prune_export.telemetry import import_openvino

    core = import_openvino().Core()
    return str(core.get_property(device, "FULL_DEVICE_NAME")) if is_present(core, device) else ""
