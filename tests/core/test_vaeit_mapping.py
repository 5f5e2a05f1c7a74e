"""New cells mapped onto a trained scVAEIT: new batches get weights of their own, what the reference knows stays to the bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pytest
import torch

from cellweave.core.errors import DataError, SpecError
from cellweave.core.example import EXAMPLE_BATCH, example_path
from cellweave.core.models.base import BuildContext, ModalityInfo
from cellweave.core.models.vaeit_mapped import extend
from cellweave.core.query.imputed import ImputedQuestion, imputed_chunks
from cellweave.core.query.latent import latent_mean
from cellweave.core.query.mapping_checks import mapping_checks
from cellweave.core.query.opened import open_run
from cellweave.core.query.surgery import mapping_spec
from cellweave.core.query.trained_run import TrainedRun
from cellweave.core.runs.events import Warned
from cellweave.core.runs.execute import execute, resume
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec, from_toml
from cellweave.core.spec.files import to_toml
from cellweave.core.study.checks import Level

QUIET = {
    "training.threads": 1, "training.device": "cpu", "training.preview_every": 0,
    **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")},
}  # fmt: skip
SMALL = {
    "model.n_latent": 6, "model.hidden": ("24",), "model.block_units": {"rna": "12", "adt": "8"}, "model.mask_units": {"rna": "3", "adt": "2"},
    "model.mask_modality": "uniform", "covariates.batch": EXAMPLE_BATCH, "training.max_epochs": 12, "training.learning_rate": 3e-3, **QUIET,
}  # fmt: skip
TABLES = ["of_covariates", "covariates_out", "parts.rna.dispersion.table", "parts.adt.dispersion.table"]


def write(source: Any, rows: np.ndarray, path: Path, *, drop: tuple[str, ...] = (), n_rna: int | None = None) -> Path:
    """Write some cells of the example as a file of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = source[rows].copy()
        parts = {}
        for name, adata in some.mod.items():
            if name in drop or not adata.n_obs:
                continue
            kept = adata[:, ::-1][:, : n_rna if name == "rna" else None].copy()  # features in another order
            kept.obs = some.obs.loc[kept.obs_names, [EXAMPLE_BATCH]].copy()
            parts[name] = kept
        found = mudata.MuData(parts)
        found.obs[EXAMPLE_BATCH] = some.obs.loc[found.obs_names, EXAMPLE_BATCH]
        found.write_h5mu(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vaeit-mapping")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = mudata.read_h5mu(example_path())
    batch = whole.obs[EXAMPLE_BATCH].astype(str).to_numpy()
    # The reference has RNA only, ADT only and both; the new batch had both.
    old = np.flatnonzero(batch != "p3_0")
    known = old[(batch[old] == "p4_0") & (np.arange(len(old)) % 4 == 0)]
    new = np.flatnonzero(batch == "p3_0")
    return {
        "reference": write(whole, np.setdiff1d(old, known), folder / "reference.h5mu"), "known": write(whole, known, folder / "known.h5mu"),
        "new": write(whole, new, folder / "new.h5mu"), "new_rna": write(whole, new, folder / "new_rna.h5mu", drop=("adt",), n_rna=480),
    }  # fmt: skip


@pytest.fixture(scope="module")
def reference(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("vaeit-reference") / "run"
    spec = RunSpec().with_changes({"model.kind": "vaeit"}).with_changes({**SMALL, "data.paths": (str(files["reference"]),)})
    execute(spec.with_changes({"losses.weights.hidden_adt": 0.7}), folder)
    return open_run(folder)


def mapped_onto(reference: TrainedRun, path: Path, folder: Path, **changes: object) -> tuple[TrainedRun, list[object]]:
    events: list[object] = []
    named = {name.replace("__", "."): value for name, value in changes.items()}
    execute(mapping_spec(reference.path, [path], {**QUIET, "training.max_epochs": 6, **named}), folder, listener=events.append)
    return open_run(folder), events


@pytest.fixture(scope="module")
def mapped(reference: TrainedRun, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, list[object]]:
    return mapped_onto(reference, files["new_rna"], tmp_path_factory.mktemp("vaeit-mapped") / "run")


def values(run: TrainedRun, **question: Any) -> dict[str, np.ndarray]:
    rows = run.rows(None)
    found: dict[str, np.ndarray] = {}
    for where, means, _ in imputed_chunks(run, rows, ImputedQuestion(**question)):
        for name, value in means.items():
            found.setdefault(name, np.empty((len(rows), value.shape[1]), dtype=np.float32))[where] = value
    return found


def said(events: list[object]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Warned))


def test_only_the_rows_of_the_new_batch_are_learned(mapped, reference):
    run, events = mapped
    before, after = reference.model.state_dict(), run.model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])}
    counters = {"hidden_entries"}
    assert changed - counters == {f"{name}.level_weight" for name in TABLES} | {"parts.rna.batches", "parts.adt.batches"}
    for name in TABLES:
        assert torch.equal(after[f"{name}.level_weight"][:-1], before[f"{name}.level_weight"])
    assert not torch.allclose(after["covariates_out.level_weight"][-1], before["covariates_out.level_weight"].mean(0), atol=1e-4)
    text = said(events)
    assert "New in 'batch', and learned: p3_0." in text
    assert "20 of the 500 features of rna are missing in these data and count as not measured" in text
    assert "These data have no adt" in text


