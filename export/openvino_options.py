"""What may be asked of an OpenVINO export beside its precision: the options that `optimum-cli export openvino` has."""

from __future__ import annotations

from dataclasses import dataclass, fields

from prune_export.errors import BadInputError

# Tried in this order for each layer; NNCF raises an error for a width that the group does not divide.
GROUPS = (128, 64, 32)
BACKUPS = ("int8_asym", "int8_sym", "none")
CACHES = ("f32", "f16", "bf16", "u8")
# Field to its option's name and to the precisions that it has a meaning for; none for one that is not about weights.
_FLAGS = {
    "group_size": ("--group-size", ("int4",)),
    "symmetric": ("--sym", ("int8", "int4")),
    "ratio": ("--ratio", ("int4",)),
    "all_layers": ("--all-layers", ("int4",)),
    "backup": ("--backup-precision", ("int4",)),
    "awq": ("--awq", ("int4",)),
    "scale_estimation": ("--scale-estimation", ("int4",)),
    "gptq": ("--gptq", ("int4",)),
    "calibration": ("--calibration", ("int4",)),
    "samples": ("--num-samples", ("int4",)),
    "kv_cache": ("--kv-cache-precision", ()),
}


@dataclass(frozen=True)
class OpenVinoOptions:
    """How weights are compressed, and how the runtime is to keep the cache.

    Attributes:
        group_size: int4 weights that share a scale: 128, 64 or 32; smaller ones are used for layers that it does not
            fit.  ONNX takes it as its block.
        symmetric: no zero points.
        ratio: share of the layers that get 4 bits; the others, those that rounding changes most, get the backup
            precision.
        all_layers: 4 bits for embeddings and head too.
        backup: precision of what gets no 4 bits: "int8_asym", "int8_sym" or "none".
        awq: rescale channels before rounding (AWQ, Lin et al. 2023, arXiv 2306.00978), by the size of their weights or,
            with calibration text, of their inputs.
        scale_estimation: choose scales by the error of a layer's output on calibration text.
        gptq: let later columns make up for earlier ones (GPTQ, Frantar et al. 2022, arXiv 2210.17323), on calibration
            text.
        calibration: text, named as for pruning; empty for the standard library's where one of the last two needs one,
            else for none.
        samples: windows of it.
        kv_cache: hint to the runtime, "f32", "f16", "bf16" or "u8"; empty for f16 beside uncompressed weights and the
            runtime's own choice (u8 on a CPU) beside int8 and int4.
    """

    group_size: int = GROUPS[0]
    symmetric: bool = False
    ratio: float = 1.0
    all_layers: bool = False
    backup: str = BACKUPS[0]
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    calibration: str = ""
    samples: int = 32
    kv_cache: str = ""

    def __post_init__(self) -> None:
        if self.group_size not in GROUPS:
            raise BadInputError(
                f"int4 group size {self.group_size} is not supported: use one of {', '.join(map(str, GROUPS))}"
            )
        if not 0.0 < self.ratio <= 1.0:
            raise BadInputError(f"ratio {self.ratio:g} of int4 layers must be above 0 and at most 1")
        if self.samples < 1:
            raise BadInputError(f"{self.samples} windows of calibration text are none: use at least 1")
        if self.backup not in BACKUPS:
            raise BadInputError(f'backup precision "{self.backup}" is not one of {", ".join(BACKUPS)}')
        if self.kv_cache not in ("", *CACHES):
            raise BadInputError(f'KV-cache precision "{self.kv_cache}" is not one of {", ".join(CACHES)}')

    @property
    def methods(self) -> tuple[str, ...]:
        """What the rounding is prepared with."""
        given = {"awq": self.awq, "scale estimation": self.scale_estimation, "gptq": self.gptq}
        return tuple(name for name, is_given in given.items() if is_given)

    @property
    def needs_text(self) -> bool:
        """Whether weights are rounded with calibration text."""
        return bool(self.scale_estimation or self.gptq or self.calibration)

    @property
    def changed(self) -> tuple[str, ...]:
        """Fields that are not at their defaults."""
        return tuple(item.name for item in fields(self) if getattr(self, item.name) != item.default)

    @property
    def given(self) -> tuple[str, ...]:
        """The options of these fields."""
        return tuple(_FLAGS[name][0] for name in self.changed)

    @property
    def deciding(self) -> tuple[str, ...]:
        """Options given by which OpenVINO's own compression decides about integers."""
        return tuple(_FLAGS[name][0] for name in self.changed if _FLAGS[name][1] and name != "backup")

    @property
    def openvino_alone(self) -> tuple[str, ...]:
        """Options given that no other format has: all but the group size, which is ONNX's block."""
        return tuple(_FLAGS[name][0] for name in self.changed if name != "group_size")

    def check(self, precision: str) -> None:
        """Refuses what has no meaning for a precision.

        Raises:
            BadInputError: names the option and the precisions that have it.
        """
        for name in self.changed:
            flag, precisions = _FLAGS[name]
            if precisions and precision not in precisions:
                raise BadInputError(
                    f"{flag} is for {' and '.join(precisions)} weights, not for {precision}: leave it out"
                )
        if "samples" in self.changed and not self.needs_text:
            raise BadInputError("--num-samples is of --calibration, --scale-estimation or --gptq: give one of them")
