"""The training loop: steps, epochs, looks at held-out cells, checkpoints; steered at batch boundaries."""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.errors import Cancelled, TrainingError
from cellweave.core.models.base import Minibatch, Model, StepContext
from cellweave.core.runs.events import (
    Checkpointed,
    EpochDone,
    FinishReason,
    PreviewReady,
    RunState,
    StepProgress,
    Warned,
    WeightChanged,
)
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec
from cellweave.core.training import checkpoint as store
from cellweave.core.training.control import RunControl
from cellweave.core.training.objective import EpochSums, Objective, StepMeans
from cellweave.core.training.position import Position, pack
from cellweave.core.training.preview import Preview
from cellweave.core.training.schedule import N_MAX, EarlyStopping, LearningRate, kl_factor
from cellweave.core.training.sources import Loader
from cellweave.core.training.tools import make_optimizers, memory_in_use, own_draws, seed_everything

STEP_EVENTS = 0.1  # seconds between two progress events
CHECKPOINT_SECONDS = 300.0  # an epoch longer than this is checkpointed within
DEVICE_NAN_CHECK = 50  # steps between two looks for NaN where a look waits for the device


@dataclass
class Outcome:
    """How training ended.

    Attributes
    ----------
    reason
        Completed, stopped early, or stopped by the person.
    epochs
        Whole epochs trained.
    best_epoch
        Epoch whose weights the model has now, or None where those of the last step were kept.
    seconds
        Time in training, without pauses.
    """

    reason: FinishReason
    epochs: int
    best_epoch: int | None
    seconds: float


