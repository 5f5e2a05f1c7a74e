"""Latents and library sizes of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cellweave.core.models.vae_network import VaeNetwork, draw
from cellweave.core.query.trained_run import QueryError, TrainedRun, require_finite
from cellweave.core.wording import counted

Cells = Sequence[int] | Sequence[bool] | np.ndarray | None


@torch.no_grad()
def latent_mean(run: TrainedRun, cells: Cells = None) -> np.ndarray:
    """Return the posterior mean of the latent.

    Parameters
    ----------
    run
        An open run, of any model family.
    cells
        Rows or a mask; None for all usable cells.

    Returns
    -------
    ndarray
        float32 ``(n_rows, n_latent)``; of a logistic-normal latent the mean of the shares. Two calls agree.

    Raises
    ------
    QueryError
        Where a latent is not finite, or cells cannot be chosen so.
    """
    rows, parts = run.rows(cells), []
    for _, batch in run.minibatches(rows):
        if run.cached is None:
            value = run.model.latent(batch)["latent"].float()
            require_finite(value, "latent")
        else:
            value = run.network.latent_mean(run.posterior(batch))
        parts.append(value.cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def latent_sample(run: TrainedRun, cells: Cells = None, *, n_samples: int = 1, seed: int = 0) -> np.ndarray:
    """Draw from the posterior of the latent.

    Parameters
    ----------
    run, cells
        As in :func:`latent_mean`.
    n_samples
        Draws a cell.
    seed
        Determines the draws.

    Returns
    -------
    ndarray
        float32 ``(n_rows, n_latent)``, or ``(n_samples, n_rows, n_latent)`` where more than one is drawn.
    """
    from cellweave.core.query.decoding import decoding_of

    rows, generator, decoding = run.rows(cells), run.generator(seed), decoding_of(run)
    parts = []
    for _, batch in run.minibatches(rows):
        encoded = decoding.encode(batch)
        draws = [decoding.latent(batch, encoded, generator) for _ in range(positive(n_samples))]
        parts.append(torch.stack(draws).cpu().numpy())
    found = np.concatenate(parts, axis=1)
    return found[0] if n_samples == 1 else found


@torch.no_grad()
def latent_distribution(run: TrainedRun, cells: Cells = None) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the normal posterior, each float32 ``(n_rows, n_latent)``.

    Of a logistic-normal latent these are of the normal variable before the softmax.
    """
    means, variances = [], []
    for _, batch in run.minibatches(run.rows(cells)):
        posterior = run.posterior(batch)
        means.append(posterior.mean.cpu().numpy())
        variances.append(posterior.var.cpu().numpy())
    return np.concatenate(means), np.concatenate(variances)


@torch.no_grad()
def latent_library(run: TrainedRun, cells: Cells = None, *, sample: bool = False, seed: int = 0) -> np.ndarray:
    """Return the library size that the model infers.

    Parameters
    ----------
    run, cells
        As in :func:`latent_mean`.
    sample
        Draw from the posterior instead of taking its mean ``exp(m + v / 2)``.
    seed
        Determines the draws.

    Returns
    -------
    ndarray
        float32 ``(n_rows,)``.

    Raises
    ------
    QueryError
        Where the model takes the observed library size, so that there is nothing to infer.
    """
    if run.decodes and not isinstance(run.model, VaeNetwork):
        return _regularised_library(run, cells, sample=sample, seed=seed)
    network, generator = run.network, run.generator(seed)
    if not network.learns_library:
        what = "given as size factors" if network.has_size_factor else "the total count of each cell"
        raise QueryError(
            f"This model infers no library size: it is {what}.", "Train with model.use_observed_lib_size = false to have it inferred."
        )
    run.require_counts("the latent library size")
    parts = []
    for _, batch in run.minibatches(run.rows(cells)):
        posterior = run.posterior(batch)
        assert posterior.log_library is not None
        value = torch.exp(draw(*posterior.log_library, generator)) if sample else network.library_mean(batch, posterior)
        parts.append(value.cpu().numpy())
    return np.concatenate(parts)


def _regularised_library(run: TrainedRun, cells: Cells, *, sample: bool, seed: int) -> np.ndarray:
    """Return library sizes in counts of the modality that is asked about, float32 ``(n_rows,)``."""
    from cellweave.core.query.decoding import RegularisedDecoding

    decoding, generator = RegularisedDecoding(run), run.generator(seed)
    size = decoding.network.stacks[run.modality_name].expression_total
    parts = [
        (decoding.library(batch, decoding.encode(batch), generator if sample else None) * size).cpu().numpy()
        for _, batch in run.minibatches(run.rows(cells))
    ]
    return np.concatenate(parts)


def positive(n_samples: int) -> int:
    """Return a number of draws, or refuse one below 1."""
    if n_samples < 1:
        raise QueryError(f"{counted(n_samples, 'draw was', 'draws were')} asked for.", "Ask for 1 or more.")
    return n_samples
