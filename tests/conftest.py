"""Tiny models, checkpoints and texts that the tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prune_export.manifest import Measurement
from prune_export.target import Workload

WORDS = "the model reads a word and writes another one while the clock of the small machine ticks on"


# Set by tools/run_tests.py, which gives tests that native code killed a second chance in a new process.
_LOG = os.environ.get("PRUNE_EXPORT_TEST_LOG")
_DONE = os.environ.get("PRUNE_EXPORT_TESTS_DONE")
_PART = os.environ.get("PRUNE_EXPORT_TEST_PART")


def pytest_configure(config: pytest.Config) -> None:
    """Of several processes only those that run tests take notes: xdist calls every hook in its own once more."""
    global _LOG
    if config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        _LOG = None


def pytest_runtest_logstart(nodeid: str) -> None:
    """Notes which tests run: one that never ends died."""
    _note(f"start {nodeid}")


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Notes which tests ended."""
    _note(f"end {nodeid}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes failures, which a crash would take along."""
    if report.failed:
        _note(f"failed {report.nodeid}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what an earlier process of the same run has done, and what the other part of the run does."""
    done = set(Path(_DONE).read_text(encoding="utf8").splitlines()) if _DONE else set()

    def left_out(item: pytest.Item) -> bool:
        alone = item.get_closest_marker("alone") is not None
        return item.nodeid in done or (_PART is not None and alone != (_PART == "alone"))

    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]


def _note(line: str) -> None:
    if _LOG:
        with Path(_LOG).open("a", encoding="utf8") as file:
            file.write(line + "\n")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals of the tests stay out of the user's cache."""
    monkeypatch.setenv("PRUNE_EXPORT_CACHE", str(tmp_path / "cache"))


# Taken here, because tests replace those of `os`; systems other than Linux have none.
_get_cpus, _set_cpus = getattr(os, "sched_getaffinity", None), getattr(os, "sched_setaffinity", None)


@pytest.fixture(autouse=True)
def _own_cpus() -> Iterator[None]:
    """A test that pins this process would leave the later ones, and what they measure, on fewer CPUs."""
    before = _get_cpus(0) if _get_cpus else None
    yield
    if _get_cpus and _set_cpus and (left := _get_cpus(0)) != before:
        _set_cpus(0, before)
        pytest.fail(f"the test left this process on CPUs {sorted(left)} of {sorted(before or ())}")


@pytest.fixture(scope="session")
def text() -> str:
    """Some thousand words that follow no pattern but a fixed seed."""
    import numpy as np

    random = np.random.default_rng(0)
    return " ".join(random.choice(WORDS.split(), 6000)) + "\n"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def word_tokenizer(text: str) -> Any:
    """Byte-level BPE of 320 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Any) -> Path:
    """A random Llama of 4 layers, hidden 64, 4 query and 2 KV heads, MLP 128, context 256."""
    from prune_export.prune.checkpoint import save_checkpoint
    from prune_export.prune.synthetic import random_model
    from prune_export.shape import LayerShape, ModelShape

    layers = tuple(LayerShape(4, 2, 128) for _ in range(4))
    shape = ModelShape("llama", 64, 16, len(word_tokenizer), True, layers, context=256)
    directory = tmp_path_factory.mktemp("model") / "tiny-llama"
    directory.mkdir()
    save_checkpoint(random_model(shape, seed=0), word_tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def stacks_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import simulated_device  # type: ignore[import-not-found]  # loads everything; most tests need little of it

    return simulated_device.stacks_once(tmp_path_factory.mktemp("stacks"))


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, stacks_once: Any) -> None:
    import simulated_device

    simulated_device.simulate(monkeypatch, stacks_once)


@pytest.fixture
def request_(checkpoint: Path, text_file: Path, tmp_path: Path) -> Any:
    import simulated_device

    return simulated_device.small_request(checkpoint, text_file, tmp_path)


@pytest.fixture
def make_measurement() -> Callable[..., Measurement]:
    """A made-up measurement; times in seconds, one `load_s` a round."""

    def make(
        ttft: tuple[float, ...], itl: tuple[float, ...], rounds: int = 1, artifact: str = "a/openvino"
    ) -> Measurement:
        return Measurement(
            artifact=artifact,
            profile="host",
            host={"processor": "Test CPU", "cores": "2"},
            runtime="openvino",
            precision="int8",
            threads=1,
            workload=Workload(1, 8, 1 + len(itl) // len(ttft), 0, len(ttft) // rounds),
            ttft_s=ttft,
            itl_s=itl,
            load_s=(0.25,) * rounds,
            weights_bytes=1 << 20,
            peak_rss_bytes=3 << 20,
            rss_rise_bytes=2 << 20,
            versions={"openvino": "2026.4.1"},
        )

    return make
