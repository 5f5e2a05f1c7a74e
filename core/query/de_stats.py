"""The statistics of differential expression, on samples of expression (Lopez et al. 2018; Boyeau et al. 2019).

Samples are ``(n_samples, n_features)``; row ``i`` of one group is compared with row ``i`` of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

EPS = 1e-8
SMALLEST_PSEUDOCOUNT = 1e-10
#: What is added to the expressions for the reported fold changes, as a share of the pseudocount of the test.
REPORTED_SHARE = 1e-3

TestMode = Literal["two", "three"]


def log_bayes_factor(p: np.ndarray) -> np.ndarray:
    """Return ``log(p + 1e-8) - log(1 - p + 1e-8)``."""
    return np.log(p + EPS) - np.log(1.0 - p + EPS)


def log_fold_change(first: np.ndarray, second: np.ndarray, pseudocount: float) -> np.ndarray:
    """Return ``log2(first + pseudocount) - log2(second + pseudocount)``."""
    return np.log2(first + pseudocount) - np.log2(second + pseudocount)


def vanilla(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """Return the probability that the first group expresses more, ``proba_m1``, its complement, and the Bayes factor; each ``(n_features,)``."""
    p = np.mean(first > second, axis=0)
    return {"proba_m1": p, "proba_m2": 1.0 - p, "bayes_factor": log_bayes_factor(p)}


def change(
    first: np.ndarray,
    second: np.ndarray,
    *,
    pseudocount: float,
    delta: float,
    test_mode: TestMode = "three",
    intervals: Sequence[float] = (),
) -> dict[str, np.ndarray]:
    """Return the probability that the log fold change is at least ``delta``, and its distribution.

    Parameters
    ----------
    first, second
        Paired samples ``(n_samples, n_features)``.
    pseudocount
        Added to the expressions for the test; the reported fold changes use a thousandth of it.
    delta
        Smallest log2 fold change that counts.
    test_mode
        ``"three"``: up, down and unchanged are three hypotheses, and the probability is that of the likelier direction; ``"two"``: changed
        or not.
    intervals
        Levels of credible intervals.

    Returns
    -------
    dict
        ``proba_de``, ``proba_not_de``, ``bayes_factor``, ``lfc_mean``, ``lfc_median``, ``lfc_std``, ``lfc_min``, ``lfc_max`` and, for each
        level, ``lfc_confidence_interval_LEVEL_min`` and ``_max``; each ``(n_features,)``.
    """
    lfc = log_fold_change(first, second, pseudocount)
    up, down = np.mean(lfc >= delta, axis=0), np.mean(lfc < -delta, axis=0)
    p = up + down if test_mode == "two" else np.maximum(up, down)
    lfc = log_fold_change(first, second, REPORTED_SHARE * pseudocount)
    found = {
        "proba_de": p, "proba_not_de": 1.0 - p, "bayes_factor": log_bayes_factor(p),
        "lfc_mean": lfc.mean(0, dtype=np.float64), "lfc_median": np.median(lfc, 0), "lfc_std": lfc.std(0, dtype=np.float64), "lfc_min": lfc.min(0),
        "lfc_max": lfc.max(0),
    }  # fmt: skip
    if intervals:
        lfc.sort(axis=0)
    for level in intervals:
        low, high = narrowest_interval(lfc, level)
        name = f"lfc_confidence_interval_{str(level)[:5]}"
        found[f"{name}_min"], found[f"{name}_max"] = low, high
    return found


def narrowest_interval(rising: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest posterior density interval of each column.

    Parameters
    ----------
    rising
        Samples sorted along the first axis, ``(n_samples, n_features)``.
    level
        Share of the samples inside: the narrowest window of ``floor(level * n_samples)`` steps.

    Returns
    -------
    low, high
        Each ``(n_features,)``.
    """
    inside = int(np.floor(level * len(rising)))
    widths = rising[inside:] - rising[: len(rising) - inside]
    start, column = np.argmin(widths, axis=0), np.arange(rising.shape[1])
    return rising[start, column], rising[start + inside, column]


def pseudocount_of(first: np.ndarray, second: np.ndarray, silent_first: np.ndarray, silent_second: np.ndarray, quantile: float = 0.9) -> float:
    """Estimate the pseudocount from features that are not expressed, so that their fold changes shrink to 0.

    Parameters
    ----------
    first, second
        Largest sampled expression of each feature in each group, ``(n_features,)``.
    silent_first, silent_second
        Features that a group does not express, ``(n_features,)`` bool.
    quantile
        Of the largest expressions of silent features.

    Returns
    -------
    float
        The larger of both groups' quantiles divided by the number of features, at least 1e-10.
    """
    found = [
        float(np.quantile(largest[silent], quantile)) if silent.any() else SMALLEST_PSEUDOCOUNT
        for largest, silent in ((first, silent_first), (second, silent_second))
    ]
    return max(SMALLEST_PSEUDOCOUNT, max(found) / len(first))


def delta_of(lfc_mean: np.ndarray, seed: int, share: float = 0.6, smallest: float = 0.1) -> float:
    """Estimate the smallest fold change that counts from a mixture of three normals over the features' mean fold changes.

    Parameters
    ----------
    lfc_mean
        Mean log2 fold change of each feature, ``(n_features,)``.
    seed
        Determines the start of the fit.
    share
        Of the mean distance of the outer components from 0.
    smallest
        Result at least.
    """
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(n_components=3, random_state=seed).fit(np.asarray(lfc_mean, dtype=np.float64)[:, None])
    centres = np.sort(mixture.means_.ravel())
    return max(smallest, share * float(np.abs(centres[[0, -1]]).mean()))


def tagged(p: np.ndarray, fdr: float) -> np.ndarray:
    """Return which features are called so that the expected share of false calls is at most ``fdr``.

    Parameters
    ----------
    p
        Probability of differential expression, ``(n_features,)``.
    fdr
        Target.

    Returns
    -------
    ndarray
        bool ``(n_features,)``: the ``k`` most probable, ``k`` the number of places at which the running mean of ``1 - p`` is at most ``fdr``.
    """
    order = np.argsort(-p, kind="stable")
    expected = np.cumsum(1.0 - p[order]) / np.arange(1, len(p) + 1)
    called = np.zeros(len(p), dtype=bool)
    called[order[: int((expected <= fdr).sum())]] = True
    return called


def as_table(columns: Mapping[str, np.ndarray | float | str], features: Sequence[str], sort_by: str) -> pd.DataFrame:
    """Return one row a feature, the most telling first."""
    return pd.DataFrame(dict(columns), index=pd.Index(features, name="feature")).sort_values(sort_by, ascending=False, kind="stable")
