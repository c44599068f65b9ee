"""The ONNX Runtime session against torch, the commands on an ONNX artifact, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prune_export.benchmark import ort_session
from prune_export.benchmark.measure import Rounds, Subject, measure_together
from prune_export.benchmark.ort_session import OrtSession
from prune_export.benchmark.run import run_benchmark
from prune_export.benchmark.runtimes import RUNTIMES, find_model
from prune_export.benchmark.score import score
from prune_export.errors import BadInputError
from prune_export.export.onnx_export import PRECISIONS, export_onnx
from prune_export.export.onnx_runner import OnnxRunner
from prune_export.profiles import host_cores, load_profile
from prune_export.target import Workload

VOCAB = 96
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """2 layers, vocabulary 96, context 64; heads of 16, the least that the attention operator rotates."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tiny_onnx(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "onnx"
    export_onnx(model, None, directory)
    return directory


def session(directory: Path, *, last_token_only: bool = False) -> OrtSession:
    made = OrtSession(directory, precision="fp32", threads=1, last_token_only=last_token_only)
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
    model: LlamaForCausalLM, tiny_onnx: Path, batch: int
) -> None:
    ids = tokens(batch, 12)
    expected = reference(model, ids)
    made = session(tiny_onnx)
    assert made.vocab_size == VOCAB
    assert made.load_s > 0
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


def test_reset_forgets_and_allows_another_batch(tiny_onnx: Path) -> None:
    made = session(tiny_onnx)
    before = made.prefill(tokens(1, 5)).copy()
    with pytest.raises(ValueError, match="cache holds a batch of 1, got 2: reset first"):
        made.prefill(tokens(2, 5))
    made.reset()
    made.prefill(tokens(2, 9, seed=1))
    made.reset()
    np.testing.assert_array_equal(made.prefill(tokens(1, 5)), before)


def test_the_cache_grows_beyond_its_first_capacity(
    model: LlamaForCausalLM, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_session, "_FIRST_CAPACITY", 4)
    ids = tokens(2, 30)
    made = session(tiny_onnx)
    made.prefill(ids[:, :2])
    steps = [made.decode(ids[:, [index]]).copy() for index in range(2, 30)]
    expected = reference(model, ids)[:, 2:]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), expected, atol=TOLERANCE, rtol=0)


def test_the_last_token_alone_has_the_same_logits(tiny_onnx: Path) -> None:
    ids = tokens(2, 11)
    whole, last = session(tiny_onnx), session(tiny_onnx, last_token_only=True)
    found = last.prefill(ids).copy()
    assert found.shape == (2, 1, VOCAB)
    np.testing.assert_allclose(found, whole.prefill(ids)[:, -1:], atol=TOLERANCE, rtol=0)
    following = tokens(2, 1, seed=2)
    np.testing.assert_allclose(last.decode(following), whole.decode(following), atol=TOLERANCE, rtol=0)


def test_present_and_past_are_the_same_memory(tiny_onnx: Path) -> None:
    made = session(tiny_onnx)
    made.prefill(tokens(1, 5))
    caches = made._caches
    made.decode(tokens(1, 1))
    assert made._caches is caches
    assert np.abs(caches["past_key_values.0.key"].numpy()[:, :, :6]).min(axis=(0, 1, 3)).all()
    assert not caches["past_key_values.0.key"].numpy()[:, :, 6:].any()


