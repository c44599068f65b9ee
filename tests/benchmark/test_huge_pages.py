"""The environment that asks for huge pages, and that it reaches the process that measures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prune_export.benchmark import process
from prune_export.benchmark.huge_pages import TUNABLES, tunables, with_huge_pages
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest
from prune_export.records import to_json
from prune_export.target import Workload

HUGE = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, HUGE),
        ({TUNABLES: "glibc.malloc.arena_max=2"}, f"glibc.malloc.arena_max=2:{HUGE}"),
        ({TUNABLES: "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_what_was_set_already_stays(before: dict[str, str], after: str) -> None:
    found = with_huge_pages({"PATH": "/bin", **before})
    assert found == {"PATH": "/bin", TUNABLES: after}
    assert TUNABLES not in before or before[TUNABLES] != HUGE, "the given environment is left alone"


@pytest.mark.parametrize("huge", [True, False])
def test_a_panel_gets_them_where_it_asks(huge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    environments: list[Mapping[str, str] | None] = []

    def talk(*_: object, environment: Mapping[str, str] | None, **__: object) -> dict[str, Any]:
        environments.append(environment)
        return dict(to_json(PanelReply(((0.2,),), ((0.1,),))))

    monkeypatch.delenv(TUNABLES, raising=False)
    monkeypatch.setattr(process, "converse", talk)
    process.run_panel(PanelRequest(("a",), "fp32", 1, "CPU", Workload(), 0.0, huge_pages=huge))
    assert environments == [{**os.environ, TUNABLES: HUGE} if huge else None]


def test_a_child_has_the_environment_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import os\nfrom prune_export.benchmark.child import answer\n"
        f"answer(lambda request, _: {{'found': os.environ.get({TUNABLES!r}, '')}})\n"
    )
    code = (
        "import os\nfrom prune_export.benchmark.child import converse\n"
        f"environment = {{**os.environ, {TUNABLES!r}: {HUGE!r}}}\n"
        "print(converse('told', {}, subject='asking', environment=environment)['found'])\n"
    )
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert result.stdout.strip() == HUGE, result.stderr


def test_a_measurement_tells_the_settings_of_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TUNABLES, raising=False)
    assert tunables() == {}
    monkeypatch.setenv(TUNABLES, HUGE)
    assert tunables() == {TUNABLES: HUGE}
