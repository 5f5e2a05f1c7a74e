"""Draws from the model: posterior predictive counts, parameters of the likelihood, correlation of features."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import psutil
import torch
from scipy import sparse
from scipy.stats import rankdata
from torch import Tensor

from cellweave.core.models.regularised_network import RegularisedNetwork
from cellweave.core.models.vae_network import draw
from cellweave.core.nn.likelihoods import sample_nb, sample_normal, sample_poisson, sample_zinb
from cellweave.core.query.expression import MEMORY_SHARE, require_memory
from cellweave.core.query.latent import Cells, positive
from cellweave.core.query.trained_run import QueryError, TrainedRun

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch
    from cellweave.core.models.vae_network import Generated

#: Elements that a block of a correlation holds.
BLOCK = 1 << 24


@torch.no_grad()
def posterior_predictive(
    run: TrainedRun,
    cells: Cells = None,
    *,
    n_samples: int = 1,
    features: Sequence[str] | None = None,
    transform_batch: str | Sequence[str] | None = None,
    seed: int = 0,
) -> list[sparse.csr_matrix]:
    """Draw counts of every cell: a latent from its posterior, then counts from the likelihood.

    Parameters
    ----------
    run
        An open run of scVI's kind.
    cells
        Rows or a mask; None for all usable cells.
    n_samples
        Draws a cell.
    features
        Names; None for all.
    transform_batch
        Decode the cells as this batch, or as each of several and take the mean of the draws; None for each cell's own.
    seed
        Determines the draws.

    Returns
    -------
    list of csr_matrix
        ``n_samples`` matrices float32 ``(n_rows, n_features)``. Draws of the normal likelihood are real numbers.
    """
    rows, columns, codes = run.rows(cells), run.columns(features), run.batch_codes(transform_batch)
    generator = run.generator(seed)
    parts: list[list[sparse.csr_matrix]] = [[] for _ in range(positive(n_samples))]
    for _, batch in run.minibatches(rows):
        for sample in parts:
            values = torch.stack([_counts(run, one, generator) for one in _generated(run, batch, codes, generator)]).mean(0)
            sample.append(sparse.csr_matrix(values[:, columns].cpu().numpy()))
    return [sparse.vstack(sample, format="csr") for sample in parts]


def _generated(run: TrainedRun, batch: Minibatch, codes: Sequence[int | None], generator: torch.Generator | None) -> Iterator[Generated]:
    """Decode the cells as each batch: at a draw, or at the posterior means where ``generator`` is None."""
    posterior, network = run.posterior(batch), run.network
    for code in codes:
        if generator is None:
            z, library = network.latent_mean(posterior), run.library_mean(batch, posterior)
        else:
            z, library = network.transform(draw(posterior.mean, posterior.var, generator)), run.draw_library(batch, posterior, generator)
        yield network.generate(batch, z, library, code)


def _per_cell(generated: Generated) -> Tensor | None:
    """Return the inverse dispersion of each cell and feature (broadcastable), or None for the Poisson likelihood."""
    if generated.theta is None or generated.group is None:
        return generated.theta
    return generated.theta.index_select(0, generated.group)


def _counts(run: TrainedRun, generated: Generated, generator: torch.Generator) -> Tensor:
    theta = _per_cell(generated)
    if theta is None:
        return sample_poisson(generated.mu, generator)
    if run.network.options.gene_likelihood == "normal":
        return sample_normal(generated.mu, theta, generator)
    if generated.zero is not None:
        return sample_zinb(generated.mu, theta, generated.zero, generator)
    return sample_nb(generated.mu, theta, generator)


@torch.no_grad()
def likelihood_parameters(
    run: TrainedRun, cells: Cells = None, *, features: Sequence[str] | None = None, n_samples: int | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the parameters of the likelihood of every cell.

    Parameters
    ----------
    run, cells, features, seed
        As in :func:`posterior_predictive`.
    n_samples
        Average over this many draws of the latent; None for the posterior mean.

    Returns
    -------
    dict
        ``"mean"`` of the counts without extra zeros and, each where the likelihood has it, ``"dispersions"`` (inverse; the standard
        deviation of the normal likelihood) and ``"dropout"``, the probability of an extra zero; float32 ``(n_rows, n_features)``.
    """
    rows, columns, generator = run.rows(cells), run.columns(features), run.generator(seed)
    likelihood = run.network.options.gene_likelihood
    names = ["mean"] + ["dispersions"] * (likelihood != "poisson") + ["dropout"] * (likelihood == "zinb")
    shape = (len(rows), len(run.feature_names(features)))
    require_memory((len(names), *shape))
    found = {name: np.zeros(shape, dtype=np.float32) for name in names}
    times = 1 if n_samples is None else positive(n_samples)
    for where, batch in run.minibatches(rows):
        for _ in range(times):
            for one in _generated(run, batch, [None], None if n_samples is None else generator):
                theta = _per_cell(one)
                values = {"mean": one.mu, "dispersions": theta, "dropout": None if one.zero is None else torch.sigmoid(one.zero)}
                for name, kept in found.items():
                    value = values[name]
                    assert value is not None
                    kept[where] += value.expand_as(one.mu)[:, columns].cpu().numpy() / times
    return found


