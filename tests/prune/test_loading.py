from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, tiny_model, tokens  # type: ignore[import-not-found]
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prune_export.errors import BadInputError
from prune_export.prune.checkpoint import load, save_checkpoint
from prune_export.prune.loading import load_config, load_model, load_tokenizer, source_digest
from prune_export.prune.shapes import model_shape


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    core = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="w1", eos_token="w2", pad_token="w0")
    save_checkpoint(tiny_model(layers=2), tokenizer, directory)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, **changes: Any) -> None:
    weights = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        weights[name.replace("__", ".")] = tensor
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, directory / "model.safetensors")


def assert_refused(directory: Path, words: str) -> None:
    with pytest.raises(BadInputError, match=words) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)


def test_round_trip(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(layers=2)
    assert torch.equal(load_model(directory)(tokens(2, 8)).logits, model(tokens(2, 8)).logits)
    assert model_shape(load_config(directory)).parameters() == sum(item.numel() for item in model.parameters())
    assert load_tokenizer(directory)("w5 w7")["input_ids"] == [5, 7]
    assert load_model(directory, dtype=torch.bfloat16).dtype == torch.bfloat16
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_shards(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert torch.equal(load(directory)(tokens(1, 8)).logits, tiny_model(layers=2)(tokens(1, 8)).logits)
    (directory / "b.safetensors").unlink()
    assert_refused(directory, r"lacks b\.safetensors, one of 2 weight files")
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))
    assert_refused(directory, r'points to "\.\./elsewhere\.safetensors", outside the model directory')
    path.write_text("{}")
    assert_refused(directory, r"is no weight index")


def test_digest_follows_content(directory: Path) -> None:
    before = source_digest(directory)
    assert before == source_digest(directory)
    edit_weights(directory, model__norm__weight=torch.ones(32))
    assert source_digest(directory) != before


def test_missing_and_empty_directories(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", r"model directory .*nothing does not exist")
    assert_refused(tmp_path, r"is empty: it must hold config\.json")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_refused(tmp_path, r"has no config\.json")


def test_broken_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")
    assert_refused(directory, r"config\.json cannot be read as JSON")


def test_unsupported_architecture(directory: Path) -> None:
    edit_config(directory, model_type="bloom")
    assert_refused(directory, r'architecture "bloom" is not supported: use one of llama, mistral, qwen2')


def test_heads_that_do_not_divide(directory: Path) -> None:
    edit_config(directory, num_key_value_heads=3)
    assert_refused(directory, r"4 query heads are no multiple of 3 KV heads")


def test_invalid_field(directory: Path) -> None:
    edit_config(directory, hidden_size="many")
    assert_refused(directory, r"config\.json is not valid for llama: .*hidden_size")


def test_quantized(directory: Path) -> None:
    edit_config(directory, quantization_config={"quant_method": "gptq"})
    assert_refused(directory, r"holds quantized weights")


def test_pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert_refused(directory, r"has pickle weights only \(pytorch_model\.bin\).*convert them to safetensors")


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert_refused(directory, r"has no weights: model\.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5])
def test_truncated(directory: Path, kept: float) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    assert_refused(directory, r"model\.safetensors is truncated or damaged")


def test_missing_tensor_is_not_initialised(directory: Path) -> None:
    edit_weights(directory, model__layers__1__mlp__up_proj__weight=None)
    assert_refused(directory, r"lacks 1 of 21 tensors .* the first is model\.layers\.1\.mlp\.up_proj\.weight")


def test_surplus_tensor(directory: Path) -> None:
    edit_weights(directory, model__layers__7__mlp__up_proj__weight=torch.ones(2))
    assert_refused(directory, r"holds the tensor model\.layers\.7\.mlp\.up_proj\.weight, which a model")


def test_old_rotary_buffers_are_ignored(directory: Path) -> None:
    edit_weights(directory, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(2))
    assert torch.equal(load_model(directory)(tokens(2, 8)).logits, tiny_model(layers=2)(tokens(2, 8)).logits)


def test_wrong_shape(directory: Path) -> None:
    edit_weights(directory, model__norm__weight=torch.ones(31))
    assert_refused(directory, r"model\.norm\.weight has shape \[31\], by config\.json it must be \[32\]")


def test_integer_weights(directory: Path) -> None:
    edit_weights(directory, model__norm__weight=torch.ones(32, dtype=torch.int8))
    assert_refused(directory, r"model\.norm\.weight holds torch\.int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(directory: Path, value: float) -> None:
    weight = torch.zeros(24, 32)
    weight[3, 4] = value
    edit_weights(directory, model__layers__1__mlp__gate_proj__weight=weight)
    assert_refused(directory, r"model\.layers\.1\.mlp\.gate_proj\.weight contains NaN or infinite values")


def test_tokenizer_missing_and_broken(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(BadInputError, match=r"the tokenizer in .* cannot be read"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(BadInputError, match=r"has no tokenizer .*copy the model's tokenizer files there"):
        load_tokenizer(directory)


def test_names_of_older_checkpoints(tmp_path: Path) -> None:
    model = tiny_model("gpt2", layers=2)
    save_checkpoint(model, None, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    masks = {f"h.{index}.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8) for index in range(2)}
    save_file(bare | masks, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path)(tokens(1, 8)).logits, model(tokens(1, 8)).logits)
