"""The gains before the head: exact where they are all that differs, the softmax's metric elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import last_stream, plan_of, tiny_model, tokens, varied_plan  # type: ignore[import-not-found]
from torch import nn

from prune_export.prune import final_norm
from prune_export.prune.families import family_of
from prune_export.prune.final_norm import fit_gains
from prune_export.prune.fitting import RIDGES
from prune_export.prune.refit import refit
from prune_export.prune.surgery import prune_model


def streams(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """`last_stream` as rows, [N T, D]."""
    rows: torch.Tensor = last_stream(model, ids).flatten(0, 1)
    return rows


def divergence(dense: Any, pruned: Any, ids: torch.Tensor) -> float:
    """Mean KL(dense || pruned) over tokens, in nats."""
    with torch.no_grad():
        log_p, log_q = (torch.log_softmax(model(ids, use_cache=False).logits.float(), -1) for model in (dense, pruned))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("variant", ["llama", "gemma2", "opt", "gpt2", "mamba"])
def test_changed_gains_are_found_again(variant: str) -> None:
    dense = tiny_model(variant)
    pruned = prune_model(dense, plan_of(dense, {}))
    norm = pruned.get_submodule(family_of(dense.config).final_norm)
    right = norm.weight.clone()
    factors = 1.0 + 0.3 * torch.rand(len(right), generator=torch.Generator().manual_seed(4))
    offset = family_of(dense.config).norm_offset
    norm.weight = nn.Parameter((right + offset) * factors - offset, requires_grad=False)
    wrong = norm.weight.clone()
    seen = streams(dense, tokens(60, 12))
    with torch.inference_mode():
        update = fit_gains(dense, pruned, [(seen[:576], seen[:576], False), (seen[576:], seen[576:], True)],
                           stored=torch.float32)  # fmt: skip
    assert update is not None
    # All that is left is what the weakest ridge takes.
    assert float((norm.weight - right).norm() / (wrong - right).norm()) < 10 * RIDGES[0]


def test_the_metric_is_that_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same least squares with every token's own Fisher information in full."""
    monkeypatch.setattr(final_norm, "_DRAWS", 1500)
    dense = tiny_model()
    pruned = prune_model(dense, varied_plan(dense))
    norm = pruned.get_submodule("model.norm")
    ids = tokens(10, 12)
    ours, theirs = streams(dense, ids), streams(pruned, ids)
    before = norm.weight.clone()
    with torch.no_grad():
        wanted, found = dense.model.norm(ours).double(), norm(theirs).double()
        update = fit_gains(dense, pruned, [(ours[:96], theirs[:96], False), (ours[96:], theirs[96:], True)],
                           stored=torch.float32)  # fmt: skip
        p = torch.softmax(dense.lm_head(wanted.float()).double(), -1)
    assert update is not None
    table = dense.lm_head.weight.double()
    system, right = torch.zeros(32, 32).double(), torch.zeros(32).double()
    for at in range(len(p)):
        fisher = table.T @ (torch.diag(p[at]) - torch.outer(p[at], p[at])) @ table
        system += fisher * torch.outer(found[at], found[at])
        right += found[at] * (fisher @ (wanted[at] - found[at]))
    system += update.ridge * system.diagonal().mean() * torch.eye(32)
    exact = torch.linalg.solve(system, right)
    ratio = (norm.weight / before - 1.0).double()
    # A share between 0 and 1 scales the update; its direction is that of the exact solution, up to the draws' noise.
    assert float(ratio @ exact / (ratio.norm() * exact.norm())) > 0.98


def test_predictions_get_closer() -> None:
    dense = tiny_model()
    pruned = prune_model(dense, varied_plan(dense))
    before = pruned.model.norm.weight.clone()
    found = refit(dense, pruned, tokens(80, 12, seed=6))
    assert found.gains_ridge is not None
    assert found.head_tokens > 0
    fitted = pruned.model.norm.weight
    other = tokens(40, 12, seed=7)
    with_gains = divergence(dense, pruned, other)
    pruned.model.norm.weight = nn.Parameter(before, requires_grad=False)
    assert with_gains < divergence(dense, pruned, other)
    assert not torch.equal(fitted, before)
