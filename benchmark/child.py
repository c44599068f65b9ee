"""Work in a process of its own: the parent's side, `converse`, and the child's side, `answer`.

What native code keeps of a compiled model, and what it crashes on, stays in the child.  The request goes to the child's
standard input as JSON; the child writes lines of JSON, `{"done": .., "total": ..}` as it goes on and its reply as the
last one.  Whatever else it prints, native libraries included, goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prune_export import errors
from prune_export.errors import PruneExportError

Report = Callable[[float, float], None]
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def converse(module: str, request: dict[str, Any], *, subject: str, report: Report | None = None) -> dict[str, Any]:
    """Runs one request in a fresh process and gives its reply.

    -P keeps the working directory off the import path: a user's numpy.py there must not be imported.

    Args:
        module: what to run; its `main` ends in `answer`.
        request: plain data.
        subject: what the child does and to what, for messages: "measuring DIR".
        report: is told of the child's progress.

    Raises:
        PruneExportError: what the child raised, of the same class with the same words; or that it died, then with the
            last line that it printed.
    """
    reply: dict[str, Any] | None = None
    with tempfile.TemporaryFile() as chatter:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=chatter
        )
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            with suppress(BrokenPipeError):  # it died already: its exit code says more
                stdin.write(json.dumps(request).encode())
                stdin.close()
            for line in stdout:
                reply = _heard(line, report) or reply
            process.wait()
        finally:
            # Ctrl-C, or anything else: the child must not go on in the background.
            process.kill()
            process.wait()
            for pipe in (stdin, stdout):
                with suppress(BrokenPipeError):
                    pipe.close()
        if process.returncode != 0 or reply is None:
            chatter.seek(0)
            raise PruneExportError(_obituary(subject, process.returncode, chatter.read().decode("utf8", "replace")))
    if error := reply.get("error"):
        raise _error_class(error[0])(error[1])
    return reply


def answer(handle: Callable[[dict[str, Any], Report], dict[str, Any]]) -> int:
    """Reads the request, runs `handle` on it and writes its reply; the child's exit code.

    Args:
        handle: takes the request and a function that tells the parent of progress; gives the reply as plain data.
    """
    channel = os.dup(1)
    os.dup2(2, 1)
    _die_with_parent()
    request = json.load(sys.stdin)
    with os.fdopen(channel, "w", encoding="utf8") as file:

        def say(data: dict[str, Any]) -> None:
            file.write(json.dumps(data) + "\n")
            file.flush()

        try:
            reply = handle(request, lambda done, total: say({"done": done, "total": total}))
        except PruneExportError as error:
            reply = {"error": [type(error).__name__, str(error)]}
        except ModuleNotFoundError as error:
            known = errors.missing_package(error)
            if known is None:
                raise
            reply = {"error": [type(known).__name__, str(known)]}
        say(reply)
    return 0


def _heard(line: bytes, report: Report | None) -> dict[str, Any] | None:
    """The reply in a line, or None for a line of progress."""
    data: dict[str, Any] = json.loads(line)
    if data.keys() != {"done", "total"}:
        return data
    if report is not None:
        report(data["done"], data["total"])
    return None


def _die_with_parent() -> None:
    """A parent that is killed outright cannot end its child: on Linux the kernel does it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _obituary(subject: str, code: int, chatter: str) -> str:
    lines = [line.strip() for line in chatter.splitlines() if line.strip()]
    end = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    last = f": {lines[-1]}" if lines else ""
    return f"{subject}: the worker process {end}{last}"


def _error_class(name: str) -> type[PruneExportError]:
    found = getattr(errors, name, PruneExportError)
    return found if isinstance(found, type) and issubclass(found, PruneExportError) else PruneExportError
