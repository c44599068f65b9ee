"""A checkpoint's weights rounded to int4 by Neural Compressor, once for every format that takes them over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prune_export.errors import BadInputError
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.rounding_options import RoundingOptions
from prune_export.progress import Progress

if TYPE_CHECKING:
    from prune_export.export.integer_weights import Calibration
    from prune_export.export.rounded import RoundedWeights

# Tokens of a window that weights are rounded with.
_CALIBRATION_LENGTH = 256


class Rounder:
    """Rounds checkpoints and keeps the last result, so that two formats get the same integers.

    Args:
        options: how.
    """

    def __init__(self, options: RoundingOptions) -> None:
        self.options = options
        self._kept: tuple[Path, RoundedWeights] | None = None

    def check(self, precision: str | None, openvino: OpenVinoOptions | None) -> None:
        """Refuses what does not go with it, and a Python environment without Neural Compressor.

        Args:
            precision: of the weights, as asked for.
            openvino: options of the OpenVINO part.

        Raises:
            BadInputError: a line with the remedy.
        """
        from prune_export.export.neural_compressor import check_installed

        rounding = f"--rounding {self.options.method}"
        if precision != "int4":
            raise BadInputError(
                f"{rounding} is for int4 weights, not for {precision or 'the default precision'}: add --precision int4"
            )
        if openvino is not None and openvino.deciding:
            raise BadInputError(
                f"{openvino.deciding[0]} is of OpenVINO's own compression, with {rounding} Neural Compressor decides: "
                "leave it out"
            )
        check_installed(self.options.method)

    def of(self, source: Path, report: Progress) -> RoundedWeights:
        """What becomes of a checkpoint's weights.

        Raises:
            BadInputError: an unusable checkpoint, or one that the library cannot round.
        """
        if self._kept is None or self._kept[0] != source:
            self._kept = source, self._made(source, report)
        return self._kept[1]

    def _made(self, source: Path, report: Progress) -> RoundedWeights:
        from prune_export.export.neural_compressor import check_family, round_weights
        from prune_export.prune.checkpoint import load
        from prune_export.prune.loading import load_config

        options = self.options
        check_family(load_config(source))
        text = calibration(source, options.calibration, samples=options.samples) if options.needs_text else None
        with report.phase(f"rounding weights ({options.method})"):
            return round_weights(load(source), options, text)


def calibration(source: Path, name: str, *, samples: int) -> Calibration:
    """Windows of text that weights are rounded with.

    Args:
        source: checkpoint whose tokenizer reads them.
        name: of the text; empty for the standard library's.
        samples: how many windows.
    """
    from prune_export.export.integer_weights import Calibration
    from prune_export.prune.loading import load_config, load_tokenizer
    from prune_export.prune.shapes import model_shape
    from prune_export.texts import load_text, token_windows, windows_digest

    text = load_text(name or None, "calibration")
    length = min(_CALIBRATION_LENGTH, model_shape(load_config(source)).context)
    tokens = token_windows(text, load_tokenizer(source), count=samples, length=length)
    return Calibration(tokens, {**text.provenance(), "tokens": windows_digest(tokens)})
