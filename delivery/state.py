"""What an unfinished run leaves for the next one: its search journal, latency table, dense figure and trials.

With these a run that was killed makes the same plan when it is started again, though timings never repeat.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from prune_export.delivery.places import cache_directory
from prune_export.delivery.scores import close_scores, open_scores
from prune_export.errors import BadInputError
from prune_export.profiles.latency import LatencyTable
from prune_export.progress import Progress
from prune_export.records import digest, from_json, to_json


@dataclass(frozen=True)
class KnownTrial:
    """A plan that was built and measured: figures in the target metric's unit, `base` of the dense model beside it.

    `pace` is the dense model's latency beside it in seconds, `error` the relative standard error of what was measured.
    """

    measured: float
    limit: float
    base: float
    perplexity: float
    pace: float
    error: float = 0.0


@dataclass(frozen=True)
class Known:
    """What is known so far.

    Attributes:
        table: the latency table that was measured.
        base: figure of the dense model that budgets are scaled by.
        trials: plan key to what was found.
    """

    table: LatencyTable | None = None
    base: float | None = None
    trials: dict[str, KnownTrial] = field(default_factory=dict)


class RunState:
    """The state directory of one run, named after everything that its outcome depends on.

    Args:
        key: any record; the same key finds the same state.
        progress: is told when nothing can be kept.
    """

    def __init__(self, key: object, progress: Progress) -> None:
        self._name = digest(key)[:24]
        self._directory = cache_directory() / "runs" / self._name
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._usable = os.access(self._directory, os.W_OK)
        except OSError:
            self._usable = False
        if not self._usable:
            progress.note(f"note: {self._directory} is not writable: an interrupted run could not be resumed")
        self.known = self._read()
        if self.known != Known():
            progress.note("resuming: an earlier run with the same request was interrupted")

    def journal(self, scratch: Path) -> Path:
        """Where the search keeps its journal; in the scratch directory where nothing else can be written."""
        return (self._directory if self._usable else scratch) / "journal.jsonl"

    def scores(self, scratch: Path, source_digest: str, calibration_digest: str) -> Path:
        """Where the fast search keeps its scores, for later runs too; they may all be there."""
        try:
            return open_scores(source_digest, calibration_digest, run=self._name)
        except OSError:
            return scratch / "scores"

    def learn(
        self,
        *,
        table: LatencyTable | None = None,
        base: float | None = None,
        trial: tuple[str, KnownTrial] | None = None,
    ) -> None:
        """Remembers something, on disk at once."""
        self.known = replace(
            self.known,
            table=table or self.known.table,
            base=base if base is not None else self.known.base,
            trials={**self.known.trials, **(dict([trial]) if trial else {})},
        )
        if self._usable:
            handle, name = tempfile.mkstemp(dir=self._directory)
            with os.fdopen(handle, "w", encoding="utf8") as file:
                json.dump(to_json(self.known), file)
            Path(name).replace(self._directory / "known.json")

    def forget(self) -> None:
        """The run is over: nothing is left to resume."""
        shutil.rmtree(self._directory, ignore_errors=True)
        close_scores(self._name)

    def _read(self) -> Known:
        path = self._directory / "known.json"
        if not path.is_file():
            return Known()
        try:
            return from_json(Known, json.loads(path.read_text(encoding="utf8")), where=str(path))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, BadInputError):
            return Known()  # of another version, or damaged: the run starts anew
