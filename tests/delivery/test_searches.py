"""From --search and its settings to plans: every search, presets, several plans at once, bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune_export import api, cli
from prune_export.delivery.request import Request, SearchSettings
from prune_export.delivery.settings import SEARCHES
from prune_export.errors import BadInputError, InfeasibleError
from prune_export.plan import PrunePlan
from prune_export.prune.presets import PRESETS
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Target

SEARCH = SearchSettings(mlp_group=16, calibration_windows=2, calibration_length=64)
OPTIONS = ["--mlp-group", "16", "--calibration-windows", "2", "--calibration-length", "64", "--quiet"]


def request_for(checkpoint: Path, text_file: Path, search: SearchSettings = SEARCH, ratio: float = 0.2) -> Request:
    return Request(
        model=str(checkpoint),
        device="cpu-xeon",
        target=Target("parameters", ratio),
        search=search,
        calibration=str(text_file),
        eval_text=str(text_file),
        eval_tokens=256,
    )


def shape(heads: int, kv_heads: int, head_dim: int) -> ModelShape:
    return ModelShape("llama", heads * head_dim, head_dim, 100, False, (LayerShape(heads, kv_heads, 4096),) * 2)


@pytest.mark.parametrize(
    ("settings", "compensated"),
    [
        ({"search": "fast"}, True),
        ({"search": "evolve"}, True),
        ({"search": "multipruner"}, False),
        ({"search": "blockpruner"}, False),
        ({"search": "multipruner", "preset": "llama-2-7b"}, False),
        ({"search": "multipruner", "compensate": True}, True),
        ({"search": "fast", "compensate": False}, False),
    ],
)
def test_compensation_is_on_where_the_papers_do_not_say_otherwise(settings: dict[str, Any], compensated: bool) -> None:
    assert SearchSettings(**settings).compensated is compensated


# The paper's table, and the KV heads that its attention rows are on the models' dimensions (heads, KV heads, head_dim).
ROWS = {
    "llama-2-7b": ((44, 52, 4), 1024, (32, 32, 128), 1),
    "llama-2-13b": ((44, 52, 4), 1024, (40, 40, 128), 1),
    "qwen1.5-7b": ((44, 52, 4), 1024, (32, 32, 128), 1),
    "qwen1.5-14b": ((44, 52, 4), 2048, (40, 40, 128), 1),
    "baichuan2-7b": ((44, 52, 4), 1024, (32, 32, 128), 1),
    "baichuan2-13b": ((44, 52, 4), 1024, (40, 40, 128), 1),
    "llama-3.1-8b": ((30, 70, 0), 1024, (32, 8, 128), 1),
    "llama-3-8b": ((20, 80, 0), 1024, (32, 8, 128), 1),
    "llama-3.2-3b": ((10, 90, 0), 768, (24, 8, 128), 1),
    "qwen2.5-7b": ((50, 50, 0), 1024, (28, 4, 128), 1),
}


def test_presets_are_the_papers_rows() -> None:
    assert set(ROWS) == set(PRESETS)
    for name, (distribution, mlp_group, dimensions, kv_group) in ROWS.items():
        found = SearchSettings(preset=name).for_model(shape(*dimensions))
        assert (found.distribution, found.mlp_group, found.kv_group) == (distribution, mlp_group, kv_group), name
        assert found.exact
        assert not found.compensated
    # 512 rows are four KV groups of a model whose heads have 64 dimensions and two query heads a KV head.
    assert SearchSettings(preset="llama-3.1-8b").for_model(shape(16, 8, 64)).kv_group == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "llama-2-7"}, r'unknown preset "llama-2-7" \(did you mean "llama-2-7b"\?\)'),
        ({"preset": "llama-2-7b", "search": "evolve"}, r"is of MultiPruner, not of --search evolve"),
        ({"preset": "llama-2-7b", "mlp_group": 5}, r"give it or them, not both"),
        ({"preset": "llama-3.1-8b"}, r"removes 512 attention rows at once, this model's KV groups have 96"),
        ({"search": "multi"}, r'--search "multi" \(did you mean "multipruner"\?\)'),
        ({"order": "l2"}, r'--order "l2" \(did you mean "l1"\?\): use one of l1, wanda, none'),
        ({"calibration_rows": 4, "calibration_windows": 4}, r"not both"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        SearchSettings(**settings).for_model(shape(6, 2, 32))


@pytest.mark.parametrize("search", [name for name in SEARCHES if name != "fast"])
def test_every_search_makes_a_plan_for_a_ratio(search: str, checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    request = request_for(checkpoint, text_file, replace(SEARCH, search=search, calibration_length=32))
    plan = api.plan(request, front_file=tmp_path / "front.json")
    assert plan.ratio >= 0.2
    words = {"multipruner": "MultiPruner 44:52:4", "blockpruner": "BlockPruner", "evolve": "NSGA-II"}
    assert words[search] in plan.method
    assert {step.stage for step in plan.history} == {"blocks"} or search != "blockpruner"
    assert (tmp_path / "front.json").exists() == (search == "evolve")
    assert api.plan(request) == plan


def test_orders_and_own_tokens_for_widths_reach_the_search(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    words = text_file.read_text().split()
    rows.write_text("".join(json.dumps({"text": " ".join(words[n * 40 : n * 40 + 40])}) + "\n" for n in range(30)))
    plans = {}
    for name, changes in {
        "l1": {},
        "wanda": {"order": "wanda"},
        "none": {"order": "none"},
        "widths": {"width_windows": 1},
        "rows": {"calibration_windows": None, "calibration_rows": 20, "width_rows": 10},
    }.items():
        settings = replace(SEARCH, search="multipruner", distribution=(0.0, 80.0, 20.0), **changes)
        plans[name] = api.plan(replace(request_for(checkpoint, text_file, settings), calibration=str(rows)))
    assert "order Wanda" in plans["wanda"].method
    assert "order as they are" in plans["none"].method
    assert len({plan.keep for plan in plans.values()}) >= 3
    # Nothing is reordered: what stays are the first channels.
    assert all(kept.mlp_channels == tuple(range(len(kept.mlp_channels))) for kept in plans["none"].keep)
    assert len({plans[name].calibration_digest for name in ("l1", "widths", "rows")}) == 3
    with pytest.raises(BadInputError, match=r"rows\.jsonl has 30 rows, 31 are asked for"):
        settings = replace(SEARCH, calibration_windows=None, calibration_rows=31)
        api.plan(replace(request_for(checkpoint, text_file, settings), calibration=str(rows)))


def test_several_plans_are_those_of_each_ratio_alone(checkpoint: Path, text_file: Path) -> None:
    request = request_for(checkpoint, text_file)
    made = api.plans(request, (0.1, 0.3, 0.2))
    assert [item.asked for item in made] == [0.1, 0.3, 0.2]
    for item in made:
        assert item.plan == api.plan(replace(request, target=Target("parameters", item.asked)))
        assert item.plan.ratio >= item.asked
        assert item.perplexity == item.plan.history[-1].perplexity
        assert item.latency_s is not None
        assert item.dense_latency_s is not None
        assert 0 < item.latency_s < item.dense_latency_s
        assert "(roofline)" in item.latency_by
    assert made[1].latency_s < made[0].latency_s  # type: ignore[operator]


def test_ratios_out_of_reach_say_the_highest(checkpoint: Path, text_file: Path) -> None:
    request = request_for(checkpoint, text_file)
    with pytest.raises(InfeasibleError, match=r"97% of the parameters cannot go: at most \d\d\.\d% can") as caught:
        api.plans(request, (0.1, 0.97))
    highest = float(re.search(r"at most (\d+\.\d)%", str(caught.value))[1]) / 100  # type: ignore[index]
    reached = api.plans(request, (highest - 1e-3,))[0].plan.ratio
    assert reached == pytest.approx(highest, abs=1e-3)
    assert len(api.plans(request, (0.1, 0.97), as_far_as_possible=True)) == 1


def test_plan_files_of_several_ratios(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["plan", "--model", str(checkpoint), "--calibration", str(text_file), "--device", "cpu-xeon", *OPTIONS]
    assert cli.main([*base, "--target-ratio", "20%,10%", "-o", str(tmp_path / "plans")]) == 0
    printed = capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "plans").iterdir())
    assert files == ["plan-10%.json", "plan-20%.json"]
    ratios = [PrunePlan.load(tmp_path / "plans" / name).ratio for name in files]
    assert 0.1 <= ratios[0] < 0.2 <= ratios[1]
    for ratio, name in zip(ratios, files, strict=True):
        (line,) = [line for line in printed.splitlines() if line.endswith(name)]
        assert f"{ratio:.1%}" in line
        assert "x" in line
    assert "figures alone (roofline)" in printed
    assert cli.main([*base, "--target-ratio", "12.5%,30%", "-o", str(tmp_path / "mine.json")]) == 0
    assert {path.name for path in tmp_path.glob("mine*")} == {"mine-12.5%.json", "mine-30%.json"}
    assert cli.main([*base, "--target-ratio", "12.5%,30%", "-o", str(tmp_path / "mine.json")]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_sweep_goes_as_far_as_it_can(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["plan", "--model", str(checkpoint), "--calibration", str(text_file), "--device", "cpu-xeon", *OPTIONS]
    command = [*base, "--search", "blockpruner", "--sweep", "-o", str(tmp_path / "front")]
    assert cli.main(command) == 0
    files = list((tmp_path / "front").glob("plan-*%.json"))
    assert len(files) == 10
    ratios = [PrunePlan.load(tmp_path / "front" / f"plan-{percent}%.json").ratio for percent in range(5, 55, 5)]
    assert ratios == sorted(ratios)
    assert cli.main([*base, "--sweep", "--target-latency", "4ms", "-o", str(tmp_path / "no")]) == 2
    assert "not for --target-latency" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "lama-2-7b"], 'did you mean "llama-2-7b"'),
        (["--preset", "llama-2-7b"], "removes 1024 MLP channels at once, this model has 128"),
        (["--search", "evolv"], "invalid choice"),
        (["--distribution", "1:2:x"], "is not three shares"),
        (["--calibration-windows", "4,x"], "is not one or two numbers above zero"),
        (["--calibration-windows", "0"], "is not one or two numbers above zero"),
        (["--calibration-windows", "4000,2"], "--calibration-windows asks for 4000"),
        (["--calibration-length", "300"], "must lie between 2 and the model's context, 256"),
        (["--calibration-rows", "4"], "has 1 rows, 4 are asked for"),
        (["--target-ratio", "10%,0%"], "must be above zero"),
        (["--target-ratio", "96%"], "% of the parameters can go"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, checkpoint: Path, text_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = ["plan", "--model", str(checkpoint), "--calibration", str(text_file), "--quiet", "-o", str(tmp_path / "p")]
    ratio = [] if "--target-ratio" in arguments else ["--target-ratio", "20%"]
    code = cli.main([*base, *ratio, *arguments])
    error = capsys.readouterr().err
    assert code in (2, 3)
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_overflowing_activations_name_the_layer(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    model = tmp_path / "hot"
    shutil.copytree(checkpoint, model)
    state = load_file(model / "model.safetensors")
    state["model.layers.3.mlp.down_proj.weight"].fill_(3e38)
    state["model.layers.3.mlp.up_proj.weight"] *= 1e6
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    for order in ("l1", "none"):
        code = cli.main(["plan", "--model", str(model), "--calibration", str(text_file), "--target-ratio", "20%",
                         "--order", order, "-o", str(tmp_path / "plan.json"), *OPTIONS])  # fmt: skip
        assert code == 2
        assert re.search(
            r"layer 3: its MLP gives activations that are not finite on the calibration text", capsys.readouterr().err
        )


# Dies by SIGKILL after so many scores are written.
_KILLED = """
import os, signal
from prune_export import cli
from prune_export.prune.journal import Journal
from prune_export.prune.score_file import ScoreFolder
put, calls = {owner}.put, 0
def counted(self, *arguments):
    global calls
    put(self, *arguments)
    calls += 1
    if calls == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
{owner}.put = counted
cli.main()
"""


@pytest.mark.parametrize("search", ["multipruner", "fast"])
def test_a_killed_process_ends_with_the_same_plan(
    search: str, checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        *("plan", "--model", str(checkpoint), "--calibration", str(text_file), "--target-ratio", "40%", "--quiet"),
        *("--mlp-group", "8", "--calibration-windows", "4", "--calibration-length", "64", "--threads", "1"),
        *("--search", search),
    ]
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    assert cli.main([*arguments, "-o", str(whole)]) == 0
    monkeypatch.setenv("PRUNE_EXPORT_CACHE", str(tmp_path / "killed"))
    code = (
        _KILLED.format(owner="ScoreFolder", after=5) if search == "fast" else _KILLED.format(owner="Journal", after=23)
    )
    killed = subprocess.run([sys.executable, "-c", code, *arguments, "-o", str(resumed)], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    if search == "fast":
        assert len(list((tmp_path / "killed" / "scores").glob("*/scores/block-*.npz"))) == 5
    else:
        (journal,) = (tmp_path / "killed" / "runs").glob("*/journal.jsonl")
        assert journal.read_bytes().count(b"\n") == 1 + 23
    assert not resumed.exists()
    assert cli.main([*arguments, "-o", str(resumed)]) == 0
    assert PrunePlan.load(resumed) == PrunePlan.load(whole)


def test_options_of_other_searches_are_named_not_swallowed() -> None:
    note = SearchSettings(order="wanda", distribution=(10.0, 90.0, 0.0)).ignored
    assert note.startswith("note: --order, --distribution: of no effect on --search fast")
    assert SearchSettings().ignored == SearchSettings(search="multipruner", order="wanda").ignored == ""
