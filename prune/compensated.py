"""A plan's model without surgery: every output projection cut and compensated at once, from moments kept on disk.

Cheaper than the refit that a chosen plan gets (no forward pass), and close enough to compare plans.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

import torch

from prune_export.prune.closed_form import mean_diagonal, regression
from prune_export.prune.divergence import Effect
from prune_export.prune.score_file import ScoreFolder
from prune_export.prune.scoring import ABSORB_RIDGE, BlockScores, Scoring, cut_matrix
from prune_export.prune.sub_blocks import SubBlock, matrix, matrix_replaced


class CompensatedPlan:
    """Evaluates plans of one scoring.

    Args:
        scoring: of the dense model.
        scores: of all its sub-blocks.
        folder: where the moments are.
    """

    def __init__(self, scoring: Scoring, scores: list[BlockScores], folder: ScoreFolder) -> None:
        self._scoring = scoring
        self._scores = {item.index: item for item in scores}
        self._folder = folder
        self._matrices: dict[tuple[int, int, tuple[int, ...]], torch.Tensor] = {}

    def effect(self, sizes: dict[int, int], *, limit: float = math.inf) -> Effect | None:
        """What a plan does to the predictions.

        Args:
            sizes: units of each sub-block by its index.
            limit: give up, and return None, once the divergence is sure to exceed this.
        """
        divergence = self._scoring.divergence
        absorbed = self._absorbed(sizes)
        structure = list(self._scoring.shape.layers)
        with ExitStack() as stack:
            for block in self._scoring.blocks:
                size, extra = sizes[block.index], tuple(absorbed.get(block.index, ()))
                if size == 0 or block.part == "mixer":
                    dense = self._scoring.shape.layers[block.layer]
                    structure[block.layer] = block.resized(structure[block.layer], dense, size)
                    self._scoring.set_order(block, tuple(self._scores[block.index].order.tolist()))
                if size and (size < block.units or extra):
                    stack.enter_context(matrix_replaced(block.module, self._matrix(block, size, extra)))
            return divergence.within(limit, 0, tuple(structure))

    def keep_only(self, sizes: dict[int, int]) -> None:
        """Frees all matrices but those of a plan: the next ones asked for are likely to be close to it."""
        self._matrices = {key: found for key, found in self._matrices.items() if sizes[key[0]] == key[1]}

    def _absorbed(self, sizes: dict[int, int]) -> dict[int, list[int]]:
        """Removed sub-blocks by the remaining one that takes over for them."""
        found: dict[int, list[int]] = {}
        for block in self._scoring.blocks:
            helper = self._scoring.helper(block)
            if sizes[block.index] == 0 and helper is not None and sizes[helper.index]:
                found.setdefault(helper.index, []).append(block.index)
        return found

    def _matrix(self, block: SubBlock, size: int, absorbed: tuple[int, ...]) -> torch.Tensor:
        """The block's projection [out, n] at a size, taking over for removed ones."""
        key = (block.index, size, absorbed)
        if key not in self._matrices:
            kept = self._folder.matrix("moment", block.index)
            assert kept is not None, "the scoring keeps every moment"
            moment = torch.from_numpy(kept.copy()).double()
            units = self._scores[block.index].order[:size]
            result = cut_matrix(block, matrix(block.module), moment, units)
            columns = block.columns[torch.from_numpy(units.copy())].reshape(-1)
            for gone in absorbed:
                cross = self._folder.matrix("cross", gone)
                if cross is not None:
                    system, wanted = moment[columns][:, columns], torch.from_numpy(cross.copy()).double()[:, columns]
                    extra = regression(system, wanted, ridge=ABSORB_RIDGE, scale=mean_diagonal(moment))
                    result[:, columns] += extra.to(result.dtype)
            self._matrices[key] = result
        return self._matrices[key]
