"""What several plans of one search print, and state-space models, whose latency nothing predicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prune_export import cli
from prune_export.benchmark.roofline import roofline, roofline_table
from prune_export.deliver import deliver
from prune_export.delivery import sweep
from prune_export.delivery.request import Request, SearchSettings
from prune_export.delivery.summary import render as rendered
from prune_export.delivery.sweep import Planned, render
from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep, PrunePlan
from prune_export.profiles import CostCurve, LatencyTable, PhaseCosts, TableKey, load_profile
from prune_export.shape import LayerShape, MixerShape, ModelShape
from prune_export.target import Target, Workload

DENSE = ModelShape("llama", 64, 16, 100, True, (LayerShape(4, 2, 96),) * 2)


def planned(width: int, perplexity: float, latency_s: float | None, memory_bytes: float) -> Planned:
    """A plan that keeps so many channels of each MLP."""
    keep = (LayerKeep((0, 1), tuple(range(width))),) * 2
    plan = PrunePlan("m", "a" * 64, DENSE, keep, "by hand", "parameters", "b" * 64)
    dense_s = None if latency_s is None else 2e-3
    return Planned(0.1, plan, perplexity, 10.0, 0.5, latency_s, dense_s, memory_bytes, 4 << 20, "by hand")


def columns(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_sweep_prints_what_each_plan_costs_and_marks_what_another_one_beats() -> None:
    plans = [planned(80, 13.0, 1.6e-3, 3 << 20), planned(64, 12.0, 1.25e-3, 2 << 20), planned(32, 20.0, 1e-3, 1 << 20)]
    head, dense, first, second, third, _ = columns(render(plans, ["a.json", "b.json", "c.json"], metric="tpot"))
    assert head == ["removed", "parameters", "memory", "~tpot", "p50", "speed", "KL", "perplexity", "plan"]
    assert dense[2:] == ["4.00", "MiB", "2.00", "ms", "0", "10"]
    assert first[2:] == ["3.00", "MiB", "1.60", "ms", "1.25x", "0.5", "13", "dominated", "a.json"]
    assert second[2:] == ["2.00", "MiB", "1.25", "ms", "1.60x", "0.5", "12", "b.json"]
    assert third[2:] == ["1.00", "MiB", "1.00", "ms", "2.00x", "0.5", "20", "c.json"]
    assert first[:2] == [f"{plans[0].plan.ratio:.1%}", f"{plans[0].plan.target.parameters():,}"]


@pytest.mark.parametrize(
    ("change", "beaten"),
    [
        ({}, False),  # the same plan twice
        ({"perplexity": 12.9}, True),
        ({"perplexity": 12.9, "latency_s": 1.7e-3}, False),
        ({"perplexity": 12.9, "memory_bytes": 4 << 20}, False),
        ({"perplexity": 13.1, "memory_bytes": 1 << 20}, False),
    ],
)
def test_only_what_is_worse_in_nothing_dominates(change: dict[str, Any], beaten: bool) -> None:
    one = planned(80, 13.0, 1.6e-3, 3 << 20)
    text = render([one, replace(one, **change)], ["a.json", "b.json"], metric="tpot")
    assert ("dominated" in text.splitlines()[2]) == beaten


def test_latencies_are_of_the_statistic_that_was_asked_for_where_it_is_known() -> None:
    curve = CostCurve((2,), (1e-3,))
    costs = PhaseCosts("decode", "int8", 0.0, curve, CostCurve((96,), (1e-3,)), p90=1.25)
    table = LatencyTable(TableKey(64, 16, 2, 100, 1, 8, 4), "measured", (costs,))
    notes: list[str] = []
    for asked, known in (("p50", ("p50", 1.0)), ("p90", ("p90", 1.25)), ("p99", ("p50", 1.0))):
        request = SimpleNamespace(target=Target("parameters", 0.1, asked), precisions=("int8",))  # type: ignore[arg-type]
        job: Any = SimpleNamespace(request=request, progress=SimpleNamespace(note=notes.append))
        assert sweep._percentile(job, table, "tpot") == known
    assert notes == ["note: tpot is told by its median: nothing tells p99 on this device"]
    text = render([replace(planned(80, 13.0, 1.6e-3, 3 << 20), statistic="p90")], ["a"], metric="tpot")
    assert "~tpot p90" in text


def test_without_latencies_memory_and_perplexity_decide() -> None:
    text = render([planned(80, 13.0, None, 3 << 20), planned(64, 12.0, None, 2 << 20)], ["a", "b"], metric="tpot")
    _, dense, first, second, _ = columns(text)
    assert dense[4] == first[4] == second[4] == "-"
    assert "dominated" in first
    assert "dominated" not in second


def test_no_estimate_takes_a_state_space_model_for_its_head() -> None:
    layers = (LayerShape(0, 0, 0, 64, 0),) * 2
    shape = ModelShape("mamba", 32, 1, 61, True, layers, mixer=MixerShape(fixed=32, unit=99))
    profile = load_profile("cpu-xeon")
    with pytest.raises(BadInputError, match="no estimate knows what the mixers of a mamba model cost"):
        roofline(profile, shape, Workload(), "int8")
    with pytest.raises(BadInputError, match="no estimate knows"):
        roofline_table(profile, shape, Workload(), ("int8",))


@pytest.fixture
def mamba(tmp_path: Path, word_tokenizer: Any) -> Path:
    """A random Mamba of 3 layers."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    from prune_export.prune.checkpoint import save_checkpoint

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(word_tokenizer), hidden_size=32, num_hidden_layers=3, state_size=4, conv_kernel=3,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    directory = tmp_path / "tiny-mamba"
    directory.mkdir()
    save_checkpoint(MambaForCausalLM(config), word_tokenizer, directory)
    return directory


def test_a_sweep_of_a_state_space_model_has_no_latency(
    mamba: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("plan", "--model", str(mamba), "--calibration", str(text_file), "--device", "cpu-xeon"),
        *("--calibration-windows", "2", "--calibration-length", "32", "--target-ratio", "10%,20%"),
    ]
    assert cli.main([*arguments, "-o", str(tmp_path / "plans")]) == 0
    printed = capsys.readouterr()
    _, dense, *rows, last = columns(printed.out)
    assert [row[4] for row in (dense, *rows)] == ["-"] * 3
    assert last[:3] == ["no", "latency", "predicted;"]
    assert "note: no latency is predicted: nothing tells what a mixer of a mamba model costs" in printed.err


def test_a_state_space_model_is_delivered_for_another_device_without_a_latency(
    mamba: Path, text_file: Path, tmp_path: Path
) -> None:
    request = Request(
        model=str(mamba), device="gpu-intel", target=Target("parameters", 0.15), output=tmp_path / "out",
        workload=Workload(prompt_tokens=16, new_tokens=8), precisions=("int8",), calibration=str(text_file),
        search=SearchSettings(calibration_windows=2, calibration_length=32), eval_text=str(text_file), eval_tokens=512,
    )  # fmt: skip
    delivery = deliver(request)
    assert (delivery.manifest.claim, delivery.manifest.met) == ("predicted", True)
    assert [item.predicted_s for item in delivery.manifest.candidates] == [None, None]
    assert (delivery.directory / "report.html").is_file()
    text = rendered(delivery, quiet=True)
    assert "~" not in text
    assert "roofline" not in text
    with pytest.raises(BadInputError, match="a mamba model has neither: use --target-ratio"):
        deliver(replace(request, target=Target("tpot", 0.01), force=True))
