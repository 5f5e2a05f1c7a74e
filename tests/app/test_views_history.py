"""The loss history as the curves need it: fed by events, smoothed, ranged and written."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from cellweave.app.views.history import LossHistory, robust_range, smooth
from cellweave.core.runs.events import (
    EpochDone,
    Metric,
    Progress,
    RunState,
    StateChanged,
    StepProgress,
    WeightChanged,
)


def epoch(number: int, value: float, *, validation: bool = True, best: int | None = None) -> EpochDone:
    train = {"reconstruction": value, "kl_z": value / 10, "total": value * 1.1, "elbo": value * 1.2}
    held_out = {name: part + 1 for name, part in train.items()} if validation else None
    return EpochDone(epoch=number, max_epochs=9, train=train, validation=held_out, weights={"kl_z": 1.0}, best_epoch=best)


def test_a_run_that_went_on_keeps_the_epochs_before():
    earlier = [epoch(1, 10.0), WeightChanged(term="kl_z", old=1, new=2, epoch=1), epoch(2, 8.0), epoch(3, 7.0)]
    live = LossHistory.of("run", [epoch(3, 6.5), epoch(4, 6.0)])  # epoch 3 was not in the checkpoint
    whole = live.after(earlier)
    assert whole.epochs == [1, 2, 3, 4]
    assert whole.series("reconstruction", "train")[1].tolist() == [10.0, 8.0, 6.5, 6.0]
    assert [change.new for change in whole.changes] == [2]
    assert LossHistory("run").after(earlier).epochs == [1, 2, 3], "read before anything new was told"
    assert live.after([*earlier[:3], epoch(3, 6.5), epoch(4, 6.0)]).epochs == [1, 2, 3, 4], "the journal has the new ones already"


def test_events_become_series():
    history = LossHistory.of("run", [epoch(1, 10.0), epoch(2, 8.0, validation=False), epoch(3, 7.0, best=1)])
    assert history.series_names() == ["reconstruction", "kl_z", "total", "elbo"]
    x, y = history.series("reconstruction", "train")
    assert x.tolist() == [1, 2, 3] and y.tolist() == [10, 8, 7]
    x, y = history.series("reconstruction", "validation")
    assert x.tolist() == [1, 3] and y.tolist() == [11, 8]
    assert (history.best_epoch, history.max_epochs, history.epochs) == (1, 9, [1, 2, 3])
    assert [len(part) for part in history.series("nothing", "train")] == [0, 0]


def test_a_resumed_run_forgets_what_it_says_again():
    history = LossHistory.of("run", [epoch(1, 10.0), epoch(2, 8.0), WeightChanged(term="kl_z", old=1, new=2, epoch=2), epoch(3, 7.0)])
    history.add(epoch(2, 8.5))
    assert history.epochs == [1, 2] and history.changes == []
    assert history.series("reconstruction", "train")[1].tolist() == [10, 8.5]


def test_phases_are_named_until_there_is_an_epoch():
    history = LossHistory("run")
    assert history.add(StateChanged(state=RunState.LOADING)) and history.phase == "Loading data"
    assert history.add(Progress(phase="writing the disk cache", fraction=0.25, text="rna"))
    assert history.phase == "Writing the disk cache (rna), 25%"
    assert history.add(StepProgress(epoch=1, fraction=0.5)) and history.phase == "Training, epoch 1: 50%"
    assert history.add(epoch(1, 3.0))
    assert not history.add(StepProgress(epoch=2, fraction=0.5))
    assert not history.add(Metric(name="x"))


def test_smoothing_is_an_average_without_a_biased_start():
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    strength = 0.8
    powers = strength ** np.arange(50)[::-1]
    expected = [np.sum(powers[-k:] * values[:k]) / np.sum(powers[-k:]) for k in range(1, 51)]
    np.testing.assert_allclose(smooth(values, strength), expected, rtol=1e-12)
    np.testing.assert_allclose(smooth(np.full(9, 3.0), 0.99), 3.0)
    np.testing.assert_array_equal(smooth(values, 0.0), values)


def test_smoothing_passes_over_what_is_not_finite():
    result = smooth(np.array([1.0, np.nan, 1.0, np.inf, 1.0]), 0.9)
    np.testing.assert_allclose(result[[0, 2, 4]], 1.0)
    assert np.isnan(result[1]) and np.isinf(result[3])


@pytest.mark.parametrize("strength", [1.0, -0.1, 2.0])
def test_full_smoothing_is_refused(strength):
    with pytest.raises(ValueError, match="smoothing"):
        smooth(np.ones(3), strength)


def test_outliers_do_not_widen_the_range():
    values = np.concatenate([np.linspace(1, 2, 50), [500.0, np.nan, -900.0]])
    assert robust_range([values]) == (1.0, 2.0)
    assert robust_range([np.array([3.0, 3.0])]) == (3.0, 3.0)
    assert robust_range([np.array([np.nan])]) is None and robust_range([]) is None


def test_the_table_holds_every_number_exactly():
    history = LossHistory.of("run", [epoch(1, 1 / 3), epoch(2, 0.1, validation=False)])
    rows = list(csv.DictReader(io.StringIO(history.to_csv())))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["train_reconstruction"]) == 1 / 3
    assert float(rows[0]["validation_kl_z"]) == (1 / 3) / 10 + 1
    assert rows[1]["validation_kl_z"] == "" and rows[0]["weight_kl_z"] == "1.0"
