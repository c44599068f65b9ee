"""Speed of the two attentions that ONNX Runtime has: its own GroupQueryAttention and ONNX's standard Attention.

    python tools/attention_operators.py

One layer of each, from packed queries, keys and values to what the output projection reads: rotation, mask and cache
included, projections left out, since they are the same.  GroupQueryAttention does all of it in one node, as the
exporter writes it; around the standard operator are a Split and two RotaryEmbeddings.  Both get the same inputs and
must give the same outputs and caches before anything is timed.  Sessions have the same options and take turns in one
process, and in another one that loads them in the other order.  Prints a Markdown table; a ratio above 1 means that
GroupQueryAttention is faster.  Keep the machine quiet meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from prune_export.benchmark.stacks import midmean
from prune_export.benchmark.threads import checked_threads
from prune_export.benchmark.turns import TurnRatio
from prune_export.errors import PruneExportError
from prune_export.profiles.load import load_profile
from prune_export.prune.synthetic import KNOWN_SHAPES
from prune_export.units import format_duration

GROUP, STANDARD = "GroupQueryAttention", "Attention"
# Outputs and caches of values around 1: fp32 sums of at most a thousand products in another order.
TOLERANCE = 1e-5
# The first opset with the standard operator and the one after it, which added to it.
OPSETS = (23, 24)
_IR_VERSION = 11
_MICROSOFT = "com.microsoft"
_TURN_S = 0.1
_LEAST_TURNS = 4


@dataclass(frozen=True)
class Case:
    """One call of one attention.

    Attributes:
        name: of the model with such heads.
        heads: of queries.
        kv_heads: of keys and values.
        width: of a head.
        past: tokens in the cache.
        new: tokens that are appended.
        shared: the cache is appended to in place, which the standard operator cannot.
    """

    name: str
    heads: int
    kv_heads: int
    width: int
    past: int
    new: int
    shared: bool

    @property
    def total(self) -> int:
        """Tokens in the cache afterwards."""
        return self.past + self.new


def cases(past: int, prompt: int) -> list[Case]:
    """A token onto `past`, with a cache in one buffer and in two, and `prompt` tokens onto none, for both models."""
    found = []
    for name, shape in KNOWN_SHAPES.items():
        layer = shape.layers[0]
        heads = (name, layer.query_heads, layer.kv_heads, shape.head_dim)
        found += [Case(*heads, past, 1, True), Case(*heads, past, 1, False), Case(*heads, 0, prompt, True)]
    return found


def group_graph(case: Case) -> ModelProto:
    """As `export/onnx_attention.py` writes it."""
    inputs = ["qkv", "", "", "past_key", "past_value", "lengths", "total", "cos", "sin", "", "bias"]
    node = helper.make_node(
        GROUP,
        inputs,
        ["output", "present_key", "present_value"],
        domain=_MICROSOFT,
        num_heads=case.heads,
        kv_num_heads=case.kv_heads,
        scale=case.width**-0.5,
        local_window_size=-1,
        do_rotary=1,
    )
    extra = [
        helper.make_tensor_value_info("lengths", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
    ]
    return _model(case, [node], extra, opset=21)


def standard_graph(case: Case, opset: int) -> ModelProto:
    """The same with ONNX's own operators."""
    sizes = [case.heads * case.width, case.kv_heads * case.width, case.kv_heads * case.width]
    nodes = [helper.make_node("Split", ["qkv", "sizes"], ["q", "k", "v"], axis=-1)]
    for name, count in (("q", case.heads), ("k", case.kv_heads)):
        inputs = [name, "cos", "sin", "positions"]
        nodes.append(helper.make_node("RotaryEmbedding", inputs, [f"{name}_rotated"], num_heads=count))
    nodes.append(
        helper.make_node(
            STANDARD,
            ["q_rotated", "k_rotated", "v", "bias", "past_key", "past_value"],
            ["output", "present_key", "present_value"],
            q_num_heads=case.heads,
            kv_num_heads=case.kv_heads,
            scale=case.width**-0.5,
            is_causal=1,
        )
    )
    extra = [helper.make_tensor_value_info("positions", TensorProto.INT64, [1, "new"])]
    constants = [helper.make_tensor("sizes", TensorProto.INT64, [3], sizes)]
    return _model(case, nodes, extra, opset=opset, constants=constants)


