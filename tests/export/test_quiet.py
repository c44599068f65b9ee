"""Silence from import to artifact, and no trace of telemetry."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tiny_exports import Exported

from prune_export.export.quiet import quiet

SCRIPT = """
import sys
from pathlib import Path
from prune_export.export.openvino_ir import export_openvino
from transformers import AutoTokenizer
from prune_export.export.parity import check_parity
from prune_export.export.weights import compress
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape

source, out = map(Path, sys.argv[1:])
model = random_model(ModelShape("mistral", 64, 16, 320, True, (LayerShape(4, 2, 64), LayerShape(0, 0, 32))), seed=0)
export_openvino(model, AutoTokenizer.from_pretrained(source), out / "fp32")
check_parity(model, out / "fp32")
compress(out / "fp32", out / "int8", precision="int8")
"""


def test_a_whole_export_is_silent_and_leaves_no_telemetry(llama: Exported, tmp_path: Path) -> None:
    """In a process of its own: NNCF switches its telemetry off where it sees pytest."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(llama.directory), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "int8" / "openvino_model.bin").is_file()
    assert list(home.rglob("*openvino*")) == []


def test_everything_speaks_again_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    from openvino_telemetry import Telemetry  # type: ignore[import-untyped]
    from openvino_telemetry.utils.opt_in_checker import OptInChecker  # type: ignore[import-untyped]
    from rich import get_console

    before = (OptInChecker.check, Telemetry.send_event, logging.root.manager.disable, get_console().quiet)
    with quiet():
        warnings.warn("a tracer's warning", stacklevel=1)
        logging.getLogger("nncf").warning("a library's warning")
        assert get_console().quiet
    assert capfd.readouterr() == ("", "")
    assert before == (OptInChecker.check, Telemetry.send_event, logging.root.manager.disable, get_console().quiet)
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_an_error_passes_and_everything_speaks_again() -> None:
    with pytest.raises(ValueError, match="inside"), quiet():
        raise ValueError("inside")
    assert logging.getLogger("nncf").isEnabledFor(logging.WARNING)
