"""Every optimiser that is offered steps as torch's own class does, comes back to the bit, and has no setting that it ignores."""

from __future__ import annotations

import re

import pytest
import torch
from test_midas_training import small, trainer

from cellweave.core.errors import Cancelled, SpecError
from cellweave.core.runs.events import EpochDone
from cellweave.core.runs.execute import _changed
from cellweave.core.spec import RunSpec, from_toml, parse_assignment, to_toml
from cellweave.core.spec.optimisers import OPTIMISERS, REFUSED, unused_settings
from cellweave.core.training.checkpoint import load_checkpoint, save_checkpoint
from cellweave.core.training.position import pack, unpack
from cellweave.core.training.tools import make_optimizers, optimizer_settings

ALL = sorted(OPTIMISERS)


def vae(**changes: object) -> RunSpec:
    return RunSpec().with_changes(changes)


def test_every_class_of_torch_is_offered_or_refused_with_a_reason() -> None:
    classes = {name.lower() for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)} - {"optimizer"}
    assert classes <= set(OPTIMISERS) | set(REFUSED)
    assert {item.torch.lower() for item in OPTIMISERS.values()} == set(OPTIMISERS)


@pytest.mark.parametrize("spelled", ["RMSprop", "rmsprop", "torch.optim.RMSprop", " NAdam "])
def test_a_name_may_be_spelled_as_torch_spells_it(spelled: str) -> None:
    found = vae(**{"training.optimizer": spelled})
    assert found.training.optimizer == spelled.strip().removeprefix("torch.optim.").lower()
    assert from_toml(to_toml(found)) == found
    assert parse_assignment(f"training.optimizer={spelled}")[1] == spelled.strip()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("adamww", "did you mean 'adamw'"), ("xyzzy", "known are adam, adamw"), ("LBFGS", "several times in a step.*take 'adam'"),
     ("SparseAdam", "sparse gradients only.*take 'adam'"), ("Muon", "matrices only.*take 'adamw'")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["training.optimizer", "model.discriminator_optimizer"])
def test_a_name_that_does_not_serve_is_refused_with_a_sentence(path: str, value: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        RunSpec().with_changes({"model.kind": "midas", path: value})


def test_weight_decay_follows_the_optimiser_and_is_refused_where_it_would_be_ignored() -> None:
    midas = RunSpec().with_changes({"model.kind": "midas"})
    rprop = midas.with_changes({"training.optimizer": "rprop"})
    assert rprop.training.weight_decay == 0 and unused_settings(rprop.training, rprop.model) == {"adam_eps", "weight_decay", "momentum"}
    assert rprop.with_changes({"training.optimizer": "adamw"}).training.weight_decay == midas.training.weight_decay == 0.01
    assert from_toml("[training]\noptimizer = 'rprop'\n").training.weight_decay == 0
    for changes in ({"training.weight_decay": 0.1}, {"training.momentum": 0.5}):
        with pytest.raises(SpecError, match=r"Rprop has no (weight decay|momentum): set it to 0"):
            rprop.with_changes(changes)
    with pytest.raises(SpecError, match="Adam has no momentum"):
        vae(**{"training.momentum": 0.9})
    # The discriminators may have what the network's optimiser has not, also when the model is changed after.
    both = rprop.with_changes({"model.discriminator_optimizer": "adamw", "training.weight_decay": 0.02})
    assert both.training.weight_decay == 0.02 and both.with_model("vae")[0].training.weight_decay == 0


@pytest.mark.parametrize("changes", [{"training.lr_plateau": True}, {"training.lr_warmup_steps": 5}])
def test_rprop_minds_the_learning_rate_once_and_says_so(changes: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="first step only"):
        vae(**{"training.optimizer": "rprop", **changes})
    with pytest.raises(SpecError, match="sizes its steps itself"):
        _changed(vae(**{"training.optimizer": "rprop"}), {"training.learning_rate": 0.1})
    assert _changed(vae(**{"training.optimizer": "sgd"}), {"training.learning_rate": 0.1}).training.learning_rate == 0.1


@pytest.mark.parametrize("name", ALL)
def test_settings_of_the_spec_reach_torch(name: str) -> None:
    """What the optimiser has is what the spec says, and what it has not is not said to it."""
    one, other = OPTIMISERS[name], vae().training.model_copy(update={"weight_decay": 0.25, "adam_eps": 0.125, "momentum": 0.5})
    found = optimizer_settings(other, name)
    assert (found.get("eps"), found.get("weight_decay"), found.get("momentum")) == (
        0.125 if one.eps else None, 0.25 if one.decay else None, 0.5 if one.momentum else None,
    )  # fmt: skip
    made = getattr(torch.optim, one.torch)([torch.nn.Parameter(torch.ones(2, 2))], **found)
    assert all(made.param_groups[0][key] == value for key, value in found.items())


@pytest.mark.parametrize("name", ALL)
def test_network_and_discriminators_have_the_optimisers_that_were_asked_for(tmp_path, name: str) -> None:
    made = trainer(tmp_path / "run", small(**{"training.optimizer": name, "model.discriminator_optimizer": "sgd", "model.discriminator_rate": 3.0}))
    network, own = made.optimizers["model"][0], made.optimizers["discriminators"][0]
    assert isinstance(network, getattr(torch.optim, OPTIMISERS[name].torch if name != "adamw" else "Adam"))  # AdamW's compiled step is a kind of Adam
    assert type(own) is torch.optim.SGD
    assert own.param_groups[0]["lr_factor"] == 3.0
    alike = make_optimizers(small(**{"training.optimizer": name}), trainer(tmp_path / "two", small(**{"training.optimizer": name})).model, made.device)
    assert type(alike["discriminators"][0]) is type(alike["model"][0])


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_run_goes_on_to_the_bit_and_learns(tmp_path, name: str) -> None:
    """Cancelled within an epoch, written to a file and read again: state of every optimiser that is no tensor comes back too."""
    changes: dict[str, object] = {"training.optimizer": name, "model.discriminator_optimizer": name, "training.max_epochs": 4}
    changes["training.learning_rate"] = {"adadelta": 1.0, "sgd": 1e-4, "asgd": 1e-4}.get(name, 1e-3)
    if OPTIMISERS[name].momentum:
        changes["training.momentum"] = 0.5
    if OPTIMISERS[name].minds_rate:
        changes |= {"training.lr_warmup_steps": 5}  # the rate is another one in every step, before and after the stop
    spec, whole = small(**changes), []
    one = trainer(tmp_path / "whole", spec, events=whole)
    one.fit()
    begun = trainer(tmp_path / "part", spec)
    original, steps = begun._step, []

    def count(batch):
        original(batch)
        steps.append(1)
        if len(steps) == 7:
            begun.control.cancel()

    begun._step = count  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        begun.fit()
    save_checkpoint(tmp_path / "kept.safetensors", pack(begun))
    again: list = []
    rest = trainer(tmp_path / "again", spec, events=again)
    unpack(rest, load_checkpoint(tmp_path / "kept.safetensors"))
    rest.fit()
    for (key, ours), theirs in zip(rest.model.state_dict().items(), one.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key
    epochs = [event for event in whole if isinstance(event, EpochDone)]
    assert [event for event in again if isinstance(event, EpochDone)][-1].train == epochs[-1].train
    assert epochs[-1].train["total"] < epochs[0].train["total"]


def test_a_field_without_use_says_whose_it_is() -> None:
    """The form leaves these out; the help says why, for those who read the spec."""
    fields = type(vae().training).model_fields
    for name in ("adam_eps", "weight_decay", "momentum"):
        assert re.search(r"rprop|rmsprop", fields[name].description or "")
