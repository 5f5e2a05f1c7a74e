"""scVAEIT through the engine: training, resuming, stopping, asking, and sentences where the input is bad."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from mosaic_toy import mosaic_study

from cellweave.core.errors import CellweaveError, DataError, SpecError
from cellweave.core.example import EXAMPLE_BATCH, EXAMPLE_LABELS, example_path
from cellweave.core.models.base import StepContext
from cellweave.core.models.vaeit import FAMILY, modality_names
from cellweave.core.nn.hiding import nothing_hidden
from cellweave.core.nn.masked_blocks import PassNorm
from cellweave.core.nn.masked_likelihoods import expected
from cellweave.core.query.encode import encode
from cellweave.core.query.opened import open_run
from cellweave.core.runs.events import FinishReason
from cellweave.core.runs.execute import execute, resume
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Study
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.sources import Loader

SMALL = {
    "model.n_latent": 4, "model.hidden": ("16",), "model.block_units": {"rna": "8", "adt": "6"}, "model.mask_units": {"rna": "3", "adt": "2"},
    "training.threads": 1, "training.device": "cpu", "training.preview_every": 0,
    **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")},
}  # fmt: skip


def spec_with(**changes: object) -> RunSpec:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return RunSpec().with_changes({"model.kind": "vaeit"}).with_changes({**SMALL, "covariates.batch": "batch", **named})


def toy() -> Study:
    return mosaic_study({("a", ("rna",)): 40, ("b", ("rna", "adt")): 40, ("c", ("adt",)): 30})


def network_and_batch(spec: RunSpec, study: Study, n: int = 60):
    data = prepare(spec, study)
    torch.manual_seed(0)
    network = spec.family.build(data.context(spec))
    with torch.no_grad():
        for part in network.parts.values():
            part.leave.weight.normal_(std=0.3)  # they start at 0, where the cells do not differ yet
    loader = Loader(data, torch.device("cpu"), resident=False)
    return network, loader.minibatch(np.arange(n)), data


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vaeit") / "run"
    changes = {"data__paths": (str(example_path()),), "covariates__batch": EXAMPLE_BATCH, "covariates__labels": EXAMPLE_LABELS}
    execute(spec_with(**changes, training__max_epochs=3, training__learning_rate=3e-3, model__balance=True, model__balance_epochs=1), folder)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- declaration


def test_the_published_defaults_are_those_of_the_spec():
    spec = RunSpec().with_changes({"model.kind": "vaeit"})
    assert (spec.training.optimizer, spec.training.learning_rate, spec.training.adam_eps, spec.training.weight_decay) == ("adamw", 3e-4, 1e-7, 1e-4)
    assert (FAMILY.training["max_epochs"], spec.training.batch_size) == (200, 256)
    weights = spec.loss_weights()
    assert weights["kl"] == 2.0 and weights["observed_rna"] == weights["hidden_rna"] == 0.5 and weights["reverse_rna"] == 0.0
    assert (spec.model.mask_features, spec.model.mask_modality, spec.model.max_dispersion, spec.model.skip_connections) == (0.2, "proportional", 6.0, False)
    assert "mmd" not in weights and spec.with_changes({"covariates.batch": "batch"}).loss_weights()["mmd"] == 0.0
    assert all(term.help and term.label for term in spec.terms())


def test_a_run_that_began_has_the_terms_of_its_own_modalities():
    spec = RunSpec().with_changes({"model.kind": "vaeit"})
    assert modality_names(spec) == ("rna", "adt", "atac")
    begun = spec.with_changes({"data.sha256": ("0",), "data.layers": {"rna": "X", "prot": "X"}})
    assert modality_names(begun) == ("rna", "prot")
    named = {f"{kind}_{name}" for kind in ("observed", "hidden", "reverse") for name in ("rna", "prot")}
    assert {term.name for term in begun.terms()} == named | {"kl", "kl_reverse"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.modality_shares": {"rna": "0.5", "adt": "0.7"}}, "sum to 1.2, not to 1"),
        ({"model.modality_shares": {"rna": "1.5", "adt": "-0.5"}}, "below 0"),
        ({"model.hidden": ("64", "wide")}, "'wide' is not the width of a layer"),
        ({"model.distribution": {"adt": "gamma"}}, "none of the likelihoods"),
        ({"model.distribution": {"adt": "bernoulli"}, "model.normalisation": {"adt": "log1p"}}, "must be binary"),
        ({"model.block_units": {"rna": "0"}}, "not a number of units"),
        ({"model.mask_features": 1.0}, "mask_features"),
        ({"model.lowest": {"rna": "3"}, "model.highest": {"rna": "2"}}, "not below"),
        ({"losses.weights": {f"{kind}_{name}": 0.0 for kind in ("observed", "hidden") for name in ("rna", "adt", "atac")}}, "nothing would be learned"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_a_sentence(changes, words):
    with pytest.raises(SpecError, match=words):
        RunSpec().with_changes({"model.kind": "vaeit"}).with_changes(changes)


# ---------------------------------------------------------------------- bad input


def test_a_mask_that_hides_everything_is_refused():
    study = toy()
    study.modalities["adt"].feature_mask = np.array([[False] * 8, [True] * 8])
    study.mask_group = np.where(study.obs["batch"] == "c", 0, 1)
    spec = spec_with()
    with pytest.raises(DataError, match="hides every feature of"):
        prepare(spec, study).context(spec)


def test_values_that_are_not_finite_are_refused():
    study = toy()
    study.modalities["adt"].counts.data[3] = np.nan
    spec = spec_with(training__validation_share=0.0)
    with pytest.raises(DataError, match="1 observed value of adt is not a finite number"):
        prepare(spec, study).context(spec)


def test_negative_values_ask_for_another_likelihood():
    study = toy()
    study.modalities["adt"].counts.data[:] *= -0.5
    spec = spec_with(model__normalisation={"adt": "none"})
    with pytest.raises(DataError, match="values below 0"):
        prepare(spec, study).context(spec)
    gaussian = spec.with_changes({"model.distribution": {"adt": "gaussian"}})
    network, batch, _ = network_and_batch(gaussian, study)
    assert all(torch.isfinite(value).all() for value in network.loss_terms(batch, StepContext(True, gaussian.loss_weights())).values())


def test_blocks_that_do_not_add_up_are_refused():
    from dataclasses import replace

    spec = spec_with()
    context = prepare(spec, toy()).context(spec)
    wrong = replace(context, modalities=(replace(context.modalities[0], blocks=(20, 5)), context.modalities[1]))
    with pytest.raises(DataError, match=r"blocks of rna hold 25 features, but it has 30"):
        FAMILY.build(wrong)


def test_shares_of_a_modality_that_is_not_there_are_refused():
    spec = spec_with(model__modality_shares={"rna": "0.5", "atac": "0.5"})
    with pytest.raises(SpecError, match="which the data do not have"):
        FAMILY.build(prepare(spec, toy()).context(spec))


def test_a_level_that_training_has_not_seen_is_refused():
    spec, study = spec_with(), toy()
    data = prepare(spec, study)
    study.obs["batch"] = study.obs["batch"].replace("c", "elsewhere")
    features = {modality.name: tuple(modality.var.index) for modality in data.modalities}
    with pytest.raises(CellweaveError, match="not trained on the level 'elsewhere'"):
        encode(spec, data.encoding, study, features, trained_on=False)


# ---------------------------------------------------------------------- the network


def test_what_was_not_measured_neither_enters_nor_counts():
    spec, study = spec_with(), toy()
    network, batch, _ = network_and_batch(spec, study, 110)
    view = network.view(batch)
    encoded = network.encode(view, nothing_hidden(view.observed), 2)
    terms = network.terms_at(view, nothing_hidden(view.observed), encoded, encoded.mean)
    assert not terms["observed_adt"][:40].any() and terms["observed_adt"][40:].min() > 0
    assert not terms["hidden_rna"].any() and not terms["hidden_adt"].any()


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
@torch.no_grad()
def test_an_untrained_decoder_begins_at_the_mean_of_each_feature(kind):
    study = toy()
    spec = spec_with(model__distribution={"adt": kind}, training__validation_share=0.0)
    _, batch, data = network_and_batch(spec, study, 110)
    network = spec.family.build(data.context(spec))
    part = network.parts["adt"]
    found = expected(kind, part.leave(torch.randn(3, part.n_units)), part.ranges)
    values = network.view(batch).values["adt"].dense[40:]
    torch.testing.assert_close(found, values.mean(0).expand(3, -1), rtol=2e-3, atol=2e-3)
    with torch.enable_grad():
        units = torch.randn(3, part.n_units)
        (gradient,) = torch.autograd.grad((part.leave(units) ** 2).sum() + part.leave(units).sum(), part.leave.weight)
    assert bool((gradient != 0).any(1).all())  # the weights leave 0 at the first step


def test_held_out_cells_are_hidden_from_in_the_same_way_at_every_look():
    spec = spec_with()
    network, batch, _ = network_and_batch(spec, toy())
    network.eval()
    weights, found = spec.loss_weights(), []
    for epoch in (0, 7):
        torch.manual_seed(epoch)
        found.append(network.loss_terms(batch, StepContext(False, weights, epoch=epoch)))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])
    network.train()
    draws = [network.loss_terms(batch, StepContext(True, weights))["hidden_rna"] for _ in range(2)]
    assert not torch.equal(*draws)


def test_the_reversed_pass_is_made_only_where_a_weight_asks_for_it():
    spec = spec_with()
    network, batch, _ = network_and_batch(spec, toy())
    weights = spec.loss_weights()
    assert "reverse_rna" not in network.loss_terms(batch, StepContext(True, weights))
    assert "reverse_rna" in network.loss_terms(batch, StepContext(True, {**weights, "kl_reverse": 0.5}))


def test_the_mmd_fades_by_its_decay():
    spec = spec_with(model__mmd_decay=0.8, losses__weights={"mmd": 1.0})
    network, batch, _ = network_and_batch(spec, toy(), 110)
    network.eval()
    first, later = (network.loss_terms(batch, StepContext(False, spec.loss_weights(), epoch=epoch))["mmd"] for epoch in (0, 100))
    assert float((later / first).detach()) == pytest.approx(0.8**2, rel=1e-5)


# ---------------------------------------------------------------------- trained


def test_training_falls_and_tells_the_balance(trained):
    losses = rows_of(trained / "losses.csv")
    assert float(losses[-1]["elbo_validation"]) < float(losses[0]["elbo_validation"])
    metrics = [event.metrics for event in RunFolder.open(trained).epochs()]
    first, last = metrics[0], metrics[-1]
    assert float(first["beta_rna"]) == float(first["beta_adt"]) == 1.0
    assert float(last["beta_rna"]) + float(last["beta_adt"]) == pytest.approx(1.0, abs=1e-5)
    # Weights are the inverse of what the modalities cost in the first epoch, so that both are of one order.
    cost = {name: float(losses[0][f"observed_{name}_train"]) for name in ("rna", "adt")}
    assert float(last["beta_rna"]) / float(last["beta_adt"]) == pytest.approx(cost["adt"] / cost["rna"], rel=0.05)
    # The curves stay in nats: what changes is how much they count, and with that the total.
    assert all(float(losses[-1][f"observed_{name}_train"]) == pytest.approx(cost[name], rel=0.3) for name in ("rna", "adt"))
    weighed = [float(last[f"beta_{name}"]) * float(losses[-1][f"observed_{name}_train"]) for name in ("rna", "adt")]
    assert 1 / 3 < weighed[0] / weighed[1] < 3
    terms = {name.removesuffix("_train"): float(value) for name, value in losses[-1].items() if name.endswith("_train") and value}
    betas = {kind: sum(float(last[f"beta_{name}"]) * terms[f"{kind}_{name}"] for name in ("rna", "adt")) for kind in ("observed", "hidden")}
    assert terms["total"] == pytest.approx(0.5 * betas["observed"] + 0.5 * betas["hidden"] + 2.0 * terms["kl"], rel=1e-3)
    assert 0.2 < float(last["hidden_share"]) < 0.8


@torch.no_grad()
def test_answers_do_not_depend_on_the_minibatch(trained):
    run = open_run(trained)
    rows = np.arange(0, run.n_cells, 37)
    together = run.model.impute(run.loader.minibatch(rows))
    latents = run.model.latent(run.loader.minibatch(rows))["latent"]
    for place, row in enumerate(rows[:12]):
        alone = run.loader.minibatch(np.array([row]))
        torch.testing.assert_close(run.model.latent(alone)["latent"][0], latents[place], rtol=1e-4, atol=1e-5)
        for name, value in run.model.impute(alone).items():
            torch.testing.assert_close(value[0], together[name][place], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_what_is_given_is_all_that_is_looked_at(trained):
    run = open_run(trained)
    rows = np.flatnonzero((run.study.obs[EXAMPLE_BATCH] == "p4_0").to_numpy())[:50]
    batch = run.loader.minibatch(rows)
    before = run.model.impute(batch, given=["rna"])
    batch.counts["adt"].values.zero_()
    after = run.model.impute(batch, given=["rna"])
    for name in before:
        assert torch.equal(before[name], after[name])
        assert torch.isfinite(after[name]).all() and (after[name] >= 0).all()
    only_rna = np.flatnonzero((run.study.obs[EXAMPLE_BATCH] == "p1_0").to_numpy())[:3]
    assert torch.isnan(run.model.latent_given(run.loader.minibatch(only_rna), ["adt"])).all()
    with pytest.raises(SpecError, match="no modality 'atac'"):
        run.model.impute(batch, given=["atac"])


@torch.no_grad()
def test_draws_have_a_mean_near_the_point_and_a_spread(trained):
    run = open_run(trained)
    batch = run.loader.minibatch(np.arange(40))
    noise = torch.randn(60, batch.n_cells, run.model.options.n_latent, generator=torch.Generator().manual_seed(1))
    mean, sd = run.model.impute_draws(batch, noise)
    point = run.model.impute(batch)
    for name in mean:
        assert (sd[name] > 0).any() and torch.isfinite(sd[name]).all()
        assert np.corrcoef(mean[name].ravel(), point[name].ravel())[0, 1] > 0.95
    again, _ = run.model.impute_draws(batch, noise)
    assert torch.equal(mean["adt"], again["adt"])


@torch.no_grad()
def test_cells_that_show_what_a_batch_showed_take_the_averages_of_the_whole_pass():
    network, batch, data = network_and_batch(spec_with(), mosaic_study({("a", ("rna",)): 40, ("b", ("rna", "adt")): 40}), n=80)
    network.eval()
    alone = ~next(modality for modality in data.modalities if modality.name == "adt").measured

    def latents(which: int, given: tuple[str, ...] | None) -> torch.Tensor:
        """Move the averages of one kind of pass; return how far every latent then is from where it was."""
        norms = [module for module in network.modules() if isinstance(module, PassNorm)]
        with torch.no_grad():
            before = network.latent_given(batch, given)
            for norm in norms:
                norm.running_mean[which] += 0.5
            after = network.latent_given(batch, given)
            for norm in norms:
                norm.running_mean[which] -= 0.5
        return (after - before).abs().amax(1)

    for given in (None, ("rna",)):  # all that was measured, and what batch a has: both were met whole in training
        assert bool((latents(0, given) > 1e-3).all())
        assert bool((latents(1, given) == 0).all())
    both = torch.from_numpy(~alone[:80])
    hidden = latents(1, ("adt",))  # no batch has antibodies alone: only passes that hide RNA have met such cells
    assert bool((hidden[both] > 1e-3).all())
    assert bool((latents(0, ("adt",))[both] == 0).all())


def test_a_modality_that_a_batch_never_had_is_decoded_as_the_batches_that_had_it(trained):
    run = open_run(trained)
    batch = run.loader.minibatch(np.flatnonzero((run.study.obs[EXAMPLE_BATCH] == "p1_0").to_numpy())[:20])
    network = run.model
    view = network.view(batch)
    encoded = network.encode(view, None, 1)
    own = network._values(view, encoded, encoded.mean, in_counts=True, borrow=False)
    borrowed = network.impute(batch)
    assert torch.equal(own["rna"], borrowed["rna"])
    assert not torch.allclose(own["adt"], borrowed["adt"])
    assert torch.equal(network.parts["adt"].batches > 0, torch.tensor([False, True, True, True]))


class CancelAfter(RunControl):
    """Cancels after n steps."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def take_weights(self):
        self.left -= 1
        if self.left < 0:
            self.cancel()
        return super().take_weights()


