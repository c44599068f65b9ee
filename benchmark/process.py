"""Starts a measuring worker and brings back its reply or one clear line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prune_export.benchmark.child import converse
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest
from prune_export.benchmark.threads import checked_threads
from prune_export.benchmark.worker import Reply, Request
from prune_export.profiles import DeviceProfile
from prune_export.records import from_json, to_json
from prune_export.target import Workload

_WORKER = "prune_export.benchmark.worker"
_PANEL = "prune_export.benchmark.panel_worker"


def run_worker(request: Request) -> Reply:
    """Runs one request in a fresh process.

    Raises:
        PruneExportError: what the worker raised, or that it died; then with the last line that it printed.
    """
    reply = converse(_WORKER, to_json(request), subject=f"measuring {request.directory}")
    return from_json(Reply, reply, where="worker reply")


def panel_request(
    directories: Iterable[Path],
    *,
    profile: DeviceProfile,
    workload: Workload,
    precision: str,
    threads: int,
    seconds: float,
) -> PanelRequest:
    """A request on a profile's device.

    Args:
        directories, workload, precision, seconds: as in `PanelRequest`.
        profile: names the device.
        threads: of the runtime; 0 takes the profile's.

    Raises:
        BadInputError: more threads than cores.
    """
    return PanelRequest(
        directories=tuple(map(str, directories)),
        precision=precision,
        threads=checked_threads(threads or profile.threads),
        device=profile.device,
        workload=workload,
        seconds=seconds,
    )


def run_panel(request: PanelRequest) -> PanelReply:
    """Runs several models turn by turn in a fresh process.

    Raises:
        PruneExportError: as `run_worker`.
    """
    subject = f"measuring {', '.join(request.directories)}"
    return from_json(PanelReply, converse(_PANEL, to_json(request), subject=subject), where="panel reply")
