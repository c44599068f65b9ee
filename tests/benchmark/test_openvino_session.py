"""The session against torch, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from transformers import LlamaForCausalLM

from prune_export.benchmark import devices
from prune_export.benchmark.artifact import context_length, find_ir, weight_precision, weights_bytes
from prune_export.benchmark.devices import device_fingerprint
from prune_export.benchmark.openvino_session import OpenVINOSession, held_bytes, is_present
from prune_export.benchmark.properties import OPTIONS, cache_bytes, runtime_properties
from prune_export.errors import BadInputError
from prune_export.export.runner import open_runner
from prune_export.export.weights import compress
from prune_export.profiles import host_cores, host_fingerprint, load_profile

VOCAB = 96
# fp32 in another order of summation; logits are of the order of 1 to 10.
TOLERANCE = 1e-4


def session(directory: Path, *, last_token_only: bool = False, precision: str = "fp32") -> OpenVINOSession:
    made = OpenVINOSession(directory, precision=precision, threads=1, last_token_only=last_token_only)
    made.load()
    return made


def tokens(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, length), dtype=np.int64)


def reference(model: LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
    return logits


@pytest.mark.parametrize("batch", [1, 3])
def test_prefill_and_decode_equal_torch_on_the_whole_sequence(
    tiny_model: LlamaForCausalLM, tiny_ir: Path, batch: int
) -> None:
    ids = tokens(batch, 12)
    expected = reference(tiny_model, ids)
    made = session(tiny_ir)
    made.touch()  # before anything else, too
    first = made.prefill(ids[:, :7]).copy()
    # A second prefill on top of a cache, then single tokens.
    second = made.prefill(ids[:, 7:9]).copy()
    steps = []
    for index in range(9, 12):
        made.touch()  # leaves the cache as it is
        steps.append(made.decode(ids[:, [index]]).copy())
    found = np.concatenate([first, second, *steps], axis=1)
    assert found.shape == expected.shape == (batch, 12, VOCAB)
    assert np.isfinite(found).all()
    assert np.ptp(expected) > 1.0
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_reset_forgets_and_allows_another_batch(tiny_ir: Path) -> None:
    made = session(tiny_ir)
    before = made.prefill(tokens(1, 5)).copy()
    with pytest.raises(ValueError, match="cache holds a batch of 1, got 2: reset first"):
        made.prefill(tokens(2, 5))
    made.reset()
    made.prefill(tokens(2, 9, seed=1))
    made.reset()
    np.testing.assert_array_equal(made.prefill(tokens(1, 5)), before)


def test_the_mask_grows_beyond_its_first_capacity(
    tiny_model: LlamaForCausalLM, tiny_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prune_export.benchmark.openvino_session._FIRST_CAPACITY", 4)
    ids = tokens(1, 30)
    made = session(tiny_ir)
    made.prefill(ids[:, :2])
    steps = [made.decode(ids[:, [index]]).copy() for index in range(2, 30)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), reference(tiny_model, ids)[:, 2:], atol=TOLERANCE, rtol=0)


def test_the_sliced_model_gives_the_same_last_logits(tiny_ir: Path) -> None:
    ids = tokens(2, 11)
    whole, sliced = session(tiny_ir), session(tiny_ir, last_token_only=True)
    last = sliced.prefill(ids).copy()
    assert last.shape == (2, 1, VOCAB)
    np.testing.assert_allclose(last, whole.prefill(ids)[:, -1:], atol=TOLERANCE, rtol=0)
    following = tokens(2, 1, seed=2)
    np.testing.assert_allclose(sliced.decode(following), whole.decode(following), atol=TOLERANCE, rtol=0)


def test_the_properties_of_each_precision_are_explicit() -> None:
    found = runtime_properties("fp32", threads=2, device="CPU", capabilities=["BF16", "FP32"])
    assert found["INFERENCE_PRECISION_HINT"] == found["KV_CACHE_PRECISION"] == "f32"
    assert found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
    assert (found["INFERENCE_NUM_THREADS"], found["NUM_STREAMS"], found["PERFORMANCE_HINT"]) == (2, 1, "LATENCY")
    assert found["ENABLE_CPU_PINNING"] is True
    for capabilities, hint in ((["BF16", "FP32"], "bf16"), (["FP32"], "f32")):
        found = runtime_properties("int8", threads=1, device="CPU", capabilities=capabilities)
        assert (found["INFERENCE_PRECISION_HINT"], found["KV_CACHE_PRECISION"]) == (hint, "u8")
    assert "INFERENCE_NUM_THREADS" not in runtime_properties("int8", threads=1, device="GPU", capabilities=["FP16"])
    # Other devices than a CPU compute in f16 where they can, as they do by themselves.
    for precision, capabilities, hint in (
        ("int8", ["FP32", "FP16"], "f16"),
        ("fp16", ["FP32", "FP16", "BF16"], "f16"),
        ("fp32", ["FP32", "FP16"], "f32"),
        ("int4", ["FP32"], "f32"),
    ):
        found = runtime_properties(precision, threads=1, device="GPU.0", capabilities=capabilities)
        assert found["INFERENCE_PRECISION_HINT"] == hint
    assert [cache_bytes(name) for name in OPTIONS] == [4, 2, 2, 1, 1]


def test_bf16_weights_are_widened_where_the_device_has_no_bf16() -> None:
    for capabilities, compute, cache in ((["BF16", "FP32"], "bf16", "bf16"), (["FP32"], "f32", "f16")):
        found = runtime_properties("bf16", threads=1, device="CPU", capabilities=capabilities)
        assert (found["INFERENCE_PRECISION_HINT"], found["KV_CACHE_PRECISION"]) == (compute, cache)


def test_bf16_weights_are_computed_in_f32_where_openvino_would_die() -> None:
    amx = ("avx512_bf16", "amx_bf16")
    for precision, threads, isa, compute in (
        ("bf16", 1, amx, "f32"),
        ("bf16", 2, amx, "bf16"),
        ("bf16", 1, amx[:1], "bf16"),
        ("int8", 1, amx, "bf16"),
    ):
        found = runtime_properties(precision, threads=threads, device="CPU", capabilities=["BF16"], isa=isa)
        assert found["INFERENCE_PRECISION_HINT"] == compute


def test_a_cache_that_the_export_was_asked_for_goes_before_that_of_the_precision() -> None:
    found = runtime_properties("fp32", threads=1, device="CPU", capabilities=["FP32"], kv_cache="u8")
    assert (found["INFERENCE_PRECISION_HINT"], found["KV_CACHE_PRECISION"]) == ("f32", "u8")


class FakeCore:
    """A machine with two GPUs, the first of which tells what it holds."""

    available_devices = ("CPU", "GPU.0", "GPU.1")

    def get_property(self, device: str, name: str) -> dict[str, int]:
        assert name == "GPU_MEMORY_STATISTICS"
        if device == "GPU.1":
            raise RuntimeError("unsupported property")
        return {"usm_device": 700, "cl_mem": 50, "usm_host": 10_000}


def test_memory_of_a_gpu_is_what_the_plugin_counts_or_unknown() -> None:
    found = [held_bytes(FakeCore(), device) for device in ("CPU", "GPU.0", "GPU.1")]
    assert found == [0, 750, None]


def test_a_device_may_be_one_of_several() -> None:
    found = [is_present(FakeCore(), device) for device in ("CPU", "GPU", "GPU.1", "GPU.2", "NPU", "G")]
    assert found == [True, True, True, False, False, False]


def test_openvino_is_asked_for_devices_that_are_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = load_profile("gpu-intel")
    assert device_fingerprint(load_profile("host")) == host_fingerprint()
    assert device_fingerprint(replace(gpu, device="NPU")) == host_fingerprint() | {"device": ""}
    monkeypatch.setattr(devices, "openvino_name", lambda device: f"the {device}")
    assert device_fingerprint(gpu)["device"] == "the GPU"


def test_the_options_are_those_that_openvino_runs_with(tiny_ir: Path, tmp_path: Path) -> None:
    compress(tiny_ir, tmp_path / "int8", precision="int8")
    made = session(tmp_path / "int8", precision="int8")
    compiled = made._request.get_compiled_model()
    assert made.options["KV_CACHE_PRECISION"] == "u8"
    assert compiled.get_property("KEY_CACHE_PRECISION") == ov.Type.u8
    assert str(compiled.get_property("INFERENCE_NUM_THREADS")) == made.options["INFERENCE_NUM_THREADS"] == "1"
    assert str(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == "32"


def test_the_ir_is_found_in_the_folder_or_in_its_only_sub_folder(tiny_ir: Path, tmp_path: Path) -> None:
    ir = find_ir(tiny_ir)
    assert find_ir(tiny_ir.parent) == ir
    assert weights_bytes(ir) == (tiny_ir / "openvino_model.bin").stat().st_size
    assert context_length(ir) == 64
    shutil.copytree(tiny_ir, tmp_path / "one")
    shutil.copytree(tiny_ir, tmp_path / "two")
    with pytest.raises(BadInputError, match=r"several models \(one, two\): give one of these folders"):
        find_ir(tmp_path)


@pytest.mark.parametrize(
    ("kinds", "precision"),
    [(("f32", "i64"), "fp32"), (("f16", "f32"), "fp16"), (("u8", "f16"), "int8"), (("i8", "u4", "f16"), "int4")],
)
def test_the_precision_is_read_from_the_constants(tmp_path: Path, kinds: tuple[str, ...], precision: str) -> None:
    ir = tmp_path / "openvino_model.xml"
    ir.write_text("\n".join(f'<data element_type="{kind}" shape="1" offset="0" size="1" />' for kind in kinds))
    assert weight_precision(ir) == precision


def test_the_exported_model_counts_as_fp32(tiny_ir: Path) -> None:
    assert weight_precision(find_ir(tiny_ir)) == "fp32"


def refusal(directory: Path, *, precision: str = "fp32", threads: int = 1, device: str = "CPU") -> str:
    with pytest.raises(BadInputError) as caught:
        OpenVINOSession(directory, precision=precision, threads=threads, device=device).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "gone is not a directory" in refusal(tmp_path / "gone")
    assert "holds no openvino_model.xml: export the model to OpenVINO first" in refusal(tmp_path)


def test_missing_and_damaged_files_are_refused(tiny_ir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_ir, copy)
    weights = (copy / "openvino_model.bin").read_bytes()
    (copy / "openvino_model.bin").write_bytes(weights[: len(weights) // 2])
    assert "cannot be read, it is damaged or incomplete" in refusal(copy)
    (copy / "openvino_model.xml").write_text("<net")
    assert "cannot be read, it is damaged or incomplete" in refusal(copy)
    (copy / "openvino_model.bin").unlink()
    assert "has no weights beside it (openvino_model.bin is missing)" in refusal(copy)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('version="11"', 'version="12"', "IR version 12"),
        ('version="opset1"', 'version="opset99"', "opset99"),
        ('type="MatMul" version="opset1"', 'type="FancyMatMul" version="opset1"', "operation FancyMatMul of opset1"),
    ],
)
def test_an_ir_that_is_newer_than_the_runtime_is_not_called_damaged(
    tiny_ir: Path, tmp_path: Path, old: str, new: str, named: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_ir, copy)
    path = copy / "openvino_model.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    installed = ov.__version__.split("-")[0]
    words = f"cannot be read: the installed OpenVINO {installed} may be too old for it ({named}): pip install --upgrade"
    assert words in refusal(copy)
    with pytest.raises(BadInputError) as caught:
        open_runner(copy, precision="fp32", threads=1)
    assert words in str(caught.value)


def test_an_ir_of_a_newer_runtime_that_cannot_be_read_may_be_either(tiny_ir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_ir, copy)
    path = copy / "openvino_model.xml"
    text, installed = path.read_text(), ov.__version__.split("-")[0]
    assert installed in text
    path.write_text(text.replace(installed, "2099.1.0"))
    assert session(copy).vocab_size == VOCAB  # what can be read is read
    weights = (copy / "openvino_model.bin").read_bytes()
    (copy / "openvino_model.bin").write_bytes(weights[: len(weights) // 2])
    found = refusal(copy)
    assert "may be too old for it (written by OpenVINO 2099.1.0): pip install --upgrade" in found
    assert "or the file is damaged: " in found


def test_a_model_without_state_is_refused(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    ids.output(0).set_names({"input_ids"})
    result = ops.result(ops.convert(ids, "f32"))
    ov.save_model(ov.Model([result], [ids]), tmp_path / "openvino_model.xml")
    assert "keeps no KV cache (it has no state): export it again as a stateful model" in refusal(tmp_path)


def test_threads_devices_and_precisions_that_do_not_exist_are_refused(tiny_ir: Path) -> None:
    cores = host_cores()
    assert f"threads {cores + 1}: this process may use {cores} cores" in refusal(tiny_ir, threads=cores + 1)
    assert "threads -1" in refusal(tiny_ir, threads=-1)
    assert 'device "NPU" is absent here: OpenVINO finds CPU' in refusal(tiny_ir, device="NPU")
    assert 'precision "int9" (did you mean "int' in refusal(tiny_ir, precision="int9")
