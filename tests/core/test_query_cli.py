"""``cellweave query`` and ``cellweave map``: what they write, show and refuse."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from query_runs import QUIET, example_folder, example_run, kang_folder, kang_run

from cellweave.core.cli import main
from cellweave.core.query.differential import DifferentialOptions, differential_by_column
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.latent import latent_mean
from cellweave.core.query.opened import open_run


@pytest.fixture(scope="module")
def run():
    return example_run()


@pytest.fixture
def ask(capsys):
    def call(*argv: object) -> tuple[int, str, str]:
        code = main(["query", *map(str, argv)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_latents_are_written(ask, run, tmp_path):
    code, out, _ = ask(run.path, "latent", "--out", tmp_path / "z.csv")
    assert (code, out.strip()) == (0, str(tmp_path / "z.csv"))
    table = pd.read_csv(tmp_path / "z.csv", index_col="cell")
    assert list(table.index) == list(run.cell_names[run.rows()])
    np.testing.assert_allclose(table, latent_mean(run), rtol=1e-5, atol=1e-6)


def test_a_table_is_shown_in_short(ask, run):
    code, out, err = ask(run.path, "latent", "--draws", 2, "--seed", 4)
    assert code == 0
    assert out.splitlines()[0].split()[:2] == ["cell", "Z_0"]
    assert len(out.splitlines()) == 21
    assert "1,180 further rows are not shown" in err


@pytest.mark.parametrize("suffix", ["csv", "h5", "h5ad"])
def test_expression_is_written(ask, run, tmp_path, suffix):
    names = [run.features[3], run.features[0]]
    (tmp_path / "names.txt").write_text(f"{names[1]}\n\n")
    file = tmp_path / f"e.{suffix}"
    code, _, _ = ask(
        run.path, "expression", "--out", file, "--genes", names[0], "--genes", f"@{tmp_path / 'names.txt'}", "--all-batches", "--library-size", "1e4"
    )
    assert code == 0
    expected = normalised_expression(run, None, ExpressionQuestion(names, run.batches, 1e4))
    if suffix == "csv":
        found = pd.read_csv(file, index_col="cell")
        assert list(found.columns) == names
    elif suffix == "h5":
        with h5py.File(file) as stored:
            found = stored["X"][:]
    else:
        found = anndata.read_h5ad(file).X
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_only_some_cells(ask, run, tmp_path):
    batch = run.batches[0]
    assert ask(run.path, "latent", "--cells", f"batch={batch}", "--out", tmp_path / "z.csv")[0] == 0
    of_batch = (run.study.obs["batch"].astype(str) == batch).to_numpy() & run.data.usable
    assert len(pd.read_csv(tmp_path / "z.csv")) == of_batch.sum()


def test_differential_expression(ask, data_folder, tmp_path):
    folder = kang_folder(data_folder)
    code, _, _ = ask(folder, "differential", "--groupby", "batch", "--group1", "stim", "--group2", "ctrl", "--delta", "auto", "--out", tmp_path / "de.csv")
    assert code == 0
    table = pd.read_csv(tmp_path / "de.csv", index_col="feature")
    expected = differential_by_column(kang_run(data_folder), "batch", "stim", "ctrl", options=DifferentialOptions(delta=None))
    assert table.index[:20].tolist() == expected.index[:20].tolist()
    np.testing.assert_allclose(table["lfc_mean"], expected["lfc_mean"], rtol=1e-4)


def test_correlation_and_evaluation(ask, run, tmp_path):
    genes = ",".join(run.features[:5])
    assert ask(run.path, "correlation", "--genes", genes, "--pearson", "--draws", 2, "--out", tmp_path / "c.csv")[0] == 0
    table = pd.read_csv(tmp_path / "c.csv", index_col="feature")
    assert table.shape == (5, 5)
    np.testing.assert_allclose(np.diag(table), 1)
    code, out, _ = ask(run.path, "evaluate", "--draws", 2, "--out", tmp_path / "terms.csv")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["reconstruction", "kl_z", "elbo", "marginal_ll"]
    assert sum(line.startswith("mmd ") for line in out.splitlines()) == 2
    assert len(pd.read_csv(tmp_path / "terms.csv")) == 1200


def test_minified_data_are_written_and_asked(ask, run, tmp_path):
    file = tmp_path / "m.h5ad"
    assert ask(run.path, "minify", "--out", file)[0] == 0
    assert ask(run.path, "latent", "--minified", file, "--out", tmp_path / "z.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "z.csv", index_col="cell"), latent_mean(run), rtol=1e-5, atol=1e-6)
    code, _, err = ask(run.path, "evaluate", "--minified", file)
    assert code == 2
    assert "needs the counts" in err


def test_new_cells_are_refused_then_mapped_then_asked(ask, run, tmp_path, capsys):
    rows = run.rows()[:200]
    obs = run.study.obs.iloc[rows][["celltype"]].assign(batch="elsewhere")
    new = anndata.AnnData(X=run.data.modalities[0].counts[rows], obs=obs, var=run.data.modalities[0].var[[]])
    new.write_h5ad(tmp_path / "new.h5ad")
    code, _, err = ask(run.path, "latent", "--data", tmp_path / "new.h5ad")
    assert code == 2
    assert "was not trained on the level 'elsewhere' of 'batch'" in err
    quiet = [f"--set={path}={str(value).lower()}" for path, value in QUIET.items()]
    argv = ["map", str(run.path), str(tmp_path / "new.h5ad"), "--epochs", "2", "--seed", "3", "--out", str(tmp_path / "run"), *quiet]
    assert main(argv) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run")
    mapped = open_run(tmp_path / "run")
    assert (mapped.spec.training.max_epochs, mapped.spec.training.seed) == (2, 3)
    assert mapped.batches[-1] == "elsewhere"
    assert ask(tmp_path / "run", "latent", "--data", tmp_path / "new.h5ad", "--out", tmp_path / "z.csv")[0] == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "z.csv", index_col="cell"), latent_mean(run, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["latnt"], "Did you mean 'latent'?"),
        (["latent", "--genes", "A"], "'latent' does not take --genes. Its options are: --draws, --seed."),
        (["library", "--seed", "1"], "'library' does not take --seed."),
        (["library"], "infers no library size"),
        (["latent", "--out", "z.h5ad"], "'latent' is written as .csv, not as '.h5ad'"),
        (["expression"], "too large to be shown"),
        (["expression", "--out", "e.csv", "--genes", "nosuch"], "does not know 1 of the 1"),
        (["expression", "--out", "e.csv", "--genes", "@nosuch.txt"], "The feature list 'nosuch.txt' cannot be read"),
        (["expression", "--out", "e.csv", "--library-size", "many"], "--library-size is 'many', which is no number"),
        (["expression", "--out", "e.csv", "--library-size", "-1"], "A library size of -1"),
        (["expression", "--out", "e.csv", "--as-batch", "p1_0", "--all-batches"], "contradict each other"),
        (["differential"], "--groupby is needed"),
        (["differential", "--groupby", "celltype", "--group1", "nobody"], "no level 'nobody'"),
        (["differential", "--groupby", "celltype", "--delta", "much"], "--delta is 'much'"),
        (["pseudobulk", "--groupby", "batch"], "'pseudobulk' needs --sample"),
        (["latent", "--cells", "batch"], "not of the form COLUMN=LEVEL"),
        (["latent", "--cells", "batch=nowhere"], "No cell has batch = nowhere"),
        (["latent", "--data", "a.h5ad", "--minified", "b.h5ad"], "name different cells"),
        (["minify", "--out", "m.h5ad", "--cells", "batch=p1_0"], "hold all cells of a run"),
    ],
)
def test_refusals_are_one_sentence_with_exit_code_two(ask, argv, words):
    code, _, err = ask(example_folder(), *argv)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_folder_that_is_no_run(ask, tmp_path):
    assert ask(tmp_path, "latent")[0] == 2
    assert main(["map", str(tmp_path), str(tmp_path / "absent.h5ad")]) == 2
