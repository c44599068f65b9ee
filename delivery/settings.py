"""How a plan is searched, as the user asked for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prune_export.errors import BadInputError, nearest

if TYPE_CHECKING:
    from prune_export.shape import ModelShape

SEARCHES = ("fast", "multipruner", "blockpruner", "evolve")
ORDERS = ("l1", "wanda", "none")
DEFAULT_SEARCH = "fast"
DISTRIBUTION = (44.0, 52.0, 4.0)
# Searches whose plans are compensated unless told otherwise; the papers' own are not.
_COMPENSATED = ("fast", "evolve")


@dataclass(frozen=True)
class SearchSettings:
    """How the plan is searched.

    Attributes:
        search: one of `SEARCHES`; unless told MultiPruner with a preset, the fast search without.
        compensate: refit what stays for what goes, or None for the search's default: on for fast and evolve, off for
            the papers' searches and presets.
        uniform: one MLP width and one number of KV heads for all layers that stay; the fast search can.
        preset: row of the papers' table that distribution and groups are taken from, or None.
        order: importance order of channels and KV groups, one of `ORDERS`.
        distribution: shares of blocks, MLP channels and attention heads in what is removed.
        mlp_group: MLP channels removed at once, or None for the default of the model and device.
        kv_group: KV heads removed at once.
        calibration_windows: sequences, or None for the default of the model's size.
        width_windows: sequences that widths are scored on, or None for as many as blocks.
        calibration_rows: documents of the calibration text that blocks are scored on, joined and cut into windows, or
            None for windows from all over the text.
        width_rows: the same for widths, or None for as many.
        calibration_length: tokens a sequence, or None.
    """

    search: str = ""
    compensate: bool | None = None
    uniform: bool = False
    preset: str | None = None
    order: str = "l1"
    distribution: tuple[float, float, float] = DISTRIBUTION
    mlp_group: int | None = None
    kv_group: int = 1
    calibration_windows: int | None = None
    width_windows: int | None = None
    calibration_rows: int | None = None
    width_rows: int | None = None
    calibration_length: int | None = None

    def __post_init__(self) -> None:
        if not self.search:
            object.__setattr__(self, "search", DEFAULT_SEARCH if self.preset is None else "multipruner")

    @property
    def compensated(self) -> bool:
        """Whether plans are compensated."""
        if self.compensate is not None:
            return self.compensate
        return self.preset is None and self.search in _COMPENSATED

    @property
    def exact(self) -> bool:
        """Whether the papers' rule holds, lowest perplexity, whatever the cost counts."""
        return self.preset is not None

    @property
    def ignored(self) -> str:
        """A note that names what the fast search takes no notice of, else empty."""
        if self.search != "fast" or self.preset is not None:
            return ""
        given = {
            "--order": self.order != "l1",
            "--distribution": self.distribution != DISTRIBUTION,
            "a size for widths": self.width_windows is not None or self.width_rows is not None,
        }
        names = ", ".join(name for name, is_given in given.items() if is_given)
        if not names:
            return ""
        return f"note: {names}: of no effect on --search fast, which decides itself; add --search multipruner"

    def _check_uniform(self, shape: ModelShape) -> None:
        from prune_export.prune.stock import check_uniform

        if self.search != "fast":
            by = f"--preset {self.preset}" if self.preset else f"--search {self.search}"
            raise BadInputError(f"--uniform is planned by --search fast alone, not by {by}: leave out one of them")
        check_uniform(shape)

    def for_model(self, shape: ModelShape) -> SearchSettings:
        """Checked, and with the preset's row filled in for a model.

        Raises:
            BadInputError: an unknown name, or settings that contradict each other.
        """
        for what, value, known in (("--search", self.search, SEARCHES), ("--order", self.order, ORDERS)):
            if value not in known:
                raise BadInputError(f'{what} "{value}"{nearest(value, known)}: use one of {", ".join(known)}')
        if self.calibration_rows and self.calibration_windows:
            raise BadInputError("give either --calibration-windows or --calibration-rows, not both")
        if self.uniform:
            self._check_uniform(shape)
        if self.preset is None:
            return self
        from prune_export.prune.presets import preset_named

        preset = preset_named(self.preset)
        if self.search != "multipruner":
            raise BadInputError(f"--preset {self.preset} is of MultiPruner, not of --search {self.search}")
        if self.mlp_group is not None or self.kv_group != 1 or self.distribution != DISTRIBUTION:
            raise BadInputError(
                f"--preset {self.preset} says --distribution, --mlp-group and --kv-group: give it or them, not both"
            )
        return replace(
            self, distribution=preset.distribution, mlp_group=preset.mlp_group, kv_group=preset.kv_group(shape)
        )
