"""Tables of a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import make_run

from cellweave.core.errors import CellweaveError, RunFolderError, SpecError
from cellweave.core.export.tables import TABLES, save_table


@pytest.fixture
def run(tmp_path):
    (tmp_path / "a.csv").write_text("cell,g\nc0,1\n")
    return make_run(tmp_path / "run", [tmp_path / "a.csv"], [20], no_latent=(3,), columns={"batch": np.array(["a", "01"])[np.arange(20) % 2]})


def test_every_table_has_its_rows_and_names(tmp_path, run):
    rows = {"losses": 30, "scores": 6, "metrics": 14}
    for kind in TABLES:
        table = pd.read_csv(save_table(run.path, kind, tmp_path / f"{kind}.csv"), dtype={"batch": str})
        assert len(table) == rows.get(kind, 20), kind
        if kind not in rows:
            assert table["name"].tolist() == [f"c{i}" for i in range(20)]


def test_values_are_those_of_the_run(tmp_path, run):
    latent = pd.read_csv(save_table(run.path, "latent", tmp_path / "latent.csv"))
    assert list(latent) == ["name", "latent_1", "latent_2", "latent_3", "latent_4"]
    assert latent["latent_2"].iloc[5] == 6
    assert latent.iloc[3, 1:].isna().all()
    losses = pd.read_csv(save_table(run.path, "losses", tmp_path / "losses.csv"))
    pd.testing.assert_frame_equal(losses, pd.read_csv(run.losses_file))
    cells = pd.read_csv(save_table(run.path, "cells", tmp_path / "cells.tsv"), sep="\t", dtype={"batch": str})
    assert cells["batch"].tolist() == ["a", "01"] * 10
    assert cells["umap_2"].iloc[7] == -7
    assert cells["leiden"].isna().tolist() == [i == 3 for i in range(20)]


def test_what_is_missing_is_said(tmp_path, run):
    (run.results / "clusters.csv").unlink()
    (run.results / "umap.npy").unlink()
    (run.results / "scores.json").unlink()
    (run.results / "integration.json").unlink()
    (run.results / "latent.npy").unlink()
    run.losses_file.unlink()
    for kind in ("clusters", "umap", "scores", "metrics", "losses", "latent"):
        with pytest.raises(RunFolderError, match="has no"):
            save_table(run.path, kind, tmp_path / "x.csv")
    with pytest.raises(SpecError, match="There is no table 'nothing'"):
        save_table(run.path, "nothing", tmp_path / "x.csv")
    with pytest.raises(CellweaveError, match="cannot be written"):
        save_table(run.path, "cells", tmp_path / "no folder" / "x.csv")
