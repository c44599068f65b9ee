"""The GPU session's static cache and self-feeding step, on the CPU with a device that only pretends to capture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import StaticCache

from prune_export.benchmark import torch_cuda_session
from prune_export.benchmark.measure import measure
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.session import Pipeline
from prune_export.benchmark.timing import time_session
from prune_export.benchmark.torch_cuda_session import DeviceCuda, TorchCudaSession
from prune_export.benchmark.torch_session import TorchSession
from prune_export.errors import BadInputError
from prune_export.profiles import load_profile
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload

MIXED = (LayerShape(4, 2, 48), LayerShape(0, 0, 32), LayerShape(2, 1, 0), LayerShape(6, 3, 16))


class Pretended:
    """Runs on the CPU; a "graph" is the step itself, warmed up as a real one is."""

    name = "pretended GPU"

    def __init__(self) -> None:
        self.captures = 0

    def captured(self, step: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            step()
        self.captures += 1
        return step

    def mark(self) -> Any:
        return time.perf_counter()

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        return [mark - marks[0] for mark in marks]

    def peak_bytes(self) -> int:
        return 123


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned checkpoint whose layers all differ."""
    shape = ModelShape("llama", 48, 8, 96, True, MIXED, context=64)
    directory = tmp_path_factory.mktemp("mixed") / "model"
    save_checkpoint(random_model(shape, seed=3), None, directory)
    return directory


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the session put its tensors on the CPU."""
    original = TorchCudaSession.__init__

    def made(self: TorchCudaSession, directory: Path, **settings: Any) -> None:
        original(self, directory, **{**settings, "device": "CPU"})

    monkeypatch.setattr(TorchCudaSession, "__init__", made)


def greedy(directory: Path, prompt: Any, new_tokens: int) -> list[int]:
    """By the model itself, without any cache."""
    model, ids = load(directory), torch.from_numpy(prompt)
    with torch.inference_mode():
        for _ in range(new_tokens):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in ids[0, prompt.shape[1] :]]


@pytest.mark.usefixtures("on_cpu")
def test_steps_that_feed_themselves_choose_what_the_model_chooses(mixed: Path) -> None:
    cuda = Pretended()
    session = TorchCudaSession(mixed, precision="fp32", threads=1, cuda=cuda)
    session.load()
    assert isinstance(session, Pipeline), "timed by its own generation"
    prompt = np.random.default_rng(1).integers(0, 96, (1, 7))
    expected = greedy(mixed, prompt, 9)
    for new_tokens in (9, 9, 4, 1):  # the same again, another length, no step at all
        marks = session.generate(prompt, new_tokens)
        assert len(marks) == new_tokens + 1
        assert marks[0] == 0
        assert all(later > earlier for earlier, later in pairwise(marks))
        assert session.tokens().tolist() == [[expected[new_tokens - 1]]]
    assert cuda.captures == 3, "one for each length"
    two = np.concatenate([prompt, prompt[:, ::-1]])
    session.generate(two, 5)
    assert session.tokens()[:, 0].tolist() == [expected[4], greedy(mixed, two[1:], 5)[4]]
    assert session.options["decoding"] == "CUDA graph"
    assert session.device_peak_bytes == 123
    samples = time_session(session, Workload(prompt_tokens=5, new_tokens=4, repeats=2), repeats=2)
    assert (len(samples.ttft_s), len(samples.itl_s)) == (2, 6)


@pytest.mark.usefixtures("on_cpu")
def test_scoring_takes_the_growing_cache(mixed: Path) -> None:
    ids = np.random.default_rng(2).integers(0, 96, (2, 6))
    found = []
    for session in (TorchCudaSession(mixed, precision="fp32", cuda=Pretended()), TorchSession(mixed, precision="fp32")):
        session.load()
        found.append(np.concatenate([session.prefill(ids[:, :4]), session.decode(ids[:, 4:5])], axis=1))
    assert np.array_equal(*found)


def test_a_step_asks_the_host_nothing(mixed: Path) -> None:
    """What a graph replays must not depend on values: fake tensors have none, and raise when one is asked for."""
    model = load(mixed)
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        steps = torch_cuda_session._Steps(model, Pretended(), (2, 5, 4))
        steps.step()
        with pytest.raises(Exception, match=r"data-dependent|_local_scalar_dense"):
            int(steps.token[0, 0])


@pytest.mark.usefixtures("on_cpu")
def test_a_sliding_window_that_fills_is_not_captured(tmp_path: Path) -> None:
    shape = ModelShape("mistral", 48, 8, 96, True, (LayerShape(6, 2, 32),) * 2, context=64)
    model = random_model(shape, seed=0)
    model.config.sliding_window = 8
    save_checkpoint(model, None, tmp_path)
    assert StaticCache(config=load(tmp_path).config, max_cache_len=12).layers[0].is_sliding
    cuda = Pretended()
    session = TorchCudaSession(tmp_path, precision="fp32", threads=1, cuda=cuda)
    session.load()
    prompt = np.random.default_rng(1).integers(0, 96, (1, 7))
    session.generate(prompt, 6)
    assert session.tokens().tolist() == [[greedy(tmp_path, prompt, 6)[5]]]
    assert (cuda.captures, session.options["decoding"]) == (0, "eager: a sliding window ends before")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_is_one_line(mixed: Path) -> None:
    with pytest.raises(BadInputError, match=r'device "cuda": torch .* finds no NVIDIA GPU here'):
        TorchCudaSession(mixed, precision="bf16").load()
    workload = Workload(prompt_tokens=8, new_tokens=4)
    with pytest.raises(BadInputError, match="profile gpu-cuda needs an NVIDIA GPU, and none is found here"):
        measure(mixed, profile=load_profile("gpu-cuda"), workload=workload, precision="bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_a_graph_chooses_what_the_model_chooses(mixed: Path) -> None:
    profile = replace(load_profile("gpu-cuda"), match=replace(load_profile("gpu-cuda").match, processors=()))
    session = TorchCudaSession(mixed, precision="fp32")
    session.load()
    prompt = np.random.default_rng(1).integers(0, 96, (1, 7))
    for new_tokens in (9, 2):
        marks = session.generate(prompt, new_tokens)
        assert all(later > earlier for earlier, later in pairwise(marks))
        assert session.tokens().tolist() == [[greedy(mixed, prompt, new_tokens)[-1]]]
    found = measure(mixed, profile=profile, workload=Workload(prompt_tokens=8, new_tokens=4), precision="bf16")
    assert found.runtime == find_model(mixed).runtime.name == "torch"
    assert found.peak_device_bytes > 0
    assert DeviceCuda().bandwidth() > 1e10
