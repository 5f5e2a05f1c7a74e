"""Dispersions from the moments of the counts: where the learned dispersions begin (specification of regularizedvi, section 5)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from cellweave.core.nn.hyperpriors import softplus_inverse

THETA_RANGE = (0.01, 20.0)
BURST_RANGE = (0.01, 20.0)
PRIOR_RANGE = (1e-4, 100.0)
TINY = 1e-8


class MomentStart(NamedTuple):
    """Starts of the dispersions.

    Attributes
    ----------
    log_theta
        Logarithm of the inverse dispersion (of the technical variance for the burst decoder), ``(n_features,)``.
    prior_mean
        Mean of what the exponential prior is of, which replaces that of the options.
    frequency_bias, size_bias
        Biases of the two heads of the burst decoder ``(n_features,)``; None otherwise.
    biological
        Biological variance of each feature ``(n_features,)``, not negative.
    """

    log_theta: np.ndarray
    prior_mean: float
    frequency_bias: np.ndarray | None
    size_bias: np.ndarray | None
    biological: np.ndarray


def excess_variance(mean: np.ndarray, var: np.ndarray, total_mean: float, total_var: float) -> np.ndarray:
    """Return the variance of each feature beyond Poisson noise and the spread of totals, ``(n_features,)``; may be negative."""
    cv2 = total_var / total_mean**2
    return (var - mean - mean**2 * cv2) / (1.0 + cv2)


def dispersion_start(
    mean: np.ndarray, var: np.ndarray, total_mean: float, total_var: float, *, biological_share: float = 0.9, sqrt: bool = False
) -> MomentStart:
    """Return the start of inverse dispersions.

    Parameters
    ----------
    mean, var
        Population moments of the raw counts of each feature, ``(n_features,)``.
    total_mean, total_var
        Population moments of the cells' totals.
    biological_share
        Share of the excess variance that is taken for biology.
    sqrt
        Whether the prior is of ``theta**0.5`` instead of ``theta**-0.5``.
    """
    excess = excess_variance(mean, var, total_mean, total_var)
    technical = excess * (1.0 - biological_share)
    theta = np.clip(mean**2 / np.maximum(technical, 1e-10), *THETA_RANGE)
    prior_mean = float(np.clip(np.mean(theta**0.5 if sqrt else theta**-0.5), *PRIOR_RANGE))
    return MomentStart(np.log(theta), prior_mean, None, None, np.maximum(excess * biological_share, 0.0))


def burst_start(
    mean: np.ndarray,
    var: np.ndarray,
    total_mean: float,
    total_var: float,
    *,
    biological_share: float = 0.9,
    sensitivity: float = 1.0,
    intercept: float = 1.0,
) -> MomentStart:
    """Return the start of the burst decoder: frequency, size and technical variance of each feature; arguments as above.

    Parameters
    ----------
    sensitivity
        Expected factor of the modality.
    intercept
        What is added to the softplus of the size.
    """
    excess = excess_variance(mean, var, total_mean, total_var)
    biological = np.maximum(excess * biological_share, TINY)
    scale = np.sqrt(np.clip(excess * (1.0 - biological_share), mean**2 / THETA_RANGE[1], mean**2 / THETA_RANGE[0]))
    frequency = np.clip(mean**2 / biological, *BURST_RANGE)
    size = np.clip(mean / (frequency * sensitivity), *BURST_RANGE)
    return MomentStart(
        np.log(np.maximum(scale**2, TINY)),
        float(np.clip(scale.mean(), *PRIOR_RANGE)),
        _bias(frequency),
        _bias(np.maximum(size - intercept, 1e-4)),
        biological,
    )


def _bias(values: np.ndarray) -> np.ndarray:
    """Return the bias of a head whose softplus is ``values``."""
    return softplus_inverse(torch.from_numpy(np.asarray(values, dtype=np.float64))).numpy()
