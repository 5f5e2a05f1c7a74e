"""Priors, starts and networks of the ambient-regularised models against golden numbers of regularizedvi, and against scipy."""

import math

import numpy as np
import pytest
import torch
from golden_regularised import batch_of, golden, network_of, tensor
from scipy import stats
from torch.nn.functional import softplus

from cellweave.core.models.modality_parts import residual_library
from cellweave.core.models.multimodal_network import latent_scale_divergence
from cellweave.core.models.relevance import RELEVANCE_PRIOR
from cellweave.core.nn import hyperpriors as priors
from cellweave.core.nn import moment_start
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.kl import kl_normal
from cellweave.core.nn.likelihoods import gamma_poisson_log_prob

EXACT = 1e-9
CASES = golden()["generative"]


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, expected, tolerance=EXACT):
    plain = [np.asarray(one.detach() if isinstance(one, torch.Tensor) else one) for one in (found, expected)]
    np.testing.assert_allclose(*plain, rtol=tolerance, atol=tolerance)


def test_transforms():
    case = golden()["transforms"]
    close(priors.scaling_factor(exact(case["gamma"])), case["feature_scale"])
    close(priors.softplus_inverse(exact(case["y"])), case["softplus_inv"])


@pytest.mark.parametrize("case", golden()["hyper_prior"])
def test_starts_of_the_dispersion_prior(case):
    found = priors.hyper_prior(case["mean"], case["alpha"], case["direction"], variance=case["mode"] == "variance")
    close([found["beta"], found["rate"], found["log_start"]], [case["beta"], case["lambda_init"], case["px_r_mu_init"]])


@pytest.mark.parametrize("transform", ["inverse_sqrt", "sqrt"])
def test_dispersion_penalty(transform):
    case = golden()["dispersion"]
    mean, log_sd, noise = (exact(case[name]).t() for name in ("px_r_mu", "px_r_log_sigma", "noise"))
    rate, expected = softplus(exact(case["rate_raw"])), case["penalty"][transform]
    found = priors.dispersion_penalty(mean, log_sd.exp(), rate, transform=transform, noise=noise)
    close(found, expected["dispersion_kl"])
    hyper = priors.gamma_nll(rate, case["alpha"], case["beta"]).sum()
    close(hyper, expected["neg_log_hyper"])
    close(found + hyper, expected["total"])


@pytest.mark.parametrize("transform", ["inverse_sqrt", "sqrt"])
@pytest.mark.parametrize("jacobian", [False, True])
def test_the_closed_form_is_the_expectation_of_the_draws(transform, jacobian):
    generator = torch.Generator().manual_seed(1)
    mean, sd, rate = exact([[2.0, -1.0], [0.5, 3.0]]), exact([[0.3, 0.1], [0.5, 0.2]]), exact([3.0, 1.5])
    how = {"transform": transform, "jacobian": jacobian}
    draws = [priors.dispersion_penalty(mean, sd, rate, noise=torch.randn(2, 2, dtype=torch.float64, generator=generator), **how) for _ in range(20_000)]
    found = torch.stack(draws)
    assert abs(found.mean() - priors.dispersion_penalty(mean, sd, rate, **how)) < 4 * found.std() / math.sqrt(20_000)


def test_with_the_jacobian_the_penalty_is_the_divergence_that_scipy_integrates():
    from scipy.integrate import quad

    mean, sd, rate = 1.2, 0.4, 2.0

    def integrand(u):
        theta = math.exp(u)
        # Density of theta where theta ** -0.5 is exponential, per unit of log(theta).
        prior = stats.expon(scale=1 / rate).pdf(theta**-0.5) * 0.5 * theta**-1.5 * theta
        density = stats.norm(mean, sd).pdf(u)
        return density * (math.log(density) - math.log(prior))

    expected = quad(integrand, mean - 8 * sd, mean + 8 * sd)[0]
    found = priors.dispersion_penalty(exact([[mean]]), exact([[sd]]), exact([rate]), jacobian=True)
    close(found, expected, 1e-7)


def test_gamma_priors():
    case = golden()["gamma_priors"]
    close(priors.gamma_nll(exact(case["additive_background"]).exp(), 1.0, 100.0).sum(), case["bg_penalty"])
    close(priors.gamma_nll(priors.scaling_factor(exact(case["feature_scaling"])), 200.0, 200.0).sum(), case["fs_penalty"])
    strength = case["modality_conc"]
    close(priors.gamma_nll(priors.scaling_factor(exact(case["modality_raw"])), strength, strength / case["modality_init"]), case["modality_penalty"])
    values = np.array([0.03, 0.5, 4.0])
    close(priors.gamma_nll(torch.from_numpy(values), 2.5, 3.0), -stats.gamma(2.5, scale=1 / 3.0).logpdf(values))


