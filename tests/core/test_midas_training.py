"""MIDAS through the engine: real mosaics, resuming to the bit, discriminators, options that reach the network, and sentences on what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mosaic_toy import mosaic_study

from cellweave.core.errors import Cancelled, DataError, RunFolderError, SpecError
from cellweave.core.example import EXAMPLE_BATCH, example_path
from cellweave.core.models.base import StepContext
from cellweave.core.runs.events import EpochDone, FinishReason
from cellweave.core.runs.execute import execute, resume
from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec, presets
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.devices import choose_precision, multiplies_bf16
from cellweave.core.training.loop import Trainer
from cellweave.core.training.position import pack, unpack
from cellweave.core.training.sources import Loader
from cellweave.core.training.tools import seed_everything

CPU = torch.device("cpu")
SMALL = {
    "model.kind": "midas", "covariates.batch": "batch", "model.n_latent": 6, "model.shared_encoder": "32, 16", "model.shared_decoder": "16, 32",
    "model.discriminator": "16, 8", "training.batch_size": 16, "training.max_epochs": 4, "training.threads": 1, "training.preview_every": 0,
    "training.learning_rate": 1e-3, "training.checkpoint_every": 1,
}  # fmt: skip
SIZES = {("a", ("rna",)): 60, ("b", ("adt",)): 25, ("c", ("rna", "adt")): 41, ("c", ("rna",)): 9}


def small(**more: object) -> RunSpec:
    return RunSpec().with_changes({**SMALL, **more})


def trainer(folder: Path, spec: RunSpec, study=None, events=None) -> Trainer:
    data = prepare(spec, study or mosaic_study(SIZES))
    run = RunFolder.open(folder) if (folder / "spec.toml").exists() else RunFolder.create(folder, spec)
    seed_everything(spec.training.seed, 0, "build")
    model = spec.family.build(data.context(spec))
    return Trainer(spec, model, Loader(data, CPU, resident=False), Journal(run, None if events is None else events.append), RunControl())


def test_defaults_are_those_of_the_original_for_whoever_chooses_midas():
    chosen, _ = RunSpec().with_model("midas")
    for spec in (chosen, RunSpec.model_validate({"model": {"kind": "midas"}}), RunSpec().with_changes({"model.kind": "midas"})):
        training = spec.training
        assert (training.optimizer, training.learning_rate, training.adam_eps, training.weight_decay) == ("adamw", 1e-4, 1e-8, 0.01)
        assert (training.batch_size, training.gradient_clip, training.precision) == (256, 0.0, "auto")
    kept, _ = chosen.with_changes({"training.learning_rate": 5e-4}).with_model("vae")
    assert kept.training.learning_rate == 5e-4
    assert kept.training.adam_eps == RunSpec().training.adam_eps
    weights = RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch"}).loss_weights()
    assert weights == {
        "reconstruction_rna": 1, "reconstruction_adt": 1, "reconstruction_atac": 1, "reconstruction_batch": 1000, "kl_c": 1, "kl_u": 5, "alignment": 50,
        "adversarial": 1, "discriminators": 30,
    }  # fmt: skip


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_narrow_products_only_on_a_processor_that_has_them(native):
    assert choose_precision("auto", CPU, lambda: native) == ("bf16" if native else "32")
    assert choose_precision("32", CPU, lambda: native) == "32"
    assert choose_precision("bf16", CPU, lambda: native) == "bf16"
    assert choose_precision("auto", CPU) == choose_precision("auto", CPU, multiplies_bf16)
    assert choose_precision("auto", torch.device("mps"), lambda: native) == "32"
    assert choose_precision("auto", torch.device("cuda"), lambda: native) == "32"


@pytest.mark.parametrize("name", ["midas-current", "midas-documentation", "midas-fast"])
def test_presets_are_valid_and_differ_where_they_say(name):
    spec = presets()[name].apply(RunSpec())
    sizes = {"midas-documentation": ((512, 128), (128, 512))}.get(name, ((128, 32), (32, 128)))
    assert spec.model.block_sizes("atac") == sizes


def test_training_lowers_the_loss_and_tells_the_discriminators(tmp_path):
    events: list = []
    one = trainer(tmp_path / "run", small(**{"training.max_epochs": 12}), events=events)
    one.fit()
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert epochs[-1].train["total"] < 0.8 * epochs[0].train["total"]
    assert epochs[-1].validation["elbo"] < epochs[0].validation["elbo"]
    # The joint one sees three batches; RNA was measured in a and c, ADT in b and c.
    assert set(epochs[0].metrics) == {"discriminator_joint", "discriminator_rna", "discriminator_adt"}
    assert all(0 <= value <= 1 for event in epochs for value in event.metrics.values())


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("stop_at", [7, 17])
def test_a_resumed_run_has_the_same_losses_to_the_bit(tmp_path, stop_at, precision):
    """Discriminators, both optimisers and the steps without the batch go on where they stopped, at and within an epoch."""
    spec = small(**{"model.batch_drop": 0.5, "training.precision": precision})
    whole: list = []
    one = trainer(tmp_path / "whole", spec, events=whole)
    one.fit()
    begun = trainer(tmp_path / "part", spec)
    steps = 0
    original = begun._step

    def count(batch):
        nonlocal steps
        steps += 1
        original(batch)
        if steps == stop_at:
            begun.control.cancel()

    begun._step = count  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        begun.fit()
    kept = pack(begun)
    again: list = []
    rest = trainer(tmp_path / "again", spec, events=again)
    unpack(rest, kept)
    rest.fit()
    for (name, ours), theirs in zip(rest.model.state_dict().items(), one.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    late = [event for event in whole if isinstance(event, EpochDone)][-1]
    assert [event for event in again if isinstance(event, EpochDone)][-1].train == late.train


def test_the_encoders_work_once_a_step_and_the_discriminators_are_not_moved_by_the_network(tmp_path):
    one = trainer(tmp_path / "run", small())
    model, calls = one.model, []
    original = model._forward
    model._forward = lambda *a, **how: (calls.append(1), original(*a, **how))[1]  # type: ignore[method-assign]
    batch = one.loader.minibatch(one.train_rows[one.loader.data.streams[one.train_rows] == 0][:8])
    model.train()
    one._step(batch)
    assert len(calls) == 1
    before = [p.detach().clone() for p in model.discriminators.parameters()]
    context = StepContext(training=True, weights=one.objective.weights)
    model.zero_grad(set_to_none=True)
    values = model.loss_terms(batch, context)
    one.objective.total(one.objective.reduced(values)).backward()
    assert all(p.grad is None for p in model.discriminators.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.discriminators.parameters(), strict=True))


def test_mixed_minibatches_give_each_cell_what_its_own_pattern_gives(tmp_path):
    one = trainer(tmp_path / "run", small())
    rows = np.flatnonzero(one.loader.data.usable)
    model = one.model.eval()
    with torch.no_grad():
        mixed = model.latent(one.loader.minibatch(rows))
        for pattern in np.unique(one.loader.data.patterns[0]):
            own = rows[one.loader.data.patterns[0][rows] == pattern]
            alone = model.latent(one.loader.minibatch(own))
            for name, value in alone.items():
                torch.testing.assert_close(mixed[name][np.isin(rows, own)], value, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert torch.isnan(mixed["c_adt"][one.loader.data.streams[rows] == 0]).all()


def test_imputation_looks_only_at_what_it_is_given(tmp_path):
    one = trainer(tmp_path / "run", small())
    data, model = one.loader.data, one.model.eval()
    rows = np.flatnonzero(data.usable)
    batch = one.loader.minibatch(rows)
    with torch.no_grad():
        every, from_rna = model.impute(batch), model.impute(batch, given=["rna"])
    assert {name: tuple(value.shape) for name, value in every.items()} == {"rna": (len(rows), 30), "adt": (len(rows), 8)}
    has_rna = data.modalities[0].measured[rows]
    assert torch.isfinite(every["adt"]).all()
    assert torch.isnan(from_rna["adt"][~has_rna]).all()
    only_rna = has_rna & ~data.modalities[1].measured[rows]
    torch.testing.assert_close(every["adt"][only_rna], from_rna["adt"][only_rna])
    both = has_rna & data.modalities[1].measured[rows]
    assert not torch.allclose(every["adt"][both], from_rna["adt"][both])


@pytest.mark.parametrize(
    "changes",
    [
        {"model.norm": "bn"}, {"model.norm": "none", "model.activation": "relu"}, {"model.batch_expert": False}, {"covariates.batch": None},
        {"losses.weights.adversarial": 0.0}, {"losses.weights.discriminators": 0.0},
        {"training.precision": "bf16"}, {"model.distribution.adt": "gaussian"}, {"model.distribution.rna": "nb"},
        {"model.distribution.adt": "bernoulli"}, {"training.gradient_clip": 1.0}, {"model.discriminator_steps": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_trains(tmp_path, changes):
    one = trainer(tmp_path / "run", small(**{"training.max_epochs": 2, **changes}))
    one.fit()
    assert all(torch.isfinite(p).all() for p in one.model.parameters())


def test_blocks_of_peaks_train_and_are_imputed_as_shares(tmp_path):
    study = mosaic_study({("a", ("rna", "atac")): 50, ("b", ("rna",)): 40}, n_features={"rna": 20, "atac": 24})
    study.modalities["atac"].var.index = [f"chr{1 + k % 3}:{100 * k}-{100 * k + 50}" for k in range(24)]
    one = trainer(tmp_path / "run", small(**{"model.block_encoder.atac": "8, 4", "model.block_decoder.atac": "4, 8"}), study)
    one.fit()
    assert [info.blocks for info in one.model.infos] == [(20,), (8, 8, 8)]
    with torch.no_grad():
        shares = one.model.eval().impute(one.loader.minibatch(np.arange(90)))["atac"]
    assert float(shares.min()) >= 0
    assert float(shares.max()) <= 1


def test_what_is_refused_is_said_in_a_sentence():
    study = mosaic_study({("a", ("rna", "prot")): 30, ("b", ("rna",)): 30}, n_features={"rna": 20, "prot": 5})
    spec = small()
    with pytest.raises(DataError, match=r"MIDAS does not know the modality 'prot'.*--set model.distribution.prot=poisson"):
        prepare(spec, study).context(spec)
    declared = small(**{"model.distribution.prot": "poisson"})
    assert {term.name for term in declared.terms()} >= {"reconstruction_prot"}
    prepare(declared, study).context(declared)
    raw = small(**{"model.distribution.prot": "bernoulli", "model.transform.prot": "none"})
    with pytest.raises(DataError, match=r"draws 0 and 1 only.*binarize"):
        prepare(raw, study).context(raw)
    with pytest.raises(SpecError, match=r"no distribution 'poison' for rna; did you mean 'poisson'"):
        small(**{"model.distribution.rna": "poison"})
    with pytest.raises(SpecError, match=r"must begin with 32, not 16"):
        small(**{"model.block_decoder.atac": "16, 128"})
    with pytest.raises(SpecError, match=r"names no layer sizes"):
        small(**{"model.shared_encoder": "wide"})


def test_a_real_mosaic_to_the_end_and_resumed(data_folder: Path, tmp_path: Path):
    path = data_folder / "mosaic_bmmc_rna_adt_atac_4batches.h5mu"
    spec = small(**{
        "data.paths": (str(path),), "training.batch_size": 128, "training.max_epochs": 2, "model.block_encoder.atac": "16, 8",
        "model.block_decoder.atac": "8, 16", "analysis.umap": False, "analysis.clusters": False, "analysis.baseline": False, "analysis.scores": False,
    })  # fmt: skip
    execute(spec, tmp_path / "run")
    precision = RunFolder.open(tmp_path / "run").spec.training.precision
    assert precision in {"32", "bf16"}  # what auto became, so that a resumed run goes on in it on any machine
    resume(tmp_path / "run", changes={"training.max_epochs": 3})
    assert RunFolder.open(tmp_path / "run").spec.training.precision == precision
    results = tmp_path / "run" / "results"
    latent, protein = np.load(results / "latent.npy"), np.load(results / "c_adt.npy")
    assert latent.shape == (1100, 6)
    assert np.isfinite(latent).all()
    assert int(np.isfinite(protein).all(1).sum()) == 600
    description = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert len(next(m for m in description["modalities"] if m["name"] == "atac")["blocks"]) > 20
    terms = {term.name for term in RunFolder.open(tmp_path / "run").spec.terms()}
    assert "reconstruction_atac" in terms


@pytest.mark.parametrize("stop_after", [0, 2])
def test_a_run_that_was_stopped_goes_on_to_the_epochs_it_was_to_train(tmp_path, stop_after):
    control = RunControl()
    if not stop_after:
        control.stop()  # before the first epoch is over

    def listen(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == stop_after:
            control.stop()

    example = {"data.paths": (str(example_path()),), "covariates.batch": EXAMPLE_BATCH, "training.batch_size": 256}
    spec = small(**example, **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")})
    assert execute(spec, tmp_path / "run", control=control, listener=listen) is FinishReason.STOPPED
    assert RunFolder(tmp_path / "run").status.epoch == stop_after
    assert resume(tmp_path / "run") is FinishReason.COMPLETED
    assert [row["epoch"] for row in RunFolder(tmp_path / "run").losses()] == [1, 2, 3, 4]
    with pytest.raises(RunFolderError, match="is finished"):
        resume(tmp_path / "run")
