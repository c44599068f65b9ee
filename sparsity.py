"""Sparsity patterns ("50%", "2:4") and the record of what one-shot pruning did to each projection."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prune_export import units
from prune_export.errors import BadInputError, nearest

SPARSITY_FILE = "sparsity.json"
METHODS = ("mrp", "sparsegpt", "wanda", "magnitude")
_GROUP = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
_LARGEST_GROUP = 16


@dataclass(frozen=True)
class Pattern:
    """Which weights of a row may go.

    Attributes:
        share: removed share of the weights.
        keep: weights kept in each group of `group` neighbours; 0 for an unstructured pattern.
        group: neighbours along a row that share one budget; 0 for an unstructured pattern.
    """

    share: float
    keep: int = 0
    group: int = 0

    def removed(self, width: int) -> int:
        """Weights that go in a row of `width`."""
        return width // self.group * (self.group - self.keep) if self.group else round(self.share * width)

    def fits(self, width: int) -> bool:
        """Whether groups fill a row of `width` and something of it goes and stays."""
        return width % self.group == 0 if self.group else 0 < self.removed(width) < width

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}" if self.group else f"{100 * self.share:.6g}%"


def parse_pattern(text: str, *, what: str = "--pattern") -> Pattern:
    """A pattern from "50%" (of every row) or "2:4" (two of four neighbours are kept).

    Raises:
        BadInputError: neither of the two forms, or out of range.
    """
    match = _GROUP.fullmatch(text)
    if match is None:
        if ":" in text:
            raise BadInputError(f'{what} "{text}" is no pattern: use a share such as 50%, or kept:group such as 2:4')
        return Pattern(units.parse_share(text, what=what))
    keep, group = int(match[1]), int(match[2])
    if not 0 < keep < group <= _LARGEST_GROUP:
        raise BadInputError(
            f'{what} "{text}" is out of range: at least one weight of a group is kept and one goes, '
            f"and a group has at most {_LARGEST_GROUP}, e.g. 2:4"
        )
    return Pattern(1 - keep / group, keep, group)


@dataclass(frozen=True)
class Sparsity:
    """Zeros that are asked for on top of whatever else is done to a model.

    Attributes:
        pattern: what may go.
        method: one of `METHODS`.
    """

    pattern: Pattern
    method: str = METHODS[0]

    def __str__(self) -> str:
        return f"{self.pattern} by {self.method}"


def parse_sparsity(pattern: str | None, method: str | None) -> Sparsity | None:
    """The wish from --sparsity and --sparsity-method; None where neither is given.

    Raises:
        BadInputError: no pattern, an unknown method, or a method without a pattern.
    """
    if pattern is None:
        if method is not None:
            raise BadInputError("--sparsity-method belongs to --sparsity: give a pattern such as 2:4 too")
        return None
    name = method or METHODS[0]
    if name not in METHODS:
        raise BadInputError(f'--sparsity-method "{name}" is not one of {", ".join(METHODS)}{nearest(name, METHODS)}')
    return Sparsity(parse_pattern(pattern, what="--sparsity"), name)


@dataclass(frozen=True)
class ProjectionSparsity:
    """What happened to one projection.

    Attributes:
        name: path in the model.
        rows: outputs.
        columns: inputs.
        zeros: weights that are exactly zero, counted afterwards.
        pattern_holds: counted afterwards: every group of an N:M pattern keeps N weights at most; for an unstructured
            pattern, at least its share of the weights is zero.
        error: share of the output's energy on the calibration tokens that the change costs, |dW X|^2 / |W X|^2.
    """

    name: str
    rows: int
    columns: int
    zeros: int
    pattern_holds: bool
    error: float

    @property
    def share(self) -> float:
        """Measured share of zeros."""
        return self.zeros / (self.rows * self.columns)


@dataclass(frozen=True)
class SparsityReport:
    """What one-shot pruning did to a model.

    Attributes:
        pattern: as it was asked for.
        method: mrp, sparsegpt, wanda or magnitude.
        mask: S or M for mrp, else empty.
        compensation: S or M for mrp, else empty.
        damping: share of the mean diagonal that was added to the Hessian.
        calibration_tokens: all of them together.
        calibration_digest: sha256 of the calibration tokens.
        projections: in the order of the walk.
        warnings: what the user should know.
    """

    pattern: str
    method: str
    mask: str
    compensation: str
    damping: float
    calibration_tokens: int
    calibration_digest: str
    projections: tuple[ProjectionSparsity, ...]
    warnings: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Measured share of zeros over all pruned projections."""
        total = sum(item.rows * item.columns for item in self.projections)
        return sum(item.zeros for item in self.projections) / total if total else 0.0

    @property
    def pattern_holds(self) -> bool:
        """Whether the pattern holds in every projection."""
        return all(item.pattern_holds for item in self.projections)


@dataclass(frozen=True)
class LayerSparsity:
    """The projections of one decoder layer as they are stored.

    Attributes:
        layer: index in the dense model.
        weights: of all of its projections; a layer that lost all of them has no entry.
        zeros: how many of them are exactly zero.
        share: zeros / weights.
    """

    layer: int
    weights: int
    zeros: int
    share: float


@dataclass(frozen=True)
class SparsityRecord:
    """What was counted in a stored checkpoint.

    Attributes:
        pattern: as it was asked for.
        method: mrp, sparsegpt, wanda or magnitude.
        mask: S or M for mrp, else empty.
        compensation: S or M for mrp, else empty.
        pattern_holds: in every projection; for N:M, in every group of every row.
        layers: layer by layer.
    """

    pattern: str
    method: str
    mask: str
    compensation: str
    pattern_holds: bool
    layers: tuple[LayerSparsity, ...]

    @property
    def share(self) -> float:
        """Share of zeros over all layers."""
        return sum(item.zeros for item in self.layers) / max(1, sum(item.weights for item in self.layers))
