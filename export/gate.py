"""The runtime's side of the gate before publishing; imports no torch, so that it can run in a small process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import ParityError
from prune_export.export.checks import Step, parity_checks, reached
from prune_export.export.runner import Runner, open_runner
from prune_export.manifest import ParityRecord

# fp32 keeps 24 bits: about 6e-8 of a value's size for each operation.  The two runtimes sum the same products in
# another order, over a few hundred operations in sequence, which gives 1e-6 to 2e-5 on logits of ordinary size (1 to
# 30): below this limit, while one wrong weight, position or mask bit is orders above it.
TOLERANCE = 1e-4
# Logits beyond this size get the same limit relative to their size, since fp32's rounding grows with them.
_ORDINARY_LOGIT = 30.0
# Logits are kept of the last tokens of each chunk: earlier tokens of a long chunk show in these through the attention.
KEPT = 32
# Nats a token.  fp32 differs by summation order only; int8 and int4 by rounding, which costs trained models a few
# hundredths and a few tenths; a wrong kernel costs whole nats.
NLL_LIMITS = {"fp32": 0.001, "fp16": 0.02, "bf16": 0.1, "int8": 0.25, "int4": 1.0}
# A cache rounded to a type costs no more than weights that are.
_CACHE_AS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8"}


@dataclass(frozen=True)
class Reference:
    """Torch's side of every check, so that the model can be released before its export is loaded.

    Attributes:
        context: longest sequence of the model.
        vocab_size: V.
        logits: check name to the logits of each of its steps, [B, kept, V].
        rotary: cosines and sines of the context's last positions, [2, T, d / 2]; None for a model without rotary
            positions, or with a short context.
    """

    context: int
    vocab_size: int
    logits: dict[str, tuple[NDArray[np.float32], ...]]
    rotary: NDArray[np.float32] | None = None

    def save(self, path: Path) -> None:
        """Writes everything to one .npz file."""
        arrays = {f"{name}|{index}": step for name, steps in self.logits.items() for index, step in enumerate(steps)}
        if self.rotary is not None:
            arrays["rotary"] = self.rotary
        np.savez(path, sizes=np.array([self.context, self.vocab_size]), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Reads what `save` wrote."""
        logits: dict[str, tuple[NDArray[np.float32], ...]] = {}
        with np.load(path) as file:
            context, vocab_size = file["sizes"].tolist()
            for key in file.files:
                name, _, step = key.rpartition("|")
                if step.isdecimal():  # the steps of a check come in their order
                    logits[name] = (*logits.get(name, ()), file[key])
            rotary = file["rotary"] if "rotary" in file.files else None
        return cls(context, vocab_size, logits, rotary)


def check_against(reference: Reference, directory: Path, *, threads: int = 0) -> tuple[dict[str, float], float]:
    """Compares the logits of an exported fp32 model with torch's, or raises.

    Where a runner cannot reach the context's last positions, the check of them is named by what it reached, and the
    table of rotations is compared with torch's at the last ones.  An IR runs with inference and cache in fp32 and
    dynamic quantization off, whatever cache it was asked for.

    Args:
        reference: from the model that was exported.
        directory: what an exporter wrote; its file decides the runtime.
        threads: threads of the runtime; 0 leaves the choice to it.

    Returns:
        The largest absolute error of each check (divided by |logit| / 30 where the largest logit is above 30),
        and the limit on it.

    Raises:
        ParityError: a check found another number of logits, a value that is not finite, or an error over the limit.
    """
    runner = open_runner(directory, precision="fp32", threads=threads, exact=True)
    errors: dict[str, float] = {}
    for check in parity_checks(reference.context):
        runner.reset()
        name, begin = check.name, runner.reachable(check.first_position)
        if begin < check.first_position:
            name = reached(check, begin, reference.context)
            errors |= _table_error(runner, reference)
        errors[name] = 0.0
        for step, theirs in zip(check.steps(reference.vocab_size), reference.logits[check.name], strict=True):
            kept = min(KEPT, step.ids.shape[1])
            ours = runner.step(step)[:, -kept:]
            error = _error(name, ours, theirs, step.mask[:, -kept:] == 1)
            errors[name] = max(errors[name], error)
        _judge(name, "logit", errors[name])
    return errors, TOLERANCE


