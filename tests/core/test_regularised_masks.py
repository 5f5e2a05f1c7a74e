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
    assert torch.allclose(model.scales_of_dimensions.parts()[1].detach().exp(), torch.tensor([0.5] * 10 + [0.2] * 10))


def test_relevance_learns_at_the_rate_of_its_modality(data: tuple[RunSpec, TrainingData]) -> None:
    """One step with the rates of the groups moves the scales of a modality's dimensions as much as its rate says."""
    spec, found = data
    model, batch = built(spec, found, use_ard=True, learning_rate_multiplier={"adt": 1.0, "rna": 4.0})
    before = [part.detach().clone() for part in model.scales_of_dimensions.parts()]
    groups = [{"params": list(group.parameters), "lr": 1e-3 * group.lr_factor} for group in model.parameter_groups()]
    assert sum(len(group["params"]) for group in groups) == len([one for one in model.parameters() if one.requires_grad])
    optimiser = torch.optim.Adam(groups)
    model.train()
    terms = model.loss_terms(batch, StepContext(training=True, weights=spec.with_changes({"model.use_ard": True}).loss_weights()))
    sum(value.sum() for value in terms.values()).backward()
    optimiser.step()
    for was, is_now in zip(before, model.scales_of_dimensions.parts(), strict=True):
        moved = (is_now.detach() - was).abs()
        assert torch.allclose(moved[:10], torch.full((10,), 1e-3), rtol=0.02) and torch.allclose(moved[10:], torch.full((10,), 4e-3), rtol=0.02)


def test_a_model_kept_with_one_tensor_of_scales_is_read(data: tuple[RunSpec, TrainingData]) -> None:
    model, _ = built(*data, use_ard=True)
    state = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("scales_of_dimensions.")}
    state |= {"relevance_mean": torch.arange(20.0), "relevance_log_sd": -torch.arange(20.0)}
    model.load_state_dict(state)
    mean, log_sd = model.scales_of_dimensions.parts()
    assert mean.tolist() == list(range(20)) and log_sd.tolist() == [-value for value in range(20)]


def test_scales_of_latents_cost_no_time_at_weight_zero(data: tuple[RunSpec, TrainingData], monkeypatch: pytest.MonkeyPatch) -> None:
    from cellweave.core.models import multimodal_network

    model, batch = built(*data, latent_scale_prior="lognormal", n_active_latent_per_cell=5.0)
    computed = []
    divergence = multimodal_network.latent_scale_divergence
    monkeypatch.setattr(multimodal_network, "latent_scale_divergence", lambda *given: computed.append(1) or divergence(*given))
    names = {"latent_scale_adt", "latent_scale_rna"}
    assert not names & set(model.loss_terms(batch, StepContext(training=True, weights=dict.fromkeys(names, 0.0)))) and not computed
    assert names < set(model.loss_terms(batch, StepContext(training=True, weights=dict.fromkeys(names, 1.0)))) and len(computed) == 2


# ---------------------------------------------------------------------- one modality


@pytest.fixture(scope="module")
def proteins(data_folder: Path) -> tuple[RunSpec, TrainingData]:
    """Proteins of two panels, of which one has more."""
    paths = [data_folder / name for name in FILES]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"{' and '.join(FILES)} are not in {data_folder}")
    changes = {"model.kind": "ambient", "data.paths": tuple(map(str, paths)), "data.modality": "adt", "covariates.batch": "batch", "data.join": "union"}
    spec = RunSpec().with_changes({**changes, "training.device": "cpu"})
    return spec, prepare(spec, load_study(spec.data))


def test_the_model_of_one_modality_honours_masks_as_that_of_several(proteins: tuple[RunSpec, TrainingData]) -> None:
    spec, found = proteins
    model, batch = built(spec, found)
    batch = Loader(found, torch.device("cpu"), resident=False).minibatch(found.train[:200])
    known = batch.feature_masks["adt"][batch.mask_group]
    lacking = ~known.all(1)
    assert lacking.any() and not lacking.all()
    head = model.stacks["adt"].decoder.scale.bias
    nowhere = ~known[lacking].any(0)
    before = terms(model, batch)["reconstruction"].detach()
    with torch.no_grad():
        head[nowhere] += 3.0
    after = terms(model, batch)["reconstruction"].detach()
    assert torch.allclose(after[lacking], before[lacking], rtol=1e-5) and not torch.allclose(after[~lacking], before[~lacking], rtol=1e-3)
    model.zero_grad()
    terms(model, batch, training=True)["reconstruction"][lacking].sum().backward()
    assert bool((head.grad[nowhere] == 0).all()) and bool((head.grad[~nowhere] != 0).any())
    # The depth of a cell is what it would be of all features.
    totals = model.totals(batch, "adt")
    assert torch.equal(totals[~lacking], batch.counts["adt"].total[~lacking]) and bool((totals[lacking] > batch.counts["adt"].total[lacking]).all())


def test_the_check_before_a_run_says_which_models_know_masks(data_folder: Path, proteins: tuple[RunSpec, TrainingData]) -> None:
    from cellweave.core.study.preflight import preflight

    spec, _ = proteins
    study = load_study(spec.data)
    ours = {check.id: check for check in preflight(spec, study)}
    assert "count only where they were measured" in ours["masks"].text and "features-absent" not in ours
    plain = {check.id: check for check in preflight(spec.with_changes({"model.kind": "vae"}), study)}
    assert "takes them for zeros" in plain["features-absent"].text and "masks" not in plain
