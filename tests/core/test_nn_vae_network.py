import numpy as np
import pytest
import torch

from cellweave.core.models.base import BuildContext, Minibatch, ModalityInfo, StepContext
from cellweave.core.models.vae import FAMILY, VaeOptions
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.logistic_normal import mean_share
from cellweave.core.nn.scvi_names import load_scvi, to_scvi
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.run import RunSpec

N, G, N_BATCH, LEVELS = 16, 12, 3, (2, 4)
STEP = StepContext(training=True, weights={"reconstruction": 1.0, "kl_z": 1.0})


def _spec(roles=("batch",), **options):
    known = {
        "batch": "b", "decoder": ("c0", "c1"), "continuous": ("v",), "labels": "t", "size_factor": "s",
    }
    return RunSpec(covariates=CovariateSpec(**{role: known[role] for role in roles}), model=VaeOptions(n_hidden=8, n_latent=3, **options))


def _network(spec, seed=0):
    torch.manual_seed(seed)
    roles = spec.covariates
    levels = {"labels": 5} if roles.labels else {}
    if roles.batch:
        levels["batch"] = N_BATCH
    if roles.decoder:
        levels["decoder"] = LEVELS
    n_groups = levels.get("batch", 1)
    return FAMILY.build(BuildContext(
        spec, (ModalityInfo("gex", G, (G,)),), levels, len(roles.continuous), 100,
        {"gex": np.linspace(2, 3, n_groups)}, {"gex": np.linspace(0.2, 0.4, n_groups)},
    ))


def _batch(spec, seed=0, empty=False):
    rng, roles = np.random.default_rng(seed), spec.covariates
    x = rng.poisson(2.0, (N, G))
    if empty:
        x[2] = 0
    categorical = {}
    if roles.batch:
        categorical["batch"] = torch.tensor(np.arange(N) % N_BATCH)
    if roles.decoder:
        categorical["decoder"] = torch.tensor(np.stack([rng.integers(0, n, N) for n in LEVELS], 1))
    if roles.labels:
        categorical["labels"] = torch.tensor(rng.integers(0, 5, N))
    return Minibatch(
        torch.arange(N), {"gex": CountBatch.from_dense(x.astype(np.float32))}, categorical,
        continuous=torch.tensor(rng.normal(size=(N, 1)), dtype=torch.float32) if roles.continuous else None,
        size_factor=torch.tensor(rng.random(N) + 0.5, dtype=torch.float32) if roles.size_factor else None,
    )


EVERYTHING = ("batch", "decoder", "continuous")
VARIANTS = {
    "defaults": _spec(),
    "no covariates at all": _spec(()),
    "nb": _spec(gene_likelihood="nb"),
    "poisson": _spec(gene_likelihood="poisson"),
    "normal": _spec(gene_likelihood="normal"),
    "gene-batch": _spec(dispersion="gene-batch"),
    "gene-label": _spec(("batch", "labels"), dispersion="gene-label"),
    "gene-cell": _spec(dispersion="gene-cell"),
    "gene-cell nb": _spec(dispersion="gene-cell", gene_likelihood="nb"),
    "normal gene-batch": _spec(gene_likelihood="normal", dispersion="gene-batch"),
    "learned library": _spec(use_observed_lib_size=False),
    "learned library without batch": _spec((), use_observed_lib_size=False),
    "size factor": _spec(("batch", "size_factor")),
    "size factor nb": _spec(("batch", "size_factor"), gene_likelihood="nb"),
    "logistic normal": _spec(latent_distribution="ln"),
    "raw input": _spec(log_variational=False),
    "all covariates": _spec(EVERYTHING),
    "all covariates encoded": _spec(EVERYTHING, encode_covariates=True, n_layers=2, use_observed_lib_size=False),
    "not deep": _spec(EVERYTHING, deeply_inject_covariates=False, n_layers=2),
    "embedding": _spec(EVERYTHING, batch_representation="embedding", encode_covariates=True, batch_embedding_dim=4),
    "embedding alone": _spec(batch_representation="embedding"),
    "no norms": _spec(use_batch_norm="none"),
    "layer norms": _spec(use_batch_norm="encoder", use_layer_norm="decoder", n_layers=2),
    "softplus variance": _spec(var_activation="softplus"),
    "activations": _spec(encoder_activation="elu", decoder_activation="silu", n_layers=2),
    "no biases": _spec(encoder_bias=False, decoder_bias=False, use_batch_norm="none"),
    "no activations": _spec(encoder_activation="none", decoder_activation="none", var_eps=1e-3),
    "embedding options": _spec(
        batch_representation="embedding", batch_embedding_max_norm=0.5, batch_embedding_norm_type=1.0, batch_embedding_scale_grad=True
    ),
}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return VARIANTS[request.param]


