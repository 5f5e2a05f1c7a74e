"""Registries of distributions, transforms and modalities: names, inverses, the identity of the sparse sum, plug-ins."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cellweave.core import plugins
from cellweave.core.errors import SpecError
from cellweave.core.nn import distributions as registry
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.distributions import (
    Distribution,
    Transform,
    distribution,
    register_distribution,
    register_transform,
    transform,
)
from cellweave.core.spec import modalities
from cellweave.core.spec.modalities import ModalityKind, modality_kind, modality_kinds, register_modality

X = np.array([[0.0, 1, 4], [2, 0, 0]])
ETA = np.array([[-0.4, 0.3, 1.2], [0.5, -2.0, 0.1]])


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What a test registers is forgotten after it."""
    for module, name in ((registry, "_DISTRIBUTIONS"), (registry, "_TRANSFORMS"), (modalities, "_KINDS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


def parameters(made, n_features=3):
    return {name: torch.full((n_features,), start, dtype=torch.float64) + 0.1 * torch.arange(n_features) for name, start in made.extra.items()}


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "gaussian", "nb", "zinb"])
def test_the_loss_is_that_of_scipy_and_the_sparse_sum_that_of_all_elements(name):
    made, x = distribution(name), torch.tensor((X > 0).astype(float) if name == "bernoulli" else X)
    eta, extra = torch.tensor(ETA), parameters(distribution(name))
    rate, theta = np.exp(ETA), np.exp(extra["log_theta"].numpy()) if "log_theta" in extra else 1.0
    nb = stats.nbinom.logpmf(X, theta, theta / (theta + rate))
    zero = 1 / (1 + np.exp(-extra["zero_logit"].numpy())) if "zero_logit" in extra else 0.0
    with np.errstate(divide="ignore"):
        truth = {
            "poisson": stats.poisson.logpmf(X, rate),
            "bernoulli": stats.bernoulli.logpmf(X > 0, 1 / (1 + np.exp(-ETA))),
            "gaussian": stats.norm.logpdf(X, ETA, np.exp(extra["log_sd"].numpy())) if "log_sd" in extra else None,
            "nb": nb,
            "zinb": np.log(np.where(X == 0, zero, 0) + (1 - zero) * np.exp(nb)),
        }[name]
    loss = made.loss(x, eta, extra).expand(x.shape)
    assert np.allclose(-loss.numpy(), truth, atol=1e-6)
    counts = CountBatch.from_dense(x, dtype=torch.float64)
    assert torch.allclose(made.nll(counts, eta, extra=extra), loss.sum(1))
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 1]], dtype=torch.float64)
    assert torch.allclose(made.nll(counts, eta, extra=extra, mask=mask), (loss * mask).sum(1))


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "gaussian", "nb", "zinb"])
def test_draws_have_the_expected_value(name):
    made, eta = distribution(name), torch.tensor([-0.5, 0.2, 1.0], dtype=torch.float64)
    extra = parameters(made)
    draws = made.sample(eta.expand(60_000, 3), extra, torch.Generator().manual_seed(0))
    spread = draws.std(0) / np.sqrt(60_000)
    assert ((draws.mean(0) - made.mean(eta, extra)).abs() < 5 * spread).all()
    if made.support != "real":
        assert torch.equal(draws, draws.round())


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["none", "log1p", "sqrt"]), st.lists(st.floats(0, 1e4), min_size=1, max_size=5))
def test_the_registered_inverse_undoes_a_transform(name, values):
    made, x = transform(name), torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(made.undo(made.apply(x)), x, rtol=1e-9, atol=1e-9)


def test_the_inverse_of_ones_own_transform_is_used():
    own = register_transform(Transform("fourth", "Fourth root", "For tests.", lambda x: x**0.25, lambda x: x**4))
    assert transform("fourth") is own
    assert torch.allclose(own.undo(own.apply(torch.tensor([16.0, 81.0]))), torch.tensor([16.0, 81.0]))
    assert transform("binarize").undo(torch.tensor([0.3])).item() == pytest.approx(0.3)  # nothing can undo it
    register_transform(Transform("shifted", "Shifted", "For tests.", lambda x: x + 1))
    with pytest.raises(SpecError, match="makes something else of 0"):
        transform("shifted")


