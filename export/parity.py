"""Torch's side of the gate before publishing: the exported IR computes what the torch model computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prune_export.export.checks import LAST, LONGEST, Step, parity_checks, unreached
from prune_export.export.gate import KEPT, Reference, agreement, check_against, greedy, ir_greedy_agreement
from prune_export.export.onnx_read import rotary_rows
from prune_export.prune.families import family_of
from prune_export.prune.shapes import model_shape


def check_parity(model: PreTrainedModel, directory: Path) -> tuple[dict[str, float], float]:
    """`torch_reference` and `check_against` in one; the model and the compiled IR are in memory together."""
    return check_against(torch_reference(model), directory, threads=torch.get_num_threads())


def torch_reference(model: PreTrainedModel) -> Reference:
    """Runs every check in torch.

    Prefill and decoding, one and three sequences, left padding, an empty and a filled cache, one and several tokens
    onto a filled cache, a sequence as long as the context (256 tokens at most) and the context's last positions.

    Args:
        model: the fp32 model that was exported.
    """
    shape = model_shape(model.config)
    # Nothing tells a state-space model positions, so there are no last ones to look at.
    context = shape.context if shape.mixer is None else min(shape.context, LONGEST)
    logits = {}
    for check in parity_checks(context):
        stepper = _stepper(model, kept=KEPT)
        logits[check.name] = tuple(stepper.step(step) for step in check.steps(shape.vocab_size))
    rotary = rotary_rows(model, context - LAST, context) if context > LONGEST else None
    return Reference(context, shape.vocab_size, logits, rotary)


def unchecked(model: PreTrainedModel) -> tuple[str, ...]:
    """What no check of the gate reaches in this model, for the record."""
    shape = model_shape(model.config)
    kinds = getattr(model.config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    window = getattr(model.config, "sliding_window", None) if slides and shape.mixer is None else None
    return unreached(shape.context, window or 0)


def greedy_tokens_of(model: PreTrainedModel, prompt_ids: Sequence[int] | NDArray[Any], *, new_tokens: int) -> list[int]:
    """Torch's greedy continuation of one prompt; end-of-text tokens do not end it.

    Args:
        model: the model that was exported.
        prompt_ids: [T].
        new_tokens: tokens to generate.
    """
    return greedy(_stepper(model, kept=1).step, np.asarray(prompt_ids, dtype=np.int64), new_tokens)


def torch_agreement(model: PreTrainedModel, prompt_ids: Sequence[int] | NDArray[Any], expected: Sequence[int]) -> float:
    """Share of `expected` that a torch model chooses too, each after the expected tokens before it.

    Args:
        model: in evaluation mode.
        prompt_ids: [T].
        expected: greedy continuation of that prompt.
    """
    return agreement(_stepper(model, kept=1).step, np.asarray(prompt_ids, dtype=np.int64), expected)


def greedy_agreement(
    model: PreTrainedModel,
    directory: Path,
    *,
    precision: str,
    prompt_ids: Sequence[int] | NDArray[Any],
    new_tokens: int = 128,
) -> float:
    """Share of torch's greedy tokens that the IR chooses too, each after torch's, in the delivered precision.

    Args:
        model: the model that was exported.
        directory: holds the IR.
        precision: as for `ir_greedy_agreement`.
        prompt_ids: [T].
        new_tokens: tokens to generate; fewer where the context ends.
    """
    room = model_shape(model.config).context - len(prompt_ids)
    expected = greedy_tokens_of(model, prompt_ids, new_tokens=max(0, min(new_tokens, room)))
    threads = torch.get_num_threads()
    return ir_greedy_agreement(directory, prompt_ids, expected, precision=precision, threads=threads)


def _stepper(model: PreTrainedModel, *, kept: int) -> _Torch | _TorchMixer:
    return _TorchMixer(model, kept=kept) if family_of(model.config).mixer else _Torch(model, kept=kept)


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


class _TorchMixer:
    """The same for a state-space model: no positions, and one token at a time once there is a state.

    Args:
        model: in evaluation mode.
        kept: logits are given for that many of the last tokens of a step.
    """

    def __init__(self, model: PreTrainedModel, *, kept: int) -> None:
        self._model = model
        self._kept = kept
        self._cache: Any = None

    def step(self, step: Step) -> NDArray[np.float32]:
        """Logits [B, kept, V]."""
        ids = torch.from_numpy(step.ids)
        if self._cache is None:  # padding is on the left, so the first step has all of it
            logits = self._call(ids, torch.from_numpy(step.mask))
        else:
            logits = torch.cat([self._call(token, None) for token in ids.split(1, dim=1)], dim=1)
        kept: NDArray[np.float32] = logits[:, -self._kept :].float().numpy()
        return kept

    def _call(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        with torch.inference_mode():
            output = self._model(input_ids=ids, attention_mask=mask, cache_params=self._cache, use_cache=True)
        self._cache = output.cache_params
        logits: torch.Tensor = output.logits
        return logits
