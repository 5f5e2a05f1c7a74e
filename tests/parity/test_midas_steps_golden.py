"""Training steps of MIDAS against those of scmidas 0.3.0, from the same weights with the same noise, option by option; and what is then predicted.

The stored losses are scmidas' own in float64 (``make_midas_steps_golden.py``). Each loss depends on all steps before it: gradients, the steps of the
discriminators and what they leave to the network, both optimisers, clipping, masks, and what stays still where a modality was not measured.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn

from cellweave.core.models.base import Minibatch
from cellweave.core.models.midas_network import MidasNetwork
from cellweave.core.query.centroid import nearest_batch
from cellweave.core.query.mosaic import MosaicQuestion, translations, values_of
from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Modality, Study
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.loop import Trainer
from cellweave.core.training.sources import Loader

GOLDEN = json.loads(Path(__file__).with_name("midas_steps_golden.json").read_text())
DIMS = {"rna": (9,), "adt": (4,), "atac": (3, 6, 2)}
BATCHES = {"a": ("rna",), "b": ("adt", "atac"), "c": ("rna", "adt"), "d": ("rna", "adt", "atac")}
N_CELLS, N_LATENT, ORDER = 7, 7, "dcabdbcda"
SMALL = {
    "model.kind": "midas", "covariates.batch": "batch", "model.n_latent": 5, "model.n_technical": 2, "model.shared_encoder": "13, 8",
    "model.shared_decoder": "7, 12", "model.block_encoder.atac": "6, 4", "model.block_decoder.atac": "4, 5", "model.batch_encoder": "3, 4",
    "model.batch_decoder": "4, 3", "model.discriminator": "6, 5", "model.dropout_rate": 0.0, "model.batch_drop": 0.0, "training.batch_size": N_CELLS,
    "training.max_epochs": 1, "training.learning_rate": 3e-3, "training.validation_share": 0.0, "training.threads": 1, "training.precision": "32",
}  # fmt: skip
#: Our options for each of scmidas' configurations.
CASES: dict[str, dict[str, object]] = {
    "defaults": {},
    "other weights": {
        **{f"losses.weights.{name}": weight for name, weight in {
            "reconstruction_rna": 0.5, "reconstruction_adt": 2.0, "reconstruction_atac": 3.0, "reconstruction_batch": 10.0, "kl_c": 0.25, "kl_u": 2.0,
            "alignment": 4.0, "discriminators": 8.0, "adversarial": 2.0,
        }.items()}, "model.discriminator_steps": 1,
    },
    "discriminators watch": {"losses.weights.adversarial": 0.0, "model.discriminator_steps": 5},
    "clipped": {"training.gradient_clip": 0.5, "model.discriminator_rate": 2.0},
    "batch norm": {"model.norm": "bn"},
    "no norm": {"model.norm": "none"},
    "never told": {"model.batch_drop": 1.0},
    "other optimisers": {"training.optimizer": "adam", "training.weight_decay": 0.0, "model.discriminator_optimizer": "sgd"},
    "other likelihoods": {"model.distribution.adt": "bernoulli", "model.encoder_transform.adt": "log1p", "model.distribution.atac": "poisson"},
    "other sizes": {
        "model.shared_encoder": "10", "model.shared_decoder": "12", "model.block_encoder.atac": "6, 5, 3", "model.block_decoder.atac": "3, 5, 6",
        "model.discriminator": "6", "model.batch_encoder": "5", "model.batch_decoder": "3, 4, 5",
    },
}  # fmt: skip


def study() -> Study:
    """The counts and masks of the stored steps."""
    batch = np.repeat(list(BATCHES), N_CELLS)
    masks = np.array([GOLDEN["masks"][name] for name in BATCHES], dtype=bool)
    modalities = {}
    for name, sizes in DIMS.items():
        measured = np.array([name in BATCHES[level] for level in batch])
        counts = sparse.csr_matrix(np.array(GOLDEN["counts"][name], dtype=np.float32))
        blocks = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        names = [f"chr{block}:{10 * place}-{10 * place + 5}" if len(sizes) > 1 else f"{name}{place}" for place, block in enumerate(blocks)]
        modalities[name] = Modality(name, counts, pd.DataFrame(index=names), measured, masks if name == "rna" else None)
    obs = pd.DataFrame({"batch": batch.astype(object)}, index=[f"cell{row}" for row in range(len(batch))])
    group = np.repeat(np.arange(len(BATCHES)), N_CELLS)
    return Study(obs, modalities, (), np.zeros(len(batch), dtype=int), np.arange(len(batch)), mask_group=group)


class Fill:
    """Gives every weight the value that its name under scmidas determines, and counts them."""

    def __init__(self) -> None:
        self.n = 0

    def value(self, name: str, *shape: int) -> Tensor:
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        self.n += values.size
        return torch.from_numpy(0.3 * values + (name.endswith(".net.0.weight") and len(shape) == 1))

    def linear(self, module: nn.Linear, name: str) -> None:
        module.weight.data, module.bias.data = self.value(f"{name}.weight", *module.weight.shape), self.value(f"{name}.bias", *module.bias.shape)

    def norm(self, module: nn.Module, name: str) -> None:
        if module.norm != "none":
            for part in ("weight", "bias"):
                getattr(module, part).data = self.value(f"{name}.net.0.{part}", module.size)[None]

    def mlp(self, module: nn.Module, name: str) -> None:
        for place, layer in enumerate(module.layers):
            self.linear(layer.linear, f"{name}.{2 * place}")
            self.norm(layer.after, f"{name}.{2 * place + 1}")
        if module.end is not None:
            self.linear(module.end, f"{name}.{2 * len(module.layers)}")

    def norms(self, module: nn.Module, names: list[str]) -> None:
        if module.norm != "none":
            for part in ("weight", "bias"):
                getattr(module, part).data = torch.stack([self.value(f"{name}.net.0.{part}", module.size) for name in names])

    def blocks(self, module: nn.Module, names: list[str]) -> None:
        """Maps of each block, which scmidas keeps as ``(n_out, n_in)``."""
        _, n_in, n_out = module.weight.shape
        module.weight.data = torch.stack([self.value(f"{name}.weight", n_out, n_in).t() for name in names])
        module.bias.data = torch.stack([self.value(f"{name}.bias", n_out) for name in names])

    def encoder(self, module: nn.Module, name: str) -> None:
        own, sizes = f"net.encoder.encoders.{name}.0.net", DIMS[name]
        if len(sizes) == 1:
            module.first.weight.data = self.value(f"{own}.0.weight", module.first.n_out, *sizes).t().contiguous()
            module.first.bias.data = self.value(f"{own}.0.bias", module.first.n_out)[None]
            self.norm(module.after, f"{own}.1")
            return
        before = [f"net.encoder.pre_encoders.{name}.{block}.net" for block in range(len(sizes))]
        module.first.weight.data = torch.cat([self.value(f"{at}.0.weight", module.first.n_out, size).t() for at, size in zip(before, sizes, strict=True)])
        module.first.bias.data = torch.stack([self.value(f"{at}.0.bias", module.first.n_out) for at in before])
        for place, layer in enumerate(module.inner):
            self.norms(module.after if place == 0 else module.inner_after[place - 1], [f"{at}.{2 * place + 1}" for at in before])
            self.blocks(layer, [f"{at}.{2 * place + 2}" for at in before])
        self.norm(module.joined, f"net.encoder.transform_concat.{name}")
        self.linear(module.out.linear, f"{own}.0")
        self.norm(module.out.after, f"{own}.1")

    def decoders(self, model: MidasNetwork) -> None:
        end = f"net.decoder.shared_decoder.net.{2 * len(model.shared_decoder.layers)}"
        widths = [len(model.decoders[name].head.bias) for name in DIMS]
        weights = self.value(f"{end}.weight", sum(widths), model.decoders["rna"].head.in_features).split(widths)
        biases = self.value(f"{end}.bias", sum(widths)).split(widths)
        for name, weight, bias in zip(DIMS, weights, biases, strict=True):
            head = model.decoders[name].head
            head.weight.data, head.bias.data = weight.clone(), bias.clone()
        module, after = model.decoders["atac"], [f"net.decoder.post_decoders.atac.{block}.net" for block in range(len(DIMS["atac"]))]
        self.norm(module.joined, "net.decoder.transform_concat.atac")
        for place, layer in enumerate(module.inner):
            self.blocks(layer, [f"{at}.{2 * place}" for at in after])
            self.norms(module.inner_after[place], [f"{at}.{2 * place + 1}" for at in after])
        last, n_in = 2 * len(module.inner), module.out.weight.shape[1]
        module.out.weight.data = torch.cat([self.value(f"{at}.{last}.weight", size, n_in) for at, size in zip(after, DIMS["atac"], strict=True)])
        module.out.bias.data = torch.cat([self.value(f"{at}.{last}.bias", size) for at, size in zip(after, DIMS["atac"], strict=True)])

    def discriminator(self, model: MidasNetwork, key: str) -> None:
        sizes, at, parts = [*model.discriminators.sizes, model.n_classes[key]], f"dsc.predictors.{key}.net", []
        for place, (n_in, n_out) in enumerate(pairwise(sizes)):
            parts += [self.value(f"{at}.{2 * place}.weight", n_out, n_in).reshape(-1), self.value(f"{at}.{2 * place}.bias", n_out)]
            if place < len(sizes) - 2 and model.options.norm != "none":
                parts += [self.value(f"{at}.{2 * place + 1}.net.0.{part}", n_out) for part in ("weight", "bias")]
        model.discriminators.weights[f"of_{key}"].data = torch.cat(parts)

    def all(self, model: MidasNetwork) -> int:
        for name in DIMS:
            self.encoder(model.encoders[name], name)
        self.mlp(model.shared_encoder, "net.encoder.encoders.rna.1.net")
        self.mlp(model.shared_decoder, "net.decoder.shared_decoder.net")
        self.decoders(model)
        table = model.batch_encoder.table
        table.data = self.value("net.s_encoder.s_encoder.net.0.weight", table.shape[1], len(BATCHES)).t().contiguous()
        model.batch_encoder.bias.data = self.value("net.s_encoder.s_encoder.net.0.bias", table.shape[1])
        self.norm(model.batch_encoder.after, "net.s_encoder.s_encoder.net.1")
        for place, layer in enumerate(model.batch_encoder.rest.layers, 1):
            self.linear(layer.linear, f"net.s_encoder.s_encoder.net.{2 * place}")
            self.norm(layer.after, f"net.s_encoder.s_encoder.net.{2 * place + 1}")
        self.linear(model.batch_encoder.rest.end, f"net.s_encoder.s_encoder.net.{2 * len(model.batch_encoder.rest.layers) + 2}")
        self.mlp(model.batch_decoder, "net.s_decoder.s_decoder.net")
        for key in ("joint", *DIMS):
            self.discriminator(model, key)
        return self.n


def minibatch(one: Trainer, rows: np.ndarray, dtype: torch.dtype) -> Minibatch:
    batch = one.loader.minibatch(rows)
    for counts in batch.counts.values():
        counts.values = counts.values.to(dtype)
    return batch


def steps(folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, case: str) -> tuple[list[dict[str, float]], Trainer]:
    """Do the steps with our loop; return what scmidas logs of each."""
    spec = RunSpec().with_changes({**SMALL, **CASES[case]})
    data = prepare(spec, study())
    model = spec.family.build(data.context(spec))
    assert isinstance(model, MidasNetwork)
    assert Fill().all(model) == GOLDEN["cases"][case]["n_parameters"] == sum(p.numel() for p in model.parameters())
    model.to(dtype)
    one = Trainer(spec, model, Loader(data, torch.device("cpu"), resident=False), Journal(RunFolder.create(folder, spec), None), RunControl())
    found: list[dict[str, float]] = []
    terms, whole = model.loss_terms, model.whole_step

    def noise(*size: object, out: Tensor | None = None, **_how: object) -> Tensor:
        shape = tuple(out.shape if out is not None else size[0])  # type: ignore[arg-type]
        values = torch.from_numpy(np.random.RandomState(1000 + one.at.step).standard_normal((shape[0] * N_CELLS if len(shape) == 3 else shape[0], N_LATENT)))
        return values.reshape(shape).to(dtype) if out is None else out.copy_(values)

    def keep(means: dict[str, float]) -> None:
        weighed = {name: one.objective.effective[name] * value for name, value in means.items()}
        row = {name.removeprefix("reconstruction_"): value for name, value in weighed.items() if name.startswith("reconstruction")}
        row |= {"kl": weighed["kl_c"] + weighed["kl_u"], "alignment": weighed["alignment"], "total": sum(weighed.values())}
        found.append(row | {"discriminators": means["adversarial"] * one.objective.weights["discriminators"]})

    def traced(*arguments: object) -> dict[str, Tensor]:
        values = terms(*arguments)
        keep({name: value.double().mean().item() for name, value in values.items()})
        return values

    def written(*arguments: object) -> dict[str, float] | None:
        means = whole(*arguments)
        if means is not None:
            keep(means)
        return means

    model.loss_terms, model.whole_step = traced, written  # type: ignore[method-assign]
    monkeypatch.setattr(torch, "randn", noise)
    model.train()
    for level in ORDER:
        one._step(minibatch(one, np.flatnonzero(data.categorical["batch"] == list(BATCHES).index(level)), dtype))
        one.at.step += 1
    return found, one


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)], ids=["float64", "float32"])
@pytest.mark.parametrize("case", list(CASES))
def test_losses_of_every_step_are_those_of_scmidas(tmp_path, monkeypatch, case: str, dtype: torch.dtype, tolerance: float) -> None:
    """In float64 torch traces the step; in float32 it is written out where that serves, so not with batch norm or without a norm."""
    found, one = steps(tmp_path / "run", dtype, monkeypatch, case)
    expected = GOLDEN["cases"][case]["rows"]
    assert len(found) == len(expected) == len(ORDER)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        names = {"batch" if name == "s" else name: value for name, value in theirs.items()}
        assert set(ours) == set(names), number
        for name, value in names.items():
            assert ours[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (number, name)
    if dtype is torch.float64 or case in {"batch norm", "no norm"}:
        assert one.model._written is None


class Told:
    """What a trained network says of all cells, called as scmidas calls it: kind and key, each ``(n_cells, size)``."""

    def __init__(self, one: Trainer, dtype: torch.dtype) -> None:
        self.one, self.dtype, self.rows = one, dtype, np.arange(one.loader.data.n_cells)
        self.of: dict[tuple[str, str], np.ndarray] = {}
        self.latents()
        _, technical = nearest_batch(self.of["z_u", "joint"], one.loader.data.categorical["batch"])
        for kind, question in (("x_impt", MosaicQuestion()), ("x_bc", MosaicQuestion("corrected"))):
            self.of |= {(kind, name): value for name, value in self.values(question, torch.from_numpy(technical)).items()}
        for question in translations(tuple(DIMS)):
            start = "_".join(sorted(question.given or ()))
            self.of |= {("x_trans", f"{start}_to_{name}"): value for name, value in self.values(question).items()}

    def batches(self) -> Iterator[tuple[np.ndarray, Minibatch]]:
        for part in self.one.loader.parts(self.rows, 512):
            yield part, minibatch(self.one, part, self.dtype)

    @torch.no_grad()
    def latents(self) -> None:
        for part, batch in self.batches():
            for name, value in self.one.model.latent(batch).items():
                key = ("z_u" if name.startswith("u") else "z_c", "joint" if name in {"latent", "u"} else name[2:])
                self.of.setdefault(key, np.full((len(self.rows), value.shape[1]), np.nan))[part] = value.numpy()

    def values(self, question: MosaicQuestion, technical: Tensor | None = None) -> dict[str, np.ndarray]:
        found = {name: np.full((len(self.rows), sum(DIMS[name])), np.nan) for name in question.modalities or DIMS}
        for part, own in values_of(self.one.model, self.batches, question, tuple(DIMS), technical):
            for name, value in own.items():
                found[name][part] = value
        return found


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("defaults", torch.float64), ("defaults", torch.float32), ("no norm", torch.float64), ("no norm", torch.float32),
        ("batch norm", torch.float64),  # in float32 its moving averages of so few cells are apart by a few thousandths
    ],
)  # fmt: skip
def test_predictions_are_those_of_scmidas(tmp_path, monkeypatch, case: str, dtype: torch.dtype) -> None:
    """Latents of all modalities and of each, imputed values, every translation, and corrected values by the centroid rule.

    With batch norm values of ATAC are left out: scmidas' decoder of ATAC takes its moving averages over batches without ATAC too.
    """
    _, one = steps(tmp_path / "run", dtype, monkeypatch, case)
    one.model.eval()
    told, close = Told(one, dtype).of, {"rtol": 2e-5, "atol": 2e-6} if dtype is torch.float64 else {"rtol": 2e-3, "atol": 2e-4}
    for place, level in enumerate(BATCHES):
        for kind, stored in GOLDEN["cases"][case]["predicted"][level].items():
            for key, expected in stored.items():
                if case != "batch norm" or kind.startswith("z") or not key.endswith("atac"):
                    ours = told[kind, key][place * N_CELLS : place * N_CELLS + len(expected)]
                    np.testing.assert_allclose(ours, expected, **close, err_msg=f"{kind} {key} of {level}")


def test_a_translation_takes_what_there_is_of_what_is_given(tmp_path, monkeypatch) -> None:
    """Where scmidas gives none because one of several was not measured; a cell that has none of them has no number."""
    _, one = steps(tmp_path / "run", torch.float64, monkeypatch, "defaults")
    one.model.eval()
    told = Told(one, torch.float64).of
    of_rna, of_adt = slice(0, N_CELLS), slice(N_CELLS, 2 * N_CELLS)
    np.testing.assert_array_equal(told["x_trans", "adt_rna_to_atac"][of_rna], told["x_trans", "rna_to_atac"][of_rna])
    np.testing.assert_array_equal(told["x_trans", "adt_rna_to_atac"][of_adt], told["x_trans", "adt_to_atac"][of_adt])
    assert np.isnan(told["x_trans", "adt_atac_to_rna"][of_rna]).all()
    assert np.isnan(told["x_trans", "rna_to_adt"][of_adt]).all()