def test_every_parameter_is_trained(variant):
    network = _network(variant).train()
    every = StepContext(training=True, weights={term.name: 1.0 for term in variant.terms()})
    terms = network.loss_terms(_batch(variant), every)
    assert set(terms) == {term.name for term in variant.terms()}
    for term in variant.terms():
        assert terms[term.name].shape == ((N,) if term.scope == "cell" else ())
        assert torch.isfinite(terms[term.name]).all()
    sum(value.mean() for value in terms.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert name.endswith("linear.bias") or parameter.grad.abs().sum() > 0, name


def test_training_lowers_the_loss(variant):
    network, batch = _network(variant).train(), _batch(variant)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = sum(value.mean() for value in network.loss_terms(batch, STEP).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])


def test_results_do_not_draw(variant):
    network, batch = _network(variant).eval(), _batch(variant)
    with torch.no_grad():
        for give in (network.latent, network.expression, network.library):
            for name, value in give(batch).items():
                assert torch.equal(value, give(batch)[name])
                assert torch.isfinite(value).all()
        assert network.latent(batch)["latent"].shape == (N, 3)
        assert network.expression(batch)["gex"].shape == (N, G)
        assert network.library(batch)["gex"].shape == (N,)
        first, second = (network.loss_terms(batch, STEP)["reconstruction"] for _ in range(2))
    assert not torch.equal(first, second)


def test_state_goes_to_the_names_of_scvi_and_back(variant):
    network, other = _network(variant).eval(), _network(variant, seed=1).eval()
    load_scvi(other, to_scvi(network))
    for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_mixed_precision_leaves_the_terms_in_full_precision(variant):
    network, batch = _network(variant).train(), _batch(variant)
    torch.manual_seed(0)
    exact = network.loss_terms(batch, STEP)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network.loss_terms(batch, STEP)
    sum(value.mean() for value in mixed.values()).backward()
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert value.mean().item() == pytest.approx(exact[name].mean().item(), rel=0.1)


def test_an_empty_cell_gives_finite_terms_and_gradients():
    for variant in ("defaults", "nb", "poisson", "learned library"):
        spec = VARIANTS[variant]
        network = _network(spec).train()
        terms = network.loss_terms(_batch(spec, empty=True), STEP)
        sum(value.mean() for value in terms.values()).backward()
        assert all(torch.isfinite(value).all() for value in terms.values()), variant
        assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters()), variant


def test_dispersion_per_cell_is_that_of_the_decoder():
    spec = VARIANTS["gene-cell"]
    network, batch = _network(spec).eval(), _batch(spec)
    posterior = network.posterior(batch)
    generated = network.generate(batch, posterior.mean, network.observed_library(batch))
    codes = batch.categorical["batch"][:, None]
    torch.testing.assert_close(generated.theta, network.decoder(posterior.mean, codes).dispersion.exp())
    assert generated.theta.shape == (N, G)
    assert network.log_theta is None


def test_expression_is_scaled_and_transformed():
    spec = VARIANTS["gene-batch"]
    network, batch = _network(spec).eval(), _batch(spec)
    share, thousand, counts = (network.expression(batch, scaled_to=scale)["gex"] for scale in (1.0, 1e3, None))
    torch.testing.assert_close(share.sum(1), torch.ones(N))
    torch.testing.assert_close(thousand, 1e3 * share)
    torch.testing.assert_close(counts, share * batch.counts["gex"].total[:, None])
    as_two = network.expression(batch, transform_batch=2)["gex"]
    own = batch.categorical["batch"] == 2
    assert torch.equal(as_two[own], share[own])
    assert not torch.allclose(as_two[~own], share[~own])


def test_the_learned_library_is_the_mean_of_its_posterior():
    spec = VARIANTS["learned library"]
    network, batch = _network(spec).eval(), _batch(spec)
    mean, var = network.posterior(batch).log_library
    draws = torch.exp(mean + var.sqrt() * torch.randn(200_000, N, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(network.library(batch)["gex"], draws.mean(0), rtol=0.03, atol=0)


def test_a_size_factor_replaces_the_library_size():
    spec = VARIANTS["size factor"]
    network, batch = _network(spec).eval(), _batch(spec)
    assert torch.equal(network.library(batch)["gex"], batch.size_factor)
    counts = network.expression(batch, scaled_to=None)["gex"]
    torch.testing.assert_close(counts, network.expression(batch)["gex"] * batch.size_factor[:, None])


def test_logistic_normal_latents_are_shares_near_their_monte_carlo_mean():
    generator = torch.Generator().manual_seed(0)
    mean, var = torch.randn(6, 10, generator=generator), 2 * torch.rand(6, 10, generator=generator)
    found = mean_share(mean, var)
    draws = torch.randn(100_000, 1, 10, generator=generator)
    wanted = torch.cat([torch.softmax(mean + var.sqrt() * part, -1) for part in draws.split(20_000)]).mean(0)
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=1e-3)
    assert torch.equal(found, mean_share(mean, var))
    torch.testing.assert_close(mean_share(mean, torch.zeros_like(var)), torch.softmax(mean, -1))


def test_the_pull_of_the_latent_is_that_of_two_normals():
    spec = VARIANTS["defaults"]
    network, batch = _network(spec).eval(), _batch(spec)
    posterior = network.posterior(batch)
    terms = network.terms_at(batch, posterior, posterior.mean, None)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.var.sqrt()), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    torch.testing.assert_close(terms["kl_z"], wanted)


