"""The parity gate of exports: torch's side, taken before the model is released, and what the runtimes find."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_export.manifest import ParityRecord, asked_cache
from prune_export.progress import Progress

if TYPE_CHECKING:
    from prune_export.export.rounded import RoundedWeights

PROMPT = tuple(range(1, 17))
_GREEDY_TOKENS = 128
_HELD_OUT = 8  # windows of held-out text, as long as prompt and greedy tokens together


@dataclass(frozen=True)
class Expected:
    """Torch's side of the gate, so that the model can be released before a runtime loads its export.

    Attributes:
        reference: .npz file of its logits.
        tokens: greedy continuation of the prompt.
        window_nll: mean token NLL of prompt and continuation.
        windows: held-out text, [N, T].
        nll: mean token NLL of each window.
        held_out: name of that text, with digests.
        unchecked: what the checks do not reach.
        threads: of torch, and of the gate then.
    """

    reference: Path
    tokens: tuple[int, ...]
    window_nll: float
    windows: Any
    nll: tuple[float, ...]
    held_out: str
    unchecked: tuple[str, ...]
    threads: int


def expected_of(checkpoint: Any, tokenizer: Any, scratch: Path, rounded: RoundedWeights | None) -> Expected:
    """Tokens and NLL of the checkpoint as it is; logits of the weights that are exported.

    With weights that were rounded before, the checkpoint has those from here on.
    """
    import numpy as np
    import torch

    from prune_export.evaluate import torch_nll
    from prune_export.export.parity import greedy_tokens_of, torch_reference, unchecked
    from prune_export.export.rounded import put_into
    from prune_export.texts import load_text, token_windows, windows_digest

    tokens = greedy_tokens_of(checkpoint, PROMPT, new_tokens=new_tokens(checkpoint))
    text = load_text(None, "evaluation")
    held_out = token_windows(text, tokenizer, count=_HELD_OUT, length=len(PROMPT) + len(tokens))
    windows = np.concatenate([np.asarray([[*PROMPT, *tokens]], dtype=np.int64), held_out])
    window_nll, *nll = torch_nll(checkpoint, windows)
    if rounded is not None:
        put_into(checkpoint, rounded)
    reference = scratch / "reference.npz"
    torch_reference(checkpoint).save(reference)
    described = f"{text.name}, digest {text.digest[:12]}; tokens {windows_digest(held_out)[:12]}"
    return Expected(
        reference=reference,
        tokens=tuple(tokens),
        window_nll=window_nll,
        windows=held_out,
        nll=tuple(nll),
        held_out=described,
        unchecked=unchecked(checkpoint),
        threads=torch.get_num_threads(),
    )


def new_tokens(checkpoint: Any) -> int:
    """Greedy tokens that the gate compares: fewer where the context is short."""
    from prune_export.prune.shapes import model_shape

    return min(_GREEDY_TOKENS, model_shape(checkpoint.config).context - len(PROMPT))


def compared(expected: Expected, plain: Path) -> tuple[dict[str, float], float]:
    """The fp32 export against torch, in a process of its own, the model released before."""
    from prune_export.delivery.ir_checks import compare
    from prune_export.delivery.resources import free_memory

    free_memory()
    return compare(expected.reference, plain, threads=expected.threads)


def scored(
    stage: Path,
    expected: Expected,
    compared: tuple[dict[str, float], float],
    *,
    precision: str,
    name: str,
    scratch: Path,
    progress: Progress,
) -> ParityRecord:
    """What the gate in the delivered precision found; the NLLs are checked."""
    from prune_export.delivery.ir_checks import score_ir
    from prune_export.export.gate import check_nll, parity_record

    found = score_ir(
        stage,
        precision=precision,
        prompt=PROMPT,
        expected=expected.tokens,
        windows=expected.windows,
        gate_threads=expected.threads,
        score_threads=0,
        progress=progress,
        scratch=scratch,
    )
    held_out_error = statistics.fmean(ours - theirs for ours, theirs in zip(found.nll, expected.nll, strict=True))
    for error in (found.continuation_nll - expected.window_nll, held_out_error):
        check_nll(error, precision=precision, name=name, cache=asked_cache(stage))
    record = parity_record(*compared, greedy_tokens=len(expected.tokens), greedy_agreement=found.agreement)
    return replace(
        record,
        prompt=PROMPT,
        nll_error=held_out_error,
        continuation=expected.tokens,
        window_nll=expected.window_nll,
        perplexity=math.exp(statistics.fmean(found.nll)),
        held_out=expected.held_out,
        unchecked=expected.unchecked,
    )
