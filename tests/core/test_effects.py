"""What covariates do: background, its share, scaling and dispersions against the model itself; files, command, figure."""

import numpy as np
import pytest
import torch
from query_runs import example_run

from cellweave.core.query.effects import ALL, Effects, covariate_effects, gene_table
from cellweave.core.query.trained_run import QueryError

AMBIENT = {"model__kind": "ambient", "training__max_epochs": 3}
MULTIMODAL = {"model__kind": "multimodal", "data__modality": None, "training__max_epochs": 3}


@pytest.fixture(scope="module")
def run():
    return example_run(**AMBIENT)


@pytest.fixture(scope="module")
def effects(run):
    return Effects.load(run.path / "results")


def test_the_background_is_the_models(run, effects):
    table = effects.background["rna"]["batch"]
    assert table.levels == run.batches and table.values.shape == (len(run.batches), len(run.features))
    raw = run.model.stacks["rna"].background.raw
    np.testing.assert_allclose(table.values, torch.exp(raw).detach().numpy(), rtol=1e-5)
    assert effects.features["rna"] == run.features
    np.testing.assert_allclose(effects.dispersion["rna"].values, run.model.dispersions()["rna"].numpy(), rtol=1e-5)
    assert effects.library["rna"]["sensitivity"] == pytest.approx(1.0)


def test_expression_is_the_mean_over_the_cells_of_a_level(run, effects):
    rows = run.rows()
    batch = run.loader.minibatch(rows)
    with torch.no_grad():
        rho = run.model.expression(batch, scaled_to=1.0)["rna"].numpy() * run.model.stacks["rna"].expression_total
    codes = run.model.codes_of(batch).ambient[:, 0].numpy()
    background = effects.background["rna"]["batch"].values
    for level in np.unique(codes):
        np.testing.assert_allclose(effects.expression["rna"]["batch"].values[level], rho[codes == level].mean(0), rtol=1e-4)
    own = background[codes].sum(1)
    np.testing.assert_allclose(effects.cell_fraction["rna"][rows], own / (own + rho.sum(1)), rtol=1e-4)
    assert np.isnan(np.delete(effects.cell_fraction["rna"], rows)).all() and len(rows) < run.n_cells
    share = effects.share("rna", "batch").values
    without = np.setdiff1d(np.arange(len(run.batches)), codes)
    assert len(without) == 1, "one donor of the example has no RNA"
    assert np.isnan(share[without]).all() and ((share[np.unique(codes)] > 0) & (share[np.unique(codes)] < 1)).all()
    total = effects.expression["rna"]["batch"].values
    np.testing.assert_allclose(effects.level_share("rna", "batch"), background.sum(1) / (background + total).sum(1), rtol=1e-5)


def test_files_come_back_as_they_were(run, effects, tmp_path):
    again = covariate_effects(run.model, run.loader, run.trained.features, run.trained.encoding.levels)
    again.save(tmp_path)
    back = Effects.load(tmp_path)
    for one, other in ((back, again), (effects, again)):
        np.testing.assert_allclose(one.background["rna"]["batch"].values, other.background["rna"]["batch"].values, rtol=1e-5)
        np.testing.assert_allclose(one.cell_fraction["rna"], other.cell_fraction["rna"], rtol=1e-4, equal_nan=True)
        assert one.norms["rna"].keys() == other.norms["rna"].keys()
    assert Effects.load(tmp_path / "nowhere") is None
    (tmp_path / "effects.npz").write_bytes(b"PK")
    assert Effects.load(tmp_path) is None


def test_several_modalities():
    run = example_run(**MULTIMODAL)
    found = Effects.load(run.path / "results")
    assert set(found.background) == {"rna"} and set(found.modalities) == {"rna", "adt"}
    measured = next(m.measured for m in run.data.modalities if m.name == "rna")
    np.testing.assert_array_equal(np.isfinite(found.cell_fraction["rna"]), measured & run.data.usable)


def test_without_a_column_all_cells_share_one_background():
    run = example_run(**AMBIENT, covariates__batch=None)
    found = Effects.load(run.path / "results")
    assert list(found.background["rna"]) == [ALL] and found.background["rna"][ALL].levels == (ALL,)


def test_the_table_and_the_command(run, effects, tmp_path, capsys):
    from cellweave.core.cli import main

    table = gene_table(effects)
    assert len(table) == len(run.features) * len(run.batches)
    assert table["background"].is_monotonic_decreasing
    first = table.dropna().iloc[0]
    assert first["ambient_share"] == pytest.approx(first["background"] / (first["background"] + first["expression"]), rel=1e-5)
    out = tmp_path / "effects.csv"
    assert main(["query", str(run.path), "effects", "--keep", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == len(table) + 1
    assert "share of background in the expected counts, by batch" in capsys.readouterr().err
    assert main(["query", str(run.path), "effects", "--cells", "batch=p1_0"]) == 2


def test_other_models_say_so():
    plain = example_run()
    with pytest.raises(QueryError, match="no ambient background"):
        covariate_effects(plain.model, plain.loader, plain.trained.features, {})


def test_the_figure(run, tmp_path):
    from cellweave.core.errors import RunFolderError, SpecError
    from cellweave.core.export.figures import FigureOptions, save_figure

    width, height = save_figure(run.path, "ambient", tmp_path / "ambient.png", FigureOptions(dpi=60))
    assert width > 50 and height > 50 and (tmp_path / "ambient.png").stat().st_size > 3000
    with pytest.raises(SpecError, match="too small"):
        save_figure(run.path, "ambient", tmp_path / "small.png", FigureOptions(width_mm=30, height_mm=30))
    with pytest.raises(RunFolderError, match="no ambient background"):
        save_figure(example_run().path, "ambient", tmp_path / "none.png")


def test_the_attribution_figure(tmp_path):
    from cellweave.core.errors import RunFolderError, SpecError
    from cellweave.core.export.figures import FigureOptions, save_figure

    run = example_run(**MULTIMODAL)
    for kind in ("total", "own_share"):
        save_figure(run.path, "attribution", tmp_path / f"{kind}.svg", FigureOptions(dpi=60, attribution_score=kind, columns=("batch",)))
        assert "rna decoder" in (tmp_path / f"{kind}.svg").read_text()
    with pytest.raises(SpecError, match="too small"):
        save_figure(run.path, "attribution", tmp_path / "small.png", FigureOptions(width_mm=40, height_mm=40))
    with pytest.raises(RunFolderError, match="no modality attribution"):
        save_figure(example_run().path, "attribution", tmp_path / "none.png")
