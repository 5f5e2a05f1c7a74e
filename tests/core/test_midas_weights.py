"""The weights of MIDAS' discriminators are turned while training like all others: in both kinds of step, in the record, and in a resumed run."""

from __future__ import annotations

import pytest
import torch
from test_midas_training import small, trainer

from cellweave.core.errors import Cancelled, SpecError
from cellweave.core.models.midas_written import WrittenStep
from cellweave.core.runs.events import EpochDone, WeightChanged
from cellweave.core.spec import RunSpec
from cellweave.core.training.checkpoint import load_checkpoint, save_checkpoint
from cellweave.core.training.objective import Objective
from cellweave.core.training.position import pack, unpack


def own_gradient(one) -> float:
    """Return the largest gradient that the discriminators get in their only step, which begins Adam's first moments."""
    optimizer = one.optimizers["discriminators"][0]
    torch.manual_seed(5)
    one.model.train()
    one._step(one.loader.minibatch(one.train_rows[one.loader.data.streams[one.train_rows] == 0][:16]))
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    return max(float(moment.abs().max()) for moment in moments) / (1 - optimizer.param_groups[0]["betas"][0])


@pytest.mark.parametrize("written", [True, False], ids=["written", "traced"])
def test_the_own_weight_multiplies_their_loss_and_what_the_network_raises(tmp_path, monkeypatch, written) -> None:
    if not written:
        monkeypatch.setattr(WrittenStep, "serves", staticmethod(lambda *_: False))
    found = []
    for own in (30.0, 6.0):
        one = trainer(tmp_path / f"{own:g}", small(**{"model.batch_drop": 0.0, "model.discriminator_steps": 1}))
        one.objective.set_weight("discriminators", own)
        one.objective.set_weight("adversarial", 2.0)
        assert one.objective.effective["adversarial"] == -2.0 * own
        assert one.objective.effective["discriminators"] == 0.0
        found.append(own_gradient(one))
        sums = one.sums.means()
        assert sums["discriminators"] > 0
        total = sum(one.objective.effective[name] * sums[name] for name in one.objective.effective if name in sums)
        assert sums["total"] == pytest.approx(total, rel=1e-5)
    assert found[0] == pytest.approx(5 * found[1], rel=1e-4)


def test_at_0_the_adversary_only_watches_and_without_own_weight_there_is_none(tmp_path) -> None:
    for name, learns in (("adversarial", True), ("discriminators", False)):
        events: list = []
        one = trainer(tmp_path / name, small(**{f"losses.weights.{name}": 0.0, "training.max_epochs": 1}), events=events)
        before = [p.detach().clone() for p in one.model.discriminators.parameters()]
        one.fit()
        moved = any(not torch.equal(a, b) for a, b in zip(before, one.model.discriminators.parameters(), strict=True))
        done = next(event for event in events if isinstance(event, EpochDone))
        assert moved is learns
        assert bool(done.metrics) is learns
        assert ("discriminators" in done.train) is learns
        assert ("discriminators" in done.validation) is learns


