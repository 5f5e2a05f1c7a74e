"""The stages after training: files, resumption, failures of one stage, cancellation."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellweave.core.analysis.inprocess import InProcess
from cellweave.core.analysis.jobs import AnalysisError, ProcessDied
from cellweave.core.analysis.pipeline import analyse
from cellweave.core.errors import Cancelled
from cellweave.core.runs.events import Metric, Progress, ResultReady, Warned
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Modality


class Recording(InProcess):
    """Counts the tasks, and fails where it is told to."""

    def __init__(self, fail=(), die_once=()):
        super().__init__()
        self.tasks, self.fail, self.die_once = [], set(fail), set(die_once)

    def run(self, task, **arguments):
        self.tasks.append(task)
        if task in self.die_once:
            self.die_once.remove(task)
            raise ProcessDied("The analysis process stopped while it worked on it.")
        if task in self.fail:
            raise AnalysisError("It broke.", "Mend it.")
        return super().run(task, **arguments)


def rna(counts, measured=None):
    """RNA of all cells, or of some."""
    n_cells, n_genes = counts.shape
    return Modality("rna", counts, pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]), np.ones(n_cells, dtype=bool) if measured is None else measured)


@pytest.fixture
def case(tmp_path):
    """Three types in two batches; two cells have no latent, one no label."""
    rng = np.random.default_rng(3)
    n_cells = 240
    kind, batch = np.arange(n_cells) % 3, rng.integers(0, 2, n_cells)
    latent = (np.eye(3, 6)[kind] * 12 + rng.normal(size=(n_cells, 6))).astype(np.float32)
    latent[[5, 17]] = np.nan
    rates = rng.gamma(1.0, 2.0, size=(3, 40))[kind] * np.where(np.arange(40) < 12, 1 + 9 * batch[:, None], 1)
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    obs = pd.DataFrame({"batch": pd.Categorical(np.array(["a", "b"])[batch]), "cell_type": np.array(["T", "B", "NK"])[kind]})
    obs.index = [f"cell{i}" for i in range(n_cells)]
    obs.loc["cell3", "cell_type"] = np.nan
    spec = RunSpec().with_changes({"covariates.batch": "batch", "covariates.labels": "cell_type", "analysis.umap_epochs": 30})
    np.save(tmp_path / "latent.npy", latent)

    def run(spec=spec, counts=counts, measured=None, **how):
        events = []
        runner = how.pop("runner", None) or Recording()
        modality = None if counts is None else rna(counts, measured)
        analyse(spec, tmp_path, obs=obs, modality=modality, runner=runner, emit=events.append, **how)
        return events, runner

    run.spec, run.results, run.kind, run.obs, run.latent = spec, tmp_path, kind, obs, latent
    return run


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_every_result_is_written_in_study_order(case):
    events, _ = case()
    layout = np.load(case.results / "umap.npy")
    assert layout.shape == (240, 2)
    assert np.flatnonzero(np.isnan(layout).any(axis=1)).tolist() == [5, 17]
    clusters = pd.read_csv(case.results / "clusters.csv")
    assert clusters["name"].tolist() == list(case.obs.index)
    assert np.flatnonzero(clusters["leiden"].isna()).tolist() == [5, 17]
    table = pd.crosstab(clusters["leiden"].dropna(), pd.Series(case.kind)[clusters["leiden"].notna()])
    assert (table.gt(0).sum(axis=1) == 1).all(), "three well separated types: no cluster holds two of them"
    assert np.load(case.results / "baseline_pca.npy").shape == (240, 30)
    assert {event.name for event in of(events, ResultReady)} == {"umap", "clusters", "baseline", "scores", "integration"}
    assert not of(events, Warned)
    assert not (case.results / ".analysis").exists()


def test_integration_metrics_are_told_kept_and_not_computed_twice(case):
    events, runner = case()
    told = {event.name: event for event in of(events, Metric) if not event.group}
    assert {"ilisi", "kbet", "nmi", "batch_score", "bio_score", "scib_total"} <= set(told)
    assert told["ilisi"].value > told["ilisi"].baseline, "the latent mixes batches, the counts do not"
    stored = json.loads((case.results / "integration.json").read_text())
    assert stored["columns"] == {"batch": "batch", "labels": "cell_type"}
    assert stored["n_cells"] == 237
    assert told["scib_total"].value == stored["values"]["latent"]["scib_total"]
    assert list(pd.read_csv(case.results / "integration.csv").columns) == ["metric", "title", "about", "latent", "baseline"]
    again, second = case()
    assert "integration" in runner.tasks
    assert "integration" not in second.tasks
    assert {event.name for event in of(again, Metric)} >= {"ilisi", "scib_total"}, "a resumed run begins a new list of metrics"


def test_integration_metrics_follow_their_options(case):
    spec = case.spec.with_changes({"analysis.integration_metrics": ["ilisi"], "analysis.integration_cells": 100, "analysis.integration_labels": "nothing"})
    events, _ = case(spec)
    stored = json.loads((case.results / "integration.json").read_text())
    assert set(stored["values"]["latent"]) == {"ilisi", "batch_score"}
    assert stored["n_cells"] == 100
    assert any("no column 'nothing' for the integration metrics" in event.text for event in of(events, Warned))
    (case.results / "integration.json").unlink()
    case(case.spec.with_changes({"analysis.integration": False}))
    assert not (case.results / "integration.json").exists()


def test_scores_show_mixing_and_labels_beside_baseline_and_chance(case):
    events, _ = case()
    found = {event.name: event for event in of(events, Metric) if not event.group}
    assert found["batch_same_share"].value == pytest.approx(found["batch_same_share"].expected, abs=0.06)
    assert found["batch_same_share"].baseline > found["batch_same_share"].value + 0.1
    assert found["label_purity"].value > 0.95 > found["label_purity"].expected + 0.5
    stored = json.loads((case.results / "scores.json").read_text())
    assert stored["k"] == 30
    assert stored["columns"] == {"batch": "batch", "labels": "cell_type"}


def test_a_second_call_computes_nothing_and_says_everything(case):
    first, _ = case()
    second, runner = case()
    assert runner.tasks == []
    assert of(second, Metric) == of(first, Metric)
    assert {e.name for e in of(second, ResultReady)} == {e.name for e in of(first, ResultReady)}


def test_only_what_a_setting_touches_is_computed_again(case):
    case()
    before = np.load(case.results / "umap.npy")
    _, runner = case(spec=case.spec.with_changes({"analysis.resolution": 3.0}))
    assert "leiden" in runner.tasks
    assert not {"umap", "pca", "scores"} & set(runner.tasks)
    np.testing.assert_array_equal(np.load(case.results / "umap.npy"), before)


def test_another_latent_leaves_no_old_result(case):
    case()
    np.save(case.results / "latent.npy", case.latent[:, ::-1] * 2)
    _, runner = case(runner=Recording(fail={"umap"}))
    assert not (case.results / "umap.npy").exists()
    assert {"leiden", "scores"} <= set(runner.tasks)
    assert "pca" not in runner.tasks


def test_a_failed_stage_is_said_and_loses_no_other(case):
    events, _ = case(runner=Recording(fail={"umap"}))
    assert [event.text for event in of(events, Warned)] == ["UMAP: It broke."]
    assert not (case.results / "umap.npy").exists()
    assert (case.results / "clusters.csv").exists()
    assert (case.results / "scores.json").exists()


def test_a_lost_process_is_tried_once_more(case):
    events, runner = case(runner=Recording(die_once={"umap"}))
    assert runner.tasks.count("umap") == 2
    assert (case.results / "umap.npy").exists()
    assert len(of(events, Warned)) == 1


def test_cancelling_keeps_what_is_done(case):
    done = []
    spec = case.spec
    with pytest.raises(Cancelled):
        analyse(
            spec, case.results, obs=case.obs, modality=None, runner=Recording(),
            emit=done.append, cancelled=lambda: any(isinstance(event, ResultReady) for event in done),
        )
    assert (case.results / "umap.npy").exists()
    assert not (case.results / "clusters.csv").exists()
    _, runner = case(counts=None)
    assert "umap" not in runner.tasks


def test_the_baseline_is_laid_out_only_where_asked(case):
    _, runner = case()
    assert runner.tasks.count("umap") == 1
    _, runner = case(spec=case.spec.with_changes({"analysis.baseline_umap": True}))
    assert runner.tasks == ["umap"]
    assert np.isfinite(np.load(case.results / "baseline_umap.npy")).all()


def test_switched_off_stages_leave_no_trace(case):
    off = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")}
    events, runner = case(spec=case.spec.with_changes(off))
    assert runner.tasks == []
    assert not of(events, Progress)
    assert sorted(path.name for path in case.results.iterdir()) == ["latent.npy"]


def test_the_same_seed_gives_the_same_files(case):
    case()
    first = {name: (case.results / name).read_bytes() for name in ("umap.npy", "clusters.csv", "scores.json")}
    (case.results / "analysis.json").unlink()
    case()
    assert {name: (case.results / name).read_bytes() for name in first} == first


@pytest.mark.parametrize(("n_cells", "said"), [(1, "Only 1 cell has a latent"), (2, "Only 2 cells have a latent"), (3, ""), (7, "")])
def test_a_handful_of_cells_is_laid_out_or_refused_in_words(tmp_path, n_cells, said):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "latent.npy", rng.normal(size=(n_cells, 3)).astype(np.float32))
    obs = pd.DataFrame({"batch": (["a", "b"] * n_cells)[:n_cells]}, index=[f"c{i}" for i in range(n_cells)])
    events = []
    counts = sparse.csr_matrix(rng.poisson(2.0, size=(n_cells, 5)))
    analyse(RunSpec().with_changes({"covariates.batch": "batch"}), tmp_path, obs=obs, modality=rna(counts), runner=None, emit=events.append)
    assert [said in event.text for event in of(events, Warned)] == ([True] * 3 if said else [])
    assert (tmp_path / "umap.npy").exists() == (not said)
    assert (tmp_path / "baseline_pca.npy").exists()


def test_cells_in_which_the_modality_was_not_measured_have_no_baseline(case):
    measured = np.ones(240, dtype=bool)
    measured[50:110] = False
    events, _ = case(measured=measured)
    baseline = np.load(case.results / "baseline_pca.npy")
    assert np.array_equal(np.isfinite(baseline).all(axis=1), measured)
    assert any("of RNA alone; 60 of 240 cells" in event.text for event in of(events, Warned))
    assert all(event.baseline is not None for event in of(events, Metric) if event.name in {"batch mixing", "label purity"})
    scores = json.loads((case.results / "scores.json").read_text())["scores"]
    assert any(row["baseline"] is not None for row in scores)
    before = (case.results / "baseline_pca.npy").stat().st_mtime_ns
    case(measured=measured)
    assert (case.results / "baseline_pca.npy").stat().st_mtime_ns == before