def test_ranges_depths_and_scales_are_those_of_training(mapped, reference):
    for name in ("rna", "adt"):
        for key in ("low", "high", "mean", "typical_total"):
            assert torch.equal(getattr(mapped[0].model.parts[name], key), getattr(reference.model.parts[name], key))


def test_the_reference_is_told_as_it_was(mapped, reference):
    again = mapped[0].on(reference.study)
    np.testing.assert_array_equal(latent_mean(again), latent_mean(reference))
    for name, value in values(reference).items():
        np.testing.assert_array_equal(values(again)[name], value)


def test_a_modality_that_the_new_batch_lacks_is_decoded_as_the_batches_that_have_it(mapped):
    part = mapped[0].model.parts["adt"]
    assert part.measured_in.tolist() == [False, True, True, False]
    assert part.batches.tolist() == [0.0, 0.5, 0.5, 0.0]
    assert mapped[0].model.parts["rna"].measured_in.tolist() == [True, False, True, True]
    start = mapped[0].model.parts["adt"].dispersion.table.level_weight
    torch.testing.assert_close(start[3], (start[1] + start[2]) / 2)  # nothing of it was learned


def test_hidden_proteins_of_a_new_batch_are_imputed_better_than_by_the_mean(mapped, reference, files):
    run, _ = mapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = mudata.read_h5mu(files["new"])["adt"]
    modality = next(modality for modality in run.data.modalities if modality.name == "adt")
    truth = truth[run.cell_names[run.rows(None)]][:, list(modality.var.index)]
    counts = truth.X.toarray().astype(float)
    wanted = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    found = values(run, normalised=True)["adt"]
    mean = reference.trained.context.extras["adt.mean"]
    assert ((found - wanted) ** 2).mean() < 0.95 * ((mean - wanted) ** 2).mean()


def test_the_losses_of_the_new_cells_fall(mapped):
    losses = RunFolder.open(mapped[0].path).losses()
    assert losses[-1]["total_train"] < losses[0]["total_train"]


def test_a_new_batch_that_has_a_modality_is_decoded_as_itself(reference, files, tmp_path):
    run, _ = mapped_onto(reference, files["new"], tmp_path / "run", training__max_epochs=2)
    assert run.model.parts["adt"].measured_in.tolist() == [False, True, True, True]
    assert run.model.parts["adt"].batches.tolist() == [0.0, 0.5, 0.5, 0.0]  # the averages stay those of training


def test_cells_of_known_batches_are_placed_and_nothing_is_learned(reference, files, tmp_path):
    run, events = mapped_onto(reference, files["known"], tmp_path / "run")
    assert "knows every batch of these data (p4_0), so nothing is learned" in said(events)
    losses = RunFolder.open(run.path).losses()
    assert len(losses) == 1 and np.isfinite(losses[0]["total_train"])
    for name, tensor in reference.model.state_dict().items():
        if name != "hidden_entries":
            assert torch.equal(tensor, run.model.state_dict()[name]), name
    names = run.cell_names[run.rows(None)]
    told = open_on(reference, files["known"])
    place = [list(told.cell_names[told.rows(None)]).index(name) for name in names]
    np.testing.assert_allclose(latent_mean(run), latent_mean(told)[place], atol=1e-5)
    assert np.load(run.path / "results" / "latent.npy").shape == (len(names), 6)


