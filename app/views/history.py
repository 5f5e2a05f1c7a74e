"""The loss history of a run as the curves need it, fed by events; numbers only, no Qt."""

from __future__ import annotations

import bisect
import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cellweave.core.runs.events import (
    EpochDone,
    Event,
    Failed,
    Progress,
    RunState,
    StateChanged,
    StepProgress,
    WeightChanged,
)

TOTAL, ELBO = "total", "elbo"
SUMS = (TOTAL, ELBO)
SPLITS = ("train", "validation")
METRIC = "metric:"
"""Before the name of what a model tells beside its terms, so that a metric is never taken for a term of that name."""


@dataclass
class LossHistory:
    """Everything that the events of one run said about its losses.

    Attributes
    ----------
    name
        Of the run.
    epochs
        Numbers of the epochs that are over, from 1.
    max_epochs
        Where the run is going, 0 where it has not said so yet.
    weights
        Weight of each term in the last epoch.
    changes
        Weights that were turned while the model trained.
    best_epoch
        Epoch with the best validation so far.
    phase
        What the run is doing, in words, as long as there is no epoch.
    """

    name: str = ""
    epochs: list[int] = field(default_factory=list)
    max_epochs: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    changes: list[WeightChanged] = field(default_factory=list)
    best_epoch: int | None = None
    phase: str = ""
    _rows: list[EpochDone] = field(default_factory=list)
    _series: dict[tuple[str, str], tuple[list[int], list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, events: Iterable[Event]) -> LossHistory:
        """Return the history of a run from its events."""
        history = cls(name)
        for event in events:
            history.add(event)
        return history

    def add(self, event: Event) -> bool:
        """Take an event in and return whether the picture changed.

        A run that was resumed says some epochs again: what was known of them and of later ones is forgotten.
        """
        match event:
            case EpochDone():
                self._add_epoch(event)
            case WeightChanged():
                self.changes.append(event)
            case StateChanged() | Progress() | StepProgress() | Failed():
                return self._add_phase(event)
            case _:
                return False
        return True

    def after(self, earlier: Iterable[Event]) -> LossHistory:
        """Return this history of a run that went on, with what the run said before; epochs that both know are told as this one knows them."""
        whole = LossHistory.of(self.name, (event for event in earlier if isinstance(event, EpochDone | WeightChanged)))
        for row in self._rows:
            whole.add(row)
        whole.changes += [change for change in self.changes if change not in whole.changes]
        whole.phase = self.phase
        return whole

    def _add_epoch(self, event: EpochDone) -> None:
        if self.epochs and self.epochs[-1] >= event.epoch:
            kept = [row for row in self._rows if row.epoch < event.epoch]
            self.changes = [change for change in self.changes if change.epoch < event.epoch]
            self.epochs, self._rows, self._series = [], [], {}
            for row in kept:
                self._append(row)
        self._append(event)
        self.max_epochs, self.weights, self.best_epoch = event.max_epochs, dict(event.weights), event.best_epoch

    def _append(self, event: EpochDone) -> None:
        self.epochs.append(event.epoch)
        self._rows.append(event)
        told = {f"{METRIC}{name}": value for name, value in event.metrics.items()}
        for split, values in (("train", event.train | told), ("validation", event.validation or {})):
            for name, value in values.items():
                x, y = self._series.setdefault((name, split), ([], []))
                x.append(event.epoch)
                y.append(value)

    def _add_phase(self, event: Event) -> bool:
        before = self.phase
        match event:
            case StateChanged():
                self.phase = event.text or PHASES.get(event.state, "")
            case Progress():
                share = "" if event.fraction is None else f", {event.fraction:.0%}"
                text = f" ({event.text})" if event.text else ""
                self.phase = f"{event.phase.capitalize()}{text}{share}"
            case StepProgress():
                self.phase = f"Training, epoch {event.epoch}: {event.fraction:.0%}"
            case Failed():
                self.phase = event.text
        return self.phase != before and not self.epochs

    def series_names(self) -> list[str]:
        """Return the names of every series there is, the sums after the terms; metrics come last and have no validation."""
        names = dict.fromkeys(name for name, _ in self._series)
        told = [name for name in names if name.startswith(METRIC)]
        return [*(name for name in names if name not in SUMS and name not in told), *(name for name in SUMS if name in names), *told]

    def series(self, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a series.

        Parameters
        ----------
        name
            A term, ``"total"``, ``"elbo"``, or ``"metric:NAME"``.
        split
            ``"train"`` or ``"validation"``.

        Returns
        -------
        epochs, values
            Of shape ``(n,)``; epochs without a value are left out.
        """
        x, y = self._series.get((name, split), ([], []))
        return np.array(x, dtype=float), np.array(y, dtype=float)

    def at(self, epoch: int) -> EpochDone | None:
        """Return what was said of an epoch."""
        place = bisect.bisect_left(self.epochs, epoch)
        return self._rows[place] if place < len(self.epochs) and self.epochs[place] == epoch else None

    def to_csv(self) -> str:
        """Return the history as a table with a row an epoch and a column a series and split."""
        columns = [(name, split) for name in self.series_names() if not name.startswith(METRIC) for split in SPLITS]
        told = [name.removeprefix(METRIC) for name in self.series_names() if name.startswith(METRIC)]
        weights = sorted({name for row in self._rows for name in row.weights})
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["epoch", *(f"{split}_{name}" for name, split in columns), *(f"weight_{name}" for name in weights), *told])
        for row in self._rows:
            values = {"train": row.train, "validation": row.validation or {}}
            cells = [repr(values[split][name]) if name in values[split] else "" for name, split in columns]
            cells += [repr(row.weights[name]) if name in row.weights else "" for name in weights]
            writer.writerow([row.epoch, *cells, *(repr(row.metrics[name]) if name in row.metrics else "" for name in told)])
        return out.getvalue()


PHASES = {
    RunState.CREATED: "Ready to train",
    RunState.QUEUED: "Waiting for the run before it",
    RunState.LOADING: "Loading data",
    RunState.PREPARING: "Preparing the model",
    RunState.TRAINING: "Training, waiting for the first epoch",
    RunState.PAUSED: "Paused",
    RunState.STOPPING: "Stopping",
    RunState.CANCELLING: "Cancelling",
    RunState.ANALYSING: "Analysing",
    RunState.DONE: "Done, without a whole epoch",
}


def smooth(values: np.ndarray, strength: float) -> np.ndarray:
    """Return the exponential moving average without the bias of its start.

    ``s_t = sum_i a^(t-i) x_i / sum_i a^(t-i)`` with ``a = strength``: a weighted mean of what came so far, so the first value
    stays as it is and a constant stays constant. Values that are not finite are passed over.

    Parameters
    ----------
    values
        Of shape ``(n,)``.
    strength
        From 0, which changes nothing, to below 1.
    """
    if not 0 <= strength < 1:
        message = f"a smoothing of {strength} is not from 0 to below 1"
        raise ValueError(message)
    if strength == 0:
        return values
    result = np.empty(len(values))
    top = bottom = 0.0
    for index, value in enumerate(values):
        top, bottom = top * strength, bottom * strength
        if math.isfinite(value):
            top, bottom = top + value, bottom + 1.0
            result[index] = top / bottom
        else:
            result[index] = value
    return result


def robust_range(parts: Iterable[np.ndarray]) -> tuple[float, float] | None:
    """Return the range of the values without outliers: the quartiles and 3 times their distance on either side.

    Returns
    -------
    tuple of float or None
        Never wider than the values themselves; None where there is no finite value.
    """
    values = np.concatenate([np.asarray(part, dtype=float).ravel() for part in parts] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.25, 0.75])
    reach = 3 * (high - low)
    inside = values[(values >= low - reach) & (values <= high + reach)]
    return float(inside.min()), float(inside.max())
