"""Our VAE against numbers that scvi-tools 1.4.2 gave for the same parameters and inputs."""

import numpy as np
import pytest
import torch
from golden_scvi import golden, minibatch, network, vae_cases

from cellweave.core.models.base import StepContext
from cellweave.core.nn.scvi_names import to_scvi

CASES = vae_cases()


def _close(ours, theirs, rtol, atol=None):
    theirs = np.asarray(theirs, dtype=np.float64)
    scale = np.abs(theirs).max() if theirs.size else 1.0
    np.testing.assert_allclose(
        ours.detach().double().numpy(), theirs, rtol=rtol, atol=rtol * scale * 1e-2 if atol is None else atol
    )


@pytest.fixture(params=CASES, ids=[case["name"] for case in CASES])
def case(request):
    found = request.param
    dtype = getattr(torch, found["dtype"])
    model = network(found["options"], found["state"], dtype).eval()
    return model, minibatch(found["tensors"], dtype), found["out"], 1e-9 if dtype == torch.float64 else 1e-5


def _at_means(model, batch):
    posterior = model.posterior(batch)
    log_library = None if posterior.log_library is None else posterior.log_library[0]
    library = model.observed_library(batch) if log_library is None else log_library.exp()
    return posterior, log_library, library, model.generate(batch, model.transform(posterior.mean), library)


def test_encoder_and_library(case):
    model, batch, out, tolerance = case
    posterior, _, library, _ = _at_means(model, batch)
    _close(posterior.mean, out["qz_loc"], tolerance)
    _close(posterior.var.sqrt(), out["qz_scale"], tolerance)
    _close(model.transform(posterior.mean), out["z"], tolerance)
    # With a size factor scvi-tools still reports the log of the total count here; the rate shows which one was used.
    used = batch.counts["rna"].total if model.has_size_factor else library
    _close(used.log(), np.ravel(out["library"]), tolerance)
    if "ql_loc" in out:
        mean, var = posterior.log_library
        _close(mean, np.ravel(out["ql_loc"]), tolerance)
        _close(var.sqrt(), np.ravel(out["ql_scale"]), tolerance)


def test_decoder_and_dispersion(case):
    model, batch, out, tolerance = case
    _, _, _, generated = _at_means(model, batch)
    _close(generated.mu, out["px_rate"], tolerance)
    if "px_scale" in out:
        _close(generated.share, out["px_scale"], tolerance)
    if "px_theta" in out:
        theta = generated.theta if generated.group is None else generated.theta[generated.group]
        _close(theta.expand_as(generated.mu), out["px_theta"], tolerance)
    if "px_zi_logits" in out:
        _close(generated.zero, out["px_zi_logits"], tolerance)


def test_loss_terms(case):
    model, batch, out, tolerance = case
    posterior, log_library, _, _ = _at_means(model, batch)
    terms = model.terms_at(batch, posterior, posterior.mean, log_library)
    assert set(terms) == {"reconstruction", "kl_z"} | ({"kl_l"} if "kl_l" in out else set())
    _close(terms["reconstruction"], out["recon_nll"], tolerance)
    _close(terms["kl_z"], out["kl_z"], tolerance)
    if "kl_l" in out:
        _close(terms["kl_l"], np.ravel(out["kl_l"]), tolerance)


def test_transform_batch(case):
    model, batch, out, tolerance = case
    posterior, _, library, own = _at_means(model, batch)
    as_one = model.generate(batch, model.transform(posterior.mean), library, transform_batch=1)
    _close(as_one.share, out["px_scale_transform_batch_1"], tolerance)
    already = batch.categorical["batch"] == 1
    assert torch.equal(as_one.share[already], own.share[already])
    if "px_scale" in out:
        theirs = np.asarray(out["px_scale"]), np.asarray(out["px_scale_transform_batch_1"])
        assert torch.allclose(as_one.share, own.share) == np.allclose(*theirs)


def test_every_parameter_is_one_of_theirs(case):
    model, *_ = case
    ours = sum(parameter.numel() for parameter in model.parameters())
    names = to_scvi(model)
    assert ours == sum(
        tensor.numel() for name, tensor in names.items()
        if "running" not in name and "tracked" not in name and "library_log" not in name
    )


def test_one_training_step():
    """Loss, every gradient, the step of Adam and the buffers of batch normalisation, with the recorded noise."""
    step = golden()["training_step"]
    options = {**step["options"], "n_labels": 1}
    model = network(options, step["state_before"], torch.float64).train()
    batch = minibatch({"X": step["X"], "batch": step["batch"]}, torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)

    posterior = model.posterior(batch)
    noise = torch.tensor(step["noise"], dtype=torch.float64)
    terms = model.terms_at(batch, posterior, posterior.mean + posterior.var.sqrt() * noise, None)
    _close(terms["reconstruction"], step["recon"], 1e-9)
    _close(terms["kl_z"], step["kl_z"], 1e-9)
    loss = (terms["reconstruction"] + step["kl_weight"] * terms["kl_z"]).mean()
    assert loss.item() == pytest.approx(step["loss"], rel=1e-12)
    loss.backward()
    gradients = to_scvi(model, "grad")
    assert set(gradients) == set(step["grads"])
    for name, gradient in gradients.items():
        _close(gradient, step["grads"][name], 1e-9, atol=1e-12)
    optimizer.step()
    after = to_scvi(model)
    assert set(gradients) | {name for name in after if "running" in name} <= set(step["state_after"])
    for name, tensor in after.items():
        if name in step["state_after"]:
            _close(tensor, step["state_after"][name], 1e-9, atol=1e-12)


def test_the_draw_of_loss_terms_is_the_generator_s():
    case = CASES[0]
    model = network(case["options"], case["state"], torch.float64).eval()
    batch = minibatch(case["tensors"], torch.float64)
    context = StepContext(training=False, weights={}, generator=torch.Generator().manual_seed(3))
    drawn = model.loss_terms(batch, context)
    posterior = model.posterior(batch)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = model.terms_at(batch, posterior, posterior.mean + posterior.var.sqrt() * noise, None)
    for name, value in expected.items():
        torch.testing.assert_close(drawn[name], value, rtol=1e-12, atol=0)
