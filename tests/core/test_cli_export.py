"""The first look from beginning to end, and what can be taken out of its run."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellweave.core.cli import main
from cellweave.core.cli.first_look import screenshot
from cellweave.core.example import example_path
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import from_toml

pytestmark = pytest.mark.slow
PNG, PDF = b"\x89PNG\r\n\x1a\n", b"%PDF-"


@pytest.fixture(scope="module")
def look(tmp_path_factory) -> Path:
    """What the first command leaves on a machine without a screen, after a few epochs."""
    folder = tmp_path_factory.mktemp("look")
    assert main(["first-look", "--epochs", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(look: Path) -> Path:
    return look / "first-look-pbmc-01"


def read_h5mu(path: Path):
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return mudata.read_h5mu(path)


def test_the_first_look_leaves_everything(look: Path, run: Path) -> None:
    assert {path.name for path in look.iterdir()} == {run.name, "losses.pdf", "umap.pdf", "example.h5ad", "window.png"}
    assert (look / "umap.pdf").read_bytes().startswith(PDF)
    assert (look / "losses.pdf").read_bytes().startswith(PDF)
    assert (look / "window.png").read_bytes().startswith(PNG)
    assert [row["epoch"] for row in RunFolder.open(run).losses()] == [1, 2, 3]


def test_the_h5ad_holds_every_cell_of_the_input_in_its_order(look: Path, run: Path) -> None:
    import anndata

    exported, given = anndata.read_h5ad(look / "example.h5ad"), read_h5mu(example_path())
    assert list(exported.obs_names) == list(given.obs_names)
    assert exported.obs["celltype"].astype(str).tolist() == given.obs["celltype"].astype(str).tolist()
    measured = given.obs_names.isin(given["rna"].obs_names)
    for name, width in (("X_latent", 10), ("X_umap", 2)):
        assert exported.obsm[name].shape == (1600, width)
        assert np.isfinite(exported.obsm[name][measured]).all()
        assert np.isnan(exported.obsm[name][~measured]).all()
    rna = given["rna"]
    assert (exported[rna.obs_names].X != rna.X).nnz == 0
    assert from_toml(exported.uns["cellweave"]["spec"]) == RunFolder.open(run).spec


def test_figures_tables_and_h5mu_from_one_command(run: Path, tmp_path, capsys) -> None:
    names = ["all.h5mu", "umap-by-cluster.svg", "fig1.png", "scores.pdf", "latent.csv", "mine.tsv"]
    paths = [tmp_path / name for name in names]
    code = main(
        [
            "export", str(run), "--h5mu", str(paths[0]), "--figure", str(paths[1]), "--figure", f"losses={paths[2]}", "--figure", str(paths[3]),
            "--table", str(paths[4]), "--table", f"umap={paths[5]}", "--colour-by", "leiden", "--colour-by", "gene:CD8A", "--figure-set", "dpi=80",
        ]
    )  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert read_h5mu(paths[0]).shape == (1600, 724)
    assert "CD8A" in paths[1].read_text(encoding="utf-8") or "<svg" in paths[1].read_text(encoding="utf-8")
    assert paths[2].read_bytes().startswith(PNG)
    assert paths[3].read_bytes().startswith(PDF)
    assert pd.read_csv(paths[4]).shape == (1600, 11)
    assert pd.read_csv(paths[5], sep="\t").shape == (1600, 3)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nothing to export"),
        (["--figure", "x.pdf"], "Begin its name with one of losses, umap"),
        (["--figure", "umap.gif"], ".png, .svg or .pdf"),
        (["--figure", "umap.png", "--figure-set", "dpii=3"], "Did you mean 'dpi'?"),
        (["--figure", "umap.png", "--figure-set", "dpi=3"], "greater than or equal to 50"),
        (["--figure", "umap.png", "--colour-by", "batc"], "Did you mean 'batch'?"),
        (["--table", "x.csv"], "latent"),
        (["--denoised"], "nothing to export"),
        (["--denoised", "--figure", "umap.pdf"], "Add --h5ad"),
        (["--denoised", "--h5ad", "x.h5ad"], "no denoised expression"),
    ],
)
def test_what_cannot_be_exported(run: Path, tmp_path, monkeypatch, capsys, argv: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), *argv]) in {2, 4}
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_without_qt_the_screenshot_is_left_out_with_a_sentence(run: Path, tmp_path, monkeypatch) -> None:
    from cellweave.core.system import QtReport

    report = QtReport("PyQt6", ("libGL.so.1",), "apt-get install libgl1", "Qt needs system libraries that are not installed: libGL.so.1.")
    monkeypatch.setattr("cellweave.core.cli.first_look.qt_report", lambda *, window: report)
    assert screenshot(run, tmp_path / "window.png") == f"{report.problem} This installs them: apt-get install libgl1"
    assert not (tmp_path / "window.png").exists()