def test_perplexity_is_torchs(model: LlamaForCausalLM, tiny_onnx: Path) -> None:
    windows = tokens(3, 20)
    logits = torch.from_numpy(reference(model, windows)[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(windows[:, 1:]).flatten())
    result = score(session(tiny_onnx), windows)
    assert np.mean(result.nll_per_window) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_known_by_its_files(model: LlamaForCausalLM, precision: str, tmp_path: Path) -> None:
    export_onnx(model, None, tmp_path / "onnx", precision=precision)
    found = find_model(tmp_path)
    assert (found.runtime.name, found.precision) == ("onnxruntime", precision)
    sizes = [(tmp_path / "onnx" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert found.weights_bytes == sum(sizes)
    made = OrtSession(tmp_path, precision=precision, threads=1)
    made.load()
    assert np.isfinite(made.prefill(tokens(1, 4))).all()


def test_a_graph_of_another_maker_runs_too(model: LlamaForCausalLM, tiny_onnx: Path, tmp_path: Path) -> None:
    """Position ids among the inputs, head width left open, no way to leave out logits."""
    import onnx

    shutil.copytree(tiny_onnx, tmp_path / "other")
    path = tmp_path / "other" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        node.input[:] = ["keep" if name == "logits_to_keep" else name for name in node.input]
    for item in graph.graph.initializer:
        item.name = "keep" if item.name == "logits_to_keep" else item.name
    for port in graph.graph.input:
        if port.name.startswith("past"):
            port.type.tensor_type.shape.dim[3].dim_param = "width"
    shape = ["batch_size", "sequence_length"]
    graph.graph.input.append(onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, shape))
    path.write_bytes(graph.SerializeToString())
    (tmp_path / "other" / "onnx_export.json").unlink()
    made = session(tmp_path / "other", last_token_only=True)
    ids = tokens(1, 9)
    found = np.concatenate([made.prefill(ids[:, :8]).copy(), made.decode(ids[:, 8:])], axis=1)
    np.testing.assert_allclose(found, reference(model, ids), atol=TOLERANCE, rtol=0)


def test_both_runtimes_are_measured_beside_each_other(tiny_onnx: Path, tiny_ir: Path) -> None:
    measured = measure_together(
        [Subject(tiny_onnx, "fp32"), Subject(tiny_ir, "fp32")],
        profile=load_profile("host"),
        workload=Workload(1, 8, 4, 0, 1),
        rounds=Rounds(1),
        threads=1,
    )
    assert [item.runtime for item in measured] == ["onnxruntime", "openvino"]
    assert measured[0].versions["onnxruntime"] == onnxruntime.__version__
    assert measured[0].options["intra_op_num_threads"] == "1"
    assert measured[0].weights_bytes == find_model(tiny_onnx).weights_bytes
    assert all(len(item.itl_s) == 3 * len(item.ttft_s) and item.peak_rss_bytes > 0 for item in measured)


def test_the_benchmark_fits_the_context(tiny_onnx: Path) -> None:
    result = run_benchmark(
        tiny_onnx, profile=load_profile("host"), workload=Workload(1, 512, 8, 0, 1), threads=1, rounds=1
    )
    assert result.measurements[0].precision == "fp32"
    assert any("prompt shortened from 512 to 56 tokens" in note for note in result.notes)


def refusal(directory: Path, **settings: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        OrtSession(directory, **{"precision": "fp32", "threads": 1, **settings}).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_links_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_onnx, tmp_path / "soft")
    data = tmp_path / "soft" / "model.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert "model.onnx.data is a symbolic link, which ONNX data may not be" in refusal(tmp_path / "soft")
    data.unlink()
    os.link(tmp_path / "elsewhere", data)
    assert "model.onnx.data is hard-linked (2 names), which ONNX data may not be" in refusal(tmp_path / "soft")


def test_missing_and_damaged_files_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    assert "gone is not a directory" in refusal(tmp_path / "gone")
    assert "holds no openvino_model.xml or model.onnx: export the model first" in refusal(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_onnx, copy)
    data = copy / "model.onnx.data"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    assert "cannot be loaded by ONNX Runtime" in refusal(copy)
    data.unlink()
    assert "has no weights beside it (model.onnx.data is missing)" in refusal(copy)
    data.write_bytes(content)
    (copy / "model.onnx").write_bytes(b"no model")
    assert "cannot be loaded by ONNX Runtime" in refusal(copy)


def test_data_outside_the_folder_is_never_read(tiny_onnx: Path, tmp_path: Path) -> None:
    import onnx

    shutil.copytree(tiny_onnx, tmp_path / "inside")
    path = tmp_path / "inside" / "model.onnx"
    path.with_name("model.onnx.data").rename(tmp_path / "outside.data")
    model = onnx.load(path, load_external_data=False)
    for item in model.graph.initializer:
        for entry in item.external_data:
            entry.value = "../outside.data" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    assert "cannot be loaded by ONNX Runtime" in refusal(tmp_path / "inside")


def test_a_newer_opset_and_an_older_runtime_are_named(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    shutil.copytree(tiny_onnx, tmp_path / "new")
    path = tmp_path / "new" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())
    assert "update ONNX Runtime" in refusal(tmp_path / "new")
    with pytest.raises(BadInputError, match=r"cannot be loaded by ONNX Runtime: .*: update ONNX Runtime"):
        OnnxRunner(tmp_path / "new", threads=1)  # the gate's
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.2")
    assert "ONNX Runtime 1.20.2 is too old, at least 1.22 is needed" in refusal(tiny_onnx)
    with pytest.raises(BadInputError, match=r"ONNX Runtime 1\.20\.2 is too old, at least 1\.22 is needed: pip install"):
        OnnxRunner(tiny_onnx, threads=1)


def test_other_devices_threads_and_graphs_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    import onnx

    assert 'device "GPU": ONNX Runtime is driven on CPU or cuda' in refusal(tiny_onnx, device="GPU")
    assert f"this process may use {host_cores()} cores" in refusal(tiny_onnx, threads=host_cores() + 1)
    assert 'precision "int9" (did you mean "int' in refusal(tiny_onnx, precision="int9")
    port = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [port], [result])
    made = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert "has inputs x: expected input_ids, attention_mask" in refusal(tmp_path)


def test_a_provider_that_is_absent_or_cannot_be_loaded_is_one_line(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = 'device "cuda": this ONNX Runtime has no CUDAExecutionProvider: install onnxruntime-gpu in its place'
    assert absent in refusal(tiny_onnx, device="cuda")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    # ONNX Runtime itself falls back to the CPU, with a warning alone.
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        line = refusal(tiny_onnx, device="cuda")
    assert "could not load its CUDAExecutionProvider and fell back to CPUExecutionProvider: install" in line


def test_what_a_gpu_holds_is_unknown() -> None:
    found = [OrtSession(Path(), precision="fp32", device=device).device_peak_bytes for device in ("CPU", "cuda")]
    assert found == [0, None]


def test_several_models_in_a_folder_are_named(tiny_onnx: Path, tiny_ir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_onnx, tmp_path / "onnx")
    shutil.copytree(tiny_ir, tmp_path / "openvino")
    with pytest.raises(BadInputError, match=r"several models \(onnx, openvino\): give one of these folders"):
        find_model(tmp_path)
    assert {runtime.format for runtime in RUNTIMES} == {"onnx", "openvino", "checkpoint"}
