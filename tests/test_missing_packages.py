"""A package that is not installed is one line with what to install, in this process and in those that it starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from prune_export import cli
from prune_export.benchmark import process
from prune_export.benchmark.process import run_worker
from prune_export.benchmark.worker import Request
from prune_export.errors import BadInputError, missing_package
from prune_export.profiles import host_cores
from prune_export.target import Workload


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onnxruntime", 'pip install "prune-export[onnx]"'),
        ("openvino.runtime", 'openvino is not installed, this command needs it: pip install "prune-export"'),
        ("torch", 'pip install "prune-export[prune]"'),
    ],
)
def test_what_a_user_installs_is_named(name: str, words: str) -> None:
    error = missing_package(ModuleNotFoundError(name=name))
    assert error is not None
    assert error.exit_code == 2
    assert words in str(error)


def test_a_module_of_our_own_that_is_missing_is_no_bad_input() -> None:
    assert missing_package(ModuleNotFoundError(name="prune_export.gone")) is None
    assert missing_package(ModuleNotFoundError()) is None


def test_an_absent_runtime_ends_a_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_text("")
    (tmp_path / "config.json").write_text("{}")
    for name in [name for name in sys.modules if name.startswith("prune_export.benchmark.openvino_session")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openvino", None)
    from prune_export.evaluate import ir_nll
    from prune_export.progress import Progress

    def scored(*_: object, **__: object) -> None:
        ir_nll(tmp_path, [[0]], precision="fp32", threads=1, progress=Progress(quiet=True))  # type: ignore[arg-type]

    monkeypatch.setattr("prune_export.evaluate.evaluate", scored)
    assert cli.main(["evaluate", "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        'prune-export: openvino is not installed, this command needs it: pip install "prune-export"\n'
    )


def test_a_worker_without_its_runtime_says_so_as_this_process_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import sys
        sys.modules["openvino"] = None
        from prune_export.benchmark.child import answer
        def handle(request, report):
            import openvino
        answer(handle)
    """
    (tmp_path / "made_up_worker.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setattr(process, "_WORKER", "made_up_worker")
    with pytest.raises(BadInputError, match=r"^openvino is not installed, this command needs it"):
        run_worker(Request(str(tmp_path), "fp32", 1, "CPU", Workload(), "time"))


@pytest.mark.parametrize(
    "command", [("evaluate", "--model", "reference"), ("benchmark", "DIR"), ("export", "-o", "out")]
)
def test_more_threads_than_cores_are_refused_by_every_command(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / "DIR" / name).write_text("")
    more = ["--model", "reference"] if command[0] == "export" else []
    assert cli.main([*command, *more, "--threads", str(host_cores() + 1)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"threads {host_cores() + 1}: this " in line
    assert str(host_cores()) in line
