"""How far copies of a model in one process differ, and a model from process to process, in small and in huge pages.

    python tools/page_noise.py llama-3.2-1b --layers 6

Both kinds of pages take turns, so that a machine that changes during the run changes for both.  Prints the median time
per output token of each copy, in the order of loading, and of processes with one alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from prune_export.benchmark.process import panel_request, run_panel
from prune_export.delivery.stacks import Design, build_stack, format_for
from prune_export.profiles import DeviceProfile
from prune_export.profiles.load import load_profile
from prune_export.prune.synthetic import KNOWN_SHAPES
from prune_export.target import Workload, parse_workload


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=KNOWN_SHAPES)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--alone", type=int, default=3, help="processes with one copy")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--device", default="host")
    parser.add_argument("--workload", default="prompt=128,new=32,batch=1")
    parser.add_argument("--seconds", type=float, default=4.0, help="a copy and process, loading included")
    arguments = parser.parse_args()
    shape, profile = KNOWN_SHAPES[arguments.shape], load_profile(arguments.device)
    workload = parse_workload(arguments.workload)
    with tempfile.TemporaryDirectory() as folder:
        stack = build_stack(
            shape,
            Design("stack", shape.layers[: arguments.layers]),
            Path(folder) / "stack",
            precision=arguments.precision,
            format=format_for(profile.runtime),
            group_size=profile.int4_group,
            seed=0,
        )
        for copies, processes in ((arguments.copies, 1), (1, arguments.alone)):
            for _ in range(processes):
                for huge in (False, True):
                    seconds = arguments.seconds * copies
                    found = times(stack.directory, copies, profile, workload, arguments.precision, seconds, huge)
                    print(
                        "huge pages: " if huge else "small pages:",
                        " ".join(f"{1e3 * each:.1f}" for each in found),
                        "ms",
                    )


def times(
    directory: Path,
    copies: int,
    profile: DeviceProfile,
    workload: Workload,
    precision: str,
    seconds: float,
    huge_pages: bool,
) -> list[float]:
    """Seconds per output token of each copy, the median over a fresh process's turns."""
    request = panel_request(
        [directory] * copies,
        profile=profile,
        workload=workload,
        precision=precision,
        threads=0,
        seconds=seconds,
        huge_pages=huge_pages,
    )
    return [median(turns) for turns in run_panel(request).tpot_s]


if __name__ == "__main__":
    main()