class Trainer:
    """Fits one model.

    Parameters
    ----------
    spec
        The run's spec with ``max_epochs`` and ``kl_warmup_epochs`` resolved.
    model
        On the device.
    loader
        Makes minibatches.
    journal
        Takes the events.
    control
        Requests of the person.
    preview
        Writes the live embedding's latents, or None.
    """

    def __init__(
        self, spec: RunSpec, model: Model, loader: Loader, journal: Journal, control: RunControl, preview: Preview | None = None
    ) -> None:
        self.spec, self.model, self.loader, self.journal, self.control, self.preview = spec, model, loader, journal, control, preview
        training = spec.training
        if training.max_epochs is None:
            message = "resolve the spec before training"
            raise ValueError(message)
        # Data that bring nothing new to a trained model are only looked at, once.
        self.learns = any(parameter.requires_grad for parameter in model.parameters())
        self.max_epochs = training.max_epochs if self.learns else 1
        self.device = loader.device
        self.train_rows, self.validation_rows = loader.data.train, loader.data.validation
        self.at_least = 2 if model.uses_batch_norm() else 1
        self.n_max = int(getattr(spec.model, "n_max", N_MAX))
        self.epoch_cells = len(self.train_rows)
        self.objective = Objective(spec.terms(), spec.loss_weights(), len(self.train_rows), self.device)
        self.sums = EpochSums(spec.terms(), self.device)
        self.inner = StepMeans()
        self.optimizers = make_optimizers(spec, model, self.device)
        self.rate = LearningRate.from_spec(training)
        n_features = sum(source.n_features for source in loader.sources.values())
        min_delta = max(training.min_delta, training.min_delta_per_feature * n_features)
        self.stopping = EarlyStopping(training.patience, min_delta, training.min_epochs)
        self.at = Position()
        self.best: dict[str, Tensor] | None = None
        self.good: dict[str, Tensor] = {}
        self.resumed_sums: dict[str, Tensor] | None = None
        self.resumed_rng: dict[str, Tensor] = {}
        self._lr_now: float | None = None
        self._since_checkpoint = time.monotonic()
        self._last_event = 0.0
        self._rate_cells = 0.0

    # ------------------------------------------------------------------ the whole

    def fit(self) -> Outcome:
        """Train until the epochs are done, patience is at an end, or the person says so.

        Returns
        -------
        Outcome
            How it ended; the model then has the best weights where early stopping is on or the person stopped it.

        Raises
        ------
        Cancelled
            Where the person cancelled; a checkpoint was written.
        TrainingError
            Where a term became NaN or infinite; the model has the last good weights.
        """
        self.journal.state(RunState.TRAINING)
        self.good = self._snapshot()
        reason = FinishReason.STOPPED if self.at.stopped else FinishReason.COMPLETED
        while not self.at.stopped and self.at.epoch < self.max_epochs:
            if self.spec.training.early_stopping and self.stopping.should_stop(self.at.epoch):
                reason = FinishReason.EARLY_STOPPED
                break
            if not self._epoch():
                reason = FinishReason.STOPPED
                break
        self._write_checkpoint()
        best_epoch = None
        if self.best is not None and (self.spec.training.early_stopping or reason is FinishReason.STOPPED):
            self.model.load_state_dict(self.best)
            best_epoch = self.stopping.best_epoch
        return Outcome(reason, self.at.epoch, best_epoch, self.at.seconds)

    def extend(self) -> None:
        """Train a run longer that was finished: what ended it counts no more."""
        self.at.stopped = False
        self.stopping.waited, self.stopping.patient_from = 0, self.at.epoch

    def _epoch(self) -> bool:
        """Train one epoch; return False where the person asked to stop within it."""
        training, epoch = self.spec.training, self.at.epoch
        self.model.on_epoch_start(epoch, self.max_epochs)
        self.objective.set_factors(self.model.term_factors())
        self._begin_epoch_draws(epoch)
        self._set_kl_factor()
        batches = self.loader.epoch(self.train_rows, training.batch_size, training.seed, epoch, at_least=self.at_least, n_max=self.n_max)
        self.epoch_cells = sum(len(rows) for rows in batches)
        started, cells = time.perf_counter(), 0
        paused = 0.0
        self.model.train()
        for number in range(self.at.step_in_epoch, len(batches)):
            paused += self._boundary(number)
            if self.control.stopping:
                self.at.stopped = True
                self.journal.state(RunState.STOPPING, "keeping the best weights")
                self.at.seconds += time.perf_counter() - started - paused
                return False
            rows = batches[number]
            self._step(self.loader.minibatch(rows))
            cells += len(rows)
            self.at.step_in_epoch, self.at.step = number + 1, self.at.step + 1
            self._progress(number + 1, len(batches), cells, time.perf_counter() - started - paused)
        self._check_finite(self.sums.values[-1], None)
        seconds = time.perf_counter() - started - paused
        self._end_epoch(cells, seconds, started, paused)
        return True

    def _end_epoch(self, cells: int, train_seconds: float, started: float, paused: float) -> None:
        training = self.spec.training
        train, summed = self.sums.means(), self.sums.summed("train")
        self.sums.reset()
        metrics = self.inner.means() | self.model.epoch_metrics() | summed
        self.at.epoch, self.at.step_in_epoch = self.at.epoch + 1, 0
        epoch = self.at.epoch
        self.good = self._snapshot()
        validation = None
        last = epoch == self.max_epochs
        if len(self.validation_rows) and (epoch % training.validate_every == 0 or last):
            looked = self._look(self.validation_rows, epoch)
            validation = looked.means()
            metrics |= looked.summed("validation")
            if self.stopping.update(epoch, validation["elbo"]):
                self.best = self.good
            self.rate.update(validation["elbo"])
        self.at.seconds += time.perf_counter() - started - paused
        self.journal.emit(
            EpochDone(
                epoch=epoch,
                max_epochs=self.max_epochs,
                train=train,
                validation=validation,
                weights=dict(self.objective.weights),
                learning_rate=self._lr_now or 0.0,
                kl_factor=self.objective.kl_factor,
                best_epoch=self.stopping.best_epoch or None,
                epochs_since_best=self.stopping.waited if self.stopping.best_epoch else 0,
                seconds=train_seconds,
                cells_per_second=cells / max(train_seconds, 1e-9),
                memory_bytes=memory_in_use(self.device),
                metrics=metrics,
            )
        )
        if epoch % training.checkpoint_every == 0 and not last:
            self._write_checkpoint()
        if self.preview is not None and training.preview_every and (epoch % training.preview_every == 0 or epoch == 1):
            self._write_preview(epoch)

    # ------------------------------------------------------------------ one step

    def _step(self, batch: Minibatch) -> None:
        context = StepContext(training=True, weights=self.objective.weights, epoch=self.at.epoch, step=self.at.step)
        if not self.spec.training.kl_warmup_epochs and self.spec.training.kl_warmup_steps:
            self._set_kl_factor()
        self._set_learning_rate()
        auxiliary = {name: opt for name, (opt, is_auxiliary) in self.optimizers.items() if is_auxiliary}
        for optimizer, _ in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            means = self.model.whole_step(batch, context, self.objective.effective, auxiliary) if self.learns else None
        if means is None:
            self._trace(batch, context, auxiliary)
        else:
            total = sum(self.objective.effective[name] * value for name, value in means.items())
            if not np.isfinite(total):
                self._check_finite(torch.tensor(total), {name: torch.tensor(value) for name, value in means.items()})
            self.sums.add_numbers(means, total, batch.n_cells)
        for optimizer, is_auxiliary in self.optimizers.values():
            if is_auxiliary:
                continue
            if self.spec.training.gradient_clip > 0:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(parameters, self.spec.training.gradient_clip, error_if_nonfinite=False)
            optimizer.step()

    def _trace(self, batch: Minibatch, context: StepContext, auxiliary: dict[str, torch.optim.Optimizer]) -> None:
        """Let the auxiliary groups learn, and set the gradients of the objective by torch's tracing."""
        if auxiliary:
            with self._autocast():
                self.inner.add(self.model.before_step(batch, context, auxiliary))
            for optimizer, _ in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            values = self.model.loss_terms(batch, context)
        reduced = self.objective.reduced(values)
        total = self.objective.total(reduced)
        if self.device.type == "cpu" or self.at.step % DEVICE_NAN_CHECK == 0:
            self._check_finite(total, reduced)
        if self.learns:
            total.backward()
        self.sums.add(reduced, total, batch.n_cells)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.spec.training.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _set_kl_factor(self) -> None:
        training = self.spec.training
        self.objective.set_kl_factor(
            kl_factor(self.at.epoch, self.at.step, training.kl_warmup_epochs, training.kl_warmup_steps, training.kl_start)
        )

    def _set_learning_rate(self) -> None:
        rate = self.rate.at(self.at.step)
        if rate == self._lr_now:
            return
        self._lr_now = rate
        for optimizer, _ in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_factor"]

    def _check_finite(self, total: Tensor, reduced: dict[str, Tensor] | None) -> None:
        if bool(torch.isfinite(total)):
            return
        bad = [name for name, value in (reduced or {}).items() if not bool(torch.isfinite(value))]
        if not bad:
            sums = self.sums.values.cpu()
            bad = [term.name for slot, term in enumerate(self.objective.terms) if not bool(torch.isfinite(sums[slot]))]
        labels = {term.name: term.label for term in self.objective.terms}
        names = " and ".join(f"'{labels.get(name, name)}'" for name in bad) or "the objective"
        self.model.load_state_dict(self.good)
        rate = self._lr_now or self.spec.training.learning_rate
        raise TrainingError(
            f"The loss term{'s' * (len(bad) > 1)} {names} became infinite or not a number in epoch {self.at.epoch + 1}; "
            f"the weights of epoch {self.at.epoch} were restored and kept.",
            f"Try a learning rate of {rate / 10:g} (it is {rate:g}), clip the gradients at 10, or look for cells with extreme counts.",
        )

    # ------------------------------------------------------------------ looking

    @torch.no_grad()
    def evaluate(self, rows: np.ndarray, epoch: int) -> dict[str, float]:
        """Return every term's mean over ``rows``, with draws that only seed and epoch determine."""
        return self._look(rows, epoch).means()

    @torch.no_grad()
    def _look(self, rows: np.ndarray, epoch: int) -> EpochSums:
        """Return the sums of every term over ``rows``."""
        sums = EpochSums(self.objective.terms, self.device)
        if any(term.scope == "minibatch" and self.objective.weights[term.name] > 0 for term in self.objective.terms):
            # In the order of the file a minibatch may hold a single batch, which would hide every discrepancy between batches.
            rows = np.random.default_rng(self.spec.training.seed).permutation(rows)
        self.model.eval()
        with own_draws(self.device):
            seed_everything(self.spec.training.seed, epoch, "validation")
            for _, batch in self.loader.in_order(rows, max(self.spec.training.batch_size, 512)):
                context = StepContext(training=False, weights=self.objective.weights, epoch=epoch, step=self.at.step)
                with self._autocast():
                    values = self.model.loss_terms(batch, context)
                reduced = self.objective.reduced(values)
                sums.add(reduced, self.objective.total(reduced), batch.n_cells)
                self.journal.beat()
        self.model.train()
        return sums

    def _write_preview(self, epoch: int) -> None:
        assert self.preview is not None
        self.model.eval()
        try:
            with own_draws(self.device):
                seed_everything(self.spec.training.seed, epoch, "preview")
                path = self.preview.write(self.model, self.loader, epoch)
        except OSError as error:
            self.journal.emit(Warned(text=f"The live embedding of epoch {epoch} was not written: {error.strerror or error}."))
        else:
            self.journal.emit(PreviewReady(path=str(path), epoch=epoch))
        finally:
            self.model.train()

    # ------------------------------------------------------------------ steering

    def _boundary(self, number: int) -> float:
        """Honour what the person asked for; return the seconds spent in a pause."""
        if self.control.cancelled:
            self.journal.state(RunState.CANCELLING)
            self._write_checkpoint()
            raise Cancelled
        for name, value in self.control.take_weights():
            self._turn_weight(name, value)
        if self.control.take_checkpoint() or time.monotonic() - self._since_checkpoint > CHECKPOINT_SECONDS:
            self._write_checkpoint()
        return self._wait_while_paused() if self.control.paused else 0.0

    def _turn_weight(self, name: str, value: float) -> None:
        if name not in self.objective.weights or not (0 <= value < float("inf")):
            self.journal.emit(Warned(text=f"The weight of '{name}' was not changed to {value:g}.", mend="Weights are 0 or more."))
            return
        old = self.objective.set_weight(name, value)
        if old == value:
            return
        self.at.weight_history.append({"term": name, "old": old, "new": value, "epoch": self.at.epoch, "step": self.at.step})
        self.journal.emit(WeightChanged(term=name, old=old, new=value, epoch=self.at.epoch, step=self.at.step))

    def _wait_while_paused(self) -> float:
        started = time.perf_counter()
        self.journal.state(RunState.PAUSED)
        while self.control.paused and not self.control.cancelled:
            self.control.wait(0.2)
            self.journal.beat()
        if not self.control.cancelled:
            self.journal.state(RunState.TRAINING)
        waited = time.perf_counter() - started
        self._since_checkpoint += waited
        return waited

    def _progress(self, done: int, of: int, cells: int, seconds: float) -> None:
        now = time.monotonic()
        if now - self._last_event < STEP_EVENTS:
            return
        self._last_event = now
        rate = cells / max(seconds, 1e-9)
        left_cells = self.epoch_cells * (self.max_epochs - self.at.epoch) - cells
        self.journal.emit(
            StepProgress(
                epoch=self.at.epoch + 1,
                max_epochs=self.max_epochs,
                fraction=done / of,
                cells_per_second=rate,
                seconds_left=max(0.0, left_cells / max(rate, 1e-9)),
            )
        )

    # ------------------------------------------------------------------ checkpoints

    def _snapshot(self) -> dict[str, Tensor]:
        # In the memory of the one before, where that is not kept as the best: new memory costs more than the copy.
        old = {} if self.good is self.best else self.good
        state = self.model.state_dict()
        return {name: old[name].copy_(tensor.detach()) if name in old else tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def _write_checkpoint(self) -> None:
        self._since_checkpoint = time.monotonic()
        try:
            path = store.save_last(self.journal.folder.checkpoints, pack(self))
            if self.best is not None:
                state = {"epoch": self.stopping.best_epoch, "elbo_validation": self.stopping.best}
                store.save_checkpoint(
                    self.journal.folder.checkpoints / store.BEST, store.Checkpoint({f"model/{k}": v for k, v in self.best.items()}, state)
                )
        except OSError as error:
            self.journal.emit(
                Warned(
                    text=f"The checkpoint after epoch {self.at.epoch} was not written: {error.strerror or error}.",
                    mend="The one before it is kept and training goes on; free some space.",
                )
            )
        else:
            self.journal.emit(Checkpointed(epoch=self.at.epoch, path=str(path)))

    def _begin_epoch_draws(self, epoch: int) -> None:
        """Seed the epoch, or take up the draws where a checkpoint in the middle of the epoch left them."""
        seed_everything(self.spec.training.seed, epoch, "train")
        self.sums.reset()
        if self.resumed_sums is not None and self.at.step_in_epoch:
            self.sums.load(self.resumed_sums)
            torch.set_rng_state(self.resumed_rng["cpu"])
            if "cuda" in self.resumed_rng and self.device.type == "cuda":
                torch.cuda.set_rng_state(self.resumed_rng["cuda"], self.device)
        self.resumed_sums, self.resumed_rng = None, {}

    def trial_step(self) -> None:
        """Do a step on copies, for timing; nothing of it stays."""
        size = min(self.spec.training.batch_size, len(self.train_rows))
        rows = self.loader.parts(self.train_rows, size)
        batch = self.loader.minibatch(self.train_rows[next(iter(rows))])
        model = copy.deepcopy(self.model).train()
        context = StepContext(training=True, weights=self.objective.weights)
        with own_draws(self.device):
            values = model.loss_terms(batch, context)
            total = self.objective.total(self.objective.reduced(values))
            if self.learns:
                total.backward()
