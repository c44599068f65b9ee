"""The gate before publishing: the exported IR computes what the torch model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prune_export.errors import ParityError
from prune_export.export.checks import Step, parity_checks
from prune_export.export.runner import IrRunner, Runner
from prune_export.manifest import ParityRecord
from prune_export.prune.shapes import model_shape

# fp32 keeps 24 bits: about 6e-8 of a value's size for each operation.  The two runtimes sum the same products in
# another order, over a few hundred operations in sequence, which gives 1e-6 to 2e-5 on logits of ordinary size (1 to
# 30): below this limit, while one wrong weight, position or mask bit is orders above it.
TOLERANCE = 1e-4
# Logits beyond this size get the same limit relative to their size, since fp32's rounding grows with them.
_ORDINARY_LOGIT = 30.0
# Logits are kept of the last tokens of each chunk: earlier tokens of a long chunk show in these through the attention.
_KEPT = 32


@dataclass(frozen=True)
class Reference:
    """Torch's side of every check, so that the model can be released before the IR is loaded.

    Attributes:
        context: longest sequence of the model.
        vocab_size: V.
        logits: check name to the logits of each of its steps, [B, kept, V].
    """

    context: int
    vocab_size: int
    logits: dict[str, tuple[NDArray[np.float32], ...]]


def check_parity(model: PreTrainedModel, directory: Path) -> tuple[dict[str, float], float]:
    """`torch_reference` and `check_against` in one; the model and the compiled IR are in memory together."""
    return check_against(torch_reference(model), directory)


def torch_reference(model: PreTrainedModel) -> Reference:
    """Runs every check in torch.

    Prefill and decoding, one and three sequences, left padding, an empty and a filled cache, one and several tokens
    onto a filled cache, a sequence as long as the context (256 tokens at most) and the context's last positions.

    Args:
        model: the fp32 model that was exported.
    """
    shape = model_shape(model.config)
    logits = {}
    for check in parity_checks(shape.context):
        stepper = _Torch(model, kept=_KEPT)
        logits[check.name] = tuple(stepper.step(step) for step in check.steps(shape.vocab_size))
    return Reference(shape.context, shape.vocab_size, logits)


def check_against(
    reference: Reference, directory: Path, *, runner: Runner | None = None
) -> tuple[dict[str, float], float]:
    """Compares the logits of an exported fp32 model with torch's, or raises.

    An IR runs with inference and cache in fp32 and dynamic quantization off.

    Args:
        reference: from the model that was exported.
        directory: what `export_openvino` wrote.
        runner: runs another format's export; the IR in `directory` unless given.

    Returns:
        The largest absolute logit error of each check (divided by |logit| / 30 where the largest logit is above 30),
        and the limit on it.

    Raises:
        ParityError: a check found another number of logits, a value that is not finite, or an error over the limit.
    """
    runner = runner or IrRunner(directory, precision="fp32", threads=torch.get_num_threads())
    errors = {}
    for check in parity_checks(reference.context):
        runner.reset()
        errors[check.name] = 0.0
        for step, theirs in zip(check.steps(reference.vocab_size), reference.logits[check.name], strict=True):
            kept = min(_KEPT, step.ids.shape[1])
            ours = runner.step(step)[:, -kept:]
            error = _error(check.name, ours, theirs, step.mask[:, -kept:] == 1)
            errors[check.name] = max(errors[check.name], error)
        if not errors[check.name] <= TOLERANCE:
            raise ParityError(
                f'parity check "{check.name}": largest logit error {errors[check.name]:.2g} is over the limit '
                f"{TOLERANCE:.0e}: the exported model computes something else than the torch model; export again, and "
                "check the processor and the runtime's version if it stays"
            )
    return errors, TOLERANCE


def greedy_tokens_of(model: PreTrainedModel, prompt_ids: Sequence[int] | NDArray[Any], *, new_tokens: int) -> list[int]:
    """Torch's greedy continuation of one prompt; end-of-text tokens do not end it.

    Args:
        model: the model that was exported.
        prompt_ids: [T].
        new_tokens: tokens to generate.
    """
    return _greedy(_Torch(model, kept=1).step, np.asarray(prompt_ids, dtype=np.int64), new_tokens)


def ir_greedy_agreement(
    directory: Path,
    prompt_ids: Sequence[int] | NDArray[Any],
    expected: Sequence[int],
    *,
    precision: str,
    runner: Runner | None = None,
) -> float:
    """Share of `expected` that an exported model generates too before its first different token.

    Args:
        directory: holds the IR.
        prompt_ids: [T].
        expected: torch's greedy continuation of that prompt.
        precision: as delivered: "fp32" runs in fp32 throughout, the others with the runtime's defaults.
        runner: runs another format's export; the IR in `directory` unless given.
    """
    runner = runner or IrRunner(directory, precision=precision, threads=torch.get_num_threads())
    tokens = _greedy(runner.step, np.asarray(prompt_ids, dtype=np.int64), len(expected))
    differing = [index for index, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1]]
    return (differing[0] if differing else len(tokens)) / max(1, len(tokens))


def greedy_agreement(
    model: PreTrainedModel,
    directory: Path,
    *,
    precision: str,
    prompt_ids: Sequence[int] | NDArray[Any],
    new_tokens: int = 128,
) -> float:
    """Share of torch's greedy tokens that the IR generates too before the first difference, in the delivered precision.

    Args:
        model: the model that was exported.
        directory: holds the IR.
        precision: as for `ir_greedy_agreement`.
        prompt_ids: [T].
        new_tokens: tokens to generate; fewer where the context ends.
    """
    room = model_shape(model.config).context - len(prompt_ids)
    expected = greedy_tokens_of(model, prompt_ids, new_tokens=max(0, min(new_tokens, room)))
    return ir_greedy_agreement(directory, prompt_ids, expected, precision=precision)


def parity_record(
    errors: dict[str, float], tolerance: float, *, greedy_tokens: int, greedy_agreement: float
) -> ParityRecord:
    """What the gate found, for the manifest."""
    return ParityRecord(
        max_logit_error=max(errors.values()),
        tolerance=tolerance,
        checks=errors,
        greedy_tokens=greedy_tokens,
        greedy_agreement=greedy_agreement,
    )


class _Torch:
    """The reference: the model's own forward with its own cache, from an empty one.

    Args:
        model: in evaluation mode.
        kept: logits are computed for that many of the last tokens of a step.
    """

    def __init__(self, model: PreTrainedModel, *, kept: int) -> None:
        self._model = model
        self._kept = kept
        self._cache: Any = None

    def step(self, step: Step) -> NDArray[np.float32]:
        """Logits [B, kept, V]."""
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(step.ids),
                attention_mask=torch.from_numpy(step.mask),
                position_ids=torch.from_numpy(step.positions),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=self._kept,
            )
        self._cache = output.past_key_values
        logits: NDArray[np.float32] = output.logits.float().numpy()
        return logits


def _error(name: str, ours: NDArray[np.float32], theirs: NDArray[np.float32], real: NDArray[np.bool_]) -> float:
    """Largest error over the tokens that are no padding.  Counts, then finiteness, then values."""
    if ours.shape != theirs.shape:
        raise ParityError(
            f'parity check "{name}": the exported model gives logits of shape {list(ours.shape)}, torch '
            f"{list(theirs.shape)}: export again"
        )
    ours, theirs = ours[real], theirs[real]
    for who, values in (("torch model", theirs), ("exported model", ours)):
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise ParityError(
                f'parity check "{name}": {count} of {values.size} logits of the {who} are not finite, none may be: '
                "check the model's weights"
            )
    scale = max(1.0, float(np.abs(theirs).max()) / _ORDINARY_LOGIT)
    return float(np.abs(ours - theirs).max()) / scale


def _greedy(call: Callable[[Step], NDArray[np.float32]], prompt: NDArray[np.int64], new_tokens: int) -> list[int]:
    tokens: list[int] = []
    ids, past = prompt[None, :], 0
    while len(tokens) < new_tokens:
        length = past + ids.shape[1]
        positions = np.arange(past, length, dtype=np.int64)[None, :]
        logits = call(Step(ids, np.ones((1, length), dtype=np.int64), positions))
        tokens.append(int(logits[0, -1].argmax()))
        ids, past = np.array([[tokens[-1]]], dtype=np.int64), length
    return tokens
