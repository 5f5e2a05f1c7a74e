"""The model of several modalities where cells were measured in some features only, or have no count of a modality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from cellweave.core.models.base import Minibatch, Model, StepContext
from cellweave.core.models.regularised_summaries import coverage, profile
from cellweave.core.spec import RunSpec, from_toml, to_toml
from cellweave.core.study import load_study
from cellweave.core.training.data import TrainingData, prepare
from cellweave.core.training.sources import Loader

FILES = ("cite_10x_pbmc_5k_protein_v3_200cells.h5mu", "cite_10x_pbmc_10k_protein_v3_200cells.h5mu")


@pytest.fixture(scope="module")
def data(data_folder: Path) -> tuple[RunSpec, TrainingData]:
    paths = [data_folder / name for name in FILES]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"{' and '.join(FILES)} are not in {data_folder}")
    changes = {"model.kind": "multimodal", "data.paths": tuple(map(str, paths)), "covariates.batch": "batch", "data.join": "union"}
    spec = RunSpec().with_changes({**changes, "training.device": "cpu"})
    return spec, prepare(spec, load_study(spec.data))


def built(spec: RunSpec, data: TrainingData, **options: object) -> tuple[Model, Minibatch]:
    spec = spec.with_changes({f"model.{name}": value for name, value in options.items()})
    torch.manual_seed(0)
    model = spec.family.build(data.context(spec))
    return model, Loader(data, torch.device("cpu"), resident=False).minibatch(data.train[:64])


def terms(model: Model, batch: Minibatch, *, training: bool = False) -> dict[str, torch.Tensor]:
    model.train(training)
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    return model.loss_terms(batch, StepContext(training=training, weights={}, generator=generator))


@pytest.mark.parametrize("decoder", ["expected_RNA", "burst_frequency_size"])
def test_features_that_were_not_measured_cost_and_teach_nothing(data: tuple[RunSpec, TrainingData], decoder: str) -> None:
    spec, found = data
    model, batch = built(spec, found, decoder_type=decoder)
    known = batch.feature_masks["adt"][batch.mask_group]
    assert not known.all() and known.any(1).all()
    nowhere = ~known.all(0)  # measured by some of the cells only
    before = terms(model, batch)["reconstruction_adt"].detach()
    gone = ~known.any(1) | (~known[:, nowhere]).all(1)
    assert gone.any() and not gone.all()
    head = model.stacks["adt"].decoder.scale.bias
    with torch.no_grad():
        head[nowhere] += 3.0
    after = terms(model, batch)["reconstruction_adt"].detach()
    assert torch.allclose(after[gone], before[gone], rtol=1e-5) and not torch.allclose(after[~gone], before[~gone], rtol=1e-3)
    model.zero_grad()
    terms(model, batch, training=True)["reconstruction_adt"][gone].sum().backward()
    assert head.grad is not None and bool((head.grad[nowhere] == 0).all()) and bool((head.grad[~nowhere] != 0).any())
    # Taken for zeros, the same features would cost something.
    as_zeros = terms(model, replace(batch, mask_group=None, feature_masks={}))["reconstruction_adt"].detach()
    assert (as_zeros[gone] > after[gone] + 1).all()


def test_totals_of_some_features_are_made_those_of_all() -> None:
    rng = np.random.default_rng(0)
    shares, mask = rng.dirichlet(np.full(50, 2.0)), np.ones((2, 50), dtype=bool)
    mask[1, :25] = False
    group = rng.integers(0, 2, 4000)
    counts = rng.poisson(2000 * shares, (4000, 50)) * mask[group]
    matrix = sparse.csr_matrix(counts.astype(np.float32))
    found = profile(matrix, mask, group, np.arange(4000), counts.sum(1).astype(float))
    assert np.allclose(found, shares, rtol=0.05)
    totals = counts.sum(1) / coverage(mask, found)[group]
    assert totals[group == 0].mean() == pytest.approx(totals[group == 1].mean(), rel=0.01)


def test_means_are_over_the_cells_that_measured_a_feature(data: tuple[RunSpec, TrainingData]) -> None:
    spec, found = data
    extras = found.context(spec).extras
    modality = next(one for one in found.modalities if one.name == "adt")
    rows = found.train[modality.measured[found.train]]
    known = modality.feature_mask[found.mask_group[rows]]
    counts = modality.counts[rows].toarray()
    with np.errstate(invalid="ignore"):
        mean = counts.sum(0) / known.sum(0)
    there = known.any(0)
    assert np.allclose(extras["adt/mean"][there], mean[there])


def test_what_is_left_to_the_program_is_left_out_of_a_table() -> None:
    table = {"adt": None, "rna": 0.3}
    spec = RunSpec().with_changes({"model.kind": "multimodal"})
    tree = spec.model_dump(mode="python")
    made = type(spec)(**{**tree, "model": {**tree["model"], "var_init_scale": table}})
    assert made.model.var_init_scale == {"rna": 0.3} and from_toml(to_toml(made)) == made
    from cellweave.core.models.multimodal import check_modalities, options_of

    assert options_of(made.model, "adt").var_init_scale is None and check_modalities(made.model, ("adt", "rna")) == []
    assert any("says nothing of adt" in one for one in check_modalities(made.model.model_copy(update={"n_latent": {"rna": 4}}), ("adt", "rna")))


def test_cells_without_a_modality_do_not_move_its_batch_norm(data: tuple[RunSpec, TrainingData]) -> None:
    spec, found = data
    runs = []
    for noise in (0.0, 5.0):
        model, batch = built(spec, found, use_batch_norm="both", dropout_rate=0.0)
        absent = torch.zeros(batch.n_cells, dtype=torch.bool)
        absent[:20] = True
        batch = replace(batch, measured={**batch.measured, "adt": ~absent})
        # Whatever stands at cells without the modality, the others must not notice it.
        batch.counts["adt"].values[batch.counts["adt"].rows < 20] += noise
        model.train()
        torch.manual_seed(1)
        posterior = model.encode(batch).latents["adt"]
        runs.append((posterior.mean[20:].detach(), model.encoders["adt"].hidden.layers[0].batch_norm.running_mean.clone()))
    assert torch.allclose(runs[0][0], runs[1][0], atol=1e-6) and torch.allclose(runs[0][1], runs[1][1], atol=1e-6)


def test_sparsity_costs_nothing_where_a_modality_is_not_there_and_at_weight_zero(data: tuple[RunSpec, TrainingData]) -> None:
    spec, found = data
    model, batch = built(spec, found, z_sparsity_prior="gamma", n_active_latent_per_cell=5.0, hidden_sparsity=True, use_ard=True)
    known = torch.ones(batch.n_cells, dtype=torch.bool)
    known[:20] = False
    encoded = model.encode(replace(batch, measured={**batch.measured, "adt": known}))
    there = model.present_latents(encoded)
    assert not there[:20, :10].any() and there[20:].all() and there[:, 10:].all()
    model.train()
    off = model.loss_terms(batch, StepContext(training=True, weights={"z_sparsity": 0.0, "hidden_sparsity": 0.0, "relevance": 0.0}))
    on = model.loss_terms(batch, StepContext(training=True, weights={"z_sparsity": 1.0, "hidden_sparsity": 1.0, "relevance": 1.0}))
    assert set(on) - set(off) == {"z_sparsity", "hidden_sparsity", "relevance"}


def test_relevance_begins_block_by_block(data: tuple[RunSpec, TrainingData]) -> None:
    model, _ = built(*data, use_ard=True, var_init_scale={"adt": 0.5, "rna": 0.2})
    assert torch.allclose(model.relevance_log_sd.detach().exp(), torch.tensor([0.5] * 10 + [0.2] * 10))
