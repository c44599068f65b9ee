"""Starts a measuring worker and brings back its reply or one clear line."""

from __future__ import annotations

from prune_export.benchmark.child import converse
from prune_export.benchmark.worker import Reply, Request
from prune_export.records import from_json, to_json

_WORKER = "prune_export.benchmark.worker"


def run_worker(request: Request) -> Reply:
    """Runs one request in a fresh process.

    Raises:
        PruneExportError: what the worker raised, or that it died; then with the last line that it printed.
    """
    reply = converse(_WORKER, to_json(request), subject=f"measuring {request.directory}")
    return from_json(Reply, reply, where="worker reply")
