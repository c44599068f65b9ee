"""NSGA-II over integer vectors, through pymoo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Objectives = Callable[[NDArray[np.int64]], NDArray[np.float64]]
# Distribution indices of pymoo's own recommendation for integer variables.
_ETA = 3.0
_CROSSOVER = 0.9


def minimise(
    objectives: Objectives, first: NDArray[np.int64], upper: NDArray[np.int64], *, generations: int, seed: int
) -> None:
    """Runs NSGA-II; the objective function sees every point, and keeps what it wants to keep.

    Args:
        objectives: points [N, variables] to values [N, objectives], all to be minimised.
        first: the first generation [population, variables].
        upper: largest value of each variable; the smallest is zero.
        generations: the first one included.
        seed: of everything random.
    """
    with _no_hint():
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.optimize import minimize

        class Widths(Problem):  # type: ignore[misc]
            def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
                out["F"] = objectives(np.asarray(x, np.int64))

        problem = Widths(n_var=len(upper), n_obj=2, xl=np.zeros(len(upper)), xu=upper, vtype=int)
        algorithm = NSGA2(
            pop_size=len(first),
            sampling=first,
            crossover=SBX(prob=_CROSSOVER, eta=_ETA, vtype=float, repair=RoundingRepair()),
            mutation=PM(eta=_ETA, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=True,
        )
        minimize(problem, algorithm, ("n_gen", generations), seed=seed, verbose=False)


@contextmanager
def _no_hint() -> Iterator[None]:
    """pymoo prints advice on standard output where its compiled modules are missing."""
    from pymoo.config import Config

    before = Config.warnings["not_compiled"], Config.show_compile_hint
    Config.warnings["not_compiled"] = Config.show_compile_hint = False
    try:
        yield
    finally:
        Config.warnings["not_compiled"], Config.show_compile_hint = before
