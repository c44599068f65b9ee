"""Checkpoints through torch, and exports through the GenAI pipelines, timed as everything else is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_export.api import export, load
from prune_export.benchmark import affinity, measure
from prune_export.benchmark.checkpoint_files import CONFIG_NAME, checkpoint_bytes, checkpoint_precision
from prune_export.benchmark.genai_session import OpenVINOPipeline, OrtPipeline
from prune_export.benchmark.measure import Rounds, Subject, measure_together
from prune_export.benchmark.openvino_session import OpenVINOSession
from prune_export.benchmark.run import render_text, run_benchmark
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.torch_session import TorchSession
from prune_export.errors import BadInputError
from prune_export.manifest import OPENVINO_RECORD
from prune_export.profiles import core_cpus, load_profile
from prune_export.target import Workload

HOST = load_profile("host")
WORKLOAD = Workload(prompt_tokens=8, new_tokens=5, warmup=0, repeats=1)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both formats of the checkpoint, in int8."""
    output = tmp_path_factory.mktemp("both") / "artifact"
    export(str(checkpoint), output, format="both", precision="int8")
    return output


@pytest.mark.parametrize("last_token_only", [False, True])
def test_the_torch_session_computes_what_the_model_computes(checkpoint: Path, last_token_only: bool) -> None:
    session = TorchSession(checkpoint, precision="fp32", threads=1, last_token_only=last_token_only)
    session.load()
    ids = np.random.default_rng(0).integers(0, session.vocab_size, (2, 9))
    with torch.inference_mode():
        expected = load(checkpoint)(input_ids=torch.from_numpy(ids)).logits.numpy()
    for _ in range(2):  # a second time after a reset: the cache was emptied
        first = session.prefill(ids[:, :6])
        assert first.shape[1] == (1 if last_token_only else 6)
        session.touch()  # leaves the cache as it is
        found = [first, *(session.decode(ids[:, [at]]) for at in range(6, 9))]
        wanted = expected[:, -4:] if last_token_only else expected
        # The same kernels on other shapes: fp32 rounding alone.
        assert np.allclose(np.concatenate(found, axis=1), wanted, atol=1e-4)
        session.reset()
    assert session.options["dtype"] == "float32"


def test_a_checkpoint_is_compared_with_its_export(checkpoint: Path, exported: Path) -> None:
    result = run_benchmark(
        checkpoint, compare=exported / "openvino", profile=HOST, workload=WORKLOAD, threads=1, rounds=1
    )
    ours, theirs = result.measurements
    assert (ours.runtime, ours.precision, theirs.runtime, theirs.precision) == ("torch", "fp32", "openvino", "int8")
    assert ours.weights_bytes == checkpoint_bytes(checkpoint / CONFIG_NAME)
    assert ours.peak_rss_bytes > 0
    assert {"torch", "transformers"} <= ours.versions.keys()
    assert "tpot" in render_text(result)


def test_an_export_comes_before_the_checkpoint_beside_it(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "checkpoint").symlink_to(checkpoint)
    (artifact / "openvino").symlink_to(exported / "openvino")
    assert find_model(artifact).runtime.name == "openvino"
    assert find_model(artifact / "checkpoint").runtime.name == "torch"


def test_the_type_of_a_checkpoint_is_read_off_its_files(checkpoint: Path, tmp_path: Path) -> None:
    assert checkpoint_precision(checkpoint / CONFIG_NAME) == "fp32"
    header = json.dumps({"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(BadInputError, match="weights of type I8: torch is timed in fp32, bf16, fp16"):
        checkpoint_precision(tmp_path / CONFIG_NAME)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 9)
    with pytest.raises(BadInputError, match="is truncated or damaged: a header of"):
        checkpoint_precision(tmp_path / CONFIG_NAME)


def test_what_torch_is_not_timed_in_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="precision int4: torch is timed in fp32, bf16, fp16"):
        TorchSession(checkpoint, precision="int4").load()
    with pytest.raises(BadInputError, match='device "GPU": torch is driven on CPU or cuda'):
        TorchSession(checkpoint, precision="fp32", device="GPU").load()
    (tmp_path / CONFIG_NAME).write_text("{}")
    with pytest.raises(BadInputError, match="has no safetensors weights"):
        find_model(tmp_path)


@pytest.mark.parametrize(("pipeline", "folder"), [(OpenVINOPipeline, "openvino"), (OrtPipeline, "onnx")])
def test_pipelines_time_every_token(
    exported: Path, pipeline: type[OpenVINOPipeline | OrtPipeline], folder: str
) -> None:
    opened = pipeline(exported / folder, precision="int8", threads=1)
    opened.load()
    assert opened.load_s > 0
    prompt = np.arange(6)[None]
    for new_tokens in (2, 7):
        marks = opened.generate(prompt, new_tokens)
        assert len(marks) == new_tokens + 1
        assert all(later > earlier for earlier, later in pairwise(marks))


def test_a_pipeline_runs_the_cache_that_the_export_was_asked_for(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "openvino", tmp_path / "openvino")
    record = tmp_path / "openvino" / OPENVINO_RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"kv_cache": "f16"}))
    for folder, cache in ((exported / "openvino", "u8"), (tmp_path / "openvino", "f16")):
        for kind in (OpenVINOPipeline, OpenVINOSession):
            opened = kind(folder, precision="int8", threads=1)
            opened.load()
            assert opened.options["KV_CACHE_PRECISION"] == cache


def test_a_pipeline_on_an_absent_device_is_one_line(exported: Path) -> None:
    with pytest.raises(BadInputError, match='device "GPU" is absent here: OpenVINO finds CPU'):
        OpenVINOPipeline(exported / "openvino", precision="int8", threads=1, device="GPU").load()