def open_on(reference: TrainedRun, path: Path) -> TrainedRun:
    from cellweave.core.query.opened import open_on_files

    return open_on_files(reference.path, [path])


def test_it_resumes_and_is_written_as_any_run(reference, mapped, files, tmp_path):
    spec = mapped[0].spec
    assert from_toml(to_toml(spec)) == spec
    execute(spec.with_changes({"training.max_epochs": 3}), tmp_path / "part")
    resume(tmp_path / "part", changes={"training.max_epochs": 6})
    again = open_run(tmp_path / "part").model.state_dict()
    for name, tensor in mapped[0].model.state_dict().items():
        assert torch.equal(tensor, again[name]), name


def test_the_checks_say_what_is_new_and_what_is_wrong(reference, files, tmp_path):
    found = mapping_checks(reference.path, [files["new_rna"]])
    assert not [check for check in found if check.level is Level.FAIL]
    assert any("New in 'batch', and learned: p3_0." in check.text for check in found)
    placed = mapping_checks(reference.path, [files["known"]])
    assert [check.level for check in placed if "nothing is learned" in check.text] == [Level.OK]
    with pytest.raises(SpecError, match=r"model\.max_dispersion is 3\.0, but the reference was trained with 6\.0"):
        execute(mapping_spec(reference.path, [files["new"]], {**QUIET, "model.max_dispersion": 3.0}), tmp_path / "other")
    with pytest.raises(DataError, match="have no column 'batch'"):
        mapped_onto(reference, without_batch(files["new"], tmp_path / "plain.h5mu"), tmp_path / "plain")


def without_batch(source: Path, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mudata.read_h5mu(source)
        for adata in found.mod.values():
            del adata.obs[EXAMPLE_BATCH]
        found.obs = found.obs.drop(columns=list(found.obs.columns))
        found.write_h5mu(path)
    return path


def test_a_further_column_starts_at_the_mean_of_its_own_levels():
    """Batch and a second column: rows move to their new places, each column's new level starts at the mean of its own."""
    spec = RunSpec().with_changes({"model.kind": "vaeit"}).with_changes({"covariates.batch": "b", "covariates.decoder": ("c",), "model.hidden": ("5",)})
    extras = {"rna.max": np.full(4, 3.0), "rna.min": np.zeros(4), "rna.mean": np.ones(4), "rna.sd": np.ones(4), "rna.total": np.array([9.0]),
              "rna.density": np.array([0.5]), "rna.batches": np.array([1.0, 0.0]), "pattern_share": np.ones(1)}  # fmt: skip

    def context(batches: int, columns: int) -> BuildContext:
        own = {**extras, "rna.batches": np.concatenate([extras["rna.batches"], np.zeros(batches - 2)])}
        return BuildContext(spec, (ModalityInfo("rna", 4, (4,)),), {"batch": batches, "decoder": (columns,)}, 0, 10, {}, {}, own)

    torch.manual_seed(0)
    old = spec.family.build(context(2, 3))
    new, rows = extend(old, context(3, 4))
    for name in TABLES[:3]:
        before, after = old.state_dict()[f"{name}.level_weight"], new.state_dict()[f"{name}.level_weight"]
        torch.testing.assert_close(after[[0, 1, 3, 4, 5]], before)
        start = before[0] if name.startswith("parts") else before[:2].mean(0)  # of the dispersions: the batch in which it was measured
        torch.testing.assert_close(after[2], start)
        torch.testing.assert_close(after[6], before[2:].mean(0))
        assert rows[f"{name}.level_weight"].tolist() == [False, False, True, False, False, False, True]


def test_a_reference_without_batches_places_cells_too(files, tmp_path):
    spec = RunSpec().with_changes({"model.kind": "vaeit"}).with_changes({**SMALL, "covariates.batch": None, "data.paths": (str(files["known"]),)})
    execute(spec.with_changes({"training.max_epochs": 1}), tmp_path / "plain")
    found = mapping_checks(tmp_path / "plain", [files["new_rna"]])
    assert any("it knows no batches" in check.text for check in found)
    assert [check.level for check in found if "trained without batches, so nothing is learned" in check.text] == [Level.OK]
    run, _ = mapped_onto(open_run(tmp_path / "plain"), files["new_rna"], tmp_path / "mapped")
    assert np.isfinite(latent_mean(run)).all() and np.isfinite(values(run)["adt"]).all()
