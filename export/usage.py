"""The lines that run an artifact, for the end of a run and for its report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_PROMPT = "Once upon a time"


def usage_lines(
    directory: Path, *, device: str = "CPU", prompt: str = _PROMPT, new_tokens: int = 100
) -> tuple[str, ...]:
    """Python lines for OpenVINO GenAI, then the command of OpenVINO Model Server (an OpenAI-compatible endpoint).

    Args:
        directory: the folder that holds openvino_model.xml; shown as an absolute path.
        device: OpenVINO device name.
        prompt: text to continue.
        new_tokens: tokens to generate.
    """
    python = python_lines(directory, device=device, prompt=prompt, new_tokens=new_tokens)
    return (*python, server_command(directory, device=device))


def python_lines(
    directory: Path, *, device: str = "CPU", prompt: str = _PROMPT, new_tokens: int = 100
) -> tuple[str, ...]:
    """The Python lines alone; they run as they are where openvino-genai is installed."""
    return (
        "import openvino_genai",
        f"pipeline = openvino_genai.LLMPipeline({str(directory.absolute())!r}, {device!r})",
        f"print(pipeline.generate({prompt!r}, max_new_tokens={new_tokens}))",
    )


def server_command(directory: Path, *, device: str = "CPU", port: int = 8000) -> str:
    """The command line of OpenVINO Model Server for the artifact, ready for a shell."""
    path = directory.absolute()
    name = "-".join(re.findall(r"[A-Za-z0-9._]+", path.name)) or "model"
    words = ("ovms", "--model_path", str(path), "--model_name", name, "--task", "text_generation")
    return shlex.join((*words, "--target_device", device, "--rest_port", str(port)))
