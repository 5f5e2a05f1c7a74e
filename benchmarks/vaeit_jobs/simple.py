"""What simple methods predict of a hidden modality from RNA: how much of it can be known at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

COMPONENTS, FOLDS = 30, 5
ALPHAS = tuple(10.0**power for power in range(1, 7))
NEIGHBOURS, PRIOR = (15, 50, 150), 10
Predict = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def predictions(arrays: dict[str, np.ndarray], modality: str) -> dict[str, np.ndarray]:
    """Predict the hidden values of a modality by nearest neighbours and by ridge regression on principal components of RNA.

    How strongly they are smoothed is chosen by cross-validation within the cells in which the modality is seen, never by the hidden values.

    Parameters
    ----------
    arrays
        As :func:`datasets.arrays` gives them.
    modality
        Not RNA.

    Returns
    -------
    dict
        By method ``(n_hidden_cells, n_features)``.
    """
    edges = np.concatenate([[0], np.cumsum(arrays["sizes"])])
    names = [str(name) for name in arrays["names"]]
    columns = {name: slice(edges[place], edges[place + 1]) for place, name in enumerate(names)}
    rna_seen = (arrays["masks"][:, columns["rna"]] == 0).all(1)
    seen = (arrays["masks"][:, columns[modality]] == 0).all(1) & rna_seen
    hidden = arrays["hidden"][:, columns[modality]].any(1)
    components = PCA(COMPONENTS, random_state=0).fit(arrays["Y"][seen][:, columns["rna"]])
    known, asked = (components.transform(arrays["Y"][rows][:, columns["rna"]]) for rows in (seen, hidden))
    values = arrays["Y"][seen][:, columns[modality]]
    methods: dict[str, tuple[Predict, tuple[float, ...]]] = {"neighbours in RNA": (_neighbours, NEIGHBOURS), "ridge on RNA": (_ridge, ALPHAS)}
    return {name: predict(known, values, asked, _best(predict, choices, known, values)) for name, (predict, choices) in methods.items()}


def _best(predict: Predict, choices: tuple[float, ...], known: np.ndarray, values: np.ndarray) -> float:
    """Return the choice with the smallest squared error in cells that are left out in turn."""
    fold = np.random.default_rng(0).integers(FOLDS, size=len(known))
    errors = []
    for choice in choices:
        parts = [((predict(known[fold != part], values[fold != part], known[fold == part], choice) - values[fold == part]) ** 2).sum() for part in range(FOLDS)]
        errors.append(sum(parts))
    return choices[int(np.argmin(errors))]


def _ridge(known: np.ndarray, values: np.ndarray, asked: np.ndarray, alpha: float) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.clip(Ridge(alpha=alpha).fit(known, values).predict(asked), low, high)


def _neighbours(known: np.ndarray, values: np.ndarray, asked: np.ndarray, k: float) -> np.ndarray:
    """Mean of the k nearest cells by the angle, drawn to the mean of all as if there were ten more of it."""
    k = min(int(k), len(known) - 1)
    unit = [points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9) for points in (asked, known)]
    near = np.argpartition(-(unit[0] @ unit[1].T), k, axis=1)[:, :k]
    return np.stack([(values[rows].sum(0) + PRIOR * values.mean(0)) / (k + PRIOR) for rows in near])