def _table_error(runner: Runner, reference: Reference) -> dict[str, float]:
    """Largest error of the rotations at the last positions; nothing where there is no table."""
    if reference.rotary is None:
        return {}
    last, rows = reference.context - 1, reference.rotary.shape[1]
    ours = runner.rotary_rows(reference.context - rows, reference.context)
    if ours is None:
        return {}
    name = f"table of rotations, last positions, up to {last}"
    same = ours.shape == reference.rotary.shape
    error = float(np.abs(ours - reference.rotary).max()) if same else float("inf")
    _judge(name, "table", error)
    return {name: error}


def _judge(name: str, what: str, error: float) -> None:
    if not error <= TOLERANCE:
        raise ParityError(
            f'parity check "{name}": largest {what} error {error:.2g} is over the limit {TOLERANCE:.0e}: the exported '
            "model computes something else than the torch model; export again, and check the processor and the "
            "runtime's version if it stays"
        )


def ir_greedy_agreement(
    directory: Path,
    prompt_ids: Sequence[int] | NDArray[Any],
    expected: Sequence[int],
    *,
    precision: str,
    threads: int = 0,
) -> float:
    """Share of `expected` that an exported model chooses too, each after the expected tokens before it.

    It is 1 exactly where the model generates the same by itself.  A near tie that rounds otherwise costs one token, not
    all that would follow it.

    Args:
        directory: holds the exported model.
        prompt_ids: [T].
        expected: torch's greedy continuation of that prompt.
        precision: as delivered: "fp32" runs an IR in fp32 throughout, the others with the runtime's defaults.
        threads: threads of the runtime; 0 leaves the choice to it.
    """
    runner = open_runner(directory, precision=precision, threads=threads)
    return agreement(runner.step, np.asarray(prompt_ids, dtype=np.int64), expected)


def check_nll(error: float, *, precision: str, name: str, cache: str = "") -> None:
    """The gate in the delivered precision: catches a runtime whose kernels compute something else.

    Args:
        error: mean token NLL minus torch's.
        precision: of the weights.
        name: of the model, for the message.
        cache: KV-cache precision that was asked for; empty for that of the precision.

    Raises:
        ParityError: the NLL differs from torch's by more than rounding weights and cache to these precisions explains.
    """
    limit = max(NLL_LIMITS[precision], NLL_LIMITS[_CACHE_AS.get(cache, precision)])
    if not abs(error) <= limit:
        kept = f", cache in {cache}" if cache else ""
        raise ParityError(
            f"{name} in {precision}{kept}: mean NLL differs from torch's by {error:+.3f}, {limit:g} is allowed: the "
            "runtime computes something else on this processor; try another --precision"
        )


def parity_record(
    errors: dict[str, float],
    tolerance: float,
    *,
    greedy_tokens: int,
    greedy_agreement: float,
    unchecked: tuple[str, ...] = (),
) -> ParityRecord:
    """What the gate found, for the manifest."""
    return ParityRecord(
        max_logit_error=max(errors.values()),
        tolerance=tolerance,
        checks=errors,
        greedy_tokens=greedy_tokens,
        greedy_agreement=greedy_agreement,
        unchecked=unchecked,
    )


def greedy(
    call: Callable[[Step], NDArray[np.float32]],
    prompt: NDArray[np.int64],
    new_tokens: int,
    *,
    fed: Sequence[int] | None = None,
) -> list[int]:
    """Greedy continuation of a prompt [T] through a function that appends a step and gives its logits.

    Args:
        call: the function.
        prompt: token ids.
        new_tokens: tokens to choose.
        fed: tokens to go on with in place of the chosen ones.
    """
    tokens: list[int] = []
    ids, past = prompt[None, :], 0
    while len(tokens) < new_tokens:
        length = past + ids.shape[1]
        positions = np.arange(past, length, dtype=np.int64)[None, :]
        logits = call(Step(ids, np.ones((1, length), dtype=np.int64), positions))
        tokens.append(int(logits[0, -1].argmax()))
        following = tokens if fed is None else fed
        ids, past = np.array([[following[len(tokens) - 1]]], dtype=np.int64), length
    return tokens


def agreement(call: Callable[[Step], NDArray[np.float32]], prompt: NDArray[np.int64], expected: Sequence[int]) -> float:
    """Share of a continuation's tokens that `call` chooses too, each after the expected ones before it; 1 of none."""
    if not expected:
        return 1.0
    tokens = greedy(call, prompt, len(expected), fed=expected)
    return sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True)) / len(expected)


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
