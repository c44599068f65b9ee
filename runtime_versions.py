"""What runtimes cannot do: models newer than themselves, which are not called damaged, and what they die of."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from prune_export.errors import BadInputError

# The first ONNX Runtime whose CPU kernels take 8-bit blocks.
OLDEST_ONNXRUNTIME = (1, 22)
_IR_VERSION = 11  # what OpenVINO has written since 2022.1
_WRITER = re.compile(r'(?:OpenVINO Runtime|Runtime_version)"?\s+value="(\d+(?:\.\d+)+)')


def check_onnxruntime(version: str) -> None:
    """Refuses an ONNX Runtime that lacks kernels.

    Args:
        version: the installed one's.

    Raises:
        BadInputError: too old.
    """
    if _numbers(version)[:2] < OLDEST_ONNXRUNTIME:
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise BadInputError(
            f"ONNX Runtime {version} is too old, at least {oldest} is needed: "
            'pip install --upgrade "prune-export[onnx]"'
        )


def dies_in_bf16(threads: int, isa: Collection[str]) -> bool:
    """Whether OpenVINO's `compile_model` dies if weights that are not compressed are computed with in bf16.

    On one thread of a processor with AMX, OpenVINO 2026.4 divides by zero there and takes the process with it.

    Args:
        threads: of the runtime.
        isa: the processor's flags, as `profiles.host.Host.isa`.
    """
    return threads == 1 and "amx_bf16" in isa


def onnx_refusal(path: Path, error: Exception) -> BadInputError:
    """The line about an ONNX model that ONNX Runtime does not load."""
    reason = " ".join(str(error).split())
    remedy = "update ONNX Runtime" if "opset" in reason or "IR_VERSION" in reason.upper() else "export it again"
    return BadInputError(f"{path} cannot be loaded by ONNX Runtime: {reason[:300]}: {remedy}")


def ir_refusal(path: Path, error: Exception, installed: str) -> BadInputError:
    """The line about an IR that OpenVINO does not read.

    Args:
        path: of its XML.
        error: what OpenVINO said.
        installed: the version of OpenVINO.
    """
    version = installed.split("-")[0]
    newer, written = _newer(path, str(error)), _written_by_newer(path, version)
    if not newer and not written:
        return BadInputError(f"{path} cannot be read, it is damaged or incomplete: {last_line(error)}")
    damaged = "" if newer else f", or the file is damaged: {last_line(error)}"
    return BadInputError(
        f"{path} cannot be read: the installed OpenVINO {version} may be too old for it "
        f"({', '.join((*newer, *written))}): pip install --upgrade openvino prune-export{damaged}"
    )


def last_line(error: Exception) -> str:
    """The last line of a message of many, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _newer(path: Path, message: str) -> tuple[str, ...]:
    """What in an IR the runtime does not know."""
    version = re.search(r'<net\b[^>]*\bversion="(\d+)"', _text(path))
    found = [f"IR version {version[1]}"] if version and int(version[1]) > _IR_VERSION else []
    if opset := re.search(r"unsupported opset: (\w+)", message):
        found.append(opset[1])
    if operation := re.search(r"Opset (\w+) doesn't contain the operation with type: (\w+)", message):
        found.append(f"operation {operation[2]} of {operation[1]}")
    return tuple(found)


def _written_by_newer(path: Path, installed: str) -> tuple[str, ...]:
    writers = _WRITER.findall(_text(path))
    return tuple(f"written by OpenVINO {writer}" for writer in writers[-1:] if _numbers(writer) > _numbers(installed))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf8", errors="replace") if path.is_file() else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("-")[0].split("+")[0]))