@pytest.mark.parametrize("name", ["", "1st", "two words", "a__b", "_a", "a_", "class", "naïve", "a-b", "a.b"])
def test_names_are_checked_when_registered(name):
    like = distribution("poisson")
    with pytest.raises(SpecError, match="cannot be the name of a distribution"):
        register_distribution(Distribution(name, "t", "h", like.loss, like.mean, like.sample))
    with pytest.raises(SpecError, match="cannot be the name of a transform"):
        register_transform(Transform(name, "t", "h", abs))
    with pytest.raises(SpecError, match="cannot be the name of a modality"):
        register_modality(ModalityKind(name, "t"))


def test_taken_reserved_and_unknown_names_are_refused():
    with pytest.raises(SpecError, match="There is a modality 'rna' already"):
        register_modality(ModalityKind("rna", "RNA"))
    with pytest.raises(SpecError, match="means something else"):
        register_modality(ModalityKind("joint", "Joint"))
    with pytest.raises(SpecError, match=r"There is no distribution 'bernouli'\. Did you mean 'bernoulli'\?"):
        register_modality(ModalityKind("histone", "Histone", "bernouli"))
    with pytest.raises(SpecError, match="There is no transform 'log'"):
        register_modality(ModalityKind("histone", "Histone", "poisson", "log"))
    assert "histone" not in modality_kinds()
    register_modality(ModalityKind("histone", "H3K27me3", "bernoulli", "binarize", "none", "by chromosome", "Fit of H3K27me3"))
    assert modality_kind("histone").reconstruction_label == "Fit of H3K27me3"
    assert modality_kind("rna").reconstruction_label == "Reconstruction of RNA"
    assert modality_kind("other").distribution == "poisson"


def test_a_registered_modality_comes_in_its_blocks():
    import pandas as pd
    from scipy import sparse

    from cellweave.core.study.blocks import in_blocks
    from cellweave.core.study.study import Modality

    made = Modality("histone", sparse.csr_matrix(np.eye(3, dtype=np.float32)), pd.DataFrame(index=["chr2:1-2", "chr1:1-2", "chr2:5-6"]), np.ones(3, bool))
    register_modality(ModalityKind("histone", "H3K27me3", "bernoulli", blocks="by chromosome"))
    assert in_blocks((made,), {})[1]["histone"].sizes == (1, 2)
    assert in_blocks((made,), {"histone": "one block"})[1]["histone"].sizes == (3,)


def test_plug_ins_are_loaded_and_named_where_they_fail(monkeypatch):
    like = distribution("poisson")
    good = Distribution("own", "Own", "For tests.", like.loss, like.mean, like.sample)

    def entries(*found):
        monkeypatch.setattr(plugins, "entry_points", lambda group: [SimpleNamespace(value=name, load=lambda one=one: one) for name, one in found])

    entries(("pack:own", good), ("pack:more", lambda: [Distribution("own_too", "Own", "For tests.", like.loss, like.mean, like.sample)]))
    plugins.load_plugins("cellweave.distributions", Distribution, register_distribution)
    assert distribution("own") is good
    assert distribution("own_too").title == "Own"
    entries(("pack:own", Distribution("own", "Another", "For tests.", like.loss, like.mean, like.sample)))
    with pytest.raises(SpecError, match="The plug-in 'pack:own' was refused: there is a distribution 'own' already"):
        plugins.load_plugins("cellweave.distributions", Distribution, register_distribution)
    entries(("pack:bad", 3))
    with pytest.raises(SpecError, match="The plug-in 'pack:bad' was refused: it declares no Distribution"):
        plugins.load_plugins("cellweave.distributions", Distribution, register_distribution)

    def broken():
        raise ZeroDivisionError("by zero")

    entries(("pack:broken", broken))
    with pytest.raises(SpecError, match=r"'pack:broken' cannot be loaded \(ZeroDivisionError: by zero\)"):
        plugins.load_plugins("cellweave.distributions", Distribution, register_distribution)


def test_names_are_known_before_torch_is():
    code = (
        "import sys; from cellweave.core.nn.distributions import distributions, transforms; from cellweave.core.spec.modalities import modality_kinds; "
        "assert 'nb' in distributions() and 'log1p' in transforms() and 'atac' in modality_kinds(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
