"""The ambient-regularised models through the command line: train, query by modality and as a level, refusals."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from query_runs import KANG

from cellweave.core.cli import main

MULTIOME = "multiome_bmmc_neurips_2batches.h5mu"
QUICK = [f"--set=analysis.{name}=false" for name in ("umap", "clusters", "baseline", "scores")]
QUICK += ["--set", "training.threads=1", "--set", "training.preview_every=0", "--epochs", "2", "--batch", "batch"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("regularised-cli")


@pytest.fixture
def multiome(home, data_folder: Path) -> Path:
    out = home / "multiome"
    if not out.exists():
        path = data_folder / MULTIOME
        if not path.is_file():
            pytest.skip(f"{MULTIOME} is not in {data_folder}")
        settings = ["--set", "model.n_latent={rna=6, atac=4}", "--set", "model.library_sensitivity={rna=1.0, atac=0.2}"]
        assert main(["train", str(path), "--model", "multimodal", *QUICK, *settings, "--out", str(out)]) == 0
    return out


def test_options_by_modality_reach_the_network(multiome: Path) -> None:
    losses = pd.read_csv(multiome / "losses.csv")
    assert len(losses) == 2 and {"reconstruction_atac_train", "reconstruction_rna_train"} <= set(losses)
    assert np.load(multiome / "results" / "latent_rna.npy").shape[1] == 6
    assert np.load(multiome / "results" / "latent.npy").shape[1] == 10


def test_expression_of_one_modality(multiome: Path, tmp_path: Path) -> None:
    assert main(["query", str(multiome), "expression", "--modality", "atac", "--out", str(tmp_path / "e.h5")]) == 0
    with h5py.File(tmp_path / "e.h5") as file:
        assert file["X"].shape == (500, 600) and file.attrs["modality"] == "atac" and np.isfinite(file["X"][:5]).all()
        assert b"chr" in file["features"][0]


def test_a_modality_that_is_not_there_is_refused(multiome: Path, tmp_path: Path, capsys) -> None:
    assert main(["query", str(multiome), "expression", "--modality", "adt", "--out", str(tmp_path / "e.h5")]) != 0
    assert "does not read adt" in capsys.readouterr().err


def test_counterfactuals(data_folder: Path, home: Path, tmp_path: Path, capsys) -> None:
    path = data_folder / KANG
    if not path.is_file():
        pytest.skip(f"{KANG} is not in {data_folder}")
    run = home / "kang"
    assert main(["train", str(path), "--model", "ambient", *QUICK, "--set", 'covariates.decoder=["donor"]', "--out", str(run)]) == 0
    written = []
    for level in ("donor_101", "donor_107"):
        out = tmp_path / f"{level}.csv"
        assert main(["query", str(run), "expression", "--as-level", f"donor={level}", "--genes", "ISG15,CD3D", "--out", str(out)]) == 0
        written.append(pd.read_csv(out, index_col="cell"))
    assert (written[0] - written[1]).abs().max().max() > 0
    capsys.readouterr()
    assert main(["query", str(run), "expression", "--as-level", "donor=donor_10", "--out", str(tmp_path / "x.csv")]) != 0
    assert "no level 'donor_10' of 'donor'. Did you mean" in capsys.readouterr().err
    assert main(["query", str(run), "expression", "--as-level", "cell_type=B cells", "--out", str(tmp_path / "x.csv")]) != 0
    assert "not told of 'cell_type'" in capsys.readouterr().err


def test_a_table_that_leaves_out_a_modality_is_refused(data_folder: Path, tmp_path: Path, capsys) -> None:
    path = data_folder / MULTIOME
    if not path.is_file():
        pytest.skip(f"{MULTIOME} is not in {data_folder}")
    code = main(["train", str(path), "--model", "multimodal", *QUICK, "--set", "model.n_latent={rna=6}", "--out", str(tmp_path / "run")])
    assert code != 0
    assert "model.n_latent says nothing of atac" in capsys.readouterr().err


def test_one_modality_only_and_a_prior_out_of_range_are_refused(data_folder: Path, tmp_path: Path, capsys) -> None:
    path = data_folder / KANG
    if not path.is_file():
        pytest.skip(f"{KANG} is not in {data_folder}")
    assert main(["train", str(path), "--model", "multimodal", *QUICK, "--out", str(tmp_path / "one")]) != 0
    assert "one modality only (rna)" in capsys.readouterr().err
    assert main(["train", str(path), "--model", "ambient", *QUICK, "--set", "model.z_sparsity_prior=gamma", "--out", str(tmp_path / "prior")]) != 0
    assert "more than the 10 latent dimensions" in capsys.readouterr().err
