"""Independent references for pruning with compensation: constrained least squares, solved row by row."""

from __future__ import annotations

import torch


def problem(rows: int, width: int, tokens: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [rows, width] and correlated inputs X [width, tokens], float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    inputs = mixing @ torch.randn(width, tokens, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64), inputs


def random_masks(rows: int, width: int, removed: int, *, seed: int = 1) -> torch.Tensor:
    """True for `removed` random weights of each row."""
    scores = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed))
    return scores.argsort(1).argsort(1) < removed


def design(inputs: torch.Tensor, damping: float) -> torch.Tensor:
    """A [width, tokens + width] with A A^T = 2 X X^T + damping I."""
    return torch.cat([2**0.5 * inputs, damping**0.5 * torch.eye(len(inputs), dtype=torch.float64)], 1)


def brute_force(row: torch.Tensor, removed: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The row v with v_P = 0 that minimises 1/2 |(v - w) A|^2, by a dense least-squares solver, and its loss."""
    kept = ~removed
    target = row @ matrix
    best = torch.zeros_like(row)
    if bool(kept.any()):
        best[kept] = torch.linalg.lstsq(matrix[kept].T, target[:, None], driver="gelsd").solution[:, 0]
    return best, 0.5 * float(((best - row) @ matrix).square().sum())
