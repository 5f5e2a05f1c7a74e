"""The statistics of differential expression against numbers that scvi-tools 1.4.2 gave for the same samples."""

import numpy as np
import pytest
from golden_scvi import golden

from cellweave.core.query import de_stats

DE = golden()["de"]
ONE, TWO = np.array(DE["scale1"]), np.array(DE["scale2"])


def _change(test_mode):
    return de_stats.change(
        ONE, TWO, pseudocount=DE["pseudocount"], delta=DE["delta"], test_mode=test_mode, intervals=(0.9,)
    )


def test_pseudocount():
    found = de_stats.pseudocount_of(ONE.max(0), TWO.max(0), np.array(DE["zero1"]), np.array(DE["zero2"]))
    assert found == pytest.approx(DE["pseudocount"], rel=1e-12)


def test_pseudocount_without_silent_features():
    nobody = np.zeros(5, dtype=bool)
    assert de_stats.pseudocount_of(ONE.max(0), TWO.max(0), nobody, nobody) == 1e-10


def test_vanilla():
    found = de_stats.vanilla(ONE, TWO)
    for name, values in DE["vanilla"].items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12)
    np.testing.assert_allclose(found["proba_m2"], 1 - np.array(DE["vanilla"]["proba_m1"]), rtol=1e-12)


@pytest.mark.parametrize("test_mode", ["two", "three"])
def test_change(test_mode):
    found = _change(test_mode)
    np.testing.assert_allclose(found["proba_de"], DE["change"][f"proba_de_{test_mode}"], rtol=1e-12)
    np.testing.assert_allclose(found["proba_de"] + found["proba_not_de"], 1.0, rtol=1e-15)


@pytest.mark.parametrize("name", ["bayes_factor", "lfc_mean", "lfc_median", "lfc_std", "lfc_min", "lfc_max"])
def test_fold_changes(name):
    np.testing.assert_allclose(_change("three")[name], DE["change"][name], rtol=1e-9, atol=1e-12)


def test_credible_interval():
    found = _change("three")
    ours = np.stack([found["lfc_confidence_interval_0.9_min"], found["lfc_confidence_interval_0.9_max"]], axis=1)
    np.testing.assert_allclose(ours, DE["hpd_090"], rtol=1e-9)


def test_false_discovery_rate():
    np.testing.assert_array_equal(de_stats.tagged(np.array(DE["fdr"]["proba"]), 0.05), DE["fdr"]["is_de_fdr_005"])


def test_samples_in_single_precision_give_the_same_answer():
    """What a run is asked with: the samples are kept as float32."""
    exact = _change("three")
    found = de_stats.change(
        ONE.astype(np.float32), TWO.astype(np.float32), pseudocount=DE["pseudocount"], delta=DE["delta"], intervals=(0.9,)
    )
    np.testing.assert_allclose(found["proba_de"], exact["proba_de"], rtol=1e-12)
    np.testing.assert_allclose(found["lfc_mean"], exact["lfc_mean"], rtol=1e-4)