def feature_correlation(
    run: TrainedRun,
    cells: Cells = None,
    *,
    features: Sequence[str] | None = None,
    kind: Literal["spearman", "pearson"] = "spearman",
    n_samples: int = 10,
    library_size: float = 1000.0,
    transform_batch: str | Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate features over denoised draws of all cells.

    For every draw of the latent an expression is drawn from ``Gamma(theta, theta / (library_size * share))``, the negative binomial
    without its Poisson noise (scvi-tools, ``get_feature_correlation_matrix``); draws and cells are stacked and features correlated.

    Parameters
    ----------
    run, cells, features, seed
        As in :func:`posterior_predictive`.
    kind
        ``"spearman"`` (of ranks) or ``"pearson"``.
    n_samples
        Draws a cell.
    library_size
        Size of every cell.
    transform_batch
        Decode as this batch, or as each of several: the mean of their correlations; None for each cell's own.

    Returns
    -------
    pandas.DataFrame
        ``(n_features, n_features)``, by name. A feature that never varies has NaN.

    Raises
    ------
    QueryError
        For the normal likelihood, which has no such draws, and for fewer than two cells.
    """
    if kind not in {"spearman", "pearson"}:
        raise QueryError(f"There is no correlation '{kind}'.", "Choose 'spearman' or 'pearson'.")
    if isinstance(run.model, RegularisedNetwork):
        raise QueryError(
            f"{run.spec.family.title} has no draws without counting noise to correlate: its dispersions are of counts with ambient background in them.",
            "Write the denoised expression, which has no background, and correlate that.",
        )
    if run.network.options.gene_likelihood == "normal":
        raise QueryError("The normal likelihood has no expression without counting noise to correlate.", "Correlate the denoised expression instead.")
    rows, names = run.rows(cells), run.feature_names(features)
    if len(rows) * positive(n_samples) < 3:
        raise QueryError("One cell cannot be correlated.", "Choose more cells.")
    if library_size <= 0:
        raise QueryError(f"A library size of {library_size:g} is not possible.", "Give a number above 0.")
    require_memory((3, len(names), len(names)), 8)
    found, codes, generator = np.zeros((len(names), len(names))), run.batch_codes(transform_batch), run.generator(seed)
    with tempfile.TemporaryDirectory() as folder:
        kept = room_for((len(rows) * n_samples, len(names)), Path(folder) / "draws")
        for code in codes:
            _fill(run, rows, run.columns(features), n_samples, library_size, code, generator, kept)
            if kind == "spearman":
                _rank_columns(kept)
            found += _pearson(kept) / len(codes)
        del kept  # a memory map must be closed before its file can go
    return pd.DataFrame(found, index=names, columns=names)


def room_for(shape: tuple[int, int], path: Path) -> np.ndarray:
    """Return an empty float32 matrix: in memory where it fits there easily, otherwise mapped to a file."""
    if 4.0 * shape[0] * shape[1] <= MEMORY_SHARE * psutil.virtual_memory().available:
        return np.empty(shape, dtype=np.float32)
    return np.memmap(path, dtype=np.float32, mode="w+", shape=shape)


@torch.no_grad()
def _fill(
    run: TrainedRun,
    rows: np.ndarray,
    columns: np.ndarray | slice,
    n_samples: int,
    library_size: float,
    code: int | None,
    generator: torch.Generator,
    kept: np.ndarray,
) -> None:
    """Fill in denoised draws: draw ``s`` of cell ``i`` goes to row ``s * n_cells + i``."""
    for where, batch in run.minibatches(rows):
        for sample in range(n_samples):
            for one in _generated(run, batch, [code], generator):
                rate, theta = one.share * library_size, _per_cell(one)
                if theta is not None:
                    shape = theta.expand_as(rate).contiguous()
                    rate = torch._standard_gamma(shape, generator=generator) * (rate / shape)
                start = sample * len(rows)
                kept[start + where.start : start + where.stop] = rate[:, columns].cpu().numpy()


def _rank_columns(values: np.ndarray) -> None:
    """Replace every column by the ranks of its entries; ties get their mean rank."""
    width = max(1, BLOCK // max(1, values.shape[0]))
    for start in range(0, values.shape[1], width):
        values[:, start : start + width] = rankdata(values[:, start : start + width], axis=0)


def _pearson(values: np.ndarray) -> np.ndarray:
    """Return the correlation of the columns, float64; in blocks of rows, in two passes."""
    n_rows, n_columns = values.shape
    height = max(1, BLOCK // max(1, n_columns))
    starts = range(0, n_rows, height)
    mean = sum((values[start : start + height].sum(0, dtype=np.float64) for start in starts), np.zeros(n_columns)) / n_rows
    product = np.zeros((n_columns, n_columns))
    for start in starts:
        centred = values[start : start + height] - mean
        product += centred.T @ centred
    sd = np.sqrt(np.diag(product))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = product / np.outer(sd, sd)
    return np.clip(found, -1.0, 1.0)
