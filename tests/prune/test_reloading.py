from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ONE_OF_EACH, tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.families import needs_eager
from prune_export.prune.surgery import prune_model

# Runs isolated (-I) where `prune_export` cannot be imported, with warnings as errors.
READER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "prune_export":
            raise ImportError("prune_export is not installed here")
        return None

sys.meta_path.insert(0, Blocker())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ids = load_file(sys.argv[1])["ids"]
found = {}
for number, directory in enumerate(sys.argv[4:]):
    trust = {"trust_remote_code": True} if sys.argv[3] == "trust" else {}
    model = AutoModelForCausalLM.from_pretrained(directory, **trust).eval()
    with torch.no_grad():
        found[f"logits{number}"] = model(ids).logits
        found[f"generated{number}"] = model.generate(ids, max_new_tokens=5, do_sample=False)
assert "prune_export" not in sys.modules
save_file(found, sys.argv[2])
"""


def read_elsewhere(
    directories: list[Path], ids: torch.Tensor, scratch: Path, *, trust: bool = True
) -> list[dict[str, torch.Tensor]]:
    """Logits and generated tokens of checkpoints, from a process that does not have this package.

    Args:
        directories: the checkpoints.
        ids: [B, T].
        scratch: for files.
        trust: run the code beside a checkpoint.
    """
    save_file({"ids": ids}, scratch / "ids.safetensors")
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", READER, "ids.safetensors", "found.safetensors",
         "trust" if trust else "stock", *directories],
        check=False, cwd=scratch, timeout=400, capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = load_file(scratch / "found.safetensors")
    return [{name: found[f"{name}{number}"] for name in ("logits", "generated")} for number in range(len(directories))]


def test_reload_where_this_package_is_not_installed(tmp_path: Path, baichuan: Path) -> None:
    variants = [*ONE_OF_EACH, "mistral-window", "gpt_neox-sequential"]
    dense = [*(tiny_model(variant) for variant in variants), load(baichuan, trust_remote_code=True)]
    models = [prune_model(model, varied_plan(model)) for model in dense]
    directories = [tmp_path / f"model{number}" for number in range(len(models))]
    for model, directory in zip(models, directories, strict=True):
        save_checkpoint(model, None, directory)
    # Saved, read and saved again.
    models.append(load(directories[-1], trust_remote_code=True))
    directories.append(tmp_path / "again")
    save_checkpoint(models[-1], None, directories[-1])
    ids = tokens(2, 9)
    for model, found in zip(models, read_elsewhere(directories, ids, tmp_path), strict=True):
        if needs_eager(model.config):  # `transformers` takes the fused attention, soft caps or not, unless told
            model.set_attn_implementation("sdpa")
        assert (found["logits"] - model(ids).logits).abs().max() <= 1e-5
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)
        assert found["generated"].tolist() == expected.tolist()


@pytest.mark.parametrize("variant", [*ONE_OF_EACH, "llama-biases-tied", "qwen2-mixed-windows", "opt-bare"])
def test_load_gives_the_same_model(variant: str, tmp_path: Path) -> None:
    model = tiny_model(variant)
    for case, original in (("dense", model), ("pruned", prune_model(model, varied_plan(model)))):
        save_checkpoint(original, None, tmp_path / case)
        again = load(tmp_path / case)
        assert type(again) is type(original)
        assert torch.equal(again(tokens(2, 8)).logits, original(tokens(2, 8)).logits)
        assert (tmp_path / case / "modeling_prune_export.py").exists() == (case == "pruned")


def test_dense_checkpoint_has_the_stock_layout(tmp_path: Path) -> None:
    model = tiny_model("llama-biases-tied")
    save_checkpoint(model, None, tmp_path / "ours")
    model.save_pretrained(tmp_path / "stock")
    ours, stock = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "stock"))
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config


def test_pruned_config_keeps_the_dense_fields(tmp_path: Path) -> None:
    model = tiny_model("qwen2-mixed-windows")
    save_checkpoint(prune_model(model, varied_plan(model)), None, tmp_path, dtype=torch.bfloat16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["prune_layers"] == [[0, 0, 24], [2, 1, 8], [4, 2, 0], [0, 0, 0], [4, 2, 5]]
    assert config["model_type"] == "prune_qwen2"
    assert (config["num_attention_heads"], config["intermediate_size"]) == (4, 24)
    assert config["layer_types"] == ["full_attention"] * 2 + ["sliding_attention"] * 3
    assert config["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
