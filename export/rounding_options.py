"""What may be asked of Neural Compressor's rounding to int4; either exporter takes its integers over."""

from __future__ import annotations

from dataclasses import dataclass

from prune_export.errors import BadInputError

METHODS = ("rtn", "gptq", "awq", "autoround")
# Tried in this order for each layer, from the one asked for down.
GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class RoundingOptions:
    """How a checkpoint's linear layers are rounded, before any exporter sees them.

    Attributes:
        method: "rtn" (to the nearest), "gptq" (Frantar et al. 2022, arXiv 2210.17323), "awq" (Lin et al. 2023,
            arXiv 2306.00978) or "autoround" (Cheng et al. 2023, arXiv 2309.05516).
        group_size: weights that share a scale: 128, 64 or 32; smaller ones are used for layers that it does not fit.
        calibration: text, named as for pruning; empty for the standard library's.  "rtn" reads none.
        samples: windows of it.
    """

    method: str
    group_size: int = GROUPS[0]
    calibration: str = ""
    samples: int = 32

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInputError(f'rounding "{self.method}" is not one of {", ".join(METHODS)}')
        if self.group_size not in GROUPS:
            raise BadInputError(
                f"int4 group size {self.group_size} is not supported: use one of {', '.join(map(str, GROUPS))}"
            )
        if self.samples < 1:
            raise BadInputError(f"{self.samples} windows of calibration text are none: use at least 1")
        if not self.needs_text and (self.calibration or self.samples != RoundingOptions.samples):
            raise BadInputError(
                f"--calibration and --num-samples have no meaning for {self.method}, which reads no text: "
                "leave them out"
            )

    @property
    def needs_text(self) -> bool:
        """Whether the method goes by calibration text."""
        return self.method != "rtn"

    def group_for(self, width: int) -> int:
        """The largest group up to the one asked for that divides a width, or 0 where none does."""
        return next((group for group in GROUPS if group <= self.group_size and width % group == 0), 0)
