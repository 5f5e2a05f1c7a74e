"""The stages of a run: load, check, prepare, train, results, analysis."""

from __future__ import annotations

import logging
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from cellweave.core.errors import Cancelled, CellweaveError, DataError
from cellweave.core.files import sha256_of, write_json_atomic
from cellweave.core.models.base import BuildContext, Model
from cellweave.core.nn.compiled_call import load_loops
from cellweave.core.runs.events import FinishReason, Progress, ResultReady, RunState, Warned
from cellweave.core.runs.folder import RunFolder, finished
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec, assignment_value
from cellweave.core.study.checks import Level
from cellweave.core.study.study import Study
from cellweave.core.training import checkpoint as store
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import TrainingData, prepare
from cellweave.core.training.devices import (
    KEEP_FREE,
    candidate_threads,
    choose_device,
    choose_precision,
    choose_source,
    describe_device,
    probe_threads,
)
from cellweave.core.training.loop import Outcome, Trainer
from cellweave.core.training.model_files import save_model
from cellweave.core.training.position import unpack
from cellweave.core.training.preview import Live, Preview, sample_cells
from cellweave.core.training.results import write_cells, write_denoised, write_latents, write_loadings
from cellweave.core.training.schedule import default_kl_warmup, default_max_epochs
from cellweave.core.training.sources import Loader
from cellweave.core.training.tools import seed_everything, spared_by_collector

if TYPE_CHECKING:
    from cellweave.core.query.midas_surgery import MidasReference
    from cellweave.core.query.surgery import Reference

LOG = logging.getLogger("cellweave.run")
PACKAGES = ("cellweave", "torch", "numpy", "scipy", "pandas", "anndata", "mudata", "scanpy", "umap-learn", "scikit-learn", "h5py", "safetensors")


