"""A run that cannot go on ends in a sentence with cause and mend, recorded in its folder, with nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cellweave.core.errors import CellweaveError, DataError, TrainingError
from cellweave.core.export.run_data import RunData
from cellweave.core.models.vae_network import VaeNetwork
from cellweave.core.runs import stages
from cellweave.core.runs.events import EpochDone, Failed, FinishReason, RunState, Warned
from cellweave.core.runs.execute import execute, resume
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.training.control import RunControl

QUICK = {
    "training.max_epochs": 3, "training.threads": 1, "training.preview_every": 0, "training.checkpoint_every": 1, "covariates.batch": "batch",
    "analysis.umap": False, "analysis.clusters": False, "analysis.scores": False, "analysis.baseline": False,
}  # fmt: skip


def write(path: Path, n_cells: int = 120, **obs: object) -> Path:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, (n_cells, 30)).astype(np.float32))
    table = pd.DataFrame({"batch": rng.choice(["a", "b"], n_cells), **obs}, index=[f"cell{i}" for i in range(n_cells)])
    ad.AnnData(counts, obs=table, var=pd.DataFrame(index=[f"gene{i}" for i in range(30)])).write_h5ad(path)
    return path


def spec_for(path: Path, **changes: object) -> RunSpec:
    return RunSpec().with_changes({"data.paths": str(path), **QUICK, **{key.replace("__", "."): value for key, value in changes.items()}})


def run_and_fail(spec: RunSpec, folder: Path, kind: type[CellweaveError]) -> tuple[CellweaveError, list]:
    events: list = []
    with pytest.raises(kind) as caught:
        execute(spec, folder, listener=events.append)
    run = RunFolder.open(folder)
    assert run.status.state is RunState.DONE and run.status.reason is FinishReason.FAILED
    failed = next(event for event in events if isinstance(event, Failed))
    assert failed.text == caught.value.cause and "Traceback" not in failed.text and "\n" not in failed.text
    assert "Traceback" in run.log_file.read_text(), "the details are in the log"
    assert failed.text.endswith((".", "!", "?")) and caught.value.mend
    return caught.value, events


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error, _ = run_and_fail(spec_for(tmp_path / "nowhere.h5ad"), tmp_path / "run", DataError)
    assert "nowhere.h5ad" in error.cause


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.h5ad")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run_and_fail(spec_for(path), tmp_path / "run", DataError)


def test_a_column_that_vanished(tmp_path: Path) -> None:
    error, _ = run_and_fail(spec_for(write(tmp_path / "a.h5ad"), covariates__batch="lane"), tmp_path / "run", DataError)
    assert "lane" in error.cause


def test_missing_values_in_the_batch_can_be_mended_as_the_sentence_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", donor=[None] * 10 + ["d1", "d2"] * 55)
    spec = spec_for(path, covariates__batch="donor")
    error, _ = run_and_fail(spec, tmp_path / "run", DataError)
    assert "10" in error.cause
    mended = spec.with_changes({"data.fill_missing.donor": "unknown"})
    assert execute(mended, tmp_path / "mended") is FinishReason.COMPLETED


def test_a_level_per_cell_as_batch_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", barcode=[f"AAC{i}" for i in range(120)])
    run_and_fail(spec_for(path, covariates__batch="barcode"), tmp_path / "run", DataError)


def test_a_batch_of_one_cell_gets_no_say_but_the_run_goes_on_or_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", lane=["x"] * 119 + ["alone"])
    try:
        reason = execute(spec_for(path, covariates__batch="lane"), tmp_path / "run")
    except DataError as error:
        assert "alone" in error.cause and error.mend
        return
    assert reason is FinishReason.COMPLETED
    latent = np.load(tmp_path / "run" / "results" / "latent.npy")
    assert np.isfinite(latent).all(), "the cell was not trained on, but the encoder gives it a latent"
    split = pd.read_csv(tmp_path / "run" / "results" / "cells.csv")["split"]
    assert split[119] == "left out" and not (split[:119] == "left out").any()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("DefaultCPUAllocator: out of memory")],
)
def test_out_of_memory_keeps_the_checkpoint_and_resume_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = write(tmp_path / "a.h5ad")
    real = VaeNetwork.loss_terms

    def full(self: VaeNetwork, batch: object, context: object) -> object:
        if context.epoch == 2 and context.training:
            raise error
        return real(self, batch, context)

    monkeypatch.setattr(VaeNetwork, "loss_terms", full)
    caught, _ = run_and_fail(spec_for(path), tmp_path / "run", TrainingError)
    assert "memory" in caught.cause and "minibatch" in caught.mend
    monkeypatch.setattr(VaeNetwork, "loss_terms", real)
    assert resume(tmp_path / "run") is FinishReason.COMPLETED
    execute(spec_for(path), tmp_path / "whole")
    assert (tmp_path / "run" / "losses.csv").read_text() == (tmp_path / "whole" / "losses.csv").read_text()


def test_data_that_changed_cannot_be_resumed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5ad")
    real = VaeNetwork.loss_terms

    def full(self: VaeNetwork, batch: object, context: object) -> object:
        if context.epoch:
            raise MemoryError
        return real(self, batch, context)

    monkeypatch.setattr(VaeNetwork, "loss_terms", full)
    run_and_fail(spec_for(path), tmp_path / "run", TrainingError)
    monkeypatch.setattr(VaeNetwork, "loss_terms", real)
    write(path, n_cells=130)
    with pytest.raises(DataError, match="changed"):
        resume(tmp_path / "run")


def test_both_checkpoints_damaged_is_said(tmp_path: Path) -> None:
    execute(spec_for(write(tmp_path / "a.h5ad")), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CellweaveError, match="damaged"):
        resume(tmp_path / "run", changes={"training.max_epochs": 5})
    assert (tmp_path / "run" / "results" / "latent.npy").exists()


def test_the_last_checkpoint_damaged_is_said_and_the_one_before_serves(tmp_path: Path) -> None:
    spec = spec_for(write(tmp_path / "a.h5ad"))
    execute(spec, tmp_path / "run")
    execute(spec.with_changes({"training.max_epochs": 5, "training.kl_warmup_epochs": 3}), tmp_path / "whole")
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    events: list = []
    assert resume(tmp_path / "run", changes={"training.max_epochs": 5}, listener=events.append) is FinishReason.COMPLETED
    assert any(isinstance(event, Warned) and "before it" in event.text for event in events)
    assert (tmp_path / "run" / "losses.csv").read_text() == (tmp_path / "whole" / "losses.csv").read_text()


def test_a_refused_resume_leaves_a_finished_run_finished(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad")
    execute(spec_for(path), tmp_path / "run")
    path.rename(tmp_path / "moved.h5ad")
    with pytest.raises(DataError):
        resume(tmp_path / "run", changes={"training.max_epochs": 9})
    assert RunFolder.open(tmp_path / "run").status.reason is FinishReason.COMPLETED
    with pytest.raises(CellweaveError, match="3 epochs already"):
        resume(tmp_path / "run", changes={"training.max_epochs": 2})


def test_a_run_that_failed_before_training_gives_its_folder_free(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad")
    run_and_fail(spec_for(path, covariates__batch="lane"), tmp_path / "run", DataError)
    assert execute(spec_for(path), tmp_path / "run") is FinishReason.COMPLETED


def test_cancelling_an_extension_keeps_model_and_results_of_the_finished_run(tmp_path: Path) -> None:
    execute(spec_for(write(tmp_path / "a.h5ad")), tmp_path / "run")
    model = (tmp_path / "run" / "model" / "model.json").read_text()
    control = RunControl()

    def listen(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 6:
            control.cancel()

    assert resume(tmp_path / "run", changes={"training.max_epochs": 50}, control=control, listener=listen) is FinishReason.CANCELLED
    assert (tmp_path / "run" / "model" / "model.json").read_text() == model
    assert RunData(tmp_path / "run").epoch <= 3


def test_stop_and_keep_is_remembered_when_the_results_were_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = RunControl()

    def listen(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 4:
            control.stop()

    def broken(*args: object, **kwargs: object) -> None:
        raise MemoryError

    real = stages.write_latents
    monkeypatch.setattr(stages, "write_latents", broken)
    with pytest.raises(TrainingError):
        execute(spec_for(write(tmp_path / "a.h5ad"), training__max_epochs=5000), tmp_path / "run", control=control, listener=listen)
    monkeypatch.setattr(stages, "write_latents", real)
    assert resume(tmp_path / "run") is FinishReason.STOPPED
    assert RunFolder.open(tmp_path / "run").losses()[-1]["epoch"] == 4


def test_a_run_that_stopped_early_is_trained_longer_when_asked(tmp_path: Path) -> None:
    spec = spec_for(write(tmp_path / "a.h5ad"), training__max_epochs=300, training__learning_rate=0.05, training__patience=2)
    assert execute(spec, tmp_path / "run") is FinishReason.EARLY_STOPPED
    before = RunFolder.open(tmp_path / "run").status.epoch
    resume(tmp_path / "run", changes={"training.max_epochs": before + 1, "losses.weights.kl_z": 0.5})
    assert RunFolder.open(tmp_path / "run").losses()[-1]["epoch"] == before + 1


def test_labels_that_are_missing_are_refused_where_each_label_has_a_dispersion(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5ad", kind=[None] * 7 + ["t"] * 113)
    spec = spec_for(path, covariates__labels="kind")
    assert execute(spec, tmp_path / "ok") is FinishReason.COMPLETED
    error, _ = run_and_fail(spec.with_changes({"model.dispersion": "gene-label"}), tmp_path / "run", DataError)
    assert "7 cells" in error.cause


def test_denoised_expression_has_the_scale_it_says_with_a_size_factor_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = write(tmp_path / "a.h5ad", sf=rng.uniform(0.5, 2.0, 120))
    given = ad.read_h5ad(path)
    for name, factor in (("plain", None), ("factor", "sf")):
        spec = spec_for(path, covariates__size_factor=factor, analysis__denoised=True, training__max_epochs=60, training__learning_rate=0.01)
        execute(spec, tmp_path / name)
        with h5py.File(tmp_path / name / "results" / "denoised.h5") as file:
            mean = file["rna"]["X"][:].sum(1).mean()
        assert 0.6 < mean / given.X.sum(1).mean() < 1.6, name


def test_a_relative_path_means_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.h5ad")
    (tmp_path / "genes.txt").write_text("\n".join(f"gene{i}" for i in range(20)))
    monkeypatch.chdir(tmp_path)
    spec = spec_for(Path("a.h5ad")).with_changes({"data.features.rna": {"mode": "list", "file": "genes.txt"}})
    execute(spec, "run")
    monkeypatch.chdir("/")
    assert resume(tmp_path / "run", changes={"training.max_epochs": 4}) is FinishReason.COMPLETED


def test_a_run_folder_deleted_underneath_is_made_again_with_all_losses(tmp_path: Path) -> None:
    events: list = []

    def listen(event: object) -> None:
        events.append(event)
        if isinstance(event, EpochDone) and event.epoch == 5:
            shutil.rmtree(tmp_path / "run")

    spec = spec_for(write(tmp_path / "a.h5ad"), training__max_epochs=12, training__checkpoint_every=4, training__preview_every=2)
    assert execute(spec, tmp_path / "run", listener=listen) is FinishReason.COMPLETED
    assert any(isinstance(event, Warned) and "deleted" in event.text for event in events)
    run = RunFolder.open(tmp_path / "run")
    assert [row["epoch"] for row in run.losses()] == list(range(1, 13)) and [e.epoch for e in run.epochs()] == list(range(1, 13))
    assert (run.results / "latent.npy").exists() and (run.checkpoints / "last.safetensors").exists() and (run.preview / "cells.npy").exists()
    execute(spec, tmp_path / "whole")
    assert run.losses_file.read_text() == (tmp_path / "whole" / "losses.csv").read_text()


def test_stop_goes_back_to_the_best_weights_without_early_stopping_too(tmp_path: Path) -> None:
    control = RunControl()

    def listen(event: object) -> None:
        if isinstance(event, EpochDone) and event.epochs_since_best >= 2:
            control.stop()

    spec = spec_for(write(tmp_path / "a.h5ad"), training__max_epochs=400, training__learning_rate=0.05, training__early_stopping=False)
    assert execute(spec, tmp_path / "run", control=control, listener=listen) is FinishReason.STOPPED
    rows = RunFolder.open(tmp_path / "run").losses()
    best = min(rows, key=lambda row: row["elbo_validation"])["epoch"]
    assert RunData(tmp_path / "run").epoch == best < rows[-1]["epoch"]
