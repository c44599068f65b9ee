"""The papers' settings for the papers' models (Munoz, Yuan, Jain 2025, arXiv 2501.09949, appendix)."""

from __future__ import annotations

from dataclasses import dataclass

from prune_export.errors import BadInputError, nearest
from prune_export.shape import ModelShape


@dataclass(frozen=True)
class Preset:
    """One row of the paper's table.

    Attributes:
        name: as --preset takes it.
        distribution: shares of blocks, MLP channels and heads in what is removed.
        mlp_group: channels removed at once.
        attention_rows: query rows removed at once.
    """

    name: str
    distribution: tuple[float, float, float]
    mlp_group: int
    attention_rows: int

    def kv_group(self, shape: ModelShape) -> int:
        """KV heads removed at once: the rows over those of a KV head with its query heads.

        Raises:
            BadInputError: the model is too small, or the rows are no whole number of its KV groups.
        """
        width = max(layer.mlp_width for layer in shape.layers)
        if width <= self.mlp_group:
            raise BadInputError(
                f"--preset {self.name} removes {self.mlp_group} MLP channels at once, this model has {width}: "
                "leave the preset out and give --distribution, --mlp-group and --kv-group"
            )
        layer = max(shape.layers, key=lambda layer: layer.kv_heads)
        rows = shape.head_dim * (layer.query_heads // max(1, layer.kv_heads))
        if not layer.kv_heads or self.attention_rows % rows or self.attention_rows > rows * layer.kv_heads:
            raise BadInputError(
                f"--preset {self.name} removes {self.attention_rows} attention rows at once, this model's KV groups "
                f"have {rows}: leave the preset out and give --distribution, --mlp-group and --kv-group"
            )
        return self.attention_rows // rows


_USUAL = (44.0, 52.0, 4.0)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("llama-2-7b", _USUAL, 1024, 128),
        Preset("llama-2-13b", _USUAL, 1024, 128),
        Preset("qwen1.5-7b", _USUAL, 1024, 128),
        Preset("qwen1.5-14b", _USUAL, 2048, 128),
        Preset("baichuan2-7b", _USUAL, 1024, 128),
        Preset("baichuan2-13b", _USUAL, 1024, 128),
        Preset("llama-3.1-8b", (30.0, 70.0, 0.0), 1024, 512),
        Preset("llama-3-8b", (20.0, 80.0, 0.0), 1024, 512),
        Preset("llama-3.2-3b", (10.0, 90.0, 0.0), 768, 384),
        Preset("qwen2.5-7b", (50.0, 50.0, 0.0), 1024, 896),
    )
}


def preset_named(name: str) -> Preset:
    """The row called `name`.

    Raises:
        BadInputError: there is none.
    """
    if name not in PRESETS:
        raise BadInputError(f'unknown preset "{name}"{nearest(name, PRESETS)}: use one of {", ".join(PRESETS)}')
    return PRESETS[name]