class Stages:
    """Does one run, stage by stage.

    Parameters
    ----------
    run, journal, control, spec, study, analysis
        As in :func:`cellweave.core.runs.execute.execute`.
    resumed
        None for a run that begins; otherwise the run continues from its last checkpoint, with these loss weights set anew.
    """

    def __init__(
        self,
        run: RunFolder,
        journal: Journal,
        control: RunControl,
        spec: RunSpec,
        study: Study | None,
        analysis: Any,
        *,
        resumed: dict[str, float] | None,
    ) -> None:
        self.run_folder, self.journal, self.control, self.spec = run, journal, control, spec
        self.study, self.analysis = study, analysis
        self.resumed, self.turned = resumed is not None, resumed or {}
        # Whether a run that was finished is trained longer, and whether anything was trained yet.
        self.extended = self.resumed and finished(journal.before)
        self.training_began = False
        journal.spec, journal.on_restored = spec, control.checkpoint_now
        self.reference: Reference | MidasReference | None = None
        self.in_data: frozenset[str] = frozenset()  # modalities of the files

    def run(self) -> FinishReason:
        """Do all stages and return why the run ended."""
        threads_before = torch.get_num_threads()
        try:
            study = self._load()
            data = self._prepare(study)
            trainer, context = self._build(data)
            outcome = self._train(trainer, context, data)
            self._results(study, data, trainer.model, trainer.loader)
            self._analyse(study, data)
        finally:
            torch.set_num_threads(threads_before)
            # Only of use while the run goes on: a resume reads the data again.
            shutil.rmtree(self.run_folder.cache, ignore_errors=True)
        return outcome.reason

    # ------------------------------------------------------------------ stages

    def _load(self) -> Study:
        from cellweave.core.study import load_study

        self.journal.state(RunState.LOADING)
        if not self.spec.data.paths:
            raise DataError("The spec names no data file.", "Set data.paths to a file.")
        self._stamp_inputs()
        if self.study is not None:
            return self._in_features_of_reference(self.study)
        scratch = self.run_folder.cache if self._larger_than_memory() else None
        report = self._progress("loading data")
        study = load_study(self.spec.data, progress=report, cancelled=lambda: self.control.cancelled, scratch=scratch)
        return self._in_features_of_reference(study)

    def _in_features_of_reference(self, study: Study) -> Study:
        """Open the reference of a run that maps data onto one, and bring the data into its features."""
        self.in_data = frozenset(study.modalities)
        if self.spec.reference is None:
            return study
        from cellweave.core.query.surgery import Reference, require_batch

        self.reference = Reference.open(self.spec)
        require_batch(self.spec, study)
        return self.reference.study(study)

    def _larger_than_memory(self) -> bool:
        """Return whether the counts are read into memory-mapped files: asked for, or because they would not fit."""
        if self.spec.training.source != "auto":
            return self.spec.training.source == "disk"
        from cellweave.core.study import read_header

        needed = sum(read_header(path).estimated_bytes for path in self.spec.data.paths)
        return needed > KEEP_FREE * psutil.virtual_memory().available

    def _stamp_inputs(self) -> None:
        """Record the check sum of the inputs; on a resume make sure that they are still the same."""
        report, sums = self._progress("reading check sums"), []
        for path in self.spec.data.paths:
            if not Path(path).exists():
                raise DataError(f"There is no file '{path}'.", "Check the path; the data may have been moved.")
            sums.append(sha256_of(Path(path), lambda fraction: report(fraction, "")))
        if self.resumed and self.spec.data.sha256 and tuple(sums) != self.spec.data.sha256:
            raise DataError(
                "The data file has changed since the run began, so it cannot be continued.", "Put the original file back, or start a new run."
            )
        self.spec = self.spec.with_changes({"data.sha256": tuple(sums)})

    def _prepare(self, study: Study) -> TrainingData:
        from cellweave.core.study.preflight import preflight

        self.journal.state(RunState.PREPARING)
        for note in study.notes:
            LOG.info("%s", note)
        failed = []
        for check in preflight(self.spec, study, self.run_folder.path):
            if check.level is Level.FAIL:
                failed.append(check)
            elif check.level is Level.WARN and not self.resumed:
                self.journal.emit(Warned(text=check.text, mend=check.fixes[0].label if check.fixes else ""))
        if failed:
            first = failed[0]
            more = f" ({len(failed) - 1} more: {', '.join(check.title for check in failed[1:])})" if len(failed) > 1 else ""
            raise DataError(f"{first.text}{more}", _mend(first.fixes))
        data = prepare(self.spec, study) if self.reference is None else self.reference.data(self.spec, study)
        if self.reference is not None and not self.resumed:
            for note in self.reference.notes:
                self.journal.emit(Warned(text=note))
        self._resolve(data)
        return data

    def _resolve(self, data: TrainingData) -> None:
        """Write out what the spec left to the program, so that the run folder says exactly what was done."""
        training = self.spec.training
        changes: dict[str, Any] = {}
        own = self.spec.family.training
        max_epochs = training.max_epochs or own.get("max_epochs") or default_max_epochs(len(data.train))
        if training.max_epochs is None:
            changes["training.max_epochs"] = max_epochs
        if training.kl_warmup_epochs is None:
            warmup = min(own.get("kl_warmup_epochs", default_kl_warmup(max_epochs)), max_epochs)
            changes["training.kl_warmup_epochs"] = 0 if training.kl_warmup_steps else warmup
        if training.precision == "auto":
            changes["training.precision"] = choose_precision(training.precision, choose_device(training.device))
        for modality in data.modalities:
            if modality.name not in self.in_data:
                continue  # of the reference only: the files have no such place
            if self.spec.data.layers.get(modality.name) is None:
                changes[f"data.layers.{modality.name}"] = modality.location
        if getattr(self.spec.model, "modalities", None) == ():
            changes["model.modalities"] = tuple(sorted(modality.name for modality in data.modalities))
        self.spec = self.spec.with_changes(changes)
        self._write_spec()

    def _write_spec(self) -> None:
        self.journal.spec = self.spec
        self.run_folder.write_spec(self.spec)

    def _build(self, data: TrainingData) -> tuple[Trainer, BuildContext]:
        training = self.spec.training
        device = choose_device(training.device)
        count_bytes = sum(int(m.counts.data.nbytes + m.counts.indices.nbytes + m.counts.indptr.nbytes) for m in data.modalities)
        source = choose_source(training.source, device, count_bytes)
        if source == "disk" or self._larger_than_memory():
            source, data = "disk", self._to_disk(data)
        context = data.context(self.spec) if self.reference is None else self.reference.context(self.spec, data)
        seed_everything(training.seed, 0, "build")
        model = (self.spec.family.build(context) if self.reference is None else self.reference.model(context)).to(device)
        if device.type == "cpu":
            load_loops(model.loops, self._progress("readying fast loops for this processor"))
        loader = Loader(data, device, resident=source == "device")
        preview = None
        if training.preview_every:
            shown = sample_cells(data, training.preview_cells, training.seed)
            preview = Preview(self.run_folder.preview, shown, self._live(shown, data, model, device.type))
        trainer = Trainer(self.spec, model, loader, self.journal, self.control, preview)
        threads = self._threads(trainer)
        self.journal.set_machine(describe_device(device), threads)
        write_json_atomic(self.run_folder.path / "env.json", environment(describe_device(device), threads, source))
        self._progress("building the model")(1.0, f"{describe_device(device)}, {threads} thread{'s' if threads > 1 else ''}, counts from {source}")
        return trainer, context

    def _live(self, shown: np.ndarray, data: TrainingData, model: Model, device: str) -> list[Live]:
        """Return what is refreshed with the live embedding."""
        from cellweave.core.training.attribution import LiveAttribution, gives_attribution

        if not (self.spec.analysis.attribution_live and gives_attribution(self.spec)):
            return []
        return [LiveAttribution(self.run_folder.preview, shown, self.spec, data, model, device)]

    def _threads(self, trainer: Trainer) -> int:
        """Set the number of threads: what the spec says, or the fastest in a short probe, which is then written out."""
        threads = self.spec.training.threads
        if threads is None:
            candidates = candidate_threads() if trainer.device.type == "cpu" else [1]
            if len(candidates) > 1:
                self._progress("finding the best number of threads")(None, "")
            threads = probe_threads(trainer.trial_step, candidates)
            self.spec = trainer.spec = self.spec.with_changes({"training.threads": threads})
            self._write_spec()
        torch.set_num_threads(threads)
        return threads

    def _to_disk(self, data: TrainingData) -> TrainingData:
        from cellweave.core.training.cache import cached_counts, is_mapped

        report = self._progress("writing the disk cache")
        for modality in data.modalities:
            if is_mapped(modality.counts):
                continue
            folder = self.run_folder.cache / modality.name
            modality.counts = cached_counts(modality.counts, folder, lambda fraction: report(fraction, ""))
        return data

    def _train(self, trainer: Trainer, context: BuildContext, data: TrainingData) -> Outcome:
        if self.resumed and (self.run_folder.checkpoints / store.LAST).exists():
            checkpoint, warning = store.load_last(self.run_folder.checkpoints)
            if warning:
                self.journal.emit(Warned(text=warning))
            unpack(trainer, checkpoint)
            for name, weight in self.turned.items():
                # Weights turned while the run went on come from the checkpoint; the resume's own are newer.
                trainer.objective.set_weight(name, weight)
            if self.extended:
                trainer.extend()
        if self.control.cancelled:
            raise Cancelled
        self.training_began = True
        self.journal.rewind(trainer.at.epoch if self.resumed else 0)
        try:
            with spared_by_collector():
                outcome = trainer.fit()
        except BaseException as error:
            if not self.extended:
                # The model of a finished run that was to be trained longer stays, with the results that are of it.
                reason = "cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed"
                self._keep(trainer, context, data, {"reason": reason, "epochs": trainer.at.epoch, "best_epoch": None})
            raise
        finally:
            trainer.model.release()
        self._keep(
            trainer, context, data, {"reason": outcome.reason.value, "epochs": outcome.epochs, "best_epoch": outcome.best_epoch, "seconds": outcome.seconds}
        )
        return outcome

    def _keep(self, trainer: Trainer, context: BuildContext, data: TrainingData, training: dict[str, Any]) -> None:
        try:
            save_model(self.run_folder.path / "model", trainer.model, context, data, training)
        except OSError as error:
            self.journal.emit(
                Warned(
                    text=f"The trained model was not written: {error.strerror or error}.",
                    mend="Free some space, then 'resume' writes it from the last checkpoint.",
                )
            )

    def _results(self, study: Study, data: TrainingData, model: Model, loader: Loader) -> None:
        from cellweave.core.models.midas_network import MidasNetwork
        from cellweave.core.query.centroid import FILE, write_centroid

        self.journal.state(RunState.ANALYSING)
        results, cancelled = self.run_folder.results, lambda: self.control.cancelled
        (results / FILE).unlink(missing_ok=True)  # it may be of a model that was trained on
        write_cells(results / "cells.csv", study, data)
        report = self._progress("latent space")
        paths = write_latents(results, model, loader, progress=lambda f: report(f, ""), cancelled=cancelled)
        for name, path in paths.items():
            self.journal.emit(ResultReady(name=name, path=str(path)))
        if isinstance(model, MidasNetwork):
            write_centroid(results, data)
        if any(result.kind == "loadings" for result in model.family.results):
            self.journal.emit(ResultReady(name="loadings", path=str(write_loadings(results, model, data))))
        self._attribution(model, loader)
        self._effects(model, loader)
        if self.spec.analysis.denoised:
            report = self._progress("denoised expression")
            path = results / "denoised.h5"
            write_denoised(path, model, loader, progress=lambda f: report(f, ""), cancelled=cancelled)
            self.journal.emit(ResultReady(name="denoised", path=str(path)))
        self._values(data, model, loader)

    def _values(self, data: TrainingData, model: Model, loader: Loader) -> None:
        """Judge translations, and write imputed, corrected and translated values where the spec asks for them."""
        from cellweave.core.query.centroid import read_centroid
        from cellweave.core.training.mosaic_results import judge_translations, wanted_values, write_values

        report = self._progress("translations between modalities")
        judge_translations(
            self.run_folder.results, self.spec, model, loader, progress=lambda f: report(f, ""), cancelled=lambda: self.control.cancelled
        )
        technical, stop = read_centroid(self.run_folder.results), lambda: self.control.cancelled
        self._draw_corrected(model, loader, technical)
        for name, questions in wanted_values(self.spec.analysis, tuple(modality.name for modality in data.modalities)).items():
            report, path = self._progress(f"{name} values"), self.run_folder.results / f"{name}.h5"
            write_values(path, model, loader, questions, technical=technical, progress=lambda f, report=report: report(f, ""), cancelled=stop)  # type: ignore[misc]
            self.journal.emit(ResultReady(name=name, path=str(path)))

    def _draw_corrected(self, model: Model, loader: Loader, technical: torch.Tensor | None) -> None:
        """Draw corrected counts for the scores of a mosaic; the other results do not depend on them."""
        from cellweave.core.training.mosaic_results import draw_corrected

        report = self._progress("corrected counts for the scores")
        try:
            draw_corrected(
                self.run_folder.results, self.spec, model, loader, technical, progress=lambda f: report(f, ""), cancelled=lambda: self.control.cancelled
            )
        except (CellweaveError, OSError, RuntimeError, MemoryError) as error:
            LOG.warning("corrected counts", exc_info=True)
            self.journal.emit(Warned(text=f"The corrected counts were not drawn for the scores: {error}", mend="'cellweave metrics RUN --again' tries again."))

    def _effects(self, model: Model, loader: Loader) -> None:
        """Write what covariates do, where the family says it can tell; the other results do not depend on it."""
        from cellweave.core.query.effects import covariate_effects

        if not any(result.kind == "covariate_effects" for result in model.family.results):
            return
        report, data = self._progress("covariate effects"), loader.data
        try:
            features = {m.name: [str(name) for name in m.var.index] for m in data.modalities}
            found = covariate_effects(
                model, loader, features, data.encoding.levels, progress=lambda f: report(f, ""), cancelled=lambda: self.control.cancelled
            )
            paths = found.save(self.run_folder.results)
        except (CellweaveError, OSError, RuntimeError, MemoryError) as error:
            LOG.warning("covariate effects", exc_info=True)
            self.journal.emit(Warned(text=f"The covariate effects were not written: {error}", mend="'cellweave query RUN effects --keep' tries again."))
        else:
            self.journal.emit(ResultReady(name="covariate_effects", path=str(paths[-1])))

    def _attribution(self, model: Model, loader: Loader) -> None:
        """Compute the modality attribution, where the family gives it; the other results do not depend on it."""
        from cellweave.core.training.attribution import compute_attribution, gives_attribution

        if not (self.spec.analysis.attribution and gives_attribution(self.spec)):
            return
        report = self._progress("modality attribution")
        try:
            paths = compute_attribution(
                self.run_folder.results, self.spec, model, loader, progress=lambda f: report(f, ""), cancelled=lambda: self.control.cancelled
            )
        except (CellweaveError, OSError, RuntimeError, MemoryError) as error:
            LOG.warning("modality attribution", exc_info=True)
            self.journal.emit(Warned(text=f"The modality attribution was not computed: {error}", mend="'cellweave query RUN attribution --keep' tries again."))
        else:
            self.journal.emit(ResultReady(name="attribution", path=str(paths[-1])))

    def _analyse(self, study: Study, data: TrainingData) -> None:
        from cellweave.core.analysis.pipeline import analyse

        analyse(
            self.spec,
            self.run_folder.results,
            obs=study.obs,
            modality=data.main_modality,
            runner=self.analysis,
            emit=self.journal.emit,
            cancelled=lambda: self.control.cancelled,
        )

    # ------------------------------------------------------------------ helpers

    def _progress(self, phase: str) -> Callable[[float | None, str], None]:
        def report(fraction: float | None, text: str = "") -> None:
            self.journal.emit(Progress(phase=phase, fraction=fraction, text=text))
            if self.control.cancelled:
                raise Cancelled

        return report


def _mend(fixes: tuple[Any, ...]) -> str:
    """Return how the first fix is made from the command line."""
    if not fixes:
        return ""
    settings = " ".join(f"--set {path}={assignment_value(value)}" for path, value in fixes[0].changes.items())
    return f"{fixes[0].label}: {settings}."


def environment(device: str, threads: int, source: str) -> dict[str, Any]:
    """Return versions and machine, as ``env.json`` holds them; no user or host names."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": device,
        "threads": threads,
        "source": source,
        "packages": versions,
    }
