"""Time and peak memory of a search with what belongs to it, phase by phase, on a model of real size.

    python tools/random_model.py llama-3.2-1b -o MODEL
    python tools/search_time.py --model MODEL --target-ratio 20%

Runs `prune` in this process with the default search and calibration unless told otherwise, and prints a Markdown table.
Memory is of the whole process tree, imports included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from prune_export.api import prune
from prune_export.delivery.resources import TreeMemory
from prune_export.delivery.settings import DEFAULT_SEARCH, SearchSettings
from prune_export.progress import Progress
from prune_export.units import format_bytes, format_clock, parse_share


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint; see tools/random_model.py")
    parser.add_argument("--target-ratio", default="20%", help="share of the parameters to remove (default 20%%)")
    parser.add_argument("--search", default=DEFAULT_SEARCH, help="(default %(default)s)")
    parser.add_argument("--calibration", metavar="FILE", help="text (default: the standard library's)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the checkpoint is written (default: temporary)")
    arguments = parser.parse_args()
    progress = Progress()
    started = time.monotonic()
    memory = TreeMemory(lambda: progress.current or "between phases")
    with memory, tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        chosen = prune(
            arguments.model,
            Path(folder) / "pruned",
            ratio=parse_share(arguments.target_ratio, what="--target-ratio"),
            search=SearchSettings(search=arguments.search),
            calibration=arguments.calibration,
            progress=progress,
        )
    whole = time.monotonic() - started
    print(f"{chosen.ratio:.1%} of {chosen.dense.parameters() / 1e6:.1f} million parameters removed\n")
    print("| phase | time | share | peak memory |\n|---|---|---|---|")
    for name, seconds in progress.timings_s.items():
        peak = format_bytes(memory.phases_bytes.get(name, 0))
        print(f"| {name} | {format_clock(seconds)} | {seconds / whole:.1%} | {peak} |")
    rest = whole - sum(progress.timings_s.values())
    print(f"| the rest (loading) | {format_clock(rest)} | {rest / whole:.1%} | |")
    print(f"| **all** | {format_clock(whole)} | 100% | {format_bytes(memory.peak_bytes)} |")


if __name__ == "__main__":
    main()
