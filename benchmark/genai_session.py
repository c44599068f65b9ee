"""Generation through the pipelines that people deploy: OpenVINO GenAI and ONNX Runtime GenAI, end to end.

They keep sampling, cache and scheduling to themselves, so only the arrival of each token can be timed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from prune_export.benchmark.onnx_artifact import GENAI_NAME
from prune_export.benchmark.properties import precision_options, runtime_properties
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.session import Tokens
from prune_export.benchmark.threads import checked_threads
from prune_export.errors import BadInputError
from prune_export.manifest import asked_cache
from prune_export.profiles.host import detect_host


class _Pipeline:
    """What both are made with, and what is known once they are loaded."""

    def __init__(self, directory: Path, *, precision: str, threads: int = 0, device: str = "CPU") -> None:
        self._directory = directory
        self._precision = precision
        self._threads = threads
        self._device = device
        self._pipeline: Any = None
        self._genai: Any = None
        self.vocab_size = 0
        self.load_s = 0.0
        self.options: dict[str, str] = {}

    @property
    def device_peak_bytes(self) -> int | None:
        """0 on a CPU; what a pipeline holds on a GPU it does not say."""
        return 0 if self._device == "CPU" else None


class OpenVINOPipeline(_Pipeline):
    """`openvino_genai.LLMPipeline` with its default attention back end and scheduling, but for its cache of prompts.

    Every repeat has the same prompt, which that cache would answer: a time to first token of two tokens, not of all.

    Args:
        directory: holds the IR and its tokenizer, itself or in its only sub-folder that does.
        precision: weight precision; decides the runtime properties, which are those of the plain session.
        threads: threads of the runtime; 0 for all physical cores.
        device: OpenVINO device name.
    """

    def load(self) -> None:
        """Reads and compiles the model.

        Raises:
            BadInputError: no IR, an absent device, or no OpenVINO GenAI.
        """
        from prune_export.benchmark.openvino_session import check_device
        from prune_export.telemetry import import_openvino

        ov = import_openvino()
        self._genai = _imported("openvino_genai", "openvino-genai")
        folder = find_model(self._directory).path.parent
        self.vocab_size = _vocabulary(folder)
        core = ov.Core()
        check_device(core, self._device)
        properties = runtime_properties(
            self._precision,
            threads=checked_threads(self._threads),
            device=self._device,
            capabilities=core.get_property(self._device, "OPTIMIZATION_CAPABILITIES"),
            kv_cache=asked_cache(folder),
            isa=detect_host().isa,
        )
        begun = time.perf_counter()
        try:
            self._pipeline = self._genai.LLMPipeline(
                str(folder), self._device, scheduler_config=_scheduling(self._genai), **properties
            )
        except RuntimeError:  # no paged attention for this graph or device: the other back end has no cache of prompts
            begun = time.perf_counter()
            properties = {**properties, "ATTENTION_BACKEND": "SDPA"}
            self._pipeline = self._genai.LLMPipeline(str(folder), self._device, **properties)
        self.load_s = time.perf_counter() - begun
        self.options = {**{name: str(value) for name, value in properties.items()}, "enable_prefix_caching": "False"}

    def generate(self, prompt: Tokens, new_tokens: int) -> list[float]:
        """Times (s) at the start and after each of exactly `new_tokens` greedy tokens.

        Args:
            prompt: [1, T].
            new_tokens: how many.

        Raises:
            ValueError: several sequences: the pipeline streams one (`Runtime.pipeline_batch`).
        """
        if len(prompt) != 1:
            raise ValueError(f"a batch of {len(prompt)}: the pipeline streams the tokens of one sequence")
        from prune_export.telemetry import import_openvino

        ov = import_openvino()
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = new_tokens
        settings.ignore_eos, settings.do_sample, settings.apply_chat_template = True, False, False
        marks: list[float] = [time.perf_counter()]
        running = self._genai.StreamingStatus.RUNNING

        class Watch(self._genai.StreamerBase):  # type: ignore[misc,name-defined]
            def write(self, token: Any) -> Any:
                now = time.perf_counter()
                marks.extend([now] * (1 if isinstance(token, int) else len(token)))
                return running

            def end(self) -> None:
                pass

        ids = ov.Tensor(np.ascontiguousarray(prompt, dtype=np.int64))
        mask = ov.Tensor(np.ones(prompt.shape, np.int64))
        self._pipeline.generate(self._genai.TokenizedInputs(ids, mask), settings, Watch())
        return _whole(marks, new_tokens)


def _scheduling(genai: Any) -> Any:
    """What `LLMPipeline` takes by itself, prompts in one piece, without the cache of prompts."""
    config = genai.SchedulerConfig()
    config.max_num_batched_tokens = sys.maxsize
    config.enable_prefix_caching = False
    return config


class OrtPipeline(_Pipeline):
    """`onnxruntime_genai.Generator`.

    Args:
        directory: holds model.onnx and genai_config.json, itself or in its only sub-folder that does.
        precision: weight precision; checked only.
        threads: threads of the runtime; 0 for all physical cores.
        device: "CPU".
    """

    def load(self) -> None:
        """Reads the model.

        Raises:
            BadInputError: no model or configuration, a device other than the CPU, or no ONNX Runtime GenAI.
        """
        precision_options(self._precision)
        if self._device != "CPU":
            raise BadInputError(f'device "{self._device}": ONNX Runtime is driven on the CPU alone: use a CPU profile')
        self._genai = _imported("onnxruntime_genai", "onnxruntime-genai")
        folder = find_model(self._directory).path.parent
        if not (folder / GENAI_NAME).is_file():
            raise BadInputError(f"{folder} has no {GENAI_NAME}: export the model with prune-export")
        self.vocab_size = _vocabulary(folder)
        threads = checked_threads(self._threads)
        begun = time.perf_counter()
        config = self._genai.Config(str(folder))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._pipeline = self._genai.Model(config)
        self.load_s = time.perf_counter() - begun
        self.options = {name: str(value) for name, value in options.items()}

    def generate(self, prompt: Tokens, new_tokens: int) -> list[float]:
        """Times (s) at the start and after each of exactly `new_tokens` greedy tokens.

        Args:
            prompt: [B, T].
            new_tokens: how many.
        """
        batch, tokens = prompt.shape
        settings = self._genai.GeneratorParams(self._pipeline)
        length = tokens + new_tokens
        # Of at least this length too: no token ends it early.
        settings.set_search_options(min_length=length, max_length=length, batch_size=batch, do_sample=False)
        generator = self._genai.Generator(self._pipeline, settings)
        ids = prompt.astype(np.int32)
        marks = [time.perf_counter()]
        generator.append_tokens(ids)
        for _ in range(new_tokens):
            generator.generate_next_token()
            marks.append(time.perf_counter())
        return _whole(marks, new_tokens)


def _imported(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadInputError(f"{package} is not installed, --through genai needs it: pip install {package}") from None


def _vocabulary(folder: Path) -> int:
    """V by config.json: a prompt's ids stay below it.

    Raises:
        BadInputError: there is none.
    """
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf8"))["vocab_size"])
    except (OSError, ValueError, KeyError):
        raise BadInputError(f"{folder} has no config.json that names vocab_size: export the model again") from None


def _whole(marks: list[float], new_tokens: int) -> list[float]:
    if len(marks) != new_tokens + 1:
        raise BadInputError(f"the pipeline gave {len(marks) - 1} tokens instead of {new_tokens}")
    return marks
