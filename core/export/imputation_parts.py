"""What the Imputation view and its figure share: the picture of values, titles with units, the scores that are named, and words on what was hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOTS_UP_TO = 4000
BINS = 120
HIDDEN = {"held-out": "What was switched off", "modality": "A whole modality", "entries": "A share of the values"}
#: Score of all values, the same of the feature mean (empty where that has none), and their title.
SUMMARY = (
    ("mse", "mse_baseline", "Mean squared error"),
    ("pearson", "pearson_baseline", "Pearson, all values"),
    ("spearman", "spearman_baseline", "Spearman, all values"),
    ("auroc", "auroc_baseline", "AUROC, all values"),
    ("pearson_by_feature", "", "Pearson, median of features"),
    ("auroc_by_feature", "", "AUROC, median of features"),
)


@dataclass(frozen=True)
class TruthPicture:
    """What a plot of truth against imputed values shows.

    Attributes
    ----------
    low, high
        Ends of both axes.
    imputed, truth
        The points, where they are few; else None.
    density
        Share of the largest bin, ``(BINS, BINS)``, rows of truth from below; None where points are drawn.
    n
        Number of values.
    """

    low: float
    high: float
    imputed: NDArray[np.float32] | None
    truth: NDArray[np.float32] | None
    density: NDArray[np.float64] | None
    n: int


def truth_picture(imputed: NDArray[Any], truth: NDArray[Any]) -> TruthPicture:
    """Return the picture of values, each ``(n,)``; those that are not finite are left out."""
    keep = np.isfinite(imputed) & np.isfinite(truth)
    x, y = imputed[keep].astype(np.float32), truth[keep].astype(np.float32)
    if not len(x):
        return TruthPicture(0.0, 1.0, x, y, None, 0)
    low, high = min(0.0, float(x.min()), float(y.min())), max(float(x.max()), float(y.max()), 1e-6)
    high += 0.02 * (high - low)
    if len(x) <= DOTS_UP_TO:
        return TruthPicture(low, high, x, y, None, len(x))
    counts, _, _ = np.histogram2d(y, x, bins=BINS, range=((low, high), (low, high)))
    return TruthPicture(low, high, None, None, np.log1p(counts) / np.log1p(counts.max()), len(x))


def reliability_picture(imputed: NDArray[Any], truth: NDArray[Any], most: int = 20) -> TruthPicture:
    """Return mean probability and share of ones in groups of equal size by probability, from values each ``(n,)``.

    Truth is 0 or 1, so that dots of single values would say nothing.
    """
    keep = np.isfinite(imputed) & np.isfinite(truth)
    x, y = imputed[keep].astype(np.float64), truth[keep].astype(np.float64)
    groups = [part for part in np.array_split(np.argsort(x, kind="stable"), most) if len(part)]
    means = np.array([[x[part].mean(), y[part].mean()] for part in groups]).reshape(-1, 2).astype(np.float32)
    high = max(float(means.max(initial=0.0)) * 1.05, 0.02)
    return TruthPicture(0.0, high, means[:, 0], means[:, 1], None, len(x))


def shade(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how opaque the squares of a density are, from 0 to 1; a single value can still be seen."""
    return np.where(density > 0, 0.25 + 0.75 * density, 0.0)


def axis_titles(scale: str) -> tuple[str, str]:
    """Return the titles of both axes with their unit, by the scale of the values (``Comparison.scale``)."""
    if scale == "binary":
        return "Imputed probability", "Share measured as 1"
    unit = " (log CP10k)" if scale == "log1p" else ""
    return f"Imputed{unit}", f"Measured{unit}"


def score_of(scale: str) -> tuple[str, str]:
    """Return the score that features are ranked by, and its title: AUROC of 0 and 1, else Pearson's correlation."""
    return ("auroc", "AUROC") if scale == "binary" else ("pearson", "Pearson")


def spread_ends(values: NDArray[Any], scale: str) -> tuple[float, float]:
    """Return between which ends the scores of the features, ``(n_features,)``, are shown."""
    known = values[np.isfinite(values)]
    return (0.0 if scale == "binary" else min(-0.2, float(known.min(initial=0.0)))), 1.0


def written(value: float, digits: int = 3) -> str:
    """Return a score as it is written; empty where there is none."""
    return "" if not np.isfinite(value) else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def what_was_hidden(hide: str, given: Sequence[str] | None, batches: Sequence[str], notes: Sequence[str]) -> str:
    """Return sentences on what was hidden, what the model looked at, and which cells were taken."""
    looked = f" Looked at: {', '.join(given)}." if given else ""
    within = f" Batches: {', '.join(batches)}." if batches else ""
    return f"Hidden: {HIDDEN.get(hide, hide).lower()}.{looked}{within} {' '.join(notes)}".strip()
