"""Mapped cells beside those of their reference: one layout, and the reference's labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from query_runs import QUIET, example_folder

from cellweave.core.analysis import joint
from cellweave.core.example import EXAMPLE_LABELS
from cellweave.core.export.h5ad import export_h5ad
from cellweave.core.export.run_data import RunData
from cellweave.core.query.opened import open_run
from cellweave.core.query.surgery import mapping_spec
from cellweave.core.query.transfer import transfer_table
from cellweave.core.runs.events import Warned
from cellweave.core.runs.execute import execute

MAP = {**QUIET, "analysis.umap": True, "analysis.umap_epochs": 30, "training.max_epochs": 1, "training.batch_size": 256}


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """300 cells of the reference as a batch of their own."""
    run, path = open_run(example_folder()), tmp_path_factory.mktemp("new") / "new.h5ad"
    rows = run.rows()[:300]
    obs = run.study.obs.iloc[rows][[EXAMPLE_LABELS]].assign(batch="elsewhere")
    obs.index = [f"n{name}" for name in obs.index]
    anndata.AnnData(X=run.data.modalities[0].counts[rows], obs=obs, var=run.data.modalities[0].var[[]]).write_h5ad(path)
    return path, rows


@pytest.fixture(scope="module")
def mapped(new, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapped") / "run"
    execute(mapping_spec(example_folder(), [new[0]], MAP), folder)
    return folder


def test_both_lie_in_one_layout(mapped, new):
    xy, table = joint.read_joint(mapped / "results")
    reference = np.load(example_folder() / "results" / "latent.npy")
    assert (table["origin"] == "query").sum() == 300
    assert (table["origin"] == "reference").sum() == np.isfinite(reference).all(1).sum()
    assert np.isfinite(xy).all()
    assert table["row"].tolist()[:300] == list(range(300))
    assert (table["row"][300:] == -1).all()
    # The new cells are copies of cells of the reference, so that they must lie on them.
    cells = RunData(example_folder()).cells
    place = {name: xy[300 + number] for number, name in enumerate(table["name"][300:])}
    apart = np.linalg.norm(xy[:300] - np.array([place[name] for name in cells["name"].iloc[new[1]]]), axis=1)
    assert np.median(apart) < 0.1 * xy.std()


def test_labels_are_told_with_a_confidence(mapped, new):
    told = joint.read_transferred(mapped / "results", 300)
    truth = anndata.read_h5ad(new[0]).obs[EXAMPLE_LABELS].astype(str).to_numpy()
    assert (told["label"].to_numpy() == truth).mean() > 0.95  # each finds its copy at distance 0
    again = transfer_table(open_run(mapped), EXAMPLE_LABELS, neighbours=joint.VOTERS)
    sure = (told["share"] >= joint.LEAST_SHARE).to_numpy()
    np.testing.assert_array_equal(told["label"].to_numpy()[sure], again["label"].to_numpy()[sure])
    assert set(RunData(mapped).column("transferred_label").levels) <= {*truth, joint.UNKNOWN}


def test_a_divided_vote_is_unknown():
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(60, 2)) * 0.1 + np.repeat([[0, 0], [9, 0], [4.5, 9]], 20, axis=0)
    mixed = rng.normal(size=(60, 2)) * 0.1 + [0, -50]
    table = pd.DataFrame({"name": "c", "t": [*np.repeat(["a", "b", "c"], 20), *np.tile(["a", "b", "c"], 20)]})
    cells = joint.ReferenceCells(np.concatenate([apart, mixed]).astype(np.float32), table, "t", "")
    told = joint.transferred(cells, np.array([[0, 0], [9, 0.1], [np.nan, 0], [0.3, -49]], np.float32))
    assert told["label"].tolist()[:2] == ["a", "b"]
    assert told["share"][0] == pytest.approx(1)
    assert pd.isna(told["label"][2])
    assert pd.isna(told["share"][2])
    assert told["share"][3] < 0.6
    assert (told["label"][3] == joint.UNKNOWN) == (told["share"][3] < joint.LEAST_SHARE)
    assert joint.transferred(joint.ReferenceCells(cells.latent, table, None, ""), apart) is None


def test_a_large_reference_is_sampled_the_same_way(monkeypatch):
    monkeypatch.setattr(joint, "MOST_REFERENCE", 10)
    cells = joint.ReferenceCells(np.arange(40, dtype=np.float32)[:, None], pd.DataFrame({"name": map(str, range(40))}), None, "")
    first, second = joint.sampled(cells, 3), joint.sampled(cells, 3)
    assert len(first.latent) == 10
    np.testing.assert_array_equal(first.latent, second.latent)
    assert first.table["name"].astype(float).tolist() == first.latent[:, 0].tolist()


def test_labels_are_exported(mapped, tmp_path):
    out = anndata.read_h5ad(export_h5ad(mapped, tmp_path / "out.h5ad"))
    told = joint.read_transferred(mapped / "results", 300)
    np.testing.assert_array_equal(out.obs["cellweave_transferred_label"].astype(str), told["label"])
    np.testing.assert_allclose(out.obs["cellweave_transferred_share"], told["share"], rtol=1e-6)


def test_without_the_reference_the_rest_is_there_and_it_is_said(new, mapped, tmp_path):
    from cellweave.core.analysis.pipeline import analyse

    folder = Path(shutil.copytree(mapped, tmp_path / "run"))
    for name in ("umap.npy", "joint_umap.npy"):
        (folder / "results" / name).unlink()
    run, said = RunData(folder), []
    spec = run.spec.with_changes({"reference": str(tmp_path / "gone")})
    analyse(spec, folder / "results", obs=run.obs, modality=None, runner=None, emit=said.append)
    words = [event.text for event in said if isinstance(event, Warned)]
    assert len(words) == 1
    assert "cannot be laid out with those of the reference" in words[0]
    assert "not there any more" in words[0]
    assert (folder / "results" / "umap.npy").is_file()
    assert not (folder / "results" / "joint_umap.npy").exists()


def test_both_are_drawn_as_a_figure(mapped, tmp_path):
    """The joint layout with what tells the two apart, a shared column, and one that only the new cells have."""
    from cellweave.core.export.figure_options import ORIGIN, FigureOptions
    from cellweave.core.export.figures import save_figure
    from cellweave.core.export.joint_columns import joint_column, joint_layout

    run = RunData(mapped)
    xy, table = joint_layout(run)
    origin = joint_column(run, table, ORIGIN)
    assert origin.levels == ("new cells", "reference") and np.bincount(origin.codes).tolist() == [300, len(xy) - 300]
    own = joint_column(run, table, "latent:2")
    np.testing.assert_array_equal(own.numbers[:300], np.load(mapped / "results" / "latent.npy")[:, 1])
    assert np.isnan(own.numbers[300:]).all()
    told = joint_column(run, table, "transferred_label")
    assert not told.missing[:300].all()
    size = save_figure(mapped, "embedding", tmp_path / "joint.png", FigureOptions(layout="joint", columns=(ORIGIN, "latent:2"), dpi=60))
    assert size[0] > 100 and (tmp_path / "joint.png").stat().st_size > 5000
    assert save_figure(mapped, "embedding", tmp_path / "usual.svg", FigureOptions(layout="joint", dpi=60))
    assert "new or reference" in (tmp_path / "usual.svg").read_text()
    # The column of both is passed over where the cells are drawn alone.
    assert save_figure(mapped, "embedding", tmp_path / "alone.png", FigureOptions(columns=(ORIGIN,), dpi=60))


def test_a_run_that_was_not_mapped_has_no_joint_figure(tmp_path):
    from cellweave.core.errors import RunFolderError
    from cellweave.core.export.figure_options import FigureOptions
    from cellweave.core.export.figures import save_figure

    with pytest.raises(RunFolderError, match="no embedding together with a reference"):
        save_figure(example_folder(), "embedding", tmp_path / "joint.png", FigureOptions(layout="joint"))


def test_genes_that_the_model_decodes_are_columns_of_figures(mapped, tmp_path, monkeypatch):
    from cellweave.core.errors import CellweaveError
    from cellweave.core.export import gene_columns
    from cellweave.core.query.expression import ExpressionQuestion, normalised_expression

    folder, run = example_folder(), open_run(example_folder())
    gene, batch = run.features[3], run.batches[1]
    data = RunData(folder)
    for name, how in (
        (f"denoised:{gene}", {}), (f"corrected:{gene}", {"transform_batch": run.batches}), (f"corrected:{gene}@{batch}", {"transform_batch": (batch,)}),
    ):  # fmt: skip
        column = data.column(name)
        expected = np.log1p(normalised_expression(run, None, ExpressionQuestion(features=(gene,), library_size=1e4, **how)))[:, 0]
        np.testing.assert_allclose(column.numbers[run.rows()], expected, rtol=1e-5)
        assert np.isnan(np.delete(column.numbers, run.rows())).all() and gene in column.title
    counts = data.column(f"counts:{gene}")
    np.testing.assert_array_equal(counts.numbers[run.rows()], run.counts.counts[run.rows(), 3].toarray().ravel())
    # A second drawing decodes nothing anew.
    with monkeypatch.context() as patch:
        patch.setattr(gene_columns, "decoded_values", lambda *_: pytest.fail("decoded again"))
        data.column(f"denoised:{gene}")
    with pytest.raises(CellweaveError, match="Did you mean"):
        data.column(f"denoised:{gene}x")
    with pytest.raises(CellweaveError, match="no batch 'nowhere'"):
        data.column(f"corrected:{gene}@nowhere")
