"""What ships: the wheel's contents, the base package in an environment without torch, the README's commands."""

from __future__ import annotations

import re
import shlex
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


def test_the_base_package_benchmarks_an_artifact_without_torch(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment with the wheel and its base dependencies only, as an edge box has."""
    from prune_export.api import export

    export("reference", tmp_path / "artifact", precision="int8")
    environment = tmp_path / "box"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=600)
    absent = subprocess.run([str(python), "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in absent.stderr
    command = [str(environment / "bin" / "prune-export"), "benchmark", str(tmp_path / "artifact"),
               "--workload",
               "prompt=32,new=16", "--processes", "1", "--json", str(tmp_path / "result.json")]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "tpot" in result.stdout
    assert (tmp_path / "result.json").is_file()
    refused = subprocess.run(
        [str(environment / "bin" / "prune-export"), "--target-speedup", "1.3x"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert refused.returncode == 2
    assert 'pip install "prune-export[prune]"' in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


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
