"""What a model describes well and what it uses: reconstruction loss of every feature, divergence of every latent dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cellweave.core.models.regularised_network import ACTIVE, RegularisedNetwork
from cellweave.core.models.vae_network import VaeNetwork, draw
from cellweave.core.nn.kl import kl_standard_normal
from cellweave.core.nn.likelihoods import (
    gamma_poisson_log_prob,
    nb_log_prob,
    normal_log_prob,
    poisson_log_prob,
    zinb_log_prob,
)
from cellweave.core.query.latent import Cells, positive
from cellweave.core.query.trained_run import QueryError, TrainedRun, require_finite

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch
    from cellweave.core.models.vae_network import Generated

#: Features looked at in double precision at a time.
COLUMNS = 2048
LogProb = Callable[[Tensor, slice], Tensor]


class Drawn(NamedTuple):
    """One modality of a minibatch at a draw.

    Attributes
    ----------
    name
        Of the modality.
    log_prob
        Takes counts of some columns ``(n_cells, n_columns)`` and which columns they are; returns their log-probabilities in double precision.
    known
        Which features were measured in which cells, bool ``(n_cells, n_features)``, or in which cells all were, ``(n_cells, 1)``; None: all in all.
    """

    name: str
    log_prob: LogProb
    known: Tensor | None


@torch.no_grad()
def feature_losses(run: TrainedRun, cells: Cells = None, *, n_samples: int = 1, seed: int = 0) -> pd.DataFrame:
    """Return the reconstruction loss of every feature; summed over the features it is that of :func:`cellweave.core.query.evaluate.cell_terms`.

    Parameters
    ----------
    run
        An open run of scVI's kind, or of the ambient-regularised models; one that is asked of a modality tells that one only.
    cells
        Rows or a mask; None for all usable cells.
    n_samples
        Draws of the latent over which the losses are averaged.
    seed
        Determines the draws; the same seed draws what ``cell_terms`` draws.

    Returns
    -------
    pandas.DataFrame
        One row a feature, by name: ``modality``; ``reconstruction``, the negative log-likelihood, mean nats per cell in which the feature was measured;
        ``share`` of the modality's whole; ``mean_count``; ``detected``, the share of those cells with a count; ``cells``, how many they are. A feature
        that no cell measured has no numbers.

    Raises
    ------
    QueryError
        On minified data without counts, where the model has no likelihood of this kind, or no cell the modality.
    """
    run.require_counts("the reconstruction loss of features")
    drawn_of = _drawn_of(run)
    rows, generator = run.rows(cells), run.generator(seed)
    sums: dict[str, np.ndarray] = {}
    for _, batch in run.minibatches(rows):
        for repeat in range(positive(n_samples)):
            for drawn in drawn_of(batch, generator):
                if run.modality is not None and drawn.name != run.modality:
                    continue
                found = _sums(batch, drawn, count=repeat == 0)
                sums[drawn.name] = sums[drawn.name] + found if drawn.name in sums else found
    if not sums:
        raise QueryError(f"None of the chosen cells has a count of {run.modality_name}.", "Choose others, or another modality.")
    tables = []
    for name, (loss, count, detected, cells_of) in sums.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            table = pd.DataFrame(
                {
                    "modality": name, "reconstruction": loss / n_samples / cells_of, "share": loss / loss.sum(),
                    "mean_count": count / cells_of, "detected": detected / cells_of, "cells": cells_of.astype(np.int64),
                },
                index=pd.Index(run.trained.features[name], name="feature"),
            )  # fmt: skip
        table.loc[cells_of == 0, "share"] = np.nan
        tables.append(table)
    return pd.concat(tables)


def _sums(batch: Minibatch, drawn: Drawn, *, count: bool) -> np.ndarray:
    """Return sums over the cells: loss, counts, cells with a count and cells, ``(4, n_features)``; all but the first only with ``count``."""
    dense = batch.counts[drawn.name].dense
    found = np.zeros((4, dense.shape[1]))
    for left in range(0, dense.shape[1], COLUMNS):
        part = slice(left, min(left + COLUMNS, dense.shape[1]))
        x = dense[:, part]
        known = torch.ones_like(x, dtype=torch.bool)
        if drawn.known is not None:
            known = known & (drawn.known[:, part] if drawn.known.shape[1] > 1 else drawn.known)
        loss = torch.where(known, -drawn.log_prob(x, part), 0.0)
        require_finite(loss, "reconstruction")
        found[0, part] = loss.sum(0, dtype=loss.dtype).cpu().numpy()
        if count:
            found[1, part] = (x * known).sum(0).cpu().numpy()
            found[2, part] = ((x > 0) & known).sum(0).cpu().numpy()
            found[3, part] = known.sum(0).cpu().numpy()
    return found


def _drawn_of(run: TrainedRun) -> Callable[[Minibatch, torch.Generator], Iterator[Drawn]]:
    """Return how the modalities of a minibatch are drawn.

    Raises
    ------
    QueryError
        Where the model's likelihood is of another kind.
    """
    model = run.model
    if isinstance(model, VaeNetwork):
        return lambda batch, generator: iter([_of_vae(run, model, batch, generator)])
    if isinstance(model, RegularisedNetwork):
        return lambda batch, generator: _of_regularised(model, batch, generator)
    raise _refusal(run)


def _refusal(run: TrainedRun) -> QueryError:
    return QueryError(
        f"{run.spec.family.title} cannot answer this: it is told for scVI, LDVAE and the ambient-regularised models.",
        "Look at the curves of its loss terms, or at its imputation.",
    )


def _of_vae(run: TrainedRun, network: VaeNetwork, batch: Minibatch, generator: torch.Generator) -> Drawn:
    posterior = run.posterior(batch)
    z = draw(posterior.mean, posterior.var, generator)
    library = run.observed_library(batch) if posterior.log_library is None else torch.exp(draw(*posterior.log_library, generator))
    generated = network.generate(batch, network.transform(z), library)
    return Drawn(network.modality, _log_prob_of(network, generated), None)


def _log_prob_of(network: VaeNetwork, generated: Generated) -> LogProb:
    """Return the log-probability of counts as the model was trained with it."""
    mu, likelihood = generated.mu, network.options.gene_likelihood

    def log_prob(x: Tensor, part: slice) -> Tensor:
        counts, mean = _double(x), _double(mu[:, part])
        if generated.theta is None:
            return poisson_log_prob(counts, mean)
        theta = _double(generated.theta[..., part])
        theta = theta if generated.group is None else theta.index_select(0, generated.group)
        if likelihood == "normal":
            return normal_log_prob(counts, mean, theta)
        if generated.zero is not None:
            return zinb_log_prob(counts, mean, theta, _double(generated.zero[:, part]))
        return nb_log_prob(counts, mean, theta)

    return log_prob


def _of_regularised(model: RegularisedNetwork, batch: Minibatch, generator: torch.Generator) -> Iterator[Drawn]:
    """Yield the modalities at a draw of what belongs to a cell, as a look at held-out cells takes them."""
    for name, rates, known in model.drawn_rates(batch, generator):
        yield Drawn(name, _gamma_poisson(rates.mean, rates.theta, rates.group), known)


def _gamma_poisson(mean: Tensor, theta: Tensor, group: Tensor | None) -> LogProb:
    def log_prob(x: Tensor, part: slice) -> Tensor:
        own = _double(theta[..., part])
        return gamma_poisson_log_prob(_double(x), _double(mean[:, part]), own if group is None else own.index_select(0, group))

    return log_prob


def _double(values: Tensor) -> Tensor:
    return values if values.device.type == "mps" else values.double()


@torch.no_grad()
def dimension_divergences(run: TrainedRun, cells: Cells = None) -> pd.DataFrame:
    """Return the divergence of every latent dimension from its standard normal prior: what the model uses the dimension for.

    Parameters
    ----------
    run
        An open run of scVI's kind, or of the ambient-regularised models.
    cells
        Rows or a mask; None for all usable cells.

    Returns
    -------
    pandas.DataFrame
        One row a dimension, by name (``Z_0`` ...), in the order of the encoders: ``encoder`` (modality, or ``"joint"``); ``kl``, mean nats per cell, 0
        where a dimension tells nothing; ``active``, the share of the cells in which it is above 0.01; ``posterior_variance``, mean over the cells, 1 where
        nothing was learned; ``spread``, the variance of the posterior means between cells; ``cells`` in which the encoder's modality was measured.

    Raises
    ------
    QueryError
        Where the model has no such latent.
    """
    rows = run.rows(cells)
    sums: dict[str, np.ndarray] = {}
    for _, batch in run.minibatches(rows):
        for name, (mean, var) in _posteriors(run, batch).items():
            mean, var = _double(mean), _double(var)
            require_finite(mean, "latent")
            kl = kl_standard_normal(mean, var)
            parts = (kl, (kl > ACTIVE).to(kl.dtype), var, mean, mean.square(), torch.ones_like(kl))
            found = np.stack([part.sum(0).cpu().numpy() for part in parts])
            sums[name] = sums[name] + found if name in sums else found
    tables = []
    for name, values in sums.items():
        n = values[5]
        with np.errstate(invalid="ignore"):
            kl, active, variance, mean, square = values[:5] / n
        spread = np.maximum(square - mean**2, 0.0)
        columns = {"encoder": name, "kl": kl, "active": active, "posterior_variance": variance, "spread": spread, "cells": n.astype(np.int64)}
        tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    table.index = pd.Index([f"Z_{number}" for number in range(len(table))], name="dimension")
    return table


def _posteriors(run: TrainedRun, batch: Minibatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of each encoder's latents, of the cells in which its modality is there, each ``(n_present, n_latent)``.

    Raises
    ------
    QueryError
        Where the model has none.
    """
    model = run.model
    if isinstance(model, VaeNetwork):
        posterior = run.posterior(batch)
        return {model.modality: (posterior.mean, posterior.var)}
    if isinstance(model, RegularisedNetwork):
        latents = model.encode(batch).latents
        return {name: (one.mean, one.var) if one.present is None else (one.mean[one.present], one.var[one.present]) for name, one in latents.items()}
    raise _refusal(run)