def test_a_state_of_another_shape_is_refused():
    state = to_scvi(_network(VARIANTS["defaults"]))
    state["px_r"] = torch.zeros(G + 1)
    with pytest.raises(ValueError, match="px_r has shape"):
        load_scvi(_network(VARIANTS["defaults"]), state)


def test_batch_norm_is_announced():
    assert _network(VARIANTS["defaults"]).uses_batch_norm()
    assert not _network(VARIANTS["no norms"]).uses_batch_norm()


# ---------------------------------------------------------------- further options of encoder, decoder and embedding


def test_encoder_options_are_those_of_the_formula():
    spec = _spec((), encoder_activation="tanh", encoder_bias=False, use_batch_norm="none", var_eps=0.02, var_activation="softplus")
    network, batch = _network(spec).eval(), _batch(spec)
    x = np.log1p(batch.counts["gex"].dense.numpy())
    layer, encoder = network.encoder.hidden.layers[0], network.encoder
    assert layer.linear.bias is None
    hidden = np.tanh(x @ layer.linear.weight.detach().numpy().T)
    raw = hidden @ encoder.var.weight.detach().numpy().T + encoder.var.bias.detach().numpy()
    found = network.posterior(batch)
    np.testing.assert_allclose(found.mean.detach(), hidden @ encoder.mean.weight.detach().numpy().T + encoder.mean.bias.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found.var.detach(), np.log1p(np.exp(raw)) + 0.02, atol=1e-5)


def test_the_decoder_has_its_own_activation_and_bias():
    spec = _spec((), decoder_activation="softplus", decoder_bias=False, use_batch_norm="none")
    network = _network(spec).eval()
    decoder, layer = network.decoder, network.decoder.hidden.layers[0]
    assert layer.linear.bias is None
    assert network.encoder.hidden.layers[0].linear.bias is not None
    z = torch.randn(N, 3)
    hidden = np.log1p(np.exp(z.numpy() @ layer.linear.weight.detach().numpy().T))
    expected = hidden @ decoder.scale.weight.detach().numpy().T + decoder.scale.bias.detach().numpy()
    np.testing.assert_allclose(decoder(z).scale.detach(), expected, atol=1e-5)


def test_batch_vectors_are_no_longer_than_their_limit():
    spec = _spec(batch_representation="embedding", batch_embedding_max_norm=0.3, batch_embedding_norm_type=1.0)
    network, batch = _network(spec), _batch(spec)
    network.loss_terms(batch, STEP)
    lengths = network.batch_embedding.weight.detach().abs().sum(1)
    assert (lengths <= 0.3 + 1e-5).all()
    free = _network(_spec(batch_representation="embedding"))
    assert (free.batch_embedding.weight.detach().abs().sum(1) > 0.3).any()


def test_rare_batches_have_their_gradient_scaled():
    gradients = []
    for scaled in (False, True):
        spec = _spec(batch_representation="embedding", batch_embedding_scale_grad=scaled)
        network, batch = _network(spec).eval(), _batch(spec)
        torch.manual_seed(1)
        network.loss_terms(batch, STEP)["reconstruction"].mean().backward()
        gradients.append(network.batch_embedding.weight.grad)
    counts = torch.bincount(_batch(_spec(("batch",))).categorical["batch"], minlength=N_BATCH)
    torch.testing.assert_close(gradients[1] * counts[:, None], gradients[0])


def test_embedding_options_without_an_embedding_are_refused():
    from cellweave.core.errors import SpecError

    base = RunSpec().with_changes({"covariates.batch": "b"})
    for name, value in (("max_norm", 1.0), ("norm_type", 1.0), ("scale_grad", True)):
        with pytest.raises(SpecError, match=f"batch_embedding_{name} is about the batch embedding"):
            base.with_changes({f"model.batch_embedding_{name}": value})
        base.with_changes({"model.batch_representation": "embedding", f"model.batch_embedding_{name}": value})