def _model(
    case: Case, nodes: list[Any], extra: list[Any], *, opset: int, constants: Sequence[TensorProto] = ()
) -> ModelProto:
    """The graph around nodes; the rotary tables are weights."""
    kind = TensorProto.FLOAT
    packed = (case.heads + 2 * case.kv_heads) * case.width
    cache: list[str | int] = [1, case.kv_heads, "past", case.width]
    inputs = [
        helper.make_tensor_value_info("qkv", kind, [1, "new", packed]),
        helper.make_tensor_value_info("bias", kind, [1, 1, "new", "whole"]),
        *(helper.make_tensor_value_info(f"past_{part}", kind, cache) for part in ("key", "value")),
        *extra,
    ]
    outputs = [
        helper.make_tensor_value_info("output", kind, [1, "new", case.heads * case.width]),
        *(
            helper.make_tensor_value_info(f"present_{part}", kind, [1, case.kv_heads, "present", case.width])
            for part in ("key", "value")
        ),
    ]
    angles = np.outer(np.arange(case.total), 1e4 ** (-np.arange(0, case.width, 2) / case.width))
    tables = [
        helper.make_tensor(name, kind, angles.shape, turn(angles).astype(np.float32))
        for name, turn in (("cos", np.cos), ("sin", np.sin))
    ]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, initializer=[*tables, *constants])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(_MICROSOFT, 1)]
    made: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return made


