"""All loss terms of scVAEIT against a forward pass in numpy, written from the mathematics with whole masks and loops, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import expit, gammaln

from cellweave.core.models.base import BuildContext, Minibatch, ModalityInfo
from cellweave.core.models.vaeit import VaeitOptions
from cellweave.core.models.vaeit_network import VaeitNetwork, build
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.hiding import Hiding
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.run import RunSpec

N_CELLS, N_BATCH, DECODER = 13, 3, (2,)
BLOCKS = {"rna": (6,), "cnt": (4,), "atac": (3, 5), "prot": (4,), "zi": (3,)}
KINDS = {"rna": "nb", "cnt": "poisson", "atac": "bernoulli", "prot": "gaussian", "zi": "zinb"}
UNITS = {"rna": 5, "cnt": 3, "atac": 2, "prot": 4, "zi": 3}
MASK_UNITS = {"rna": 3, "cnt": 2, "atac": 1, "prot": 2, "zi": 2}
MAX_DISPERSION = 0.9


def _spec(**model: object) -> RunSpec:
    options = VaeitOptions(
        n_latent=3, hidden=("7", "6"), block_units={k: str(v) for k, v in UNITS.items()}, mask_units={k: str(v) for k, v in MASK_UNITS.items()},
        distribution=KINDS, normalisation={"prot": "none"}, skip_connections=True, max_dispersion=MAX_DISPERSION, **model,
    )  # fmt: skip
    return RunSpec(covariates=CovariateSpec(batch="b", decoder=("c",), continuous=("v",)), model=options)


def _extras(rng: np.random.Generator) -> dict[str, np.ndarray]:
    found = {"pattern_share": np.array([0.5, 0.5])}
    for name, blocks in BLOCKS.items():
        n = sum(blocks)
        found |= {
            f"{name}.max": rng.uniform(7.5, 9, n), f"{name}.min": rng.uniform(-2, 0, n), f"{name}.mean": rng.normal(size=n),
            f"{name}.sd": rng.uniform(0.5, 1, n), f"{name}.total": np.array([20.0]), f"{name}.density": np.array([0.1]),
            f"{name}.batches": np.full(N_BATCH, 1 / N_BATCH),
        }  # fmt: skip
    return found


def _network(extras: dict[str, np.ndarray], patterns: dict[str, np.ndarray]) -> VaeitNetwork:
    torch.manual_seed(3)
    infos = tuple(ModalityInfo(name, sum(blocks), blocks, patterns.get(name)) for name, blocks in BLOCKS.items())
    network = build(BuildContext(_spec(), infos, {"batch": N_BATCH, "decoder": DECODER}, 1, 100, {}, {}, extras)).double()
    with torch.no_grad():  # nothing at its initial value of 0 or 1
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.train()


@pytest.fixture
def case():
    rng = np.random.default_rng(11)
    patterns = {name: rng.random((2, sum(BLOCKS[name]))) < 0.7 for name in ("rna", "atac")}
    extras = _extras(rng)
    measured = {name: rng.random(N_CELLS) < 0.8 for name in BLOCKS}
    measured["rna"][:3] = measured["adt" if "adt" in measured else "cnt"][:3] = True
    group = rng.integers(0, 2, N_CELLS)
    observed, raw, counts = {}, {}, {}
    for name, blocks in BLOCKS.items():
        n = sum(blocks)
        observed[name] = measured[name][:, None] & (patterns[name][group] if name in patterns else np.ones((N_CELLS, n), bool))
        raw[name] = np.where(rng.random((N_CELLS, n)) < 0.6, rng.poisson(2.0, (N_CELLS, n)), 0).astype(float)
        if name == "prot":
            raw[name] = rng.normal(size=(N_CELLS, n))
        # Values where nothing was observed must not matter.
        csr = sparse.csr_matrix(raw[name] * measured[name][:, None])
        counts[name] = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, n, dtype=torch.float64)
    batch = Minibatch(
        torch.arange(N_CELLS), counts,
        {"batch": torch.from_numpy(rng.integers(0, N_BATCH, N_CELLS)), "decoder": torch.from_numpy(rng.integers(0, 2, (N_CELLS, 1)))},
        torch.from_numpy(rng.normal(size=(N_CELLS, 1))), None, {name: torch.from_numpy(value) for name, value in measured.items()},
        torch.from_numpy(group), {name: torch.from_numpy(value) for name, value in patterns.items()},
    )  # fmt: skip
    network = _network(extras, patterns)
    cells = np.flatnonzero(rng.random(N_CELLS) < 0.6)
    whole = {name: (rng.random(N_CELLS) < 0.3) & observed[name].any(1) for name in BLOCKS}
    scattered = {name: (rng.random((len(cells), sum(BLOCKS[name]))) < 0.4) & observed[name][cells] for name in BLOCKS}
    hiding = Hiding(
        {name: torch.from_numpy(value) for name, value in whole.items()}, torch.from_numpy(cells), {name: torch.from_numpy(v) for name, v in scattered.items()}
    )
    hidden = {}
    for name in BLOCKS:
        hidden[name] = observed[name] & whole[name][:, None]
        hidden[name][cells] |= scattered[name]
    return network, batch, hiding, observed, hidden, raw, extras


def _values(raw, observed):
    values = {}
    for name in BLOCKS:
        seen = np.where(observed[name], raw[name], 0.0)
        if name == "prot":
            values[name] = seen
        elif name == "atac":
            values[name] = (seen > 0).astype(float)
        else:
            total = seen.sum(1, keepdims=True)
            values[name] = np.log1p(seen / np.where(total > 0, total, 20.0) * 1e4)
    return values


def _ranges(extras):
    found = {}
    for name, blocks in BLOCKS.items():
        top, bottom, mean, sd = (extras[f"{name}.{key}"].astype(np.float32).astype(float) for key in ("max", "min", "mean", "sd"))
        high, low, centre, start = np.zeros_like(top), np.zeros_like(top), np.zeros_like(top), 0
        for size in blocks:
            here = slice(start, start + size)
            if KINDS[name] in {"nb", "poisson"}:
                high[here] = top[here].max()
            elif KINDS[name] == "zinb":
                high[here] = top[here]
            elif KINDS[name] == "bernoulli":
                low[here], high[here] = 1e-5, 1 - 1e-5
            else:
                high[here], low[here] = np.maximum(top, mean + 3 * sd)[here].max(), np.minimum(bottom, mean - 3 * sd)[here].min()
                centre[here] = mean[here]
            start += size
        found[name] = low, high, centre
    return found


def _leaky(x):
    return np.where(x > 0, x, 0.3 * x)


def _norm(x, norm):
    mean, var = x.mean(0), x.var(0)
    return (x - mean) / np.sqrt(var + 1e-3) * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def _linear(x, layer):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def _table(table, covariates):
    return covariates @ np.concatenate([table.level_weight.detach().numpy(), table.weight.detach().numpy()])


def _one_pass(network, values, ranges, inputs, covariates, noise):
    """Encode and decode with the entries ``inputs``; return mean, log variance and decoder outputs by modality."""
    whole = np.concatenate([~inputs[name] for name in BLOCKS], 1).astype(float)
    weight = np.concatenate([network.parts[name].mask_weight.detach().numpy() for name in BLOCKS])
    e = np.tanh(whole @ weight + network.mask_bias.detach().numpy())
    from_covariates = _table(network.of_covariates, covariates)
    h, at, at_mask = [], 0, 0
    for name, blocks in BLOCKS.items():
        part, start = network.parts[name], 0
        x = np.where(inputs[name], values[name] - ranges[name][2], 0.0)
        for number, size in enumerate(blocks):
            own = slice(start, start + size)
            units = x[:, own] @ part.enter.weight.detach().numpy()[own]
            units += e[:, at_mask : at_mask + MASK_UNITS[name]] @ part.from_mask.detach().numpy()[number]
            h.append(_leaky(units + from_covariates[:, at : at + UNITS[name]]))
            start, at, at_mask = start + size, at + UNITS[name], at_mask + MASK_UNITS[name]
    blocks_out = np.concatenate(h, 1)
    x = blocks_out
    for dense, norm in zip(network.encoder.dense, network.encoder.norm, strict=True):
        x = _norm(_leaky(_linear(x, dense)), norm)
    mean, log_var = _norm(_linear(x, network.mean), network.mean_norm), _linear(x, network.log_var)
    z = mean + np.exp(log_var / 2) * noise
    g = _leaky(_linear(np.concatenate([z, e], 1), network.from_latent) + _table(network.covariates_out, covariates))
    g = _norm(g, network.decoder_norm)
    for dense, norm in zip(network.decoder.dense, network.decoder.norm, strict=True):
        g = _norm(_leaky(_linear(g, dense)), norm)
    g = _leaky(_linear(g, network.to_blocks)) + blocks_out
    outputs, at = {}, 0
    for name, blocks in BLOCKS.items():
        part, start, found = network.parts[name], 0, []
        for size in blocks:
            own = slice(start, start + size)
            found.append(g[:, at : at + UNITS[name]] @ part.leave.weight.detach().numpy()[own].T + part.leave.bias.detach().numpy()[own])
            start, at = start + size, at + UNITS[name]
        outputs[name] = np.concatenate(found, 1)
    return mean, log_var, outputs


def _log_p(kind, y, a, dispersion, low, high, centre):
    if kind in {"nb", "zinb"}:
        m, r = low + expit(a) * (high - low), 1 / dispersion
        nb = gammaln(y + r) - gammaln(r) - gammaln(y + 1) + r * np.log(r / (r + m)) + y * np.log(m / (r + m))
        return nb if kind == "nb" else np.where(y == 0, np.log(0.5 + 0.5 * np.exp(nb)), np.log(0.5) + nb)
    if kind == "bernoulli":
        p = np.clip(expit(a), low, high)
        return y * np.log(p) + (1 - y) * np.log(1 - p)
    if kind == "poisson":
        rate = np.minimum(a, np.log(high))
        return y * rate - np.exp(rate) - gammaln(y + 1)
    mean = np.clip(a + centre, low, high)
    return -0.5 * ((y - mean) / dispersion) ** 2 - np.log(dispersion) - 0.5 * np.log(2 * np.pi)


def _kl(mean0, log_var0, mean1, log_var1):
    clip = lambda x: np.clip(x, -6, 6)  # noqa: E731
    return 0.5 * (np.exp(clip(log_var0 - log_var1)) + (mean1 - mean0) ** 2 / np.exp(clip(log_var1)) - 1 + log_var1 - log_var0).sum(1)


def test_every_term_equals_a_forward_pass_in_numpy(case):
    network, batch, hiding, observed, hidden, raw, extras = case
    values, ranges = _values(raw, observed), _ranges(extras)
    noise = np.random.default_rng(2).normal(size=(3, N_CELLS, 3))
    covariates = np.concatenate(
        [np.eye(N_BATCH)[batch.categorical["batch"].numpy()], np.eye(2)[batch.categorical["decoder"].numpy()[:, 0]], batch.continuous.numpy()], 1
    )
    visible = {name: observed[name] & ~hidden[name] for name in BLOCKS}
    passes = [_one_pass(network, values, ranges, inputs, covariates, noise[n]) for n, inputs in enumerate((observed, visible, hidden))]

    view = network.view(batch)
    encoded = network.encode(view, hiding, 3)
    z = encoded.mean + torch.exp(encoded.log_var / 2) * torch.from_numpy(noise)
    found = network.terms_at(view, hiding, encoded, z)

    assert set(found) == {f"{kind}_{name}" for kind in ("observed", "hidden", "reverse") for name in BLOCKS} | {"kl", "kl_reverse"}
    for name in BLOCKS:
        table = _table(network.parts[name].dispersion.table, covariates)
        dispersion = np.clip(np.log1p(np.exp(table)), 0, MAX_DISPERSION)
        assert (dispersion == MAX_DISPERSION).any()
        for (kind, which), (_, _, outputs) in zip((("observed", observed), ("hidden", hidden), ("reverse", visible)), passes, strict=True):
            log_p = _log_p(KINDS[name], values[name], outputs[name], dispersion, *ranges[name])
            expected = -(log_p * which[name]).sum(1)
            assert np.abs(expected).max() > 1
            np.testing.assert_allclose(found[f"{kind}_{name}"].detach().numpy(), expected, rtol=2e-6, atol=2e-6, err_msg=f"{kind}_{name}")
    np.testing.assert_allclose(found["kl"].detach().numpy(), _kl(*passes[1][:2], *passes[0][:2]), rtol=1e-9)
    np.testing.assert_allclose(found["kl_reverse"].detach().numpy(), _kl(*passes[2][:2], *passes[0][:2]), rtol=1e-9)


def test_two_passes_give_the_same_as_three_but_for_the_reversed_terms(case):
    network, batch, hiding, *_ = case
    view = network.view(batch)
    terms = []
    for n_passes in (2, 3):
        encoded = network.encode(view, hiding, n_passes)
        terms.append(network.terms_at(view, hiding, encoded, encoded.mean))
    for name, value in terms[0].items():
        torch.testing.assert_close(value, terms[1][name], rtol=1e-10, atol=1e-10)
    assert set(terms[1]) - set(terms[0]) == {*(f"reverse_{name}" for name in BLOCKS), "kl_reverse"}


def test_the_mmd_is_the_mean_over_19_widths_summed_over_pairs_of_batches(case):
    network, batch, *_ = case
    mean = torch.from_numpy(np.random.default_rng(4).normal(size=(N_CELLS, 3)))
    codes, widths = batch.categorical["batch"].numpy(), [*(10.0 ** np.arange(-6, 0)), 1, 5, 10, 15, 20, 25, 30, 35, 100, *(10.0 ** np.arange(3, 7))]
    assert len(widths) == 19
    x, expected = mean.numpy(), 0.0
    gram = np.mean([np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * width)) for width in widths], 0)
    for first in range(N_BATCH):
        for second in range(first + 1, N_BATCH):
            a, b = np.flatnonzero(codes == first), np.flatnonzero(codes == second)
            expected += gram[np.ix_(a, a)].mean() + gram[np.ix_(b, b)].mean() - 2 * gram[np.ix_(a, b)].mean()
    assert float(network.discrepancy(batch, mean)) == pytest.approx(expected, rel=1e-9)
