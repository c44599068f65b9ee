"""Perplexity of a checkpoint through torch, or of an exported artifact through its own runtime."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError
from prune_export.manifest import CHECKPOINT_FOLDER, MANIFEST, Manifest
from prune_export.progress import Progress
from prune_export.records import from_json, to_json
from prune_export.shape import ModelShape
from prune_export.texts import load_text, token_windows, windows_digest

PAPER_WINDOW = 2048
ALL_TOKENS = 1 << 62
_LOGITS_BYTES = 200 * 2**20
# Scoring costs about this many operations by default: seconds on two cores, whatever the model's size.
_DEFAULT_FLOPS = 4e12
_FEWEST_TOKENS, _MOST_TOKENS = 4096, 65536
MODEL_FILES = ("openvino_model.xml", "model.onnx")


@dataclass(frozen=True)
class Evaluation:
    """Perplexity as the papers compute it: exp of the mean token NLL over non-overlapping windows.

    Attributes:
        model: what was scored, as the user named it.
        through: "torch", or the runtime of an artifact.
        precision: weight precision.
        text: name and digest of the text, and the Python version where it is the standard library's.
        window_tokens: length of a window; its first token is context only.
        nll: mean token NLL of each window, in text order, so that two evaluations can be compared pairwise.
        tokens_digest: sha256 of the windows.
    """

    model: str
    through: str
    precision: str
    text: dict[str, str]
    window_tokens: int
    nll: tuple[float, ...]
    tokens_digest: str = ""

    @property
    def perplexity(self) -> float:
        """exp of the mean over windows."""
        return math.exp(statistics.fmean(self.nll))

    @property
    def standard_error(self) -> float:
        """Standard error of the perplexity from the spread over windows (delta method); nan for one window."""
        if len(self.nll) < 2:
            return float("nan")
        return self.perplexity * statistics.stdev(self.nll) / math.sqrt(len(self.nll))

    def to_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        error = self.standard_error
        figures = {"perplexity": self.perplexity, "standard_error": error if math.isfinite(error) else None}
        return {**figures, **to_json(self)}

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.3f} +- {self.standard_error:.3f}  "
            f"({self.model}, {self.precision} through {self.through}; {len(self.nll)} windows of "
            f"{self.window_tokens} tokens, not overlapping, of {provenance(self.text)})"
        )


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same windows, paired: what one model loses to the other on the same text.

    Attributes:
        one: the first evaluation.
        other: what it is compared with.
    """

    one: Evaluation
    other: Evaluation

    def __post_init__(self) -> None:
        for what, mine, theirs in (
            ("text", self.one.text["digest"], self.other.text["digest"]),
            ("tokens a window", self.one.window_tokens, self.other.window_tokens),
            ("windows", len(self.one.nll), len(self.other.nll)),
            ("tokens", self.one.tokens_digest, self.other.tokens_digest),
        ):
            if mine != theirs:
                raise BadInputError(
                    f"{self.one.model} and {self.other.model} were scored on different {what} ({str(mine)[:12]}, "
                    f"{str(theirs)[:12]}): give both the same --eval-text, --eval-tokens, --window and tokenizer"
                )

    @property
    def difference(self) -> float:
        """Mean over windows of NLL(one) - NLL(other): the rise of the log perplexity."""
        return statistics.fmean(self._differences())

    @property
    def standard_error(self) -> float:
        """Standard error of the difference, from the spread of the paired differences; nan for one window."""
        if len(self.one.nll) < 2:
            return float("nan")
        return statistics.stdev(self._differences()) / math.sqrt(len(self.one.nll))

    def to_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        error = self.standard_error
        return {
            "difference": self.difference,
            "standard_error": error if math.isfinite(error) else None,
            "perplexity_ratio": math.exp(self.difference),
            "one": self.one.to_json(),
            "other": self.other.to_json(),
        }

    def __str__(self) -> str:
        share = math.exp(self.difference) - 1.0
        return (
            f"{self.one}\n{self.other}\n"
            f"log perplexity {self.difference:+.4f} +- {self.standard_error:.4f} against {self.other.model}, "
            f"paired over {len(self.one.nll)} windows: perplexity {share:+.2%}"
        )

    def _differences(self) -> list[float]:
        return [mine - theirs for mine, theirs in zip(self.one.nll, self.other.nll, strict=True)]


