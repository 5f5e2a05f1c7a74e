"""MIDAS against an independent forward pass in numpy and float64, written from the text of the specification (sections 2 to 4)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cellweave.core.models.base import BuildContext, Minibatch, ModalityInfo, StepContext
from cellweave.core.models.midas_network import MidasNetwork
from cellweave.core.models.midas_summaries import MEASURED_IN
from cellweave.core.nn.counts import CountBatch
from cellweave.core.spec import RunSpec
from cellweave.core.training.objective import Objective

N_CELLS, N_C, N_U = 11, 5, 2
SIZES = {"rna": (9,), "adt": (4,), "atac": (3, 6, 2)}
MEASURED = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
DEFAULTS = {"recon": 1.0, "recon_s": 1000.0, "kld_c": 1.0, "kld_u": 5.0, "alignment": 50.0, "dsc": 30.0}


def spec() -> RunSpec:
    return RunSpec().with_changes({
        "model.kind": "midas", "covariates.batch": "batch", "model.n_latent": N_C, "model.n_technical": N_U,
        "model.shared_encoder": "13, 8", "model.shared_decoder": "7, 12", "model.block_encoder.atac": "6, 4", "model.block_decoder.atac": "4, 5",
        "model.batch_encoder": "3, 4", "model.batch_decoder": "4, 3", "model.discriminator": "6, 5",
    })  # fmt: skip


def network(dtype: torch.dtype) -> MidasNetwork:
    infos = tuple(ModalityInfo(name, sum(sizes), sizes, network_mask() if name == "rna" else None) for name, sizes in SIZES.items())
    torch.manual_seed(2)
    model = MidasNetwork(BuildContext(spec(), infos, {"batch": 4}, 0, 100, {}, {}, {MEASURED_IN: MEASURED}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def minibatch(code: int, dtype: torch.dtype) -> Minibatch:
    rng = np.random.default_rng(code)
    counts, measured = {}, {}
    for row, (name, sizes) in zip(MEASURED, SIZES.items(), strict=True):
        x = rng.poisson(1.5, (N_CELLS, sum(sizes))).astype(float)
        if name == "rna":  # what a mask hides was not measured, so nothing is stored there
            x *= network_mask()[np.arange(N_CELLS) % 2]
        counts[name] = CountBatch.from_dense(x if row[code] else np.zeros_like(x), dtype=dtype)
        measured[name] = torch.full((N_CELLS,), bool(row[code]))
    return Minibatch(
        torch.arange(N_CELLS), counts, {"batch": torch.full((N_CELLS,), code)}, measured=measured, mask_group=torch.arange(N_CELLS) % 2
    )


def network_mask() -> np.ndarray:
    return np.random.default_rng(4).random((2, 9)) > 0.3


# ---------------------------------------------------------------------- the specification in numpy


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def normed(x: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return mish((x - mean) / np.sqrt(var + 1e-5) * gain + shift)


class Weights:
    """The model's weights as float64 arrays, read by the parts of the specification."""

    def __init__(self, model: MidasNetwork) -> None:
        self.of = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}

    def layer(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x @ self.of[f"{name}.linear.weight"].T + self.of[f"{name}.linear.bias"]
        return normed(x, self.of[f"{name}.after.weight"][0], self.of[f"{name}.after.bias"][0])

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        place = 0
        while f"{name}.layers.{place}.linear.weight" in self.of:
            x, place = self.layer(x, f"{name}.layers.{place}"), place + 1
        return x @ self.of[f"{name}.end.weight"].T + self.of[f"{name}.end.bias"] if f"{name}.end.weight" in self.of else x

    def encode(self, x: np.ndarray, name: str) -> np.ndarray:
        at, sizes = f"encoders.{name}", SIZES[name]
        if len(sizes) == 1:
            x = normed(x @ self.of[f"{at}.first.weight"] + self.of[f"{at}.first.bias"][0], self.of[f"{at}.after.weight"][0], self.of[f"{at}.after.bias"][0])
        else:
            parts, start = [], 0
            for block, size in enumerate(sizes):
                part = x[:, start : start + size] @ self.of[f"{at}.first.weight"][start : start + size] + self.of[f"{at}.first.bias"][block]
                part = normed(part, self.of[f"{at}.after.weight"][block], self.of[f"{at}.after.bias"][block])
                parts.append(part @ self.of[f"{at}.inner.0.weight"][block] + self.of[f"{at}.inner.0.bias"][block])
                start += size
            x = normed(np.concatenate(parts, 1), self.of[f"{at}.joined.weight"][0], self.of[f"{at}.joined.bias"][0])
            x = self.layer(x, f"{at}.out")
        return self.mlp(x, "shared_encoder")

    def decode(self, z: np.ndarray, name: str) -> np.ndarray:
        at, sizes = f"decoders.{name}", SIZES[name]
        x = self.mlp(z, "shared_decoder") @ self.of[f"{at}.head.weight"].T + self.of[f"{at}.head.bias"]
        if len(sizes) == 1:
            return x
        x = normed(x, self.of[f"{at}.joined.weight"][0], self.of[f"{at}.joined.bias"][0])
        width, parts, start = x.shape[1] // len(sizes), [], 0
        for block, size in enumerate(sizes):
            part = x[:, block * width : (block + 1) * width] @ self.of[f"{at}.inner.0.weight"][block] + self.of[f"{at}.inner.0.bias"][block]
            part = normed(part, self.of[f"{at}.inner_after.0.weight"][block], self.of[f"{at}.inner_after.0.bias"][block])
            parts.append(part @ self.of[f"{at}.out.weight"][start : start + size].T + self.of[f"{at}.out.bias"][start : start + size])
            start += size
        return np.concatenate(parts, 1)

    def batch_expert(self, code: int) -> np.ndarray:
        x = self.of["batch_encoder.table"][[code] * N_CELLS] + self.of["batch_encoder.bias"]
        x = normed(x, self.of["batch_encoder.after.weight"][0], self.of["batch_encoder.after.bias"][0])
        return self.mlp(x, "batch_encoder.rest")

    def discriminator(self, c: np.ndarray, key: str, n_classes: int) -> np.ndarray:
        vector, at, x = self.of[f"discriminators.weights.of_{key}"], 0, c
        for n_in, n_out in ((N_C, 6), (6, 5)):
            weight = vector[at : at + n_in * n_out].reshape(n_out, n_in)
            bias, gain, shift = vector[at + n_in * n_out : at + n_in * n_out + 3 * n_out].reshape(3, n_out)
            x, at = normed(x @ weight.T + bias, gain, shift), at + n_in * n_out + 3 * n_out
        return x @ vector[at : at + 5 * n_classes].reshape(n_classes, 5).T + vector[at + 5 * n_classes :]


def cross_entropy(logits: np.ndarray, code: int) -> float:
    return float((np.log(np.exp(logits).sum(1)) - logits[:, code]).sum())


def objective(weights: Weights, batch: Minibatch, code: int, noise: np.ndarray) -> dict[str, float]:
    """Return the terms of section 4, each weighed, and their sum."""
    half, names = N_C + N_U, [name for name, row in zip(SIZES, MEASURED, strict=True) if row[code]]
    raw = {name: batch.counts[name].dense.double().numpy() for name in names}
    target = {name: (x > 0.5).astype(float) if name == "atac" else x for name, x in raw.items()}
    mask = {name: network_mask()[np.arange(N_CELLS) % 2].astype(float) if name == "rna" else np.ones_like(x) for name, x in raw.items()}
    seen = {name: (x if name == "atac" else np.log1p(x)) * mask[name] for name, x in target.items()}
    out = np.stack([weights.encode(seen[name], name) for name in names])
    mu, precision = out[..., :half], np.exp(-out[..., half:])
    s = weights.batch_expert(code)
    mu_s, precision_s = s[:, :half], np.exp(-s[:, half:])
    total = 1 + precision.sum(0) + precision_s
    joint_mu, joint_var = ((mu * precision).sum(0) + mu_s * precision_s) / total, 1 / total
    own = 1 + precision + precision_s
    uni_mu, uni_var = (mu * precision + mu_s * precision_s) / own, 1 / own
    z, uni = joint_mu + np.sqrt(joint_var) * noise[0], uni_mu + np.sqrt(uni_var) * noise[1:]
    found: dict[str, float] = {}
    for name in names:
        eta, x = weights.decode(z, name), target[name]
        if name == "atac":
            p = 1 / (1 + np.exp(-eta))
            loss = -(x * np.log(p) + (1 - x) * np.log(1 - p))
        else:
            safe = np.maximum(x, 1.0)
            loss = np.exp(eta) - x * eta + np.where(x > 1, safe * np.log(safe) - safe + 0.5 * np.log(2 * math.pi * safe), 0.0)
        found[f"reconstruction_{name}"] = DEFAULTS["recon"] * float((loss * mask[name]).sum()) / N_CELLS
    found["reconstruction_batch"] = DEFAULTS["recon_s"] * cross_entropy(weights.mlp(z[:, N_C:], "batch_decoder"), code) / N_CELLS
    kl = -0.5 * (1 + np.log(joint_var) - joint_mu**2 - joint_var) / N_CELLS
    found["kl_c"], found["kl_u"] = DEFAULTS["kld_c"] * float(kl[:, :N_C].sum()), DEFAULTS["kld_u"] * float(kl[:, N_C:].sum())
    found["alignment"] = DEFAULTS["alignment"] * float(((uni - uni.mean(0)) ** 2).sum()) / N_CELLS
    cost = cross_entropy(weights.discriminator(z[:, :N_C], "joint", 4), code)
    for name, one in zip(names, uni, strict=True):
        row = MEASURED[list(SIZES).index(name)]
        cost += cross_entropy(weights.discriminator(one[:, :N_C], name, int(row.sum())), int(row[:code].sum()))
    found["adversarial"] = -DEFAULTS["dsc"] * cost / N_CELLS
    return {**found, "total": sum(found.values())}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("code", range(4))
def test_whole_objective_equals_numpy(code: int, dtype: torch.dtype, tolerance: float) -> None:
    """Every term and their sum with the default weights, for each pattern of modalities; float32 takes the compiled loops."""
    model, batch = network(dtype).eval(), minibatch(code, dtype)
    weights = {term.name: term.default for term in spec().terms()}
    target = Objective(spec().terms(), weights, 100, torch.device("cpu"))
    n_draws = 1 + int(MEASURED[:, code].sum())
    torch.manual_seed(17)
    noise = torch.randn(n_draws, N_CELLS, N_C + N_U, dtype=dtype)
    torch.manual_seed(17)
    with torch.no_grad():
        values = model.loss_terms(batch, StepContext(training=False, weights=weights))
    expected = objective(Weights(model), batch, code, noise.double().numpy())
    means = {name: value.double().mean().item() * target.effective[name] for name, value in values.items()}
    # The discriminators' own loss is L_dsc without the network's lam_adv and its sign, and no part of the network's objective.
    own = values["discriminators"].double().mean().item() * weights["discriminators"]
    assert own == pytest.approx(-expected["adversarial"], rel=tolerance)
    assert means.pop("discriminators") == 0
    assert set(means) == set(expected) - {"total"}
    for name, value in means.items():
        assert value == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name
    assert sum(means.values()) == pytest.approx(expected["total"], rel=tolerance)
    assert target.total(target.reduced(values)).item() == pytest.approx(expected["total"], rel=1e-5)


def test_number_of_parameters_is_that_of_the_original() -> None:
    """Section 3: 500 genes, 224 proteins and 4 batches, as in the quick-start example of scmidas."""
    infos = (ModalityInfo("rna", 500, (500,)), ModalityInfo("adt", 224, (224,)))
    plain = RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch"})
    model = MidasNetwork(BuildContext(plain, infos, {"batch": 4}, 0, 1600, {}, {}, {MEASURED_IN: np.array([[1, 0, 1, 1], [0, 1, 1, 1]], dtype=bool)}))
    discriminators = sum(p.numel() for p in model.discriminators.parameters())
    assert discriminators == 39_242
    assert sum(p.numel() for p in model.parameters()) - discriminators == 1_770_752
