"""Mapping new data onto a trained run: what is new is learned, the rest stays to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from query_runs import QUIET, example_run, kang_folder, kang_run

from cellweave.core.errors import DataError, SpecError
from cellweave.core.export.run_data import RunData
from cellweave.core.models.base import BuildContext, ModalityInfo
from cellweave.core.models.mapped import extend
from cellweave.core.models.registry import families
from cellweave.core.models.vae_network import build
from cellweave.core.nn.layers import CategoricalLinear
from cellweave.core.query.evaluate import reconstruction_error
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.latent import latent_library, latent_mean
from cellweave.core.query.mapping_checks import mapping_checks
from cellweave.core.query.opened import open_run
from cellweave.core.query.surgery import _network_of, mapping_spec
from cellweave.core.runs.events import Warned
from cellweave.core.runs.execute import execute, resume
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec, from_toml
from cellweave.core.spec.files import to_toml
from cellweave.core.study.checks import Level

NEW = {**QUIET, "training.max_epochs": 4, "training.batch_size": 64}


@pytest.fixture(scope="module")
def reference(data_folder):
    return kang_run(data_folder)


def new_file(run, path, *, features=None, batch="new", seed=0):
    """Write one donor of the run as data of their own, its batches under new names and its features in another order."""
    rows = run.rows()[(run.study.obs["donor"].iloc[run.rows()] == "donor_101").to_numpy()]
    order = np.random.default_rng(seed).permutation(len(run.features)) if features is None else np.array(features)
    obs = run.study.obs.iloc[rows][["donor", "cell_type"]].copy()
    obs["batch"] = [f"{batch}_{name}" if batch else name for name in run.study.obs["batch"].iloc[rows].astype(str)]
    obs.index = [f"q{name}" for name in obs.index]
    var = pd.DataFrame(index=np.array(run.features, dtype=object)[order])
    anndata.AnnData(X=run.data.modalities[0].counts[rows][:, order], obs=obs, var=var).write_h5ad(path)
    return rows


@pytest.fixture(scope="module")
def mapped(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapping")
    order = np.random.default_rng(1).permutation(len(reference.features))[:1200]
    rows = new_file(reference, folder / "new.h5ad", features=order)
    events: list[object] = []
    execute(mapping_spec(reference.path, [folder / "new.h5ad"], NEW), folder / "run", listener=events.append)
    return open_run(folder / "run"), rows, events


def test_new_batches_come_after_the_known_ones(mapped, reference):
    run, _, events = mapped
    assert run.batches == (*reference.batches, "new_ctrl", "new_stim")
    said = " ".join(event.text for event in events if isinstance(event, Warned))
    assert "67 of the 1,267 features of rna are missing in these data and count as 0" in said
    assert "New in 'batch', and learned: new_ctrl, new_stim." in said
    assert "The encoder of the reference is not told of the batch" in said


def test_everything_else_stays_to_the_bit(mapped, reference):
    run = mapped[0]
    before, after = reference.model.state_dict(), run.model.state_dict()
    assert before.keys() == after.keys()
    changed = [name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])]
    assert changed == ["decoder.hidden.layers.0.linear.level_weight"]
    rows = after[changed[0]]
    assert torch.equal(rows[:2], before[changed[0]])
    start = before[changed[0]].mean(0)
    assert not torch.allclose(rows[2], start)
    assert not torch.allclose(rows[3], start)


def test_the_reference_is_decoded_as_it_was(mapped, reference):
    again = mapped[0].on(reference.study)
    np.testing.assert_array_equal(latent_mean(again), latent_mean(reference))
    np.testing.assert_array_equal(normalised_expression(again), normalised_expression(reference))


def test_training_explains_the_new_cells_better(mapped):
    losses = RunFolder.open(mapped[0].path).losses()
    assert losses[-1]["reconstruction_train"] < losses[0]["reconstruction_train"] - 5
    assert np.isfinite(reconstruction_error(mapped[0]))


def test_new_cells_lie_where_their_like_lie(mapped, reference):
    """The same cells under a new batch name, a few features missing: their nearest reference cell is of the same condition."""
    run, rows, _ = mapped
    new, old = latent_mean(run), latent_mean(reference)
    distance = ((new[:, None] - old[None]) ** 2).sum(-1)
    types = reference.study.obs["cell_type"].to_numpy()
    agree = types[reference.rows()[distance.argmin(1)]] == types[rows]
    assert agree.mean() > 0.9


def test_the_run_folder_is_a_run_like_any_other(mapped, reference):
    run = mapped[0]
    assert run.spec.reference == str(reference.path)
    assert from_toml(to_toml(run.spec)) == run.spec
    assert np.load(run.path / "results" / "latent.npy").shape == (len(mapped[1]), 10)


def test_it_resumes(mapped, tmp_path):
    spec = mapped[0].spec
    execute(spec.with_changes({"training.max_epochs": 2, "training.kl_warmup_epochs": 4}), tmp_path / "part")
    resume(tmp_path / "part", changes={"training.max_epochs": 4})
    whole, parts = open_run(mapped[0].path), open_run(tmp_path / "part")
    assert len(RunFolder.open(tmp_path / "part").losses()) == 4
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name


def test_what_is_decoded_as_a_reference_batch_is_corrected(mapped):
    run = mapped[0]
    own = normalised_expression(run)
    as_ctrl = normalised_expression(run, None, ExpressionQuestion(transform_batch="ctrl"))
    assert not np.allclose(own, as_ctrl)


# ---------------------------------------------------------------------- networks of every kind


def context(kind, levels, columns, n_labels, **options):
    spec = RunSpec().with_changes(
        {"model.kind": kind, "covariates.batch": "b", "covariates.labels": "l"} | ({"covariates.decoder": ["c", "d"]} if kind == "vae" else {})
    ).with_changes({f"model.{name}": value for name, value in options.items()})
    prior = np.linspace(1.0, 2.0, levels)
    return BuildContext(
        spec, (ModalityInfo("rna", 6, (6,)),), {"batch": levels, "decoder": columns, "labels": n_labels}, 0, 50, {"rna": prior}, {"rna": prior / 2}
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vae", {"encode_covariates": True, "n_layers": 2}),
        ("vae", {"dispersion": "gene-batch", "deeply_inject_covariates": False}),
        ("vae", {"dispersion": "gene-label", "gene_likelihood": "nb"}),
        ("vae", {"batch_representation": "embedding"}),
        ("vae", {"use_observed_lib_size": False, "dispersion": "gene-cell"}),
        ("ldvae", {"gene_likelihood": "zinb", "dispersion": "gene-batch"}),
    ],
)
@pytest.mark.parametrize("before", [1, 3])
def test_an_extended_network_agrees_on_known_levels(kind, options, before):
    from cellweave.core.models.base import Minibatch
    from cellweave.core.models.ldvae_network import build as build_linear
    from cellweave.core.nn.counts import CountBatch

    torch.manual_seed(0)
    make = build if kind == "vae" else build_linear
    old = make(context(kind, before, (1, 2), 2, **options)).eval()
    new, learned = extend(old, context(kind, before + 2, (3, 2), 3, **options))
    n = 20
    known = Minibatch(
        index=torch.arange(n),
        counts={"rna": CountBatch.from_dense(torch.poisson(torch.full((n, 6), 2.0)))},
        categorical={
            "batch": torch.randint(0, before, (n,)), "labels": torch.randint(0, 2, (n,)),
            **({"decoder": torch.stack([torch.zeros(n, dtype=torch.long), torch.randint(0, 2, (n,))], 1)} if kind == "vae" else {}),
        },
    )  # fmt: skip
    with torch.no_grad():
        posterior, again = old.posterior(known), new.posterior(known)
        terms, terms_again = (
            model.terms_at(known, p, p.mean, None if p.log_library is None else p.log_library[0]) for model, p in ((old, posterior), (new, again))
        )
    torch.testing.assert_close(again.mean, posterior.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms_again["reconstruction"], terms["reconstruction"], rtol=1e-5, atol=1e-5)
    for name, rows in learned.items():
        n_new = {"log_theta": 1 if options.get("dispersion") == "gene-label" else 2, "batch_embedding.weight": 2}.get(name)
        if n_new is None:
            module = dict(new.named_modules())[name.removesuffix(".level_weight")]
            assert isinstance(module, CategoricalLinear)
            embedded = options.get("batch_representation") == "embedding"
            # The column that grows from one level to three has two new rows; the batch has two.
            n_new = (0 if embedded else 2) + (2 if kind == "vae" else 0)
        assert int(rows.sum()) == n_new, name
    assert learned


def test_library_priors_of_known_batches_stay(tmp_path):
    run = example_run(model__use_observed_lib_size=False)
    rows = run.rows()[:300]
    obs = run.study.obs.iloc[rows][["celltype"]].assign(batch="elsewhere")
    obs.index = [f"n{name}" for name in obs.index]
    counts = run.data.modalities[0].counts[rows]
    anndata.AnnData(X=counts, obs=obs, var=run.data.modalities[0].var[[]]).write_h5ad(tmp_path / "new.h5ad")
    execute(mapping_spec(run.path, [tmp_path / "new.h5ad"], {**NEW, "training.max_epochs": 1}), tmp_path / "run")
    mapped = open_run(tmp_path / "run")
    assert torch.equal(mapped.model.library_log_mean[:4], run.model.library_log_mean)
    logs = np.log(np.asarray(counts.sum(1)).ravel())[mapped.data.usable]
    assert mapped.model.library_log_mean[4].item() == pytest.approx(logs.mean(), rel=1e-5)
    assert mapped.model.library_log_var[4].item() == pytest.approx(logs.var(), rel=1e-4)
    np.testing.assert_allclose(latent_library(mapped), latent_library(run, rows), rtol=1e-4)


# ---------------------------------------------------------------------- refusals


def test_nothing_new_is_refused(reference, tmp_path):
    new_file(reference, tmp_path / "new.h5ad", batch="")
    with pytest.raises(DataError, match=r"knows every batch of these data .*so there is nothing to learn"):
        execute(mapping_spec(reference.path, [tmp_path / "new.h5ad"], NEW), tmp_path / "run")


def test_other_genes_are_refused(reference, tmp_path):
    new_file(reference, tmp_path / "new.h5ad", features=np.arange(100))
    with pytest.raises(DataError, match="have 100 of the 1,267 features of rna"):
        execute(mapping_spec(reference.path, [tmp_path / "new.h5ad"], NEW), tmp_path / "run")


def test_another_model_is_refused(reference, tmp_path):
    new_file(reference, tmp_path / "new.h5ad")
    spec = mapping_spec(reference.path, [tmp_path / "new.h5ad"], {**NEW, "model.n_latent": 20})
    with pytest.raises(SpecError, match=r"model.n_latent is 20, but the reference was trained with 10"):
        execute(spec, tmp_path / "run")
    spec = mapping_spec(reference.path, [tmp_path / "new.h5ad"], {**NEW, "covariates.batch": "donor"})
    with pytest.raises(SpecError, match=r"covariates.batch is 'donor', but the reference was trained with 'batch'"):
        execute(spec, tmp_path / "other")


def test_a_reference_without_a_batch_is_refused():
    with pytest.raises(SpecError, match="trained without a batch"):
        mapping_spec(example_run(covariates__batch=None).path, [])


def test_a_model_that_takes_no_new_data_names_all_that_do():
    with pytest.raises(SpecError) as refused:
        _network_of(SimpleNamespace(model=None), RunSpec().with_changes({"model.kind": "vaeit"}))
    named = str(refused.value).partition("take new data: ")[2].partition(";")[0].split(", ")
    assert named == [family.title for family in families().values() if family.maps]
    assert {"scVI", "LDVAE", "MIDAS"} <= set(named)


def test_the_reference_is_found_by_its_folder(data_folder):
    spec = mapping_spec(kang_folder(data_folder), ["x.h5ad"])
    assert spec.training.max_epochs == 100
    assert spec.data.sha256 == ()
    assert spec.data.paths[0].endswith("x.h5ad")


def test_data_without_the_batch_are_told_how_to_give_one(reference, tmp_path):
    path = tmp_path / "new.h5ad"
    new_file(reference, path)
    adata = anndata.read_h5ad(path)
    adata.obs = adata.obs.drop(columns="batch").assign(plate=["p1", "p2"] * (adata.n_obs // 2) + ["p1"] * (adata.n_obs % 2))
    adata.write_h5ad(path)
    with pytest.raises(DataError, match=r"no column 'batch'.*donor, cell_type, plate.*data.new_columns.batch=NAME") as caught:
        execute(mapping_spec(reference.path, [path], NEW), tmp_path / "none")
    assert "nothing to learn" not in str(caught.value)
    last = mapping_checks(reference.path, [path])[-1]
    assert last.level is Level.FAIL
    changes = {fix.label: dict(fix.changes) for fix in last.fixes}
    assert changes["Take 'plate' as the batch"] == {"data.combine.batch": ("plate",)}
    for change, levels in ((changes["All cells are one new batch"], "new"), (changes["Take 'plate' as the batch"], "p1, p2")):
        checks = mapping_checks(reference.path, [path], changes=change)
        assert all(check.level is not Level.FAIL for check in checks)
        assert any(check.text == f"New in 'batch', and learned: {levels}." for check in checks)
    execute(mapping_spec(reference.path, [path], {**NEW, "training.max_epochs": 1, "data.new_columns.batch": "lane 9"}), tmp_path / "run")
    assert open_run(tmp_path / "run").batches[-1] == "lane 9"
    assert set(RunData(tmp_path / "run").column("batch").levels) == {"lane 9"}


def test_a_new_column_hides_none(reference, tmp_path):
    new_file(reference, tmp_path / "new.h5ad")
    with pytest.raises(DataError, match="would hide the column 'batch'"):
        execute(mapping_spec(reference.path, [tmp_path / "new.h5ad"], {**NEW, "data.new_columns.batch": "x"}), tmp_path / "run")


def test_a_selection_of_features_is_told_from_other_names(reference, tmp_path):
    new_file(reference, tmp_path / "few.h5ad", features=range(100))
    with pytest.raises(DataError, match=r"have 100 of the 1,267 .* 1,167 are missing, among them '") as caught:
        execute(mapping_spec(reference.path, [tmp_path / "few.h5ad"], NEW), tmp_path / "run")
    assert "are called" not in str(caught.value)
