"""Imports OpenVINO without its telemetry: nothing is sent, no identifier file is made in the user's home."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


def import_openvino() -> Any:
    """The `openvino` package; importing it reports itself unless telemetry is declined first."""
    with declined():
        return importlib.import_module("openvino")


@contextmanager
def declined() -> Iterator[None]:
    """Declines the telemetry of OpenVINO's Python tools for the block, consent given earlier included."""
    if importlib.util.find_spec("openvino_telemetry") is None:
        yield
        return
    telemetry = importlib.import_module("openvino_telemetry")
    checker = importlib.import_module("openvino_telemetry.utils.opt_in_checker")

    def refuse(*_: Any, **__: Any) -> Any:
        return checker.ConsentCheckResult.DECLINED

    def send_nothing(*_: Any, **__: Any) -> None:
        return None

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(checker.OptInChecker, "check", refuse))
        # The one instance may have been made before, with consent; it stays as it is and sends nothing meanwhile.
        for name in ("send_event", "start_session", "end_session"):
            stack.enter_context(mock.patch.object(telemetry.Telemetry, name, send_nothing))
        yield