def saved_evaluation(path: Path) -> Evaluation:
    """An evaluation that `evaluate --json` wrote.

    Raises:
        BadInputError: unreadable, or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"evaluation {path} cannot be read as JSON: {error}") from None
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in ("perplexity", "standard_error")}
    return from_json(Evaluation, data, where=str(path))


def evaluate(
    model: str,
    *,
    eval_text: str | None = None,
    tokens: int | None = None,
    window: int | None = None,
    precision: str | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a checkpoint or an artifact on held-out text.

    Args:
        model: checkpoint directory or hub id, delivered artifact, or directory with an exported model.
        eval_text: text file, JSONL file or data set name; None for the standard library's held-out modules.
        tokens: tokens scored at most, `ALL_TOKENS` for the whole text; None for an amount that fits the model's size.
        window: tokens a window; None for 2048 or the model's context, whichever is less.
        precision: weight precision of an export that has no manifest.
        threads: runtime threads, 0 for all cores.
        progress: where progress goes.

    Raises:
        BadInputError: nothing loadable at `model`, files that are not as its manifest or record says, an edited
            manifest or record, text shorter than a window, or more threads than cores.
    """
    from prune_export.benchmark.threads import checked_threads
    from prune_export.prune.loading import load_config, load_tokenizer
    from prune_export.prune.shapes import model_shape

    report = progress or Progress(quiet=True)
    checked_threads(threads)
    directory, ir, held_precision = _locate(model, precision)
    _check(directory, exported=ir is not None)
    shape = model_shape(load_config(directory))
    text = load_text(eval_text, "evaluation")
    length = window or min(PAPER_WINDOW, shape.context)
    if length > shape.context:
        raise BadInputError(f"--window {length} exceeds the model's context of {shape.context}")
    count = max(1, (tokens or default_tokens(shape)) // length)
    windows = token_windows(text, load_tokenizer(directory), count=count, length=length)
    with report.phase(f"scoring {windows.shape[0]} windows of {length} tokens"):
        if ir is not None:
            nll = ir_nll(ir, windows, precision=held_precision, threads=threads, progress=report)
        else:
            nll = _torch_nll(directory, windows, threads=threads, progress=report)
    through = "torch" if ir is None else _runtime_of(ir)
    return Evaluation(model, through, held_precision, text.provenance(), length, nll, windows_digest(windows))


def provenance(text: dict[str, str]) -> str:
    """Name, digest and Python version of a text, as they stand beside every figure."""
    python = f", Python {text['python']}" if "python" in text else ""
    return f"{text['name']} (digest {text['digest'][:12]}{python})"


def default_tokens(shape: ModelShape) -> int:
    """Tokens that scoring takes by default: about the same work for every model size."""
    return int(min(_MOST_TOKENS, max(_FEWEST_TOKENS, _DEFAULT_FLOPS / (2 * shape.parameters()))))


def ir_nll(
    directory: Path, windows: NDArray[np.int64], *, precision: str, threads: int, progress: Progress
) -> tuple[float, ...]:
    """Mean token NLL of each window [N, T] through the runtime of the artifact in `directory`."""
    from prune_export.benchmark.runtimes import find_model
    from prune_export.benchmark.score import score

    session = find_model(directory).runtime.open_session(
        directory, precision=precision, threads=threads, device="CPU", last_token_only=False
    )
    session.load()
    return score(session, windows, report=progress.update).nll_per_window


def torch_nll(model: Any, windows: NDArray[np.int64], *, progress: Progress | None = None) -> tuple[float, ...]:
    """Mean token NLL of each window [N, T] through a causal language model in torch.

    Raises:
        BadInputError: non-finite logits.
    """
    import torch

    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    result: list[float] = []
    for done, row in enumerate(windows):
        ids = torch.from_numpy(row)[None]
        with torch.inference_mode():
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
            chunk = max(1, _LOGITS_BYTES // (4 * head.out_features))
            total = 0.0
            for start in range(0, hidden.shape[0], chunk):
                logits = head(hidden[start : start + chunk]).float()
                if cap is not None:
                    logits = cap * torch.tanh(logits / cap)
                wanted = ids[0, 1 + start : 1 + start + logits.shape[0]]
                total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        if not math.isfinite(total):
            raise BadInputError(f"window {done} gives a loss of {total}: the model's weights or activations overflow")
        result.append(total / hidden.shape[0])
        if progress is not None:
            progress.update(done + 1, len(windows))
    return tuple(result)


def _torch_nll(directory: Path, windows: NDArray[np.int64], *, threads: int, progress: Progress) -> tuple[float, ...]:
    import torch

    from prune_export.prune.checkpoint import load

    if threads:
        torch.set_num_threads(threads)
    return torch_nll(load(directory), windows, progress=progress)


def _check(directory: Path, *, exported: bool) -> None:
    from prune_export.benchmark.integrity import check_folder, check_model_files
    from prune_export.benchmark.runtimes import find_model

    if exported:
        check_model_files(find_model(directory))
    else:
        check_folder(directory, format=CHECKPOINT_FOLDER)


def _runtime_of(directory: Path) -> str:
    from prune_export.benchmark.runtimes import find_model

    return find_model(directory).runtime.name


def _locate(model: str, precision: str | None) -> tuple[Path, Path | None, str]:
    """Directory with config and tokenizer, directory with the exported model or None, and the precision."""
    path = Path(model)
    if (path / MANIFEST).is_file():
        manifest = Manifest.load_unedited(path)
        folder = path / manifest.formats[0]
        return folder, folder, manifest.precision
    if any((path / name).is_file() for name in MODEL_FILES):
        from prune_export.benchmark.runtimes import find_model

        return path, path, precision or find_model(path).precision
    from prune_export.prune.sources import resolve_source

    return resolve_source(model), None, "fp32"
