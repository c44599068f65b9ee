"""What ships: the wheel's contents, the base package in an environment without torch, the README's commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from prune_export import cli, commands

ROOT = Path(__file__).parents[1]
FOLDERS = {"prune", "export", "benchmark", "profiles", "reference", "delivery", "verbs"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check",
               "--wheel-dir", str(output), str(ROOT)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = output.glob("prune_export-*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert all(name.startswith("prune_export/") for name in names)
    inside = {name.removeprefix("prune_export/") for name in names}
    assert {name.split("/")[0] for name in inside if "/" in name} == FOLDERS
    expected = {path.name for path in ROOT.glob("*.py")} | {"py.typed"}
    assert {name for name in inside if "/" not in name} == expected
    for folder in FOLDERS:
        sources = {f"{folder}/{path.name}" for path in (ROOT / folder).glob("*.py")}
        assert sources <= inside
    assert {f"profiles/{path.name}" for path in (ROOT / "profiles").glob("*.toml")} <= inside
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"):
        assert f"reference/model/{name}" in inside


@pytest.fixture(scope="session")
def box(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel and its base dependencies only, as an edge box has."""
    environment = tmp_path_factory.mktemp("box") / "environment"
    venv.create(environment, with_pip=True)
    programs = environment / "bin"
    install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=600, env=_clean())
    for name in ("torch", "transformers", "nncf", "optimum"):
        absent = subprocess.run(
            [str(programs / "python"), "-c", f"import {name}"], capture_output=True, text=True, env=_clean()
        )
        assert f"No module named '{name}'" in absent.stderr
    return programs


def _clean() -> dict[str, str]:
    """Without the paths of the environment that runs the tests."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def on_the_box(box: Path, *arguments: str, directory: Path, timeout_s: int = 300) -> subprocess.CompletedProcess[str]:
    command = [str(box / "prune-export"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=directory, env=_clean())


def test_the_base_package_benchmarks_an_artifact_without_torch(box: Path, tmp_path: Path) -> None:
    from prune_export.api import export

    export("reference", tmp_path / "artifact", precision="int8")
    result = on_the_box(
        box, "benchmark", "artifact", "--workload", "prompt=32,new=16", "--processes", "1", "--json", "result.json",
        directory=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "tpot" in result.stdout
    assert (tmp_path / "result.json").is_file()
    refused = on_the_box(box, "--target-speedup", "1.3x", directory=tmp_path)
    assert refused.returncode == 2
    assert 'pip install "prune-export[prune]"' in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_box_without_torch_is_measured_planned_for_and_measures_what_it_gets(
    box: Path, checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kit goes to the box, its profile comes back, a delivery is planned, and its claim is measured there."""
    from prune_export.delivery import preflight
    from prune_export.profiles import load_profile
    from prune_export.prune.loading import load_config
    from prune_export.prune.shapes import model_shape

    monkeypatch.chdir(tmp_path)
    common = ("--precision", "int8", "--workload", "prompt=8,new=4", "--quiet")
    packing = ("kit", "--model", str(checkpoint), "-o", "kit", "--depth", "2", "--held-out", "1", *common)
    assert cli.main([*packing]) == 0
    (tmp_path / "device").mkdir()
    shutil.move("kit", "device/kit")
    measured = on_the_box(
        box, "profile", "measure", "--kit", "kit", "-o", "box.toml", "--threads", "1", "--budget", "5s", "--quiet",
        directory=tmp_path / "device",
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert "| int8 | TPOT | 1 |" in measured.stdout

    shutil.copy("device/box.toml", "box.toml")
    profile = load_profile("box.toml")
    table = profile.latency_table
    assert table is not None
    assert table.record is not None
    assert (table.record.threads, table.record.runtime) == (1, "openvino")
    # The workstation is another machine than the box.
    elsewhere = {**preflight.host_fingerprint(), "vendor": "AnotherVendor"}
    median = table.predict(model_shape(load_config(checkpoint)).layers, "tpot", precision="int8")
    limit = 0.9 * table.tail("tpot", "p90", precision="int8") * median
    with monkeypatch.context() as workstation:
        workstation.setattr(preflight, "host_fingerprint", lambda: elsewhere)
        delivery = (
            *("--model", str(checkpoint), "--device", "box.toml", "--target-latency", f"{limit * 1e6:.4f}us", *common),
            *("--calibration", str(text_file), "--eval-text", str(text_file), "--mlp-group", "16"),
            *("--calibration-windows", "4", "--calibration-length", "64", "-o", "artifact"),
        )
        assert cli.main([*delivery]) == 0
    manifest = json.loads(Path("artifact/manifest.json").read_text())
    assert (manifest["claim"], manifest["met"]) == ("predicted", True)

    shutil.copytree("artifact", "device/artifact")
    result = on_the_box(
        box, "benchmark", "artifact", "--device", "box.toml", "--threads", "1", "--manifest", "measured.json",
        "--quiet", directory=tmp_path / "device",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(Path("device/measured.json").read_text())
    assert found["claim"] == "measured"
    assert found["plan_digest"] == manifest["plan_digest"]
    assert found["met"] == (found["figure"] <= found["limit"])
    assert ("met: measured tpot p90" if found["met"] else "not met: measured tpot p90") in result.stdout
    (delivered,) = [item for item in found["candidates"] if item["delivered"]]
    assert set(delivered["measurement"]["versions"]) == {"python", "openvino", "numpy"}
    assert json.loads(Path("device/artifact/manifest.json").read_text()) == manifest


def readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, flags=re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("prune-export")]


def test_the_readme_shows_commands() -> None:
    assert len(readme_commands()) >= 6


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_every_command_of_the_readme_parses(command: list[str]) -> None:
    name, rest = cli._split(command[1:])
    parser = cli._Parser()
    commands.COMMANDS[name].add_arguments(parser)
    commands.add_common(parser)
    # An unknown option or a missing value raises BadInputError here.
    parsed = parser.parse_args(rest)
    assert callable(commands.COMMANDS[name].run)
    assert parsed.seed == 42


def test_the_readmes_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    for target in ("demo", "test"):
        assert re.search(rf"^{target}:", makefile, flags=re.M)
        assert f"make {target}" in readme
