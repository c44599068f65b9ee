"""Exports that several tests share, made once a session."""

from __future__ import annotations

import pytest
from tiny_exports import BIASES, PRUNED_LAYERS, Exported, make_model, make_shape, make_tokenizer
from transformers import PreTrainedTokenizerFast

from prune_export.export.openvino_ir import export_openvino


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session", params=sorted(BIASES))
def exported(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A pruned model of each family and its export; Qwen2's has its own head, the others share the embedding."""
    family = str(request.param)
    shape = make_shape(family, PRUNED_LAYERS, tied=family != "qwen2")
    model = make_model(shape)
    directory = tmp_path_factory.mktemp(family) / "fp32"
    export_openvino(model, tokenizer, directory)
    return Exported(model, tokenizer, shape, directory)


@pytest.fixture(scope="session")
def llama(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One pruned Llama, for what does not depend on the family."""
    shape = make_shape("llama", PRUNED_LAYERS)
    model = make_model(shape, seed=1)
    directory = tmp_path_factory.mktemp("one") / "fp32"
    export_openvino(model, tokenizer, directory)
    return Exported(model, tokenizer, shape, directory)