@pytest.mark.parametrize("case", golden()["library_w"])
def test_weight_of_the_observed_total(case):
    mean, log_sd = exact(case["mu"]), exact(case["log_sigma"])
    close(priors.library_weight_kl(mean, log_sd.exp(), case["rate"]), case["kl"])
    close(torch.exp(mean + log_sd.exp() ** 2 / 2), case["mean"])
    q = stats.lognorm(math.exp(case["log_sigma"]), scale=math.exp(case["mu"]))
    expected = -q.entropy() - math.log(case["rate"]) + case["rate"] * q.mean()
    close(priors.library_weight_kl(mean, log_sd.exp(), case["rate"]), expected)


def test_library_prior_and_residual():
    case = golden()["library_prior"]
    mean, var, centre = priors.centred_library_prior(exact(case["log_means"]), exact(case["log_vars"]), case["sensitivity"], case["var_weight"])
    close(mean, case["centred"])
    close(var, case["scaled_vars"])
    close(centre, case["global_log_mean"])
    for one in case["residual"]:
        found = residual_library(exact([one["total"]]), exact([one["enc"]]), exact(one["w"]), centre, math.log(case["sensitivity"]))
        close(found[0], one["library"])


def test_sparsity_of_the_latent():
    case = golden()["z_sparsity"]
    close(priors.sparsity_penalty(exact(case["z"]), case["shape"]), case["penalty"])
    assert case["shape"] == pytest.approx(case["n_active"] / len(case["z"][0]))


def test_scales_of_latents():
    case = golden()["horseshoe"]
    close(priors.log_normal_of_gamma(case["shape"]), [case["mu0"], case["sigma0"]])
    loc, sd = exact(case["q_loc"]), exact(case["q_scale"])
    found = latent_scale_divergence("lognormal", loc, sd, loc, case["shape"])
    close(found, case["kl_lognormal"])
    generator = torch.Generator().manual_seed(0)
    for prior in ("lognormal_mc", "gamma"):
        noise = torch.randn(4000, *loc.shape, dtype=torch.float64, generator=generator)
        draws = torch.stack([latent_scale_divergence(prior, loc, sd, loc + sd * one, case["shape"]) for one in noise])
        expected = found if prior == "lognormal_mc" else _gamma_divergence(loc.numpy(), sd.numpy(), case["shape"])
        assert np.abs(draws.mean(0).numpy() - np.asarray(expected)).max() < 4 * float(draws.std(0).max()) / math.sqrt(4000) + 1e-9
    assert stats.lognorm(case["sigma0"], scale=math.exp(case["mu0"])).mean() == pytest.approx(case["shape"])
    assert stats.lognorm(case["sigma0"], scale=math.exp(case["mu0"])).var() == pytest.approx(case["shape"])


def _gamma_divergence(loc, sd, shape):
    """KL(LogNormal || Gamma(shape, 1)) by its moments."""
    entropy = loc + 0.5 * np.log(2 * np.pi * np.e * sd**2)
    cross = math.lgamma(shape) - (shape - 1) * loc + np.exp(loc + sd**2 / 2)
    return (cross - entropy).sum(1)


def test_relevance_of_dimensions():
    case = golden()["ard"]
    close(RELEVANCE_PRIOR, [case["prior_mu"], case["prior_sigma"]])
    loc, sd = exact(case["q_loc"]), exact(case["q_scale"])
    close(kl_normal(loc, sd, torch.full_like(loc, RELEVANCE_PRIOR[0]), torch.full_like(loc, RELEVANCE_PRIOR[1])).sum(), case["kl"])
    prior = stats.lognorm(case["prior_sigma"], scale=math.exp(case["prior_mu"]))
    assert prior.mean() == pytest.approx(1) and prior.var() == pytest.approx(1)


def moments():
    case = golden()["mom_init"]
    x = np.array(case["X"], dtype=np.float64)
    return case, (x.mean(0), x.var(0), x.sum(1).mean(), x.sum(1).var())


def test_dispersions_from_moments():
    case, given = moments()
    close(given[3] / given[2] ** 2, case["cv2"])
    close(moment_start.excess_variance(*given), case["excess_adjusted"])
    found = moment_start.dispersion_start(*given)
    # Upstream computes these in float32.
    close(found.log_theta, case["log_theta"], 1e-5)
    close(found.prior_mean, case["suggested_mean"], 1e-5)


