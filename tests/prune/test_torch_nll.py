"""NLL through the base model and the head in pieces, against each family's own forward and loss."""

import numpy as np
import pytest
import torch
from tiny_models import VARIANTS, tiny_model  # type: ignore[import-not-found]

from prune_export.evaluate import torch_nll


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_model_s_own_loss(variant: str) -> None:
    model = tiny_model(variant)
    tokens = torch.randint(2, model.config.vocab_size, (3, 9), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = [float(model(input_ids=row[None], labels=row[None], use_cache=False).loss) for row in tokens]
    # fp32: both sum the same products, in another order over 32 to 64 inputs.
    assert torch_nll(model, tokens.numpy()) == pytest.approx(expected, rel=1e-5)
    assert len(set(np.round(expected, 4))) > 1
