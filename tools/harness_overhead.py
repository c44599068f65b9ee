"""Decode throughput of the harness's own session beside bare loops over the same IR: what measuring itself costs.

    prune-export export --model reference --precision int8 -o DIR
    python tools/harness_overhead.py DIR --precision int8 --rounds 7

Fresh processes take turns, in another order each round: the session that `prune-export benchmark` and the main job
time; a bare loop as people write it, `infer` with a dictionary of arrays; the tightest one, whose tensors are set once.
The bare loops import nothing of this package, look at the clock twice a generation, and compile the same file with the
same properties, threads, prompt and number of new tokens.  A ratio of 1 means that measuring costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

LOOPS = ("session", "dictionary", "tight")


def main() -> None:
    """Command line of the script; with --bare the measured child."""
    if sys.argv[1:] == ["--bare"]:
        print(json.dumps(bare(json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="holds an IR, as export or the main job writes it")
    parser.add_argument("--precision", default="int8", help="of its weights (default int8)")
    parser.add_argument("--workload", default="prompt=384,new=128,batch=1,repeats=20")
    parser.add_argument("--rounds", type=int, default=7, help="fresh processes of each loop (default 7)")
    parser.add_argument("--threads", type=int, default=0, help="default: all physical cores")
    print(table(measure(parser.parse_args())))


def measure(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Decode throughput in tokens a second of every loop, one entry a round."""
    from prune_export.benchmark.affinity import OPTION
    from prune_export.benchmark.artifact import find_ir
    from prune_export.benchmark.process import run_worker
    from prune_export.benchmark.threads import checked_threads
    from prune_export.benchmark.timing import synthetic_prompt
    from prune_export.benchmark.worker import Request
    from prune_export.target import parse_workload

    workload = parse_workload(arguments.workload)
    threads = checked_threads(arguments.threads)
    request = Request(str(arguments.directory), arguments.precision, threads, "CPU", workload, "time", workload.repeats)
    options = run_worker(replace(request, repeats=1)).options
    child = {
        "ir": str(find_ir(arguments.directory)),
        "cpus": [int(cpu) for cpu in options.pop(OPTION, "").split(",") if cpu],
        "options": options,
        "prompt": synthetic_prompt(workload, vocabulary(find_ir(arguments.directory))).tolist(),
        "new": workload.new_tokens,
        "warmup": workload.warmup,
        "repeats": workload.repeats,
    }
    rounds, tokens = [], set()
    for turn in range(arguments.rounds):
        found = {}
        for loop in (*LOOPS[turn % len(LOOPS) :], *LOOPS[: turn % len(LOOPS)]):
            if loop == "session":
                found[loop] = throughput(generations(run_worker(request).itl_s, workload.new_tokens), workload)
            else:
                reply = run_bare({**child, "loop": loop})
                found[loop] = throughput(reply["seconds"], workload)
                tokens.add(tuple(reply["tokens"]))
        rounds.append(found)
    if len(tokens) != 1:
        raise SystemExit("the bare loops generated different tokens: one of them is wrong")
    return rounds


def throughput(seconds: list[float], workload: Any) -> float:
    """Decoded tokens a second in the median generation."""
    return float(workload.batch * (workload.new_tokens - 1) / statistics.median(seconds))


def generations(itl_s: tuple[float, ...], new_tokens: int) -> list[float]:
    """Seconds of each generation's decoding from the latencies of its tokens."""
    size = new_tokens - 1
    return [sum(itl_s[start : start + size]) for start in range(0, len(itl_s), size)]


