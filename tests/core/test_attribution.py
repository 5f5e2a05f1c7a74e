"""Modality attribution: the derivative against what is known, both methods, the stage, the live sample, the command and the export."""

import json
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from query_runs import example_folder, example_run

from cellweave.core.analysis.attribution_scores import AttributionScores
from cellweave.core.errors import Cancelled
from cellweave.core.query import attribution as module
from cellweave.core.query.attribution import AttributionQuestion, attribute
from cellweave.core.query.attribution_results import scores_of
from cellweave.core.query.trained_run import QueryError
from cellweave.core.training.attribution import LiveAttribution, attributed_cells, compute_attribution

MULTIMODAL = {"model__kind": "multimodal", "data__modality": None, "training__max_epochs": 3}
EXACT, FORWARD, FINITE = (AttributionQuestion(method=method) for method in ("exact", "forward", "finite"))


@pytest.fixture(scope="module")
def run():
    return example_run(**MULTIMODAL)


def relative(found, wanted):
    """Return the largest difference, over entries that are not tiny beside the largest."""
    return float(np.nanmax(np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-3 * np.abs(wanted).max())))


class Known(torch.nn.Module):
    """``mu = exp(A z)`` of modality b, ``z @ B`` of modality a: both Jacobians can be written down."""

    family = SimpleNamespace(title="Known")

    def __init__(self, latent):
        super().__init__()
        rng = np.random.default_rng(0)
        self.a = torch.nn.Parameter(torch.tensor(rng.normal(size=(5, 3)), dtype=torch.float32))
        self.b = torch.nn.Parameter(torch.tensor(rng.normal(size=(3, 4)), dtype=torch.float32))
        self.z = torch.nn.Parameter(torch.tensor(latent, dtype=torch.float32))

    def latent(self, batch):
        return {"latent": self.z[batch.index]}

    def latent_blocks(self):
        return {"a": slice(0, 1), "b": slice(1, 3)}

    def rate_function(self, batch, *, covariates, reference, library):
        assert (covariates, reference, library) == ("none", "zero", "prior")
        return lambda z: {"a": z @ self.b, "b": torch.exp(z @ self.a.T)}


class OneLoader:
    def __init__(self, n_cells):
        self.data = SimpleNamespace(modalities=[SimpleNamespace(name=name, measured=np.ones(n_cells, bool)) for name in "ab"])

    def minibatch(self, rows):
        from cellweave.core.models.base import Minibatch

        return Minibatch(index=torch.as_tensor(rows), counts={})


@pytest.mark.parametrize("method", ["exact", "forward", "finite"])
def test_a_jacobian_that_is_known(method):
    latent = np.random.default_rng(1).normal(size=(7, 3))
    model = Known(latent)
    found = attribute(model, OneLoader(7), np.arange(7), AttributionQuestion(method=method))
    a, b = model.a.detach().numpy(), model.b.detach().numpy()
    rates = np.exp(latent @ a.T)
    jacobian_b, jacobian_a = rates[:, :, None] * a[None], np.broadcast_to(b.T, (7, 4, 3))
    np.testing.assert_allclose(found.mean_abs["b"], np.abs(jacobian_b).mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.mean_abs["a"], np.abs(jacobian_a).mean(1), rtol=1e-4)
    wanted = [np.sqrt((jacobian_b[:, :, :1] ** 2).sum((1, 2))), np.sqrt((jacobian_b[:, :, 1:] ** 2).sum((1, 2)))]
    np.testing.assert_allclose(found.frobenius["b"], np.stack(wanted, 1), rtol=1e-4)
    assert found.blocks == {"a": (0, 1), "b": (1, 3)} and found.n_features == {"a": 4, "b": 5}
    np.testing.assert_allclose(found.weighted_latent("b"), latent * found.mean_abs["b"], rtol=1e-5)


