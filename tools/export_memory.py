"""Peak memory of one export, gate included, against the size of the model's weights in fp32.

    python tools/export_memory.py --model DIR --format onnx --precision fp32

Runs `prune-export export` in a process of its own, shows its progress, and prints one Markdown row.  The peak is the
kernel's (VmHWM): weight files that are mapped into memory count as far as they were touched.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from prune_export.formats import BOTH, FORMATS, PRECISIONS
from prune_export.prune.loading import load_config
from prune_export.prune.shapes import model_shape
from prune_export.prune.sources import resolve_source
from prune_export.units import format_bytes

LIMIT = 2.2
_INTERVAL_S = 0.05


def main() -> int:
    """Command line of the script; 1 where the peak is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint; see tools/random_model.py")
    parser.add_argument("--format", choices=(*FORMATS, BOTH), default="onnx")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the export is written (default: temporary)")
    arguments = parser.parse_args()
    weights = 4 * model_shape(load_config(resolve_source(arguments.model))).parameters()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        command = [sys.executable, "-P", "-m", "prune_export.cli", "export", "--model", arguments.model, "--format"]
        command += [arguments.format, "--precision", arguments.precision, "-o", str(Path(folder) / "out")]
        begun = time.monotonic()
        peak, code = watched(command)
        seconds = time.monotonic() - begun
    if code:
        return code
    ratio = peak / weights
    print("| format | precision | fp32 weights | peak | peak / weights | limit | seconds |")
    print("|---|---|---|---|---|---|---|")
    figures = f"{format_bytes(weights)} | {format_bytes(peak)} | {ratio:.2f} | {LIMIT} | {seconds:.0f}"
    print(f"| {arguments.format} | {arguments.precision} | {figures} |")
    return int(ratio >= LIMIT)


def watched(command: list[str]) -> tuple[int, int]:
    """Peak resident bytes of a command with its children, and its exit code."""
    peak = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, _resident(process.pid), _high_water(process.pid))
            time.sleep(_INTERVAL_S)
    return peak, process.returncode


def _resident(pid: int) -> int:
    try:
        root = psutil.Process(pid)
        return sum(item.memory_info().rss for item in (root, *root.children(recursive=True)))
    except psutil.Error:  # it has just ended
        return 0


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    sys.exit(main())
