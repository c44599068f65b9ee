"""Starts a measuring worker and brings back its reply or one clear line."""

from __future__ import annotations

from prune_export.benchmark.child import converse
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest
from prune_export.benchmark.worker import Reply, Request
from prune_export.records import from_json, to_json

_WORKER = "prune_export.benchmark.worker"
_PANEL = "prune_export.benchmark.panel_worker"


def run_worker(request: Request) -> Reply:
    """Runs one request in a fresh process.

    Raises:
        PruneExportError: what the worker raised, or that it died; then with the last line that it printed.
    """
    reply = converse(_WORKER, to_json(request), subject=f"measuring {request.directory}")
    return from_json(Reply, reply, where="worker reply")


def run_panel(request: PanelRequest) -> PanelReply:
    """Runs several models turn by turn in a fresh process.

    Raises:
        PruneExportError: as `run_worker`.
    """
    subject = f"measuring {', '.join(request.directories)}"
    return from_json(PanelReply, converse(_PANEL, to_json(request), subject=subject), where="panel reply")
