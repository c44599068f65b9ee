"""Device profiles: TOML descriptions, their loader, the host, latency tables. Standard library only."""

from prune_export.profiles.device import DeviceMatch, DeviceProfile
from prune_export.profiles.host import core_cpus, host_cores, host_fingerprint, matches, mismatch
from prune_export.profiles.latency import (
    CostCurve,
    HeldOutError,
    LatencyTable,
    PhaseCosts,
    TableKey,
    TableRecord,
    TimedStack,
)
from prune_export.profiles.load import list_profiles, load_profile
from prune_export.profiles.write import to_toml

__all__ = [
    "CostCurve",
    "DeviceMatch",
    "DeviceProfile",
    "HeldOutError",
    "LatencyTable",
    "PhaseCosts",
    "TableKey",
    "TableRecord",
    "TimedStack",
    "core_cpus",
    "host_cores",
    "host_fingerprint",
    "list_profiles",
    "load_profile",
    "matches",
    "mismatch",
    "to_toml",
]