@pytest.mark.parametrize("removed", ["none", "cat_covs", "feature_scaling", "all"])
@pytest.mark.parametrize("library", ["prior", "posterior"])
def test_all_methods_agree_on_a_trained_model(run, removed, library):
    rows = run.rows()[::60]
    asked = {"remove_covariates": removed, "library": library, "covariate_reference": "mean"}
    exact, forward, finite = (attribute(run.model, run.loader, rows, AttributionQuestion(method=m, **asked)) for m in ("exact", "forward", "finite"))
    for name in ("adt", "rna"):
        for what in ("mean_abs", "frobenius"):
            one, two, three = (getattr(each, what)[name] for each in (exact, forward, finite))
            assert relative(one, two) < 1e-4 and relative(one, three) < 1e-3
            assert np.isfinite(one).all() and one.max() > 0


def test_covariates_in_the_decoder_matter():
    decoded = example_run(**MULTIMODAL, covariates__decoder=("batch",))
    rows = decoded.rows()[::80]
    results = {
        (removed, reference): attribute(
            decoded.model, decoded.loader, rows, AttributionQuestion(remove_covariates=removed, covariate_reference=reference)
        ).mean_abs["rna"]
        for removed, reference in (("none", "zero"), ("cat_covs", "zero"), ("cat_covs", "mean"), ("cat_covs", "reference"))
    }
    values = list(results.values())
    assert all(np.abs(one - other).max() > 1e-8 for place, one in enumerate(values) for other in values[:place])
    # cells of the most frequent batch stay as they are where that batch is the reference
    forward = attribute(
        decoded.model, decoded.loader, rows, AttributionQuestion(method="forward", remove_covariates="cat_covs", covariate_reference="reference")
    )
    assert relative(results["cat_covs", "reference"], forward.mean_abs["rna"]) < 1e-4


