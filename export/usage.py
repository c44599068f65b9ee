"""The lines that run an artifact, for the end of a run and for its report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_PROMPT = "Once upon a time"


def python_lines(
    directory: Path, *, device: str = "CPU", prompt: str = _PROMPT, new_tokens: int = 100
) -> tuple[str, ...]:
    """Python lines for OpenVINO GenAI; they run as they are where openvino-genai is installed.

    Args:
        directory: the folder that holds openvino_model.xml; shown as an absolute path.
        device: OpenVINO device name.
        prompt: text to continue.
        new_tokens: tokens to generate.
    """
    return (
        "import openvino_genai",
        f"pipeline = openvino_genai.LLMPipeline({str(directory.absolute())!r}, {device!r})",
        f"print(pipeline.generate({prompt!r}, max_new_tokens={new_tokens}))",
    )


def onnx_lines(directory: Path, *, prompt: str = _PROMPT, new_tokens: int = 100) -> tuple[str, ...]:
    """Python lines for ONNX Runtime GenAI; they run as they are where onnxruntime-genai is installed."""
    return (
        "import onnxruntime_genai",
        f"model = onnxruntime_genai.Model({str(directory.absolute())!r})",
        "tokenizer, settings = onnxruntime_genai.Tokenizer(model), onnxruntime_genai.GeneratorParams(model)",
        f"prompt = tokenizer.encode({prompt!r})",
        f"settings.set_search_options(max_length=len(prompt) + {new_tokens})",
        "generator = onnxruntime_genai.Generator(model, settings)",
        "generator.append_tokens(prompt)",
        "while not generator.is_done(): generator.generate_next_token()",
        "print(tokenizer.decode(generator.get_sequence(0)))",
    )


def server_command(directory: Path, *, device: str = "CPU", port: int = 8000) -> str:
    """The command line of OpenVINO Model Server (an OpenAI-compatible endpoint), ready for a shell."""
    path = directory.absolute()
    name = "-".join(re.findall(r"[A-Za-z0-9._]+", path.name)) or "model"
    words = ("ovms", "--model_path", str(path), "--model_name", name, "--task", "text_generation")
    return shlex.join((*words, "--target_device", device, "--rest_port", str(port)))
