"""Differential expression: known genes, every option, every refusal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from query_numpy import NumpyVae
from query_runs import example_run, kang_run
from scipy.special import logsumexp
from scipy.stats import norm

from cellweave.core.query import de_stats, sampling
from cellweave.core.query import differential as module
from cellweave.core.query.differential import DifferentialOptions, differential_by_cells, differential_by_column
from cellweave.core.query.evaluate import marginal_ll
from cellweave.core.query.groups import by_cells, by_column, raw_statistics
from cellweave.core.query.importance import importance_draws
from cellweave.core.query.trained_run import QueryError

INTERFERON = ["ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "LY6E", "ISG20", "OAS1"]
QUICK = {"n_samples": 1000, "all_stats": False}


@pytest.fixture(scope="module")
def kang(data_folder):
    return kang_run(data_folder)


@pytest.fixture(scope="module")
def stimulated(kang):
    return differential_by_column(kang, "batch", "stim", "ctrl")


@pytest.fixture(scope="module")
def run():
    return example_run()


# ---------------------------------------------------------------------- what it finds


def test_interferon_genes_are_found(stimulated):
    known = [gene for gene in INTERFERON if gene in stimulated.index]
    assert len(known) >= 6
    assert (stimulated.loc[known, "lfc_mean"] > 0.5).all()
    assert stimulated.loc[known, "is_de_fdr_0.05"].mean() > 0.6
    rank = stimulated.index.get_indexer(known)
    assert np.median(rank) < 30
    assert stimulated["is_de_fdr_0.05"].mean() < 0.3


def test_the_table_is_whole(stimulated, kang):
    assert len(stimulated) == 1267
    assert set(stimulated.index) == set(kang.features)
    assert stimulated["proba_de"].is_monotonic_decreasing
    assert not stimulated.isna().any().any()
    np.testing.assert_allclose(stimulated["proba_de"] + stimulated["proba_not_de"], 1)
    assert (stimulated["comparison"] == "stim vs ctrl").all()
    assert stimulated["delta"].unique().tolist() == [0.25]
    assert stimulated["pseudocounts"].nunique() == 1
    assert (stimulated[["lfc_min", "lfc_mean", "lfc_max"]].diff(axis=1).iloc[:, 1:] >= 0).all().all()


def test_the_same_question_has_the_same_answer(stimulated, kang):
    again = differential_by_column(kang, "batch", "stim", "ctrl")
    pd.testing.assert_frame_equal(stimulated, again)
    other = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(seed=1))
    assert not np.array_equal(other.loc[stimulated.index, "lfc_mean"], stimulated["lfc_mean"])
    assert np.corrcoef(other.loc[stimulated.index, "lfc_mean"], stimulated["lfc_mean"])[0, 1] > 0.99


def test_the_other_way_round_changes_the_sign(stimulated, kang):
    back = differential_by_column(kang, "batch", "ctrl", "stim", options=DifferentialOptions(all_stats=False)).loc[stimulated.index]
    assert np.corrcoef(back["lfc_mean"], -stimulated["lfc_mean"])[0, 1] > 0.99


def test_two_halves_of_one_group_do_not_differ(kang):
    rows = kang.rows()[kang.data.categorical["batch"][kang.rows()] == 0]
    rows = np.random.default_rng(0).permutation(rows)
    table = differential_by_cells(kang, rows[:300], rows[300:600], options=DifferentialOptions(all_stats=False))
    assert table["is_de_fdr_0.05"].sum() == 0
    assert abs(table["lfc_mean"].mean()) < 0.1


def test_correction_within_batches_takes_the_effect_of_the_batch_away(kang, stimulated):
    """Decoded as both batches alike, the two conditions differ less than decoded as their own."""
    corrected = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(batch_correction=True, all_stats=False))
    known = [gene for gene in INTERFERON if gene in corrected.index]
    assert corrected.loc[known, "lfc_mean"].abs().mean() < 0.8 * stimulated.loc[known, "lfc_mean"].abs().mean()


def test_raw_statistics_against_pandas(kang, stimulated):
    rows = kang.rows()
    stim = kang.data.categorical["batch"][rows] == kang.batches.index("stim")
    counts = pd.DataFrame(kang.data.modalities[0].counts[rows].toarray().astype(float), columns=kang.features)[stimulated.index]
    for number, of_group in ((1, stim), (2, ~stim)):
        group = counts[of_group]
        np.testing.assert_allclose(stimulated[f"raw_mean{number}"], group.mean(), rtol=1e-9)
        np.testing.assert_allclose(stimulated[f"non_zeros_proportion{number}"], (group > 0).mean(), rtol=1e-9)
        np.testing.assert_allclose(stimulated[f"raw_normalized_mean{number}"], group.div(group.sum(axis=1), axis=0).mean() * 1e4, rtol=1e-9)


def test_raw_statistics_do_not_depend_on_the_blocks(run):
    comparison = by_column(run, "celltype", None)[0]
    counts = run.data.modalities[0].counts
    whole, parts = raw_statistics(counts, comparison), raw_statistics(counts, comparison, block=37)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-9)


# ---------------------------------------------------------------------- options


def test_vanilla_mode(kang):
    table = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(mode="vanilla", **QUICK))
    assert table["bayes_factor"].is_monotonic_decreasing
    np.testing.assert_allclose(table["proba_m1"] + table["proba_m2"], 1)
    known = [gene for gene in INTERFERON if gene in table.index]
    assert (table.loc[known, "proba_m1"] > 0.9).all()
    assert "proba_de" not in table
    assert "is_de_fdr_0.05" not in table


def test_sides(kang):
    three, two = (
        differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(test_mode=mode, **QUICK)).sort_index() for mode in ("three", "two")
    )
    assert (two["proba_de"] >= three["proba_de"]).all()
    assert (two["proba_de"] > three["proba_de"]).any()


def test_a_larger_delta_calls_fewer(kang):
    small, large = (
        differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(delta=delta, **QUICK)).sort_index() for delta in (0.1, 1.0)
    )
    assert (large["proba_de"] <= small["proba_de"]).all()
    assert large["is_de_fdr_0.05"].sum() < small["is_de_fdr_0.05"].sum()


def test_delta_from_a_mixture(kang):
    table = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(delta=None, **QUICK))
    assert table["delta"].nunique() == 1
    assert table["delta"].iloc[0] >= 0.1
    rng = np.random.default_rng(0)
    three = np.concatenate([rng.normal(-2, 0.1, 100), rng.normal(0, 0.1, 800), rng.normal(3, 0.1, 100)])
    assert de_stats.delta_of(three, seed=0) == pytest.approx(0.6 * 2.5, rel=0.05)
    assert de_stats.delta_of(rng.normal(0, 0.01, 500), seed=0) == 0.1


def test_a_pseudocount_that_is_given(kang):
    table = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(pseudocount=1e-3, **QUICK))
    assert table["pseudocounts"].unique().tolist() == [1e-3]
    estimated = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(**QUICK))
    assert table["is_de_fdr_0.05"].sum() < estimated["is_de_fdr_0.05"].sum()


def test_intervals_hold_their_share(kang):
    table = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(intervals=(0.5, 0.95), **QUICK))
    narrow = table["lfc_confidence_interval_0.5_max"] - table["lfc_confidence_interval_0.5_min"]
    wide = table["lfc_confidence_interval_0.95_max"] - table["lfc_confidence_interval_0.95_min"]
    assert (narrow < wide).all()
    draws = np.sort(np.random.default_rng(0).normal(size=(20_000, 1)), axis=0)
    low, high = de_stats.narrowest_interval(draws, 0.9)
    assert low[0] == pytest.approx(norm.ppf(0.05), abs=0.12)
    assert high[0] == pytest.approx(norm.ppf(0.95), abs=0.12)


def test_permutation_draws_as_many_pairs_as_asked(kang, monkeypatch):
    seen = []
    change = de_stats.change
    monkeypatch.setattr(de_stats, "change", lambda one, two, **how: seen.append(one.shape[0]) or change(one, two, **how))
    options = DifferentialOptions(use_permutation=True, m_permutation=1501, batch_correction=True, **QUICK)
    differential_by_column(kang, "batch", "stim", "ctrl", options=options)
    assert set(seen) == {2 * (1501 // 2)}


def test_pairs_are_of_the_same_batch():
    rng, notes = np.random.default_rng(0), []
    batch1, batch2 = np.array([0, 0, 1, 1, 2, 2]), np.array([2, 2, 0, 0, 1, 1])
    for permuted in (False, True):
        options = DifferentialOptions(batch_correction=True, use_permutation=permuted, m_permutation=60)
        one, two = module._pairs(batch1, batch2, options, rng, notes)
        np.testing.assert_array_equal(batch1[one], batch2[two])
        assert len(one) == (60 if permuted else 6)
    assert notes == []


def test_batches_that_partly_overlap_are_said(kang, run):
    names = [run.batches[code] for code in np.unique(run.data.categorical["batch"][run.rows()])]
    options = DifferentialOptions(batch_correction=True, batches1=names[:2], batches2=names[1:], **QUICK)
    table = differential_by_column(run, "celltype", by_column(run, "celltype", None)[0].name1, options=options)
    assert "overlap without being the same" in table.attrs["notes"][0]
    options = DifferentialOptions(batch_correction=True, batches1=names[:1], batches2=names[1:], **QUICK)
    assert differential_by_column(run, "celltype", by_column(run, "celltype", None)[0].name1, options=options).attrs["notes"] == []


def test_outliers_are_left_out(kang):
    options = DifferentialOptions(filter_outlier_cells=True, n_samples=500)
    table = differential_by_column(kang, "batch", "stim", "ctrl", options=options)
    whole = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(n_samples=500)).loc[table.index]
    assert not np.allclose(table["raw_mean1"], whole["raw_mean1"])
    assert np.corrcoef(table["raw_mean1"], whole["raw_mean1"])[0, 1] > 0.99


def test_a_spread_that_cannot_be_estimated_keeps_all_cells_and_says_so(run, monkeypatch):
    import sklearn.covariance

    def refuse(self, values):
        raise ValueError

    monkeypatch.setattr(sklearn.covariance.EllipticEnvelope, "fit_predict", refuse)
    options = DifferentialOptions(filter_outlier_cells=True, **QUICK)
    notes = differential_by_column(run, "celltype", by_column(run, "celltype", None)[0].name1, options=options).attrs["notes"]
    assert len(notes) == 2
    assert "could not be estimated" in notes[0]


def test_importance_weights(run):
    options = DifferentialOptions(weights="importance", n_samples=60, all_stats=False)
    group = by_column(run, "celltype", None)[0].name1
    table = differential_by_column(run, "celltype", group, options=options)
    pd.testing.assert_frame_equal(table, differential_by_column(run, "celltype", group, options=options))
    uniform = differential_by_column(run, "celltype", group, options=DifferentialOptions(n_samples=60, all_stats=False))
    assert np.corrcoef(table["scale1"], uniform.loc[table.index, "scale1"])[0, 1] > 0.5
    assert "overconfident" in table.attrs["notes"][0]
    assert not np.allclose(table["scale1"], uniform.loc[table.index, "scale1"])


def test_importance_weights_against_numpy(run):
    rows, n_draws = run.rows()[:20], 20
    rng = np.random.default_rng(8)
    chosen, z, effective = importance_draws(run, rows, n_draws, None, seed=3, generator=run.generator(5), rng=np.random.default_rng(8))

    vae, anchors = NumpyVae(run), np.sort(rng.choice(rows, 20, replace=False))
    candidates = np.repeat(rows, 2)
    counts = run.data.modalities[0].counts.toarray().astype(np.float64)
    batch = run.data.categorical["batch"]
    mean, var = vae.encode(counts[candidates])
    raw = mean + np.sqrt(var) * torch.randn(mean.shape, generator=torch.Generator().manual_seed(5)).numpy()
    shares, zero = vae.decode(raw, batch[candidates])
    fits = np.stack([vae.log_likelihood(counts[i][None], shares * counts[i].sum(), zero) for i in anchors], 1)
    log_p_x = marginal_ll(run, anchors, n_samples=100, seed=3)
    anchor_mean, anchor_var = vae.encode(counts[anchors])
    log_q = norm.logpdf(raw[:, None], anchor_mean, np.sqrt(anchor_var)).sum(2)
    weight = norm.logpdf(raw).sum(1) - logsumexp(log_q, axis=1) + logsumexp(fits - log_p_x, axis=1)
    p = np.exp(weight - logsumexp(weight))
    assert effective == pytest.approx(1 / (p**2).sum(), rel=0.02)
    place = rng.choice(40, size=n_draws, replace=True, p=p)
    assert (candidates[place] == chosen).mean() > 0.9
    same = candidates[place] == chosen
    np.testing.assert_allclose(z.numpy()[same], raw[place][same], rtol=1e-3, atol=1e-4)


def test_samples_on_disk_give_the_same_answer(kang, monkeypatch):
    whole = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(**QUICK))
    monkeypatch.setattr(sampling, "MEMORY_SHARE", 1e-12)
    monkeypatch.setattr(module, "FEATURES", 100)
    made, room = [], sampling.room_for
    monkeypatch.setattr(module, "room_for", lambda shape, path: made.append(room(shape, path)) or made[-1])
    found = differential_by_column(kang, "batch", "stim", "ctrl", options=DifferentialOptions(**QUICK))
    assert all(isinstance(one, np.memmap) for one in made)
    pd.testing.assert_frame_equal(found, whole, rtol=1e-6)


def test_every_level_against_the_rest(run):
    table = differential_by_column(run, "celltype", options=DifferentialOptions(n_samples=200, all_stats=False))
    levels = run.study.obs["celltype"].iloc[run.rows()].nunique()
    assert table["group1"].nunique() == levels
    assert (table["group2"] == "Rest").all()
    assert len(table) == levels * 500


def test_only_the_chosen_cells_are_compared(run):
    within = run.rows()[:500]
    found = by_column(run, "batch", None, within=within)
    assert all(np.isin(one.rows1, within).all() and np.isin(one.rows2, within).all() for one in found)


def test_cells_against_all_others(run):
    rows = run.rows()[:100]
    found = by_cells(run, rows)
    np.testing.assert_array_equal(np.sort(np.concatenate([found.rows1, found.rows2])), run.rows())


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nosuch",), "no column 'nosuch'"),
        (("celltyp",), "Did you mean 'celltype'"),
        (("batch", "p1_O"), "no level 'p1_O'.*Did you mean 'p1_0'"),
        (("batch", "p2_0"), "'p2_0' of 'batch' has no cells"),
        (("batch", "p1_0", "p1_0"), "compared with itself"),
    ],
)
def test_groups_that_do_not_exist(run, arguments, words):
    with pytest.raises(QueryError, match=words):
        by_column(run, *arguments)


def test_groups_with_few_or_no_cells(run):
    rows = run.rows()
    with pytest.raises(QueryError, match="'left' has no cells"):
        by_cells(run, [], rows, ("left", "right"))
    with pytest.raises(QueryError, match="'right' has no cells"):
        by_cells(run, rows[:10], np.zeros(run.n_cells, dtype=bool), ("left", "right"))
    with pytest.raises(QueryError, match="'left' has only 2 cells"):
        by_cells(run, rows[:2], rows[10:20], ("left", "right"))
    with pytest.raises(QueryError, match="'Rest' has no cells"):
        by_cells(run, rows)
    with pytest.raises(QueryError, match="5 cells are in both groups"):
        by_cells(run, rows[:15], rows[10:20])


def test_a_column_of_one_level(run):
    rows = run.rows()
    first = rows[run.data.categorical["batch"][rows] == run.data.categorical["batch"][rows[0]]]
    with pytest.raises(QueryError, match="has only one level here"):
        by_column(run, "batch", None, within=first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "other"}, "mode 'other'"),
        ({"test_mode": "one"}, "test mode 'one'"),
        ({"weights": "equal"}, "weights 'equal'"),
        ({"delta": -1.0}, "delta must not be negative"),
        ({"pseudocount": 0.0}, "pseudocount must be above 0"),
        ({"fdr_target": 1.5}, "between 0 and 1"),
        ({"intervals": (95,)}, "between 0 and 1"),
        ({"n_samples": 1}, "At least 2 samples"),
        ({"batches1": ("p1_0",)}, "batch_correction is off"),
        ({"mode": "vanilla", "intervals": (0.9,)}, "vanilla mode has none"),
    ],
)
def test_options_that_mean_nothing(run, changes, words):
    with pytest.raises(QueryError, match=words):
        differential_by_column(run, "celltype", options=DifferentialOptions(**changes))


def test_correction_without_a_batch():
    run = example_run(covariates__batch=None)
    with pytest.raises(QueryError, match="without a batch"):
        differential_by_column(run, "celltype", options=DifferentialOptions(batch_correction=True, **QUICK))


# ---------------------------------------------------------------------- false discovery rate


def test_the_expected_share_of_false_calls_is_kept():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p, target = rng.beta(0.4, 0.4, rng.integers(1, 200)), rng.uniform(0.01, 0.5)
        called = de_stats.tagged(p, target)
        if called.any():
            assert (1 - p[called]).mean() <= target + 1e-12
            assert p[called].min() >= np.max(p[~called], initial=0)
        more = called.copy()
        rest = np.flatnonzero(~called)
        if rest.size:
            more[rest[np.argmax(p[rest])]] = True
            assert (1 - p[more]).mean() > target
