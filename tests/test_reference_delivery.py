"""The main job on the embedded model and this machine, as `make demo` runs it: minutes long, and it needs the quiet of
an idle machine, so it is part of `make test-all` only.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from prune_export.benchmark.compare import per_round
from prune_export.benchmark.measure import Rounds, Subject, measure_together
from prune_export.deliver import deliver
from prune_export.delivery.request import Request, SearchSettings
from prune_export.delivery.verdict import judged
from prune_export.manifest import IR_FOLDER
from prune_export.profiles.load import load_profile
from prune_export.target import Target
from prune_export.verify import verify


@pytest.mark.slow
@pytest.mark.alone
def test_a_measured_speedup_holds_when_measured_again(tmp_path: Path) -> None:
    search = SearchSettings(calibration_windows=4)
    dense = deliver(Request("reference", "host", Target("tpot", 10.0), output=tmp_path / "dense", precisions=("fp32",)))
    request = Request(
        "reference", "host", Target("tpot", None, speedup=1.25), output=tmp_path / "out", precisions=("fp32",),
        search=search,
    )  # fmt: skip
    delivery = deliver(request)
    assert delivery.manifest.claim == "measured"
    assert delivery.manifest.met
    assert "files as in the manifest" in verify(delivery.directory)
    measurement = delivery.manifest.candidates[-1].measurement
    assert measurement is not None
    baseline, again = measure_together(
        [Subject(dense.directory / IR_FOLDER, "fp32"), Subject(delivery.directory / IR_FOLDER, "fp32")],
        profile=load_profile("host"), workload=measurement.workload, rounds=Rounds(5), sample_memory=False,
    )  # fmt: skip
    spread = per_round(baseline, "tpot", "p90")
    noise = max(spread) / min(spread)
    found = judged(request.target, baseline=baseline, variant=again)
    assert found.figure <= found.limit * noise
