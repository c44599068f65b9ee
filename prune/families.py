"""The model families that can be pruned: one row each.

A family is a row of names (where the layers are, what the projections are called, how heads are laid out, which
projections have biases), never a fork of the algorithm.  `docs/families.md` says how to add one.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import transformers

from prune_export.errors import BadInputError, nearest
from prune_export.prune.family import PRUNED_PREFIX, Family
from prune_export.prune.family_rows import ROWS

__all__ = [
    "FAMILIES",
    "PRUNED_PREFIX",
    "Family",
    "check_supported",
    "family_of",
    "is_pruned",
    "needs_eager",
    "pruned_classes",
    "pruned_module",
    "stock_classes",
]

FAMILIES: dict[str, Family] = {row.name: row for row in ROWS}


def family_of(config: Any) -> Family:
    """The row for a configuration (object or parsed config.json), dense or pruned.

    Raises:
        BadInputError: an architecture without a row; names those supported.
    """
    kind = _get(config, "model_type", None)
    name = str(kind or "").removeprefix(PRUNED_PREFIX)
    if name not in FAMILIES:
        shown = f'architecture "{kind}"' if kind else "a configuration without model_type"
        raise BadInputError(f"{shown} is not supported: use one of {', '.join(FAMILIES)}{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def check_supported(config: Any) -> None:
    """Refuses the members of a family that are built otherwise.

    Raises:
        BadInputError: names the setting, what it must be and why.
    """
    family = family_of(config)
    for rule in family.requirements:
        wanted = rule.value if rule.same_as is None else _get(config, rule.same_as, None)
        value = _get(config, rule.flag, wanted)
        if value != wanted:
            raise BadInputError(
                f"a model of family {family.name} with {rule.flag} = {value} is not supported: {rule.why}"
            )


def needs_eager(config: Any) -> bool:
    """Whether only eager attention computes what a configuration defines."""
    setting = family_of(config).eager_with
    return setting is not None and _get(config, setting, None) is not None


def pruned_module(family: Family) -> ModuleType:
    """The module that defines the family's pruned classes; its file is copied beside a pruned checkpoint."""
    return importlib.import_module(f"prune_export.prune.{family.module}")


def pruned_classes(family: Family) -> tuple[Any, Any]:
    """(configuration, model) class of a pruned model."""
    module = pruned_module(family)
    return getattr(module, family.pruned_config_class), getattr(module, family.pruned_model_class)


def stock_classes(family: Family) -> tuple[Any, Any]:
    """(configuration, model) class of a dense model."""
    return getattr(transformers, family.config_class), getattr(transformers, family.model_class)


def is_pruned(config: Any) -> bool:
    """Whether a configuration (object or parsed config.json) is of a pruned model."""
    return str(_get(config, "model_type", None) or "").startswith(PRUNED_PREFIX)


def _get(config: Any, name: str, default: Any) -> Any:
    return config.get(name, default) if isinstance(config, dict) else getattr(config, name, default)
