"""Work in a process of its own: the parent's side, `converse`, and the child's side, `answer`.

What native code keeps of a compiled model, and what it crashes on, stays in the child.  The request goes to the child's
standard input as a line of JSON; the child writes lines of JSON, `{"done": .., "total": ..}` as it goes on and its
reply as the last one.  Whatever else it prints, native libraries included, goes to standard error.

Children that take turns (`Child.turn`, `Parent.wait`) write `{"turn": ..}` and wait for a number on standard input; its
end means that there is no further turn.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from prune_export import errors
from prune_export.errors import PruneExportError

Report = Callable[[float, float], None]
_TURN = "turn"
_PROGRESS = {"done", "total"}
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Child:
    """One request in a fresh process; a context manager, at whose end the process is gone.

    -P keeps the working directory off the import path: a user's numpy.py there must not be imported.

    Args:
        module: what to run; its `main` ends in `answer`.
        request: plain data.
        subject: what the child does and to what, for messages: "measuring DIR".
        report: is told of the child's progress.
        environment: of the child; None for this process's own.
    """

    def __init__(
        self,
        module: str,
        request: dict[str, Any],
        *,
        subject: str,
        report: Report | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._subject, self._report = subject, report
        self._chatter = tempfile.TemporaryFile()  # noqa: SIM115 -- __exit__ closes it
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._chatter,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._tell(json.dumps(request))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        # Ctrl-C, or anything else: the child must not go on in the background.
        self._process.kill()
        self._process.wait()
        for file in (self._stdin, self._stdout, self._chatter):
            with suppress(BrokenPipeError):
                file.close()

    def wait(self) -> float:
        """Until the child waits for its turn; what it says of the last one.

        Raises:
            PruneExportError: as `result`.
        """
        found = self._listen()
        if found.keys() != {_TURN}:
            raise PruneExportError(f"{self._subject}: the worker process ended before its turn")
        return float(found[_TURN])

    def turn(self, count: int) -> float:
        """Lets a child that waits do something `count` times; what it says when it waits again.

        Raises:
            PruneExportError: as `result`.
        """
        self.begin(count)
        return self.wait()

    def begin(self, count: int) -> None:
        """As `turn`, but does not wait."""
        self._tell(str(count))

    def result(self) -> dict[str, Any]:
        """Gives the child no further turn and reads its reply.

        Raises:
            PruneExportError: what the child raised, of the same class with the same words; or that it died, then with
                the last line that it printed.
        """
        with suppress(BrokenPipeError):
            self._stdin.close()
        while (found := self._listen()).keys() == {_TURN}:
            pass  # it asked for one before it saw that there is none
        if self._process.wait() != 0:
            raise self._death()
        return found

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it died already: its exit code says more
            self._stdin.write(f"{line}\n".encode())
            self._stdin.flush()

    def _listen(self) -> dict[str, Any]:
        """The next line that is not one of progress: that it waits, or its reply."""
        for line in self._stdout:
            data: dict[str, Any] = json.loads(line)
            if data.keys() == _PROGRESS:
                if self._report is not None:
                    self._report(data["done"], data["total"])
            elif error := data.get("error"):
                raise _error_class(error[0])(error[1])
            else:
                return data
        raise self._death()

    def _death(self) -> PruneExportError:
        code = self._process.wait()
        self._chatter.seek(0)
        return PruneExportError(_obituary(self._subject, code, self._chatter.read().decode("utf8", "replace")))


def converse(
    module: str,
    request: dict[str, Any],
    *,
    subject: str,
    report: Report | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs one request in a fresh process and gives its reply.

    Args:
        module, request, subject, report, environment: as in `Child`.

    Raises:
        PruneExportError: as `Child.result`.
    """
    with Child(module, request, subject=subject, report=report, environment=environment) as child:
        return child.result()


class Parent:
    """The child's way to its parent; called with (done, total) it tells of progress."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say

    def __call__(self, done: float, total: float) -> None:
        self._say({"done": done, "total": total})

    def wait(self, last: float) -> int:
        """Waits for a turn, whatever the parent does meanwhile.

        Args:
            last: is told to the parent.

        Returns:
            How often to do what the parent wants done; 0 if there is no turn, or no further one.
        """
        self._say({_TURN: last})
        return int(sys.stdin.readline() or 0)


def answer(handle: Callable[[dict[str, Any], Parent], dict[str, Any]]) -> int:
    """Reads the request, runs `handle` on it and writes its reply; the child's exit code.

    Args:
        handle: takes the request and the way to the parent; gives the reply as plain data.
    """
    channel = os.dup(1)
    os.dup2(2, 1)
    _die_with_parent()
    request = json.loads(sys.stdin.readline())
    with os.fdopen(channel, "w", encoding="utf8") as file:

        def say(data: dict[str, Any]) -> None:
            file.write(json.dumps(data) + "\n")
            file.flush()

        try:
            reply = handle(request, Parent(say))
        except PruneExportError as error:
            reply = {"error": [type(error).__name__, str(error)]}
        except ModuleNotFoundError as error:
            known = errors.missing_package(error)
            if known is None:
                raise
            reply = {"error": [type(known).__name__, str(known)]}
        say(reply)
    return 0


def _die_with_parent() -> None:
    """A parent that is killed outright cannot end its child: on Linux the kernel does it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _obituary(subject: str, code: int, chatter: str) -> str:
    lines = [line.strip() for line in chatter.splitlines() if line.strip()]
    end = f"ended with exit code {code}"
    if code < 0:
        end = f"was killed by signal {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
    last = f": {lines[-1]}" if lines else ""
    return f"{subject}: the worker process {end}{last}"


def _error_class(name: str) -> type[PruneExportError]:
    found = getattr(errors, name, PruneExportError)
    return found if isinstance(found, type) and issubclass(found, PruneExportError) else PruneExportError
