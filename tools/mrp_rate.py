"""Time, memory and rate of joint removal on one projection, beside SparseGPT's and the machine's own solve rate.

    python tools/mrp_rate.py --width 4096

Every method runs in a fresh process, so that its peak memory is its own.  The yardstick is what torch needs for a batch
of Cholesky factorisations and solves of the same size (width x kept share, float32), timed in the exact solver's own
process before and after it.  Inputs are random with a power-law spectrum; weights are random.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from prune_export.prune.closed_form import MEMORY_BYTES, damped, row_losses, row_updates
from prune_export.prune.conjugate import TOLERANCE, conjugate_updates
from prune_export.prune.masks import single_mask
from prune_export.prune.sparsegpt import sparsegpt
from prune_export.sparsity import Pattern, parse_pattern
from prune_export.units import format_bytes, parse_bytes

METHODS = ("sparsegpt", "exact", "cg")
_TOKENS_A_CHANNEL = 4


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096, help="inputs of the projection (default 4096)")
    parser.add_argument("--rows", type=int, help="outputs of it (default: the width)")
    parser.add_argument("--share", default="50%", help="removed share (default 50%%)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", default="1GiB", help="bound of the exact solver (default 1GiB)")
    parser.add_argument("--method", choices=METHODS, help="run one in this process and print JSON")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or arguments.width
    torch.set_num_threads(arguments.threads)
    if arguments.method:
        print(json.dumps(measure(arguments)))
        return
    print(f"{arguments.rows} x {arguments.width} at {arguments.share}, {arguments.threads} threads")
    print("| method | seconds | peak memory | of that before | loss beside exact |\n|---|---|---|---|---|")
    results = {method: in_fresh_process(method) for method in METHODS}
    for method, result in results.items():
        loss = result["loss"] / results["exact"]["loss"]
        memory = f"{format_bytes(result['peak_bytes'])} | {format_bytes(result['before_bytes'])}"
        print(f"| {method} | {result['seconds']:.1f} | {memory} | {loss:.4f} |")
    exact = results["exact"]
    print(
        f"exact: {exact['rows_per_s']:.2f} rows/s ({exact['flops_per_s'] / 1e9:.1f} GFLOP/s); "
        f"batched Cholesky solves of {exact['unknowns']} unknowns: {exact['solves_per_s']:.2f}/s; ratio "
        f"{exact['rows_per_s'] / exact['solves_per_s']:.2f}"
    )
    print(f"cg: loss of every row within {TOLERANCE:.1%} of the optimum, by a bound that it checks itself")


def in_fresh_process(method: str) -> dict[str, Any]:
    """This script's own command with one method."""
    command = [sys.executable, *sys.argv, "--method", method]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One method: seconds, peak memory, summed loss."""
    width, pattern = arguments.width, parse_pattern(arguments.share)
    weights, hessian = problem(arguments.rows, width)
    kept = width - pattern.removed(width)
    # Libraries start up and the yardstick is taken before the peak counts.
    warm = [solve_rate(hessian, kept)] if arguments.method == "exact" else []
    run(arguments.method, weights[:8], hessian, pattern, memory_bytes=MEMORY_BYTES)
    before, _ = reset_peak()
    begun = time.perf_counter()
    pruned = run(arguments.method, weights, hessian, pattern, memory_bytes=parse_bytes(arguments.memory))
    seconds = time.perf_counter() - begun
    peak = status_bytes("VmHWM")
    result = {
        "seconds": seconds,
        "peak_bytes": peak,
        "before_bytes": before,
        "loss": float(
            sum(row_losses(p - w, hessian).sum() for p, w in zip(pruned.split(256), weights.split(256), strict=True))
        ),
    }
    if warm:
        warm.append(solve_rate(hessian, kept))
        rate = arguments.rows / seconds
        result |= {"rows_per_s": rate, "unknowns": kept, "flops_per_s": rate * kept**3 / 3}
        result["solves_per_s"] = sum(warm) / len(warm)
    return result


def run(
    method: str, weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern, *, memory_bytes: int
) -> torch.Tensor:
    """Pruned weights; mask and update together."""
    if method == "sparsegpt":
        return sparsegpt(weights, hessian, pattern)[0]
    mask = single_mask(weights, hessian, pattern)
    if method == "cg":
        return conjugate_updates(weights, mask, hessian).weights
    return row_updates(weights, mask, hessian, memory_bytes=memory_bytes).weights


def problem(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [rows, width] and the damped Hessian of inputs whose spectrum falls like 1 / rank."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    mixing *= torch.arange(1, width + 1)[:, None] ** -0.5
    moment = torch.zeros(width, width, dtype=torch.float64)
    for _ in range(_TOKENS_A_CHANNEL):
        inputs = torch.randn(width, width, generator=generator) @ mixing
        moment += inputs.T @ inputs
    return torch.randn(rows, width, generator=generator), damped(moment, 0.01)


def solve_rate(hessian: torch.Tensor, size: int, *, count: int = 8, repeats: int = 3) -> float:
    """Systems a second of torch's own batched Cholesky factorisation and solve, float32; the best of some repeats."""
    systems = hessian[:size, :size].float().expand(count, size, size).contiguous()
    wanted = torch.ones(count, size, 1)
    best = 0.0
    for _ in range(repeats):
        begun = time.perf_counter()
        torch.cholesky_solve(wanted, torch.linalg.cholesky(systems))
        best = max(best, count / (time.perf_counter() - begun))
    return best


def reset_peak() -> tuple[int, int]:
    """Makes VmHWM start from what is resident now; (resident, peak) bytes."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return status_bytes("VmRSS"), status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A memory figure of this process."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024


if __name__ == "__main__":
    main()