def test_batches_that_a_pipeline_cannot_stream_are_refused_before_anything_is_measured(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(measure, "run_worker", started.append)
    with pytest.raises(BadInputError, match="batch 4: the pipeline of openvino-genai streams the tokens of 1 sequence"):
        run_benchmark(
            exported / "openvino", profile=HOST, workload=WORKLOAD, through="genai", batches=(1, 4), threads=1
        )
    assert started == []


def test_no_prompt_is_answered_from_a_cache(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every repeat has the same prompt: a cache of prompts would leave a time to first token of two tokens."""
    import openvino_genai

    made = openvino_genai.LLMPipeline
    seen: list[Any] = []
    refused: list[str] = []

    def watched(*arguments: Any, **settings: Any) -> Any:
        seen.append(settings.get("scheduler_config"))
        assert (seen[-1] is None) == (settings.get("ATTENTION_BACKEND") == "SDPA")
        if refused and seen[-1] is not None:
            raise RuntimeError("no paged attention in this graph")
        return made(*arguments, **settings)

    monkeypatch.setattr(openvino_genai, "LLMPipeline", watched)
    for _ in range(2):
        pipeline = OpenVINOPipeline(exported / "openvino", precision="int8", threads=1)
        pipeline.load()
        assert pipeline.options["enable_prefix_caching"] == "False"
        for _ in range(2):
            assert len(pipeline.generate(np.arange(1, 9)[None, :], 5)) == 6
        refused.append("from the second on")
    assert [item is None for item in seen] == [False, False, True]
    assert not seen[0].enable_prefix_caching
    assert seen[0].max_num_batched_tokens > 1 << 32  # a prompt in one piece, as by default


def test_both_pipelines_are_benchmarked_end_to_end(exported: Path, checkpoint: Path) -> None:
    found = measure_together(
        [Subject(exported / name, "int8", through="genai") for name in ("openvino", "onnx")],
        profile=HOST,
        workload=WORKLOAD,
        rounds=Rounds(1),
        threads=1,
    )
    assert [item.runtime for item in found] == ["openvino-genai", "onnxruntime-genai"]
    for item in found:
        assert item.runtime in item.versions
        assert len(item.itl_s) == 4 * len(item.ttft_s) > 0
        assert item.peak_rss_bytes > 0
    with pytest.raises(BadInputError, match=r"batch 2: the pipeline .*: take batch 1, or --through session"):
        measure_together(
            [Subject(exported / "openvino", "int8", through="genai")],
            profile=HOST, workload=Workload(batch=2, prompt_tokens=8, new_tokens=5), rounds=Rounds(1), threads=1,
        )  # fmt: skip
    with pytest.raises(BadInputError, match="is a checkpoint, which no GenAI pipeline runs: export it first"):
        run_benchmark(checkpoint, profile=HOST, workload=WORKLOAD, through="genai", threads=1)


PINNED = """
import json, os, sys
from pathlib import Path
from prune_export.benchmark.affinity import pin

directory, threads, allowed = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
os.sched_setaffinity(0, allowed)
told = pin(threads, "CPU")
import numpy as np
from prune_export.benchmark.runtimes import find_model

session = find_model(directory).runtime.open_session(
    directory, precision="fp32", threads=threads, device="CPU", last_token_only=True
)
session.load()
session.prefill(np.arange(6)[None])
session.decode(np.zeros((1, 1), np.int64))
print(json.dumps([told, [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]]))
"""


@pytest.mark.skipif(not core_cpus(), reason="this system knows no affinity")
@pytest.mark.parametrize("runtime", ["openvino", "onnx", "checkpoint"])
def test_every_thread_of_a_runtime_stays_on_the_cpus_asked_for(checkpoint: Path, exported: Path, runtime: str) -> None:
    """OpenVINO's own pinning included: it must not take the first CPUs of the machine."""
    directory = checkpoint if runtime == "checkpoint" else exported / runtime
    cpus = core_cpus()
    for allowed in {tuple(cpus), cpus[-1:]}:
        command = [sys.executable, "-c", PINNED, str(directory), "1", json.dumps(allowed)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        told, threads = json.loads(found.stdout.splitlines()[-1])
        assert told == {"affinity": str(allowed[0])}
        assert threads == [[allowed[0]]] * len(threads)


@pytest.mark.skipif(not core_cpus(), reason="this system knows no affinity")
@pytest.mark.parametrize("runtime", ["openvino", "checkpoint"])
def test_the_cpus_of_a_measurement_are_recorded(checkpoint: Path, exported: Path, runtime: str) -> None:
    directory = checkpoint if runtime == "checkpoint" else exported / runtime
    for threads in (1, len(core_cpus())):
        (found,) = measure_together(
            [Subject(directory, "fp32")], profile=HOST, workload=WORKLOAD, rounds=Rounds(1), threads=threads,
            sample_memory=False,
        )  # fmt: skip
        assert found.options["affinity"] == ",".join(map(str, core_cpus()[:threads]))


def test_one_logical_cpu_of_each_core_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up machines: three cores of two siblings each, and one that knows no affinity."""
    mask = set(range(6))
    monkeypatch.setattr(affinity, "core_cpus", lambda: (0, 2, 4))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: mask)
    monkeypatch.setattr("os.sched_setaffinity", lambda _, cpus: (mask.clear(), mask.update(cpus)))
    assert affinity.pin(1, "GPU") == affinity.pin(1, "cuda") == {}
    assert mask == set(range(6))
    for threads, left in ((4, "0,1,2,3,4,5"), (0, "0,2,4"), (3, "0,2,4"), (2, "0,2")):
        assert affinity.pin(threads, "CPU") == {"affinity": left}
    monkeypatch.setattr(affinity, "core_cpus", lambda: ())
    assert affinity.pin(1, "CPU") == {}
