"""Numbers that change over a run: epochs, KL factor, learning rate, early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cellweave.core.spec.training import TrainingSpec

FULL_EPOCHS, FULL_CELLS = 400, 20_000
DEFAULT_KL_WARMUP = 400
#: Cells that an epoch of the pattern sampler takes of one stream at most, where the family has no option ``n_max``.
N_MAX = 10_000


def default_max_epochs(n_cells: int) -> int:
    """Return the number of epochs for ``n_cells``: 400 up to 20,000 cells, fewer beyond (scvi-tools' heuristic)."""
    return max(1, min(round(FULL_CELLS / n_cells * FULL_EPOCHS), FULL_EPOCHS))


def default_kl_warmup(max_epochs: int) -> int:
    """Return the KL warm-up in epochs: 400, but never more than the run has, so that full weight is reached."""
    return min(DEFAULT_KL_WARMUP, max_epochs)


def kl_factor(epoch: int, step: int, warmup_epochs: int | None, warmup_steps: int | None, start: float = 0.0, full: float = 1.0) -> float:
    """Return the factor of the annealed terms (scVI spec, section 9).

    Parameters
    ----------
    epoch, step
        Counted from 0 over the whole run.
    warmup_epochs
        Epochs of the linear rise; 0 or None leaves it to the steps.
    warmup_steps
        Steps of the linear rise, used where there are no warm-up epochs; 0 or None for none.
    start, full
        Factor at the beginning and at the end of the rise.
    """
    if warmup_epochs:
        done = epoch / warmup_epochs
    elif warmup_steps:
        done = step / warmup_steps
    else:
        return full
    return full if done >= 1 else start + (full - start) * done


def split_sizes(n_cells: int, validation_share: float) -> tuple[int, int]:
    """Return how many cells are trained on and how many held out: ``ceil((1 - share) n)`` and the rest."""
    n_train = min(n_cells, math.ceil(round((1.0 - validation_share) * n_cells, 9)))
    return n_train, n_cells - n_train


@dataclass
class EarlyStopping:
    """Remembers the best validation value and says when to stop.

    Attributes
    ----------
    patience, min_delta, min_epochs
        As in the spec.
    best
        Best value so far; lower is better.
    best_epoch
        Epoch of the best value, counted from 1; 0 where there is none yet.
    waited
        Epochs since the best value.
    """

    patience: int
    min_delta: float = 0.0
    min_epochs: int = 0
    best: float = math.inf
    best_epoch: int = 0
    waited: int = 0
    patient_from: int = 0  # epoch from which patience counts anew, where a finished run is trained longer

    def update(self, epoch: int, value: float) -> bool:
        """Take the value after ``epoch`` (counted from 1); return whether it is the best so far."""
        if value < self.best - self.min_delta:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited = epoch - max(self.best_epoch, self.patient_from)
        return False

    def should_stop(self, epoch: int) -> bool:
        """Return whether patience is at an end."""
        return epoch >= self.min_epochs and self.best_epoch > 0 and self.waited >= self.patience


@dataclass
class LearningRate:
    """The learning rate over a run: warm-up in steps, and a lower rate on a plateau."""

    base: float
    warmup_steps: int = 0
    plateau: bool = False
    factor: float = 0.6
    patience: int = 30
    minimum: float = 0.0
    scale: float = 1.0
    best: float = math.inf
    waited: int = 0

    @classmethod
    def from_spec(cls, training: TrainingSpec) -> LearningRate:
        """Return the schedule that the spec describes."""
        return cls(
            training.learning_rate, training.lr_warmup_steps, training.lr_plateau, training.lr_factor, training.lr_patience, training.lr_min
        )

    def at(self, step: int) -> float:
        """Return the rate of ``step``, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return max(self.base * self.scale, min(self.minimum, self.base)) * rise

    def update(self, value: float) -> None:
        """Take the validation value of an epoch."""
        if not self.plateau:
            return
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.scale *= self.factor
            self.waited = 0
