"""The closed form against dense least squares, and its behaviour at the edges."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from least_squares import brute_force, design, problem, random_masks  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.prune import closed_form
from prune_export.prune.closed_form import damped, row_losses, row_updates
from prune_export.prune.conjugate import conjugate_updates


@pytest.mark.parametrize(
    ("width", "removed"), [(12, 6), (12, 2), (12, 10), (40, 20), (40, 5), (17, 8), (12, 0), (12, 12)]
)
def test_the_update_is_the_constrained_optimum(width: int, removed: int) -> None:
    weights, inputs = problem(6, width, 3 * width, seed=width + removed)
    masks = random_masks(6, width, removed)
    hessian = 2 * inputs @ inputs.T + 0.3 * torch.eye(width, dtype=torch.float64)
    found = row_updates(weights, masks, hessian)
    for row in range(6):
        best, loss = brute_force(weights[row], masks[row], design(inputs, 0.3))
        assert (found.weights[row] - best).norm() <= 1e-8 * weights[row].norm()
        assert float(found.losses[row]) == pytest.approx(loss, rel=1e-8, abs=1e-12)
    assert not found.weights[masks].any()


def test_rows_may_lose_different_numbers_of_weights() -> None:
    weights, inputs = problem(20, 16, 64)
    masks = torch.rand(20, 16, generator=torch.Generator().manual_seed(3)) < torch.linspace(0, 1, 20)[:, None]
    hessian = damped(inputs @ inputs.T, 0.01)
    found = row_updates(weights, masks, hessian)
    single = [row_updates(weights[row : row + 1], masks[row : row + 1], hessian) for row in range(20)]
    assert torch.allclose(found.weights, torch.cat([item.weights for item in single]), rtol=1e-10, atol=1e-12)
    assert torch.allclose(found.losses, row_losses(found.weights - weights, hessian), rtol=1e-10)
    assert torch.equal(found.weights[~masks.any(1)], weights[~masks.any(1)])


@pytest.mark.parametrize("spread", [1e2, 1e5, 1e8])
def test_ill_conditioned_rows_are_solved_in_double(spread: float) -> None:
    weights, inputs = problem(4, 24, 96)
    inputs = inputs * torch.logspace(0, float(torch.tensor(spread).log10()), 24, dtype=torch.float64)[:, None]
    masks = random_masks(4, 24, 12)
    hessian = 2 * inputs @ inputs.T
    found = row_updates(weights, masks, hessian)
    for row in range(4):
        _, loss = brute_force(weights[row], masks[row], 2**0.5 * inputs)
        assert float(found.losses[row]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("removed", [3, 16, 28])
def test_fewer_tokens_than_inputs_give_the_least_loss_without_damping(removed: int) -> None:
    weights, inputs = problem(5, 32, 10)
    masks = random_masks(5, 32, removed)
    found = row_updates(weights, masks, 2 * inputs @ inputs.T)
    assert torch.isfinite(found.weights).all()
    scale = row_losses(weights, 2 * inputs @ inputs.T)
    for row in range(5):
        _, loss = brute_force(weights[row], masks[row], 2**0.5 * inputs)
        assert abs(float(found.losses[row]) - loss) <= 1e-8 * float(scale[row])


def test_silent_inputs_change_nothing() -> None:
    weights = torch.randn(3, 8)
    masks = random_masks(3, 8, 4)
    hessian = damped(torch.zeros(8, 8), 0.01)
    assert torch.equal(row_updates(weights, masks, hessian).weights, weights.masked_fill(masks, 0.0))


def test_single_precision_weights_come_back_in_single_precision() -> None:
    weights, inputs = problem(5, 32, 128)
    masks = random_masks(5, 32, 16)
    hessian = damped(inputs @ inputs.T, 0.01)
    exact, single = row_updates(weights, masks, hessian), row_updates(weights.float(), masks, hessian)
    assert single.weights.dtype == torch.float32
    assert torch.allclose(single.weights.double(), exact.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-6])
def test_conjugate_gradients_stay_within_their_tolerance_of_the_optimum(tolerance: float) -> None:
    weights, inputs = problem(32, 64, 256)
    masks = random_masks(32, 64, 32)
    hessian = damped(inputs @ inputs.T, 0.01)
    exact = row_updates(weights, masks, hessian).losses
    found = conjugate_updates(weights.float(), masks, hessian, tolerance=tolerance)
    assert not found.weights[masks].any()
    assert (found.losses >= exact * (1 - 1e-5)).all()
    assert (found.losses <= exact * (1 + tolerance + 1e-5)).all()
    unchanged = row_losses(weights * masks, hessian)
    assert (found.losses <= unchanged).all()


def test_batches_follow_the_memory_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, inputs = problem(64, 64, 256)
    masks = random_masks(64, 64, 32)
    hessian = damped(inputs @ inputs.T, 0.01)
    sizes: list[int] = []
    original = closed_form._System.deltas

    def recorded(self: object, rows: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(rows))
        return original(self, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(closed_form._System, "deltas", recorded)
    whole = row_updates(weights, masks, hessian)
    assert sizes == [64]
    sizes.clear()
    pieces = row_updates(weights, masks, hessian, memory_bytes=200_000)
    assert sum(sizes) == 64
    assert len(sizes) > 4
    assert torch.allclose(whole.weights, pieces.weights, rtol=1e-10, atol=1e-12)


_PEAK = """
import torch
from prune_export.prune.closed_form import row_updates

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
width = 1024
hessian = torch.eye(width, dtype=torch.float64) + 0.001
weights = torch.randn(96, width)
masks = torch.rand(96, width).argsort(1).argsort(1) < width // 2
row_updates(weights[:1], masks[:1], hessian)  # libraries loaded
for bound in (50 << 20, 1 << 30):
    before = peak()
    row_updates(weights, masks, hessian, memory_bytes=bound)
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_stays_under_the_bound() -> None:
    result = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    bounded, free = (int(line) for line in result.stdout.split())
    assert bounded < 50 << 20
    assert free > 100e6  # all 96 systems of 512 unknowns at once take 200 MB


def test_a_bound_below_one_row_is_refused() -> None:
    weights, inputs = problem(2, 64, 256)
    with pytest.raises(BadInputError, match=r"1\.00 KiB of memory are too little for rows of 64 weights.*--memory"):
        row_updates(weights, random_masks(2, 64, 32), damped(inputs @ inputs.T, 0.01), memory_bytes=1024)