def test_two_calls_agree_and_blocks_of_memory_do_not_matter(run, monkeypatch):
    rows = run.rows()[::40]
    first = attribute(run.model, run.loader, rows, EXACT)
    monkeypatch.setattr(module, "ENTRIES", 999)
    monkeypatch.setattr(module, "FEATURES", 13)
    monkeypatch.setattr(module, "CELLS", 7)
    second = attribute(run.model, run.loader, rows, EXACT)
    for name in first.modalities:
        np.testing.assert_allclose(second.mean_abs[name], first.mean_abs[name], rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(second.frobenius[name], first.frobenius[name], rtol=1e-4, atol=1e-9)
    assert not run.model.training


def test_the_burst_decoder_is_differentiated_too():
    burst = example_run(**MULTIMODAL, model__decoder_type="burst_frequency_size")
    rows = burst.rows()[::100]
    exact, finite = attribute(burst.model, burst.loader, rows, EXACT), attribute(burst.model, burst.loader, rows, FINITE)
    assert relative(exact.mean_abs["rna"], finite.mean_abs["rna"]) < 1e-3


def test_a_mean_of_latents_has_no_blocks():
    weighted = example_run(**MULTIMODAL, model__latent_mode="weighted_mean")
    found = attribute(weighted.model, weighted.loader, weighted.rows()[:20], EXACT)
    assert list(found.blocks) == ["joint"] and found.frobenius["rna"].shape == (20, 1)
    scores = scores_of(found, EXACT)
    assert not scores.has_own and [kind.name for kind in scores.kinds()] == ["total", "frobenius"]
    assert set(scores.columns()) == {
        "adt_decoder_total_attr", "adt_decoder_frobenius", "rna_decoder_total_attr", "rna_decoder_frobenius", "log2_adt_vs_rna_attr"
    }  # fmt: skip


def test_only_some_features(run):
    rows, columns = run.rows()[:9], np.array([3, 10, 200])
    for method in ("exact", "forward"):
        found = attribute(run.model, run.loader, rows, AttributionQuestion(method=method, features={"rna": columns}))
        assert found.n_features["rna"] == 3
        if method == "exact":
            first = found
    assert relative(first.mean_abs["rna"], found.mean_abs["rna"]) < 1e-4


def test_cancelling_and_progress(run):
    told = []
    attribute(run.model, run.loader, run.rows()[:30], EXACT, progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 2
    with pytest.raises(Cancelled):
        attribute(run.model, run.loader, run.rows(), EXACT, cancelled=lambda: True)


def test_other_models_say_so():
    plain = example_run()
    with pytest.raises(QueryError, match="gives no modality attribution"):
        attribute(plain.model, plain.loader, plain.rows()[:3])


# ---------------------------------------------------------------------- scores


def test_scores(run):
    rows = run.rows()[::10]
    found = attribute(run.model, run.loader, rows, EXACT)
    scores = scores_of(found, EXACT)
    both = found.measured["rna"] & found.measured["adt"]
    assert 0 < both.sum() < len(rows)  # the example is a mosaic
    np.testing.assert_array_equal(np.isfinite(scores.score("total", "rna")), found.measured["rna"])
    np.testing.assert_array_equal(np.isfinite(scores.log_ratio("adt", "rna")), both)
    assert scores.known.all()
    np.testing.assert_allclose(scores.score("own", "rna") + scores.score("other", "rna"), scores.score("total", "rna"), rtol=1e-4)
    np.testing.assert_allclose(scores.share("rna", "rna") + scores.share("rna", "adt"), np.where(found.measured["rna"], 1, np.nan), rtol=1e-5)
    np.testing.assert_allclose(
        scores.log_ratio("adt", "rna")[both], np.log2(found.mean_abs["adt"].sum(1)[both] / found.mean_abs["rna"].sum(1)[both]), rtol=1e-3, atol=1e-5
    )
    norm = np.sqrt((found.frobenius["rna"].astype(float) ** 2).sum(1) / found.n_features["rna"])
    np.testing.assert_allclose(scores.score("frobenius", "rna")[both], norm[both], rtol=1e-5)
    assert scores.owner(0) == "adt" and scores.owner(19) == "rna" and scores.owner(20) == ""
    shares = scores.block_shares("rna")
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5) and set(shares) == {"adt", "rna"}
    some = np.flatnonzero(both)[:5]
    np.testing.assert_allclose(scores.by_dimension("rna", some), found.mean_abs["rna"][some].mean(0), rtol=1e-5)
    assert np.isnan(scores.by_dimension("rna", np.flatnonzero(~found.measured["rna"])[:3])).all()


# ---------------------------------------------------------------------- with runs


def test_a_run_writes_attribution_and_the_export_has_it(run, tmp_path):
    results = run.path / "results"
    scores = AttributionScores.load(results)
    assert scores is not None and scores.info["library"] == "prior" and scores.info["method"] == "exact"
    assert scores.frobenius.shape == (run.n_cells, 2, 2)
    again = attribute(run.model, run.loader, run.rows(), EXACT)
    np.testing.assert_allclose(scores.mean_abs["rna"][run.rows()][again.measured["rna"]], again.mean_abs["rna"][again.measured["rna"]], rtol=1e-3, atol=1e-8)

    from cellweave.core.export.h5ad import export_h5ad

    pd.DataFrame({"name": run.cell_names, "failure_mode": "ideal", "corr_avg_all": 0.5}).to_csv(results / "neighbourhood.csv", index=False)
    try:
        back = anndata.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad"))
    finally:
        (results / "neighbourhood.csv").unlink()
    assert {"X_latent_attr_rna", "X_latent_attr_adt"} <= set(back.obsm)
    for name, values in scores.columns().items():
        np.testing.assert_allclose(back.obs[name], values, rtol=1e-5, equal_nan=True)
    assert json.loads(back.uns["cellweave"]["attribution"])["blocks"]["adt"] == [0, 10]
    assert (back.obs["neighbourhood_failure_mode"] == "ideal").all() and (back.obs["neighbourhood_corr_avg_all"] == 0.5).all()


def test_a_sample_is_attributed_where_the_spec_says_so(run, tmp_path):
    spec = run.spec.with_changes({"analysis.attribution_cells": 100})
    assert abs(len(attributed_cells(spec, run.data, run.model, "cpu")) - 100) <= 5
    compute_attribution(tmp_path, spec, run.model, run.loader, progress=lambda share: None, cancelled=lambda: False)
    scores = AttributionScores.load(tmp_path)
    assert scores.known.sum() == scores.info["n_cells"] == len(attributed_cells(spec, run.data, run.model, "cpu"))


def test_the_live_sample(run, tmp_path):
    live = LiveAttribution(tmp_path, run.rows(), run.spec, run.data, run.model, "cpu")
    path = live.write(run.model, run.loader, 7)
    assert path.name == "attribution-000007.npz"
    scores, rows = AttributionScores.load_preview(path)
    np.testing.assert_array_equal(rows, live.rows)
    assert scores.info["epoch"] == 7 and scores.frobenius.shape == (len(rows), 2, 2)
    assert len(rows) <= 2000 and (np.diff(rows) > 0).all()


def test_the_live_sample_gives_up_where_memory_does_not_suffice(run, tmp_path, monkeypatch):
    import cellweave.core.training.attribution as training

    def fails(*_, **__):
        raise RuntimeError("out of memory")

    live = LiveAttribution(tmp_path, run.rows(), run.spec, run.data, run.model, "cpu")
    monkeypatch.setattr(training, "attribute", fails)
    assert live.write(run.model, run.loader, 1) is None and live.gave_up
    monkeypatch.undo()
    assert live.write(run.model, run.loader, 2) is None


def test_files_that_cannot_be_read_count_as_none(tmp_path):
    assert AttributionScores.load(tmp_path) is None
    (tmp_path / "attribution.json").write_text("{")
    assert AttributionScores.load(tmp_path) is None
    (tmp_path / "attribution-000001.npz").write_bytes(b"PK")
    assert AttributionScores.load_preview(tmp_path / "attribution-000001.npz") is None


def test_while_training_the_live_attribution_is_written_before_it_is_announced():
    folder = example_folder(**MULTIMODAL, analysis__attribution_live=True, analysis__attribution=False, training__preview_every=1)
    written = sorted(path.name for path in (folder / "preview").glob("*-*.np*"))
    assert written == [f"{kind}-{epoch:06d}.{end}" for kind, end in (("attribution", "npz"), ("latent", "npy")) for epoch in (1, 2, 3)]
    assert AttributionScores.load(folder / "results") is None
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["kind"] == "result" and event["name"] == "attribution"]


