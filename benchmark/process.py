"""Starts a worker and brings back its reply or one clear line."""

from __future__ import annotations

import json
import subprocess
import sys

from prune_export import errors
from prune_export.benchmark.worker import Reply, Request
from prune_export.errors import PruneExportError
from prune_export.records import from_json, to_json

_WORKER = "prune_export.benchmark.worker"


def run_worker(request: Request) -> Reply:
    """Runs one request in a fresh process.

    -P keeps the working directory off the import path: a user's numpy.py there must not be imported.

    Raises:
        PruneExportError: what the worker raised, or that it died; then with the last line that it printed.
    """
    command = [sys.executable, "-P", "-m", _WORKER]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf8", errors="replace"
    ) as process:
        try:
            output, chatter = process.communicate(json.dumps(to_json(request)))
        except BaseException:
            # Ctrl-C, or anything else: the worker must not go on in the background.
            # Waited for here, because Popen's own exit does not wait after a KeyboardInterrupt.
            process.kill()
            process.wait()
            raise
    if process.returncode != 0 or not output:
        raise PruneExportError(_obituary(request, process.returncode, chatter))
    reply = from_json(Reply, json.loads(output), where="worker reply")
    if reply.error:
        raise _error_class(reply.error[0])(reply.error[1])
    return reply


def _obituary(request: Request, code: int, chatter: str) -> str:
    lines = [line.strip() for line in chatter.splitlines() if line.strip()]
    end = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    last = f": {lines[-1]}" if lines else ""
    return f"measuring {request.directory}: the worker process {end}{last}"


def _error_class(name: str) -> type[PruneExportError]:
    found = getattr(errors, name, PruneExportError)
    return found if isinstance(found, type) and issubclass(found, PruneExportError) else PruneExportError