def run_bare(settings: dict[str, Any]) -> dict[str, Any]:
    """One bare loop in a fresh process."""
    command = [sys.executable, "-P", __file__, "--bare"]
    done = subprocess.run(command, input=json.dumps(settings), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the bare loop ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    reply: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reply


def vocabulary(ir: Path) -> int:
    """V of an IR, read in this process: nothing is compiled."""
    from prune_export.telemetry import import_openvino

    size: int = import_openvino().Core().read_model(ir).output("logits").get_partial_shape()[-1].get_length()
    return size


def bare(settings: dict[str, Any]) -> dict[str, Any]:
    """Generates greedily through `openvino.Core` alone; seconds of each generation's decoding, and the tokens."""
    if settings.get("cpus"):
        os.sched_setaffinity(0, settings["cpus"])  # before OpenVINO counts them

    import numpy as np
    import openvino as ov

    core = ov.Core()
    types = {"NUM_STREAMS": int, "INFERENCE_NUM_THREADS": int, "DYNAMIC_QUANTIZATION_GROUP_SIZE": int}
    options = {name: types.get(name, str)(value) for name, value in settings["options"].items()}
    options |= {name: value == "True" for name, value in options.items() if value in ("True", "False")}
    request = core.compile_model(settings["ir"], "CPU", options).create_infer_request()
    present = {port.any_name for port in request.get_compiled_model().inputs}
    prompt = np.asarray(settings["prompt"], dtype=np.int64)
    decode = {"dictionary": decode_dictionary, "tight": decode_tight}[settings["loop"]]
    seconds, tokens = [], []
    for _ in range(settings["warmup"] + settings["repeats"]):
        request.reset_state()
        batch, past = prompt.shape
        inputs = {
            "input_ids": prompt,
            "attention_mask": np.ones((batch, past), np.int64),
            "position_ids": np.broadcast_to(np.arange(past), (batch, past)).copy(),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        inputs = {name: value for name, value in inputs.items() if name in present}
        if settings["loop"] == "tight":  # whose tensors of the last generation are too small for a prompt
            for name, value in inputs.items():
                request.set_tensor(name, ov.Tensor(value))
            inputs = {}
        first = request.infer(inputs)["logits"][:, -1].argmax(axis=-1, keepdims=True)
        begun = time.perf_counter()
        tokens = decode(ov, np, request, present, first, past, settings["new"] - 1)
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds[settings["warmup"] :], "tokens": tokens}


def decode_dictionary(
    ov: Any, np: Any, request: Any, present: set[str], token: Any, past: int, steps: int
) -> list[int]:
    """As people write it: arrays of each step in a dictionary."""
    batch, tokens = token.shape[0], []
    beams = np.arange(batch, dtype=np.int32)
    for _ in range(steps):
        past += 1
        inputs = {
            "input_ids": token,
            "attention_mask": np.ones((batch, past), np.int64),
            "position_ids": np.full((batch, 1), past - 1, np.int64),
            "beam_idx": beams,
        }
        logits = request.infer({name: value for name, value in inputs.items() if name in present})["logits"]
        token = logits[:, -1].argmax(axis=-1, keepdims=True)
        tokens.append(int(token[0, 0]))
    return tokens


def decode_tight(ov: Any, np: Any, request: Any, present: set[str], token: Any, past: int, steps: int) -> list[int]:
    """With as little Python as can be: shared tensors, written in place."""
    batch, tokens = token.shape[0], []
    ids, position = (np.zeros((batch, 1), np.int64) for _ in range(2))
    mask = ov.Tensor(ov.Type.i64, ov.Shape([batch, past + steps]))
    mask.data[:] = 1
    shared = {"input_ids": ov.Tensor(ids, shared_memory=True), "attention_mask": mask}
    shared["position_ids"] = ov.Tensor(position, shared_memory=True)
    for name, tensor in shared.items():
        if name in present:
            request.set_tensor(name, tensor)
    for _ in range(steps):
        ids[:] = token
        position[:] = past
        past += 1
        mask.shape = (batch, past)
        request.infer(share_outputs=True)
        token = request.get_output_tensor(0).data[:, -1].argmax(axis=-1, keepdims=True)
        tokens.append(int(token[0, 0]))
    return tokens


def table(rounds: list[dict[str, float]]) -> str:
    """The median of each loop over the rounds, and the session's ratio to it round by round, in Markdown."""
    lines = ["| loop | tokens/s | session / loop, median | lowest | highest |", "|---|---:|---:|---:|---:|"]
    for loop in LOOPS:
        cells = [f"{statistics.median(turn[loop] for turn in rounds):,.0f}", "", "", ""]
        if loop != "session":
            ratios = [turn["session"] / turn[loop] for turn in rounds]
            cells[1:] = [f"{ratio:.3f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios))]
        lines.append(f"| {' | '.join((loop, *cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
