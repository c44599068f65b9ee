"""benchmark/ and profiles/, and `verify` of an export, run where torch is not installed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM

from prune_export.errors import ParityError
from prune_export.evaluate import torch_nll
from prune_export.export.parity import greedy_tokens_of
from prune_export.export_record import EXPORT_FILE, ExportRecord
from prune_export.hashes import file_records
from prune_export.manifest import ParityRecord
from prune_export.prune.shapes import model_shape

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


def without_torch(tmp_path: Path) -> Path:
    """A folder to import from first."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in FORBIDDEN:
        (blocked / f"{name}.py").write_text("raise ImportError('not installed')")
    return blocked


def test_an_artifact_is_measured_where_torch_cannot_be_imported(tiny_ir: Path, tmp_path: Path) -> None:
    blocked = without_torch(tmp_path)
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


def test_an_export_is_verified_where_torch_cannot_be_imported(
    tiny_ir: Path, tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    shutil.copytree(tiny_ir, export)
    prompt = tuple(range(1, 9))
    tokens = tuple(greedy_tokens_of(tiny_model, prompt, new_tokens=24))
    (nll,) = torch_nll(tiny_model, np.array([[*prompt, *tokens]]))

    def sealed(window_nll: float) -> None:
        ExportRecord(
            command="", created="", source="", source_digest="", shape=model_shape(tiny_model.config),
            format="openvino", precision="fp32", host={}, versions={}, files=file_records(export, besides=EXPORT_FILE),
            parity=ParityRecord(
                0.0, 1e-4, {}, len(tokens), 1.0, prompt=prompt, continuation=tokens, window_nll=window_nll
            ),
        ).save(export)  # fmt: skip

    paths = [str(without_torch(tmp_path)), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "prune_export.cli", "verify", str(export), "--quiet"]

    def verified() -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    sealed(nll)
    result = verified()
    assert (result.returncode, result.stderr) == (0, "")
    assert f"files as in {EXPORT_FILE}; 100% of 24 greedy tokens" in result.stdout
    sealed(nll + 0.01)
    result = verified()
    assert result.returncode == ParityError.exit_code
    assert "mean NLL differs from torch's by -0.010, 0.001 is allowed" in result.stderr
