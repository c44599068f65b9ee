"""What zeros in the weights save on this machine: a sparse artifact beside its dense form, interleaved.

    prune-export export --model MODEL -o dense-ir
    prune-export sparsify --model MODEL --pattern 50% -o sparse && prune-export export --model sparse -o sparse-ir
    python tools/sparse_speed.py dense-ir sparse-ir

OpenVINO's CPU plugin packs sparse weights where their share of zeros reaches CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE.
Every measurement is a fresh process; the rounds go dense, sparse, sparse with decompression, dense, ...
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from prune_export.benchmark.openvino_session import OpenVINOSession
from prune_export.benchmark.timing import generate, synthetic_prompt
from prune_export.target import Workload
from prune_export.units import format_duration

RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
_TIMED_S = 3.0


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("sparse", type=Path)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rate", type=float, default=0.4, help="threshold of the decompression (default 0.4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help="time the first directory in this process, print JSON")
    parser.add_argument("--gpu-model", type=Path, help="2:4 checkpoint to time on a CUDA GPU, dense and packed")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(timed(arguments.dense, arguments)))
        return
    amx = "amx_int8" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    print(f"AMX int8, which the decompression's kernels are written for: {'yes' if amx else 'no'}")
    compare(arguments)
    if arguments.gpu_model is not None:
        time_gpu(arguments.gpu_model)


def compare(arguments: argparse.Namespace) -> None:
    """Interleaved rounds and a Markdown table."""
    subjects = {
        "dense": (arguments.dense, 1.0),
        "sparse": (arguments.sparse, 1.0),
        "sparse, decompression": (arguments.sparse, arguments.rate),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
    for _ in range(arguments.rounds):
        for name, (directory, rate) in subjects.items():
            command = [sys.executable, sys.argv[0], str(directory), str(directory), "--worker", "--rate", str(rate)]
            command += ["--precision", arguments.precision, "--threads", str(arguments.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print("| artifact | threshold in force | measure | median of rounds | range of rounds | beside dense |")
    print("|---|---|---|---|---|---|")
    for kind, shown in (("p50", "p50 time per token"), ("cpu", "CPU time per token")):
        middle = {name: statistics.median(item[kind] for item in rounds) for name, rounds in found.items()}
        for name, rounds in found.items():
            low, high = (format_duration(pick(item[kind] for item in rounds)) for pick in (min, max))
            figures = f"{format_duration(middle[name])} | {low} to {high} | {middle[name] / middle['dense']:.3f}"
            print(f"| {name} | {float(rounds[0]['rate']):.2g} | {shown} | {figures} |")


def timed(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median time per token in this process, and the threshold that the runtime says is in force."""
    workload = Workload(prompt_tokens=64, new_tokens=64)
    session = OpenVINOSession(
        directory,
        precision=arguments.precision,
        threads=arguments.threads,
        last_token_only=True,
        extra_properties={RATE: arguments.rate},
    )
    session.load()
    prompt = synthetic_prompt(workload, session.vocab_size)
    generate(session, prompt, workload.new_tokens)
    gaps: list[float] = []
    begun, work = time.monotonic(), time.process_time()
    while time.monotonic() - begun < _TIMED_S:
        marks = generate(session, prompt, workload.new_tokens)
        gaps += [after - before for before, after in pairwise(marks[1:])]
    # Prompts included: what another program on the machine takes away does not count here.
    work = (time.process_time() - work) / len(gaps)
    return {"p50": statistics.median(gaps), "cpu": work, "rate": session.property(RATE)}


def time_gpu(directory: Path) -> None:
    """Dense float16 and packed 2:4 on the same GPU, prompt of 512 tokens."""
    import torch

    from prune_export.errors import BadInputError
    from prune_export.prune.loading import load_model
    from prune_export.prune.semi_structured import to_semi_structured

    model = load_model(directory)
    if not torch.cuda.is_available():
        print("no CUDA device: 2:4 on sparse tensor cores was not measured")
        return
    ids = torch.ones(8, 512, dtype=torch.long, device="cuda")

    def milliseconds() -> float:
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            model(input_ids=ids, use_cache=False)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        return 1e3 * statistics.median(times[5:])

    with torch.inference_mode():
        model.to("cuda", torch.float16)
        dense = milliseconds()
        try:
            packed = to_semi_structured(model)
        except BadInputError as error:
            print(error)
            return
        print(
            f"{torch.cuda.get_device_name()}: dense {dense:.2f} ms, {packed} projections packed {milliseconds():.2f} ms"
        )


if __name__ == "__main__":
    main()