def test_a_resumed_run_has_the_same_losses_to_the_bit(tmp_path):
    changes = {"data__paths": (str(example_path()),), "covariates__batch": EXAMPLE_BATCH, "model__balance": True, "model__balance_epochs": 2}
    spec = spec_with(**changes, training__max_epochs=4, losses__weights={"mmd": 1.0, "reverse_adt": 0.2})
    execute(spec, tmp_path / "whole")
    assert execute(spec, tmp_path / "cut", control=CancelAfter(15)) is FinishReason.CANCELLED
    resume(tmp_path / "cut")
    assert 0 < len(RunFolder.open(tmp_path / "cut").losses()) == 4
    assert (tmp_path / "cut" / "losses.csv").read_text() == (tmp_path / "whole" / "losses.csv").read_text()
    told = [[event.metrics for event in RunFolder.open(tmp_path / name).epochs()] for name in ("cut", "whole")]
    assert told[0] == told[1]
    one, two = (np.load(tmp_path / name / "results" / "latent.npy") for name in ("whole", "cut"))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    "changes", [{"training__precision": "bf16"}, {"training__source": "disk"}, {"model__skip_connections": True, "covariates__batch": None}]
)
def test_other_ways_to_train_run_through(tmp_path, changes):
    execute(spec_with(**{"data__paths": (str(example_path()),), "covariates__batch": EXAMPLE_BATCH, "training__max_epochs": 2, **changes}), tmp_path / "run")
    losses = RunFolder.open(tmp_path / "run").losses()
    assert len(losses) == 2 and float(losses[1]["total_train"]) < float(losses[0]["total_train"])
    assert np.isfinite(np.load(tmp_path / "run" / "results" / "latent.npy")).all()


def test_early_stopping_stops_and_goes_back_to_the_best(tmp_path):
    changes = {"data__paths": (str(example_path()),), "covariates__batch": EXAMPLE_BATCH, "training__patience": 2, "training__learning_rate": 0.05}
    execute(spec_with(**changes, training__max_epochs=60), tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert run.status.reason.value == "early_stopped"
    held_out = [float(row["elbo_validation"]) for row in run.losses()]
    assert len(held_out) < 60 and len(held_out) - 1 - int(np.argmin(held_out)) == 2
