"""How far an artifact seems faster than itself: processes that take turns beside processes one after the other.

    python tools/paired_noise.py DIR --precision int8 --rounds 10

Both ways alternate, so that a machine that changes during the run changes for both.  Prints, for each way, the paired
ratio of each statistic (with its range over the rounds and its standard error), 1 without noise, and how much slower
the one is that is loaded first, which a ratio leaves out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import geometric_mean

from prune_export.benchmark.compare import PairedRatio, paired_ratio
from prune_export.benchmark.measure import Rounds, Subject, measure_together
from prune_export.profiles.load import load_profile
from prune_export.target import parse_workload

WAYS = {"in turns": None, "one after the other": 0}  # weights that may stand in memory together
STATISTICS = (("tpot", "p50"), ("tpot", "p90"), ("ttft", "p50"))


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--device", default="host")
    parser.add_argument("--workload", default="prompt=128,new=64,batch=1")
    parser.add_argument("--rounds", type=int, default=10, help="an even number")
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {way: {" ".join(key): [] for key in STATISTICS} for way in WAYS}
    for _ in range(arguments.rounds // 2):
        for way, most in WAYS.items():
            first, second = measure_together(
                [Subject(arguments.artifact, arguments.precision)] * 2,
                profile=load_profile(arguments.device),
                workload=parse_workload(arguments.workload),
                rounds=Rounds(2),
                sample_memory=False,
                together_bytes=most,
            )
            for metric, statistic in STATISTICS:
                found[way][f"{metric} {statistic}"] += paired_ratio(first, second, metric, statistic).per_round
    print("| figure | processes | ratio (range) | standard error | loaded first |\n|---|---|---|---|---|")
    for metric, statistic in STATISTICS:
        for way in WAYS:
            ratio = PairedRatio(tuple(found[way][f"{metric} {statistic}"]))
            first_loaded = (geometric_mean(ratio.per_round[::2]) / geometric_mean(ratio.per_round[1::2])) ** 0.5 - 1
            print(f"| {metric} {statistic} | {way} | {ratio} | {ratio.standard_error:.1%} | {first_loaded:+.1%} |")


if __name__ == "__main__":
    main()
