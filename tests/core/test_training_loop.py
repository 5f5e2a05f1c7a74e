"""The loop: resume to the bit, live weights, pause, stop, cancel, NaN, early stopping, a full disk."""

from __future__ import annotations

import errno
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_spec, toy_study, toy_trainer

from cellweave.core.errors import Cancelled, TrainingError
from cellweave.core.runs.events import (
    Checkpointed,
    EpochDone,
    FinishReason,
    RunState,
    StateChanged,
    Warned,
    WeightChanged,
)
from cellweave.core.runs.folder import RunFolder
from cellweave.core.training import checkpoint as store
from cellweave.core.training.control import RunControl
from cellweave.core.training.position import unpack
from cellweave.core.training.tools import spared_by_collector


class CancelAfter(RunControl):
    """Cancels at the n-th batch boundary."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    @property
    def cancelled(self) -> bool:
        self.left -= 1
        return self.left < 0


def losses(folder: Path) -> str:
    return (folder / "losses.csv").read_text()


@pytest.mark.parametrize("boundary", [3, 10, 18, 27, 37])
def test_a_resumed_run_has_the_same_losses_to_the_bit(tmp_path: Path, boundary: int) -> None:
    toy_trainer(tmp_path / "whole").fit()
    with pytest.raises(Cancelled):
        toy_trainer(tmp_path / "cut", control=CancelAfter(boundary)).fit()
    trainer = toy_trainer(tmp_path / "cut")
    checkpoint, warning = store.load_last(trainer.journal.folder.checkpoints)
    unpack(trainer, checkpoint)
    trainer.journal.rewind(trainer.at.epoch)
    assert trainer.at.step == boundary and not warning
    trainer.fit()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_looking_at_held_out_cells_does_not_change_what_is_learned(tmp_path: Path) -> None:
    often, seldom = toy_spec(training__early_stopping=False), toy_spec(training__early_stopping=False, training__validate_every=5)
    first, second = toy_trainer(tmp_path / "a", often), toy_trainer(tmp_path / "b", seldom)
    first.fit()
    second.fit()
    assert torch.equal(first.model.log_rate, second.model.log_rate)
    rows = RunFolder.open(tmp_path / "b").losses()
    assert [row["epoch"] for row in rows if "elbo_validation" in row] == [5, 6]


def test_the_loss_falls_and_every_epoch_has_a_row(tmp_path: Path) -> None:
    events: list = []
    toy_trainer(tmp_path / "run", events=events).fit()
    rows = RunFolder.open(tmp_path / "run").losses()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["reconstruction_train"] < rows[0]["reconstruction_train"]
    assert [row["kl_factor"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    done = [event for event in events if isinstance(event, EpochDone)]
    assert done[2].train["total"] == pytest.approx(done[2].train["reconstruction"] + 2 / 3 * done[2].train["kl_z"], rel=1e-5)
    assert done[2].train["elbo"] == pytest.approx(done[2].train["reconstruction"] + done[2].train["kl_z"], rel=1e-6)


def test_a_weight_turned_while_training_acts_at_the_next_step_and_is_recorded(tmp_path: Path) -> None:
    events: list = []
    control = RunControl()
    trainer = toy_trainer(tmp_path / "run", control=control, events=events)
    control.set_weight("kl_z", 50.0)
    trainer.fit()
    change = next(event for event in events if isinstance(event, WeightChanged))
    assert (change.term, change.old, change.new, change.epoch, change.step) == ("kl_z", 1.0, 50.0, 0, 0)
    assert RunFolder.open(tmp_path / "run").losses()[0]["weight_kl_z"] == 50.0
    plain = toy_trainer(tmp_path / "plain")
    plain.fit()
    assert trainer.model.log_rate.abs().sum() < 0.8 * plain.model.log_rate.abs().sum()
    history = store.load_last(trainer.journal.folder.checkpoints)[0].state["position"]["weight_history"]
    assert history == [{"term": "kl_z", "old": 1.0, "new": 50.0, "epoch": 0, "step": 0}]


def test_a_weight_that_does_not_exist_or_is_negative_is_refused_in_words(tmp_path: Path) -> None:
    events: list = []
    control = RunControl()
    control.set_weight("nonsense", 2.0)
    control.set_weight("kl_z", -1.0)
    toy_trainer(tmp_path / "run", control=control, events=events).fit()
    assert len([event for event in events if isinstance(event, Warned)]) == 2
    assert not [event for event in events if isinstance(event, WeightChanged)]


def test_early_stopping_goes_back_to_the_best_weights(tmp_path: Path) -> None:
    spec = toy_spec(training__learning_rate=1.0, training__adam_eps=1e-8, training__patience=3, training__max_epochs=200)
    trainer = toy_trainer(tmp_path / "run", spec)
    outcome = trainer.fit()
    assert outcome.reason is FinishReason.EARLY_STOPPED and outcome.epochs < 200
    rows = RunFolder.open(tmp_path / "run").losses()
    best = min(rows, key=lambda row: row["elbo_validation"])
    assert outcome.best_epoch == best["epoch"] and outcome.epochs == best["epoch"] + 3
    again = trainer.evaluate(trainer.validation_rows, int(best["epoch"]))
    assert again["elbo"] == best["elbo_validation"]


@pytest.mark.parametrize("term", ["reconstruction", "kl_z"])
def test_nan_names_the_term_and_restores_the_last_good_weights(tmp_path: Path, term: str) -> None:
    trainer = toy_trainer(tmp_path / "run")
    steps = len(trainer.train_rows) // 30 + 1
    trainer.model.poison = (2 * steps + 3, term)
    whole = toy_trainer(tmp_path / "two", toy_spec(training__max_epochs=2, training__early_stopping=False))
    whole.fit()
    with pytest.raises(TrainingError) as caught:
        trainer.fit()
    label = {"reconstruction": "Reconstruction", "kl_z": "KL of the latent"}[term]
    assert f"'{label}'" in caught.value.cause and "epoch 3" in caught.value.cause and "learning rate" in caught.value.mend
    assert torch.equal(trainer.model.log_rate, whole.model.log_rate)


def test_stop_keeps_what_was_trained(tmp_path: Path) -> None:
    control = RunControl()
    trainer = toy_trainer(tmp_path / "run", toy_spec(training__max_epochs=500), control)
    trainer.journal.listener = lambda event: control.stop() if isinstance(event, EpochDone) and event.epoch == 4 else None
    outcome = trainer.fit()
    assert outcome.reason is FinishReason.STOPPED and outcome.epochs == 4 and outcome.best_epoch is not None


def test_pause_waits_and_resume_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    control = RunControl()
    states: list = []
    trainer = toy_trainer(tmp_path / "run", control=control)
    paused = threading.Event()

    def listen(event: object) -> None:
        if isinstance(event, StateChanged):
            states.append(event.state)
            if event.state is RunState.PAUSED:
                paused.set()
        if isinstance(event, EpochDone) and event.epoch == 2:
            control.pause()

    trainer.journal.listener = listen
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    assert paused.wait(20)
    rows = len(RunFolder.open(tmp_path / "run").losses())
    assert rows == 2 and thread.is_alive()
    control.resume()
    thread.join(20)
    assert states == [RunState.TRAINING, RunState.PAUSED, RunState.TRAINING]
    toy_trainer(tmp_path / "whole").fit()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_commands_through_the_run_folder_are_honoured(tmp_path: Path) -> None:
    control = RunControl()
    trainer = toy_trainer(tmp_path / "run", toy_spec(training__max_epochs=100_000, training__early_stopping=False), control)
    run = trainer.journal.folder
    control.follow(run.control_file)
    events: list = []

    def listen(event: object) -> None:
        events.append(event)
        if isinstance(event, EpochDone) and event.epoch == 2:
            run.control_file.write_text('not json\n{"verb": "fly"}\n')
            run.send_command("weight", term="kl_z", value=3.0)
            run.send_command("stop")

    trainer.journal.listener = listen
    assert trainer.fit().reason is FinishReason.STOPPED
    assert any(isinstance(event, WeightChanged) and event.new == 3.0 for event in events)


def test_a_full_disk_at_a_checkpoint_is_said_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list = []
    trainer = toy_trainer(tmp_path / "run", events=events)
    real, calls = store.save_file, []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 3:  # the checkpoint of epoch 4: last and best were written at epoch 2
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(store, "save_file", full)
    outcome = trainer.fit()
    warned = [event for event in events if isinstance(event, Warned)]
    assert outcome.epochs == 6 and len(warned) == 1 and "No space left" in warned[0].text and "epoch 4" in warned[0].text
    assert [event.epoch for event in events if isinstance(event, Checkpointed)] == [2, 6]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "no half-written file stays behind"


def test_one_cell_never_stands_alone_under_batch_norm(tmp_path: Path) -> None:
    study = toy_study(n_cells=41)
    spec = toy_spec(training__batch_size=36, training__validation_share=0.0, training__early_stopping=False, training__max_epochs=2)
    trainer = toy_trainer(tmp_path / "run", spec.with_changes({"training.batch_size": 40}), study=study)
    trainer.fit()  # 41 cells in minibatches of 40 would leave one alone, which batch norm refuses
    assert np.isfinite(RunFolder.open(tmp_path / "run").losses()[-1]["total_train"])


@pytest.fixture
def nothing_passed_over() -> Iterator[None]:
    """A collector that goes through everything; what it passed over before is passed over again afterwards."""
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("nothing_passed_over")
def test_the_collector_passes_over_what_was_there_until_the_outer_run_ends():
    with spared_by_collector():
        assert gc.get_freeze_count() > 0
        with pytest.raises(ZeroDivisionError), spared_by_collector():
            _ = 1 / 0
        assert gc.get_freeze_count() > 0  # the run within does not end it
    assert gc.get_freeze_count() == 0


def test_what_a_host_program_passes_over_stays_so():
    gc.freeze()
    with spared_by_collector():
        pass
    assert gc.get_freeze_count() > 0