def test_bursts_from_moments():
    case, given = moments()
    case = case["bursting"]
    found = moment_start.burst_start(*given)
    # The parameter of the burst decoder is the technical variance, whose root is the golden "v_scale"; theta is that of the other decoder.
    close(np.exp(found.log_theta / 2), case["stochastic_v_scale"], 1e-5)
    close(moment_start.dispersion_start(*given).log_theta, case["log_theta"], 1e-5)
    frequency, size = np.array(case["burst_freq"]), np.array(case["burst_size"])
    close(np.logaddexp(0, found.frequency_bias), frequency, 1e-5)
    close(np.logaddexp(0, found.size_bias) + 1.0, np.maximum(size, 1.0001), 1e-5)
    close(found.frequency_bias, case["burst_freq_bias"], 1e-5)
    close(found.size_bias, case["burst_size_bias"], 1e-4)  # log(expm1(1e-4)) in float32
    close(found.prior_mean, case["suggested_hyper_mean"], 1e-5)


@pytest.mark.parametrize("case", CASES, ids=[case["decoder_type"] for case in CASES])
def test_network(case):
    network, batch, expected = network_of(case), batch_of(case), case["out"]
    stack, codes = network.stacks["rna"], network.codes_of(batch)
    library = torch.exp(tensor(case["library"])[:, 0])
    rates = stack.rates(stack.decode(tensor(case["z"]), codes.decoder), library, codes, draw=False)
    close(rates.expression, expected["scale"], 1e-5)
    close(rates.mean, expected["mean"], 1e-5)
    theta = rates.theta if rates.group is None else rates.theta[rates.group]
    if case["decoder_type"] == "expected_RNA":
        close(theta, expected["theta_or_v"], 1e-5)
    else:
        close(stack.dispersions()[codes.dispersion], expected["theta_or_v"], 1e-5)
    close(gamma_poisson_log_prob(batch.counts["rna"].dense.double(), rates.mean.double(), theta.double()), expected["log_prob"], 2e-5)
    close(stack.nll(batch.counts["rna"], rates), -np.array(expected["log_prob"]).sum(1), 1e-5)
    mean, var = stack.library_prior(codes.library_size, batch.n_cells)
    close(mean, np.array(expected["pl_loc"])[:, 0], 1e-5)
    close(var.sqrt(), np.array(expected["pl_scale"])[:, 0], 1e-5)
    encoded = network.encode(batch)
    close(encoded.latents["rna"].mean, expected["qz_loc"], 1e-5)
    close(encoded.latents["rna"].var.sqrt(), expected["qz_scale"], 1e-5)
    encoder_mean, encoder_var = stack.library_encoder(encoded.inputs["rna"])
    close(encoder_mean, expected["l_enc_loc"], 1e-5)
    close(encoder_var.sqrt(), expected["l_enc_scale"], 1e-5)


@pytest.mark.parametrize("case", CASES, ids=[case["decoder_type"] for case in CASES])
def test_rates_are_the_expected_counts_and_what_is_removed_is_gone(case):
    network, batch = network_of(case), batch_of(case)
    z = tensor(case["z"])
    whole = network.rates(batch, z)["rna"]
    library, _, _ = network.library_of(batch, network.encode(batch), "rna", draw=False, shared_draw=False)
    stack, codes = network.stacks["rna"], network.codes_of(batch)
    close(whole, stack.rates(stack.decode(z, codes.decoder), library, codes, draw=False).mean, 1e-6)
    bare = network.rates(batch, z, covariates="all", reference="zero")["rna"]
    layer = stack.decoder.hidden.layers[0]
    with torch.no_grad():
        hidden = torch.relu(layer.layer_norm(torch.nn.functional.linear(z, layer.linear.weight, layer.linear.bias)))
        if case["decoder_type"] == "expected_RNA":
            background = torch.stack([stack.background.raw[a].exp() + stack.background.raw[2 + b].exp() for a, b in case["ambient"]])
            close(bare, library[:, None] * (softplus(stack.decoder.scale(hidden)) + background), 1e-5)
    network, z = network.double(), exact(case["z"])
    batch.counts["rna"] = CountBatch.from_dense(np.array(case["X"]), dtype=torch.float64)
    tangent = torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    function = network.rate_function(batch)
    _, slope = torch.func.jvp(lambda at: function(at)["rna"], (z,), (tangent,))
    step = 1e-5
    difference = (function(z + step * tangent)["rna"] - function(z - step * tangent)["rna"]) / (2 * step)
    close(slope, difference, 1e-4)