def test_the_command(run, tmp_path, capsys):
    from cellweave.core.cli import main

    out = tmp_path / "scores.csv"
    assert main(["query", str(run.path), "attribution", "--out", str(out), "--library-size", "latent"]) == 0
    table = pd.read_csv(out, index_col=0)
    assert {"rna_decoder_total_attr", "log2_adt_vs_rna_attr"} <= set(table)
    assert "The rna decoder is driven by the latents of: adt" in capsys.readouterr().err
    assert main(["query", str(run.path), "attribution", "--keep", "--remove-covariates", "all"]) == 0
    assert AttributionScores.load(run.path / "results").info["remove_covariates"] == "all"
    assert main(["query", str(run.path), "attribution", "--keep"]) == 0
    for wrong in (["--method", "guess"], ["--genes", "CD3E"], ["--keep", "--cells", "batch=p1_0"], ["--library-size", "7"]):
        assert main(["query", str(run.path), "attribution", *wrong]) == 2


def test_hidden_layers_are_differentiated_for_some_of_the_cells() -> None:
    import cellweave.core.query.attribution as module

    weight = torch.randn(30, 6)
    shapes = []

    def decode(latent: torch.Tensor, cells: slice) -> torch.Tensor:
        shapes.append(cells)
        return torch.tanh(latent @ weight.T) * torch.arange(1.0, 51.0)[cells, None]

    z = torch.randn(50, 6)
    hidden, tangents = module._hidden_jacobian(decode, z, slice(10, 17))
    assert hidden.shape == (7, 30) and tangents.shape == (7, 6, 30)
    expected = (1 - torch.tanh(z[10:17] @ weight.T) ** 2)[:, None, :] * weight.T[None] * torch.arange(11.0, 18.0)[:, None, None]
    assert torch.allclose(tangents, expected, atol=1e-4) and all(cells == slice(10, 17) for cells in shapes)
