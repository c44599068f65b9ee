"""Keeps the libraries under the exporter silent: log lines, tracer warnings, progress bars, telemetry.

Each is silenced where it comes from and put back afterwards; the program's own streams are never redirected, so
nothing else is lost.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod

from prune_export.telemetry import declined


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, optimum, NNCF, OpenVINO's converter and torch's tracer for the block.

    Telemetry of OpenVINO's Python tools is declined for the block as well: nothing is sent and no identifier file is
    made in the user's home.  Imports of those libraries belong inside, `import openvino` above all: it reports itself.
    Errors are still logged; exceptions pass.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for part in (declined, _no_logs, _no_bars):
            stack.enter_context(part())
        yield


@contextmanager
def no_progress() -> Iterator[None]:
    """No bars of tqdm in the block, whoever makes them."""
    from tqdm import tqdm

    before = tqdm.__init__
    tqdm.__init__ = partialmethod(before, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = before


@contextmanager
def _no_logs() -> Iterator[None]:
    # Levels of single loggers would not do: NNCF and optimum set theirs at import, which may happen in the block.
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _no_bars() -> Iterator[None]:
    if importlib.util.find_spec("rich") is None:
        yield
        return
    from rich import get_console

    console = get_console()
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before
