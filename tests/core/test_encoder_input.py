"""The first layer of the ambient models' encoders reads stored counts alone where they are few, with the same result and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellweave.core.nn import regularised_layers
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.layers import CategoricalLinear
from cellweave.core.nn.regularised_layers import counts_for_encoder


@pytest.mark.parametrize("levels", [(), (3,), (1, 4, 2)])
@pytest.mark.parametrize("n_extra", [0, 2])
def test_few_counts_and_many_give_the_same(monkeypatch, levels, n_extra) -> None:
    torch.manual_seed(0)
    counts = CountBatch.from_dense(np.random.default_rng(0).poisson(0.05, (20, 50)).astype(np.float32))
    layer = CategoricalLinear(50 + n_extra, 7, levels)
    codes = torch.stack([torch.randint(n, (20,)) for n in levels], 1) if levels else None
    extra = [torch.randn(20, n_extra)] if n_extra else []
    found = []
    for below in (0.0, 1.0):
        monkeypatch.setattr(regularised_layers, "SPARSE_BELOW", below)
        layer.zero_grad()
        out = counts_for_encoder(counts, 0.0, extra, training=False).through(layer, codes)
        (out * torch.arange(140.0).view(20, 7)).sum().backward()
        found.append([out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse, rtol=1e-5, atol=1e-4)


def test_dropout_leaves_out_that_share_of_the_counts_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    counts = CountBatch.from_dense(np.full((200, 100), 3.0, dtype=np.float32))
    kept = counts_for_encoder(counts, 0.25, [torch.ones(200, 1)], training=True)
    assert float((kept.entries == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(kept.entries.mean()) == pytest.approx(float(np.log(4.0)), rel=0.03)
    assert set(np.unique(kept.extra.numpy()).round(4)) == {0.0, np.float32(1 / 0.75).round(4)}
    whole = counts_for_encoder(counts, 0.25, [], training=False)
    assert torch.equal(whole.dense(), counts.log1p()) or torch.allclose(whole.dense(), counts.log1p(), rtol=1e-6)
