"""Means, variances, draws and limits of the plain likelihoods."""

import numpy as np
import pytest
import torch
from scipy import stats

from cellweave.core.nn.likelihoods import (
    gamma_poisson_log_prob,
    nb_log_prob,
    nb_variance,
    normal_log_prob,
    poisson_log_prob,
    sample_nb,
    sample_normal,
    sample_poisson,
    sample_zinb,
    zinb_log_prob,
    zinb_mean,
    zinb_variance,
)

COUNTS = torch.arange(4000.0, dtype=torch.float64)


def _moments(log_prob):
    p = log_prob.exp()
    mean = (p * COUNTS).sum()
    return p.sum().item(), mean.item(), (p * (COUNTS - mean) ** 2).sum().item()


@pytest.mark.parametrize(("mu", "theta"), [(0.3, 0.5), (7.0, 2.0), (30.0, 15.0)])
def test_the_negative_binomial_sums_to_one_and_has_its_moments(mu, theta):
    mu, theta = torch.tensor(mu).double(), torch.tensor(theta).double()
    total, mean, variance = _moments(nb_log_prob(COUNTS, mu, theta))
    assert total == pytest.approx(1, abs=1e-6)
    assert mean == pytest.approx(mu.item(), rel=1e-6)
    assert variance == pytest.approx(nb_variance(mu, theta).item(), rel=1e-5)
    logit = torch.tensor(-0.4).double()
    total, mean, variance = _moments(zinb_log_prob(COUNTS, mu, theta, logit))
    assert total == pytest.approx(1, abs=1e-6)
    assert mean == pytest.approx(zinb_mean(mu, logit).item(), rel=1e-6)
    assert variance == pytest.approx(zinb_variance(mu, theta, logit).item(), rel=1e-5)


def test_against_scipy():
    x, mu, theta = COUNTS[:60], torch.tensor(4.0, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    exact = stats.nbinom.logpmf(x.numpy(), 1.7, 1.7 / 5.7)
    np.testing.assert_allclose(gamma_poisson_log_prob(x, mu, theta).numpy(), exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(nb_log_prob(x, mu, theta).numpy(), exact, atol=1e-6)
    np.testing.assert_allclose(poisson_log_prob(x, mu).numpy(), stats.poisson.logpmf(x.numpy(), 4.0), rtol=1e-12)
    np.testing.assert_allclose(normal_log_prob(x, mu, theta).numpy(), stats.norm.logpdf(x.numpy(), 4.0, 1.7), rtol=1e-12)


def test_a_rate_of_zero_gives_zeros_for_sure():
    zero = torch.zeros(())
    assert poisson_log_prob(zero, zero).item() == 0
    assert poisson_log_prob(torch.ones(()), zero).item() == -np.inf


def test_draws_have_the_moments_and_follow_the_generator():
    n = 200_000
    mu, theta, logit = torch.tensor([2.0, 20.0]), torch.tensor([0.8, 5.0]), torch.tensor([0.5, -1.0])
    wide = mu.expand(n, 2)
    for draw, mean, variance in (
        (lambda g: sample_nb(wide, theta, g), mu, nb_variance(mu, theta)),
        (lambda g: sample_zinb(wide, theta, logit, g), zinb_mean(mu, logit), zinb_variance(mu, theta, logit)),
        (lambda g: sample_poisson(wide, g), mu, mu),
        (lambda g: sample_normal(wide, theta, g), mu, theta**2),
    ):
        values = draw(torch.Generator().manual_seed(0))
        assert values.shape == (n, 2)
        error = 5 * (variance / n).sqrt()
        assert ((values.mean(0) - mean).abs() < error).all()
        torch.testing.assert_close(values.var(0), variance, rtol=0.05, atol=0)
        assert torch.equal(values, draw(torch.Generator().manual_seed(0)))
        assert not torch.equal(values, draw(torch.Generator().manual_seed(1)))


def test_rates_are_clamped():
    assert sample_poisson(torch.tensor([1e12]), torch.Generator().manual_seed(0), max_rate=1e6).item() < 1.1e6
