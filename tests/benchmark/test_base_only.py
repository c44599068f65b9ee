"""benchmark/ and profiles/ run where torch is not installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

FORBIDDEN = ("torch", "transformers", "optimum", "nncf", "safetensors", "tokenizers")


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def modules(package: str) -> str:
    folder = Path(importlib.import_module(package).__path__[0])
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert len(names) > 3
    return "\n".join(f"import {package}.{name}" for name in names)


def test_no_module_of_benchmark_loads_torch() -> None:
    loaded = loaded_by(modules("prune_export.benchmark"))
    assert "openvino" in loaded
    assert not loaded & set(FORBIDDEN)


def test_profiles_need_the_standard_library_alone() -> None:
    loaded = loaded_by(modules("prune_export.profiles"))
    ours = {name for name in loaded if name.startswith("prune_export.") and name.split(".")[1] != "profiles"}
    assert ours == {"prune_export.chatter", "prune_export.errors", "prune_export.records"}
    assert not loaded & {"numpy", "psutil", "openvino", *FORBIDDEN}


def test_an_artifact_is_measured_where_torch_cannot_be_imported(tiny_ir: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in FORBIDDEN:
        (blocked / f"{name}.py").write_text("raise ImportError('not installed')")
    code = (
        "from pathlib import Path; from prune_export.benchmark.measure import measure\n"
        "from prune_export.profiles import load_profile; from prune_export.target import Workload\n"
        f"m = measure(Path({str(tiny_ir)!r}), profile=load_profile('host'), precision='fp32', threads=1,\n"
        "    workload=Workload(1, 8, 4, 0, 1), processes=1, sample_memory=False)\n"
        "print(len(m.itl_s) % 3, len(m.load_s))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(blocked)}
    )
    assert result.stdout.split() == ["0", "1"]
    assert result.stderr == ""