@pytest.mark.parametrize("written", [True, False], ids=["written", "traced"])
def test_weights_turned_while_training_are_recorded_and_come_back_in_a_resumed_run(tmp_path, monkeypatch, written) -> None:
    """Turned within the first epoch, cancelled within the third; the resumed run ends as one that was not cancelled."""
    if not written:
        monkeypatch.setattr(WrittenStep, "serves", staticmethod(lambda *_: False))
    turned = {"discriminators": 5.0, "adversarial": 3.0, "alignment": 20.0, "kl_u": 2.0, "reconstruction_batch": 500.0, "reconstruction_rna": 0.5}
    spec = small()

    def run(folder: str, cancel_at: int = 0):
        events: list = []
        one = trainer(tmp_path / folder, spec, events=events)
        original, steps = one._step, []

        def count(batch):
            original(batch)
            steps.append(1)
            if len(steps) == 3:
                for name, value in turned.items():
                    one.control.set_weight(name, value)
            if len(steps) == cancel_at:
                one.control.cancel()

        one._step = count
        return one, events

    whole, events = run("whole")
    whole.fit()
    changed = [event for event in events if isinstance(event, WeightChanged)]
    assert {event.term: event.new for event in changed} == turned
    assert {event.term: event.old for event in changed}["discriminators"] == 30.0
    assert {item["term"] for item in whole.at.weight_history} == set(turned)
    done = [event for event in events if isinstance(event, EpochDone)]
    assert all(done[0].weights[name] == value for name, value in turned.items())
    per_epoch = {event.epoch: (event.train, event.metrics) for event in done}
    one, _ = run("part", cancel_at=17)
    with pytest.raises(Cancelled):
        one.fit()
    save_checkpoint(tmp_path / "kept.safetensors", pack(one))
    again: list = []
    rest = trainer(tmp_path / "again", spec, events=again)
    unpack(rest, load_checkpoint(tmp_path / "kept.safetensors"))
    assert rest.objective.weights == whole.objective.weights
    assert rest.objective.effective["adversarial"] == -15.0
    rest.fit()
    late = [event for event in again if isinstance(event, EpochDone)]
    assert done[0].metrics
    assert [(event.train, event.metrics) for event in late] == [per_epoch[event.epoch] for event in late]  # accuracies too, of all steps of the epoch
    for (name, ours), theirs in zip(rest.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_checkpoint_from_before_the_two_weights_were_apart_goes_on_as_it_was(tmp_path) -> None:
    """It held their product, and sums of one term less."""
    one = trainer(tmp_path / "old", small())
    one.model.train()
    one._step(one.loader.minibatch(one.train_rows[:16]))
    kept = pack(one)
    place = kept.state["terms"].index("discriminators")
    kept.state["terms"].pop(place)
    kept.state["weights"] = {name: weight * (30.0 if name == "adversarial" else 1.0) for name, weight in kept.state["weights"].items()}
    del kept.state["weights"]["discriminators"]
    old = {key: torch.cat([value[:place], value[place + 1 :]]) for key, value in kept.part("sums").items()}
    kept.tensors.update({f"sums/{key}": value for key, value in old.items()})
    again = trainer(tmp_path / "new", small())
    unpack(again, kept)
    assert again.objective.weights == one.objective.weights
    for key, value in one.sums.state().items():
        expected = value.clone()
        expected[place] = 0
        assert torch.equal(again.resumed_sums[key], expected)


def test_a_factor_of_another_weight_is_honoured_by_the_objective() -> None:
    spec = RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "b"})
    target = Objective(spec.terms(), spec.loss_weights(), 10, torch.device("cpu"))
    assert target.effective["adversarial"] == -30.0
    target.set_weight("discriminators", 4.0)
    assert target.effective["adversarial"] == -4.0
    values = {name: torch.tensor(1.0) for name in ("adversarial", "discriminators")}
    assert target.total(values).item() == -4.0


def test_without_the_batch_s_expert_it_is_not_reconstructed_and_has_no_weight(tmp_path) -> None:
    """As where scmidas drops s for good; a weight that did nothing would be a promise."""
    spec = RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch", "model.batch_expert": False})
    assert "reconstruction_batch" not in {term.name for term in spec.terms()}
    with pytest.raises(SpecError, match="reconstruction_batch"):
        spec.with_changes({"losses.weights.reconstruction_batch": 10.0})
    told = spec.with_changes({"model.batch_expert": True})
    hues = {term.name: term.colour for term in told.terms()}
    assert {term.name: term.colour for term in spec.terms()} == {name: hue for name, hue in hues.items() if name != "reconstruction_batch"}
    events: list = []
    trainer(tmp_path / "run", small(**{"model.batch_expert": False, "training.max_epochs": 1}), events=events).fit()
    epoch = next(event for event in events if isinstance(event, EpochDone))
    # Every term that has a weight is one that is computed; the data have no ATAC.
    assert {name for name, value in epoch.train.items() if value == 0.0 and name in epoch.weights} <= {"reconstruction_atac"}
    assert "reconstruction_batch" not in epoch.train