class Bound:
    """A session with everything bound: a call computes the same tokens again.

    Args:
        model: one of the two graphs.
        case: what is computed.
        threads: of the runtime.
        shared: past and present are one buffer.
    """

    def __init__(self, model: ModelProto, case: Case, *, threads: int, shared: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._case = case
        self._arrays: dict[str, NDArray[Any]] = {**given(case)}
        # A buffer has room for what is appended; the first call of the token appends it, further ones write it again.
        rows = case.total if shared else case.past
        for part in ("key", "value"):
            whole = np.zeros((1, case.kv_heads, rows, case.width), np.float32)
            whole[:, :, : case.past] = self._arrays[f"past_{part}"]
            self._arrays[f"past_{part}"] = whole
            present = whole if shared else np.empty((1, case.kv_heads, case.total, case.width), np.float32)
            self._arrays[f"present_{part}"] = present
        self._arrays["output"] = np.empty((1, case.new, case.heads * case.width), np.float32)
        self._binding = self._session.io_binding()
        for ports, bind in (
            (self._session.get_inputs(), self._binding.bind_input),
            (self._session.get_outputs(), self._binding.bind_output),
        ):
            for port in ports:
                array = self._arrays[port.name]
                bind(port.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def __call__(self) -> None:
        """One run."""
        self._session.run_with_iobinding(self._binding)

    def results(self) -> list[NDArray[np.float32]]:
        """What the last run gave: output and caches."""
        return [self._arrays["output"], *(self._arrays[f"present_{part}"] for part in ("key", "value"))]


def given(case: Case) -> dict[str, NDArray[Any]]:
    """All inputs, the same for both graphs; nothing is padding."""
    random = np.random.default_rng(0)
    packed = (case.heads + 2 * case.kv_heads) * case.width
    cache = (1, case.kv_heads, case.past, case.width)
    return {
        "qkv": random.standard_normal((1, case.new, packed), np.float32),
        "past_key": random.standard_normal(cache, np.float32),
        "past_value": random.standard_normal(cache, np.float32),
        "bias": np.zeros((1, 1, case.new, case.total), np.float32),
        "lengths": np.array([case.total - 1], np.int32),
        "total": np.array(case.total, np.int32),
        "positions": np.arange(case.past, case.total, dtype=np.int64)[None],
    }


def sessions(case: Case, threads: int, *, swapped: bool = False) -> tuple[Bound, Bound]:
    """Both, loaded in this order or the other one, after a run of each.

    Raises:
        PruneExportError: the runtime does not run the standard operator, or the two give different results.
    """

    def standard() -> Bound:
        why = ""
        for opset in OPSETS:
            try:
                made = Bound(standard_graph(case, opset), case, threads=threads, shared=False)
                made()
            except Exception as error:  # noqa: BLE001  whatever the runtime raises is the answer
                why = why or (str(error).strip() or type(error).__name__).splitlines()[0]
            else:
                return made
        raise PruneExportError(f"ONNX Runtime {onnxruntime.__version__} does not run {STANDARD}: {why}")

    def group() -> Bound:
        made = Bound(group_graph(case), case, threads=threads, shared=case.shared)
        made()
        return made

    one, other = (standard, group) if swapped else (group, standard)
    loaded = one(), other()
    ours, theirs = loaded[::-1] if swapped else loaded
    pairs = zip(ours.results(), theirs.results(), strict=True)
    error = max(float(np.abs(a - b).max()) for a, b in pairs)
    if not error <= TOLERANCE:
        raise PruneExportError(f"{GROUP} and {STANDARD} differ by {error:.2g}, at most {TOLERANCE:.0e} is rounding")
    return ours, theirs


def timed(case: Case, threads: int, seconds: float, swapped: bool) -> tuple[list[float], list[float]]:
    """Seconds a call of each, turn by turn: A B B A."""
    pair = sessions(case, threads, swapped=swapped)
    order = [1, 0] if swapped else [0, 1]
    turns: tuple[list[float], list[float]] = ([], [])
    once = max(_turn(item, 3) for item in pair)
    calls = max(1, round(_TURN_S / once))
    for item in pair:  # warm up
        _turn(item, calls)
    begun = time.monotonic()
    while time.monotonic() - begun < seconds or len(turns[0]) < _LEAST_TURNS:
        for index in order:
            turns[index].append(_turn(pair[index], calls))
        order.reverse()
    return turns


def _turn(run: Callable[[], None], calls: int) -> float:
    """The median of so many calls."""
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


def row(case: Case, *, threads: int, seconds: float, processes: int) -> str:
    """One line of the table."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(processes):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            turns = pool.submit(timed, case, threads, seconds, number % 2 == 1).result()
        ours += turns[0]
        theirs += turns[1]
    ratios = tuple(b / a for a, b in zip(ours, theirs, strict=True))
    found = TurnRatio((midmean(ours), midmean(theirs)), ratios, processes)
    what = f"{case.new} onto {case.past}" if case.past else f"{case.new} onto an empty cache"
    place = "in place" if case.shared else "copied"
    times = [format_duration(value) for value in found.seconds]
    cells = [f"{case.name}, {case.heads} / {case.kv_heads}", what, place, *times, str(found)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--past", type=int, default=512, help="tokens in the cache where one is decoded (default 512)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prefill (default 512)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each row (default 2)")
    parser.add_argument("--seconds", type=float, default=6, help="of each process (default 6)")
    parser.add_argument("--threads", type=int, default=0, help="default: all physical cores")
    arguments = parser.parse_args()
    threads = checked_threads(arguments.threads or load_profile("host").threads)
    print(f"| query / KV heads of | tokens | cache of {GROUP} | {GROUP} | {STANDARD} | {STANDARD} / {GROUP} |")
    print("|---|---|---|---|---|---|")
    for case in cases(arguments.past, arguments.prompt):
        print(row(case, threads=threads, seconds=arguments.seconds, processes=arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
