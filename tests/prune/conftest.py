"""A model whose code comes with its checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import fill_with_noise  # type: ignore[import-not-found]
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils

from prune_export.prune.checkpoint import save_checkpoint

AUTO_MAP = {
    "AutoConfig": "configuration_baichuan.BaichuanConfig",
    "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
}


@pytest.fixture(scope="session")
def remote_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where `transformers` puts the code that it runs."""
    cache = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", cache)
        patch.setattr("sys.path", [*sys.path, cache])
        yield


@pytest.fixture(scope="session")
def baichuan(tmp_path_factory: pytest.TempPathFactory, remote_modules: None) -> Path:
    """A dense checkpoint of Baichuan's layout with its code."""
    found = tmp_path_factory.mktemp("baichuan")
    for path in Path(__file__).parent.joinpath("baichuan_code").glob("*.py"):
        shutil.copyfile(path, found / path.name)
    settings = {"model_type": "baichuan", "auto_map": AUTO_MAP, "tie_word_embeddings": False, "pad_token_id": 0}
    (found / "config.json").write_text(json.dumps(settings))
    config = AutoConfig.from_pretrained(found, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True).requires_grad_(False)
    fill_with_noise(model, 0)
    save_checkpoint(model, None, found)
    return found
