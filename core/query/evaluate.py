"""How well a trained model describes cells: ELBO, reconstruction, marginal likelihood, discrepancy between batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cellweave.core.models.base import StepContext
from cellweave.core.models.regularised_network import RegularisedNetwork
from cellweave.core.models.vae_network import VaeNetwork, draw
from cellweave.core.nn.likelihoods import normal_log_prob
from cellweave.core.nn.mmd import mmd, pairwise_mmd
from cellweave.core.query.latent import Cells, positive
from cellweave.core.query.trained_run import QueryError, TrainedRun, require_finite

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch
    from cellweave.core.models.vae_network import Posterior

MMD_BATCH = 128


@torch.no_grad()
def cell_terms(run: TrainedRun, cells: Cells = None, *, n_samples: int = 1, seed: int = 0) -> pd.DataFrame:
    """Return the unweighted loss terms of every cell.

    Parameters
    ----------
    run
        An open run of scVI's kind, or of the ambient-regularised models.
    cells
        Rows or a mask; None for all usable cells.
    n_samples
        Draws of the latent over which each term is averaged.
    seed
        Determines the draws.

    Returns
    -------
    pandas.DataFrame
        One row a cell, by name: ``reconstruction`` (negative log-likelihood), ``kl_z`` and, with a learned library, ``kl_l``, in nats; and
        ``elbo``, minus their sum, so that higher is better. The ambient-regularised models have the terms of each modality, the sum of reconstructions
        where there are several, and the penalties of all cells, divided by the number of training cells as in training.

    Raises
    ------
    QueryError
        On minified data without counts.
    """
    run.require_counts("the evidence lower bound")
    if isinstance(run.model, RegularisedNetwork):
        return _regularised_terms(run, run.model, cells, positive(n_samples), seed)
    rows, generator, network = run.rows(cells), run.generator(seed), run.network
    parts: dict[str, list[np.ndarray]] = {}
    for _, batch in run.minibatches(rows):
        posterior, total = run.posterior(batch), dict[str, Tensor]()
        for _ in range(positive(n_samples)):
            z = draw(posterior.mean, posterior.var, generator)
            log_library = None if posterior.log_library is None else draw(*posterior.log_library, generator)
            for name, value in network.terms_at(batch, posterior, z, log_library).items():
                total[name] = total[name] + value if name in total else value
        for name, value in total.items():
            require_finite(value, name)
            parts.setdefault(name, []).append((value.double() / n_samples).cpu().numpy())
    table = pd.DataFrame({name: np.concatenate(values) for name, values in parts.items()}, index=run.cell_names[rows])
    table["elbo"] = -table.sum(axis=1)
    return table


def _regularised_terms(run: TrainedRun, model: RegularisedNetwork, cells: Cells, n_samples: int, seed: int) -> pd.DataFrame:
    """Return the terms of :func:`cell_terms` of an ambient-regularised model; what all cells share is at its mean."""
    rows, generator, n_train = run.rows(cells), run.generator(seed), run.trained.context.n_cells
    declared = {term.name: term for term in run.spec.terms() if term.in_elbo}
    # Those that the person switched off are no part of the model that was trained.
    context = StepContext(training=False, weights=run.spec.loss_weights(), generator=generator)
    parts: dict[str, list[np.ndarray]] = {}
    for _, batch in run.minibatches(rows):
        total = dict[str, Tensor]()
        for _ in range(n_samples):
            for name, value in model.loss_terms(batch, context).items():
                if name in declared:
                    own = value.double() if declared[name].scope == "cell" else (value.double() / n_train).expand(batch.n_cells)
                    total[name] = total[name] + own if name in total else own
        for name, value in total.items():
            require_finite(value, name)
            parts.setdefault(name, []).append((value / n_samples).cpu().numpy())
    table = pd.DataFrame({name: np.concatenate(values) for name, values in parts.items()}, index=run.cell_names[rows])
    whole = -table.sum(axis=1)
    if "reconstruction" not in table:
        table["reconstruction"] = table[[name for name in table if str(name).startswith("reconstruction_")]].sum(axis=1)
    table["elbo"] = whole
    return table


def has_marginal(run: TrainedRun) -> bool:
    """Return whether the marginal likelihood and the discrepancy between batches can be asked for."""
    return isinstance(run.model, VaeNetwork)


def elbo(run: TrainedRun, cells: Cells = None, *, n_samples: int = 1, seed: int = 0) -> float:
    """Return the evidence lower bound, mean nats per cell; higher is better. Arguments as in :func:`cell_terms`."""
    return float(cell_terms(run, cells, n_samples=n_samples, seed=seed)["elbo"].mean())


def reconstruction_error(run: TrainedRun, cells: Cells = None, *, n_samples: int = 1, seed: int = 0) -> float:
    """Return the negative log-likelihood, mean nats per cell; lower is better. Arguments as in :func:`cell_terms`."""
    return float(cell_terms(run, cells, n_samples=n_samples, seed=seed)["reconstruction"].mean())


@torch.no_grad()
def marginal_ll(run: TrainedRun, cells: Cells = None, *, n_samples: int = 1000, seed: int = 0) -> np.ndarray:
    r"""Estimate the marginal log-likelihood of every cell by importance sampling.

    ``log 1/S sum_s p(x | z_s, l_s) p(z_s) p(l_s) / (q(z_s | x) q(l_s | x))``. scvi-tools divides by the number of draws that was asked for,
    also where it drew more, and evaluates the densities of a logistic-normal latent behind the softmax; here the sum is over exactly
    ``n_samples`` draws, and densities are those of the normal variable before the softmax.

    Parameters
    ----------
    run
        An open run of scVI's kind.
    cells
        Rows or a mask; None for all usable cells.
    n_samples
        Draws a cell. The estimate rises with it towards the truth, and is at least the ELBO in expectation.
    seed
        Determines the draws.

    Returns
    -------
    ndarray
        Nats, float64 ``(n_rows,)``; its mean weighs every cell alike, whatever the minibatches.

    Raises
    ------
    QueryError
        On minified data without counts.
    """
    run.require_counts("the marginal likelihood")
    rows, generator = run.rows(cells), run.generator(seed)
    positive(n_samples)
    found = np.empty(len(rows))
    for where, batch in run.minibatches(rows):
        posterior = run.posterior(batch)
        running = torch.full((batch.n_cells,), -math.inf, dtype=_double(run), device=run.device)
        for _ in range(n_samples):
            running = torch.logaddexp(running, _log_weight(run, batch, posterior, generator).to(running.dtype))
        require_finite(running, "marginal likelihood")
        found[where] = (running - math.log(n_samples)).cpu().numpy()
    return found


def _double(run: TrainedRun) -> torch.dtype:
    return torch.float32 if run.device.type == "mps" else torch.float64


def _log_weight(run: TrainedRun, batch: Minibatch, posterior: Posterior, generator: torch.Generator) -> Tensor:
    """Return ``log p(x, z, l) - log q(z, l | x)`` at one draw, ``(n_cells,)``."""
    network = run.network
    z = draw(posterior.mean, posterior.var, generator)
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    weight = (normal_log_prob(z, zero, one) - normal_log_prob(z, posterior.mean, posterior.var.sqrt())).sum(1)
    if posterior.log_library is None:
        library = run.observed_library(batch)
    else:
        mean, var = posterior.log_library
        log_library, codes = draw(mean, var, generator), network.batch_codes_of(batch)
        prior = normal_log_prob(log_library, network.library_log_mean[codes], network.library_log_var[codes].sqrt())
        weight = weight + prior - normal_log_prob(log_library, mean, var.sqrt())
        library = torch.exp(log_library)
    generated = network.generate(batch, network.transform(z), library)
    return weight - network.nll(batch.counts[network.modality], generated)


@dataclass(frozen=True)
class Discrepancy:
    """Maximum mean discrepancy between the latents of batches.

    Attributes
    ----------
    pairs
        One row a pair: ``batch1``, ``batch2`` (``rest`` where each is compared with the rest), ``mmd`` (mean over the minibatches that
        have both), ``minibatches`` and ``skipped``.
    per_minibatch
        Sum over the pairs of a minibatch, mean over minibatches: the number a person can read.
    per_cell
        The same sums over all minibatches divided by the number of cells: what scVI+MMD calls ``mmd_loss``.
    """

    pairs: pd.DataFrame
    per_minibatch: float
    per_cell: float


@torch.no_grad()
def discrepancy(run: TrainedRun, cells: Cells = None, *, batch_size: int = MMD_BATCH, sample: bool = False, seed: int = 0) -> Discrepancy:
    """Return the discrepancy between batches, measured as the model's own term is.

    The cells are shuffled first: in the order of the file a minibatch may hold a single batch, and the discrepancy would be 0 whatever the mixing.

    Parameters
    ----------
    run
        An open run of scVI's kind with a batch.
    cells
        Rows or a mask; None for all usable cells.
    batch_size
        Cells of a minibatch.
    sample
        Compare draws from the posteriors, as training does, instead of posterior means.
    seed
        Determines the order and the draws.

    Returns
    -------
    Discrepancy
        Per pair and in total.

    Raises
    ------
    QueryError
        Where the model has no batch.
    """
    if len(run.batches) < 2:
        raise QueryError("There is nothing to compare: the model was trained with fewer than two batches.", "Name a batch column when you train.")
    rows, network, generator = run.rows(cells), run.network, run.generator(seed)
    rows = rows[np.random.default_rng([seed, 17]).permutation(len(rows))]
    n_levels, total, n_minibatches = len(run.batches), 0.0, 0
    sums, seen = np.zeros((n_levels, n_levels)), np.zeros((n_levels, n_levels), dtype=np.int64)
    for _, batch in run.minibatches(rows, batch_size):
        posterior = run.posterior(batch)
        z = network.transform(draw(posterior.mean, posterior.var, generator)) if sample else network.latent_mean(posterior)
        values, chosen = _pairs(run, z, network.batch_codes_of(batch))
        sums += np.where(chosen, values, 0.0)
        seen += chosen
        total += float(values[chosen].sum())
        n_minibatches += 1
    table = [
        {
            "batch1": run.batches[first], "batch2": "rest" if first == second else run.batches[second],
            "mmd": sums[first, second] / seen[first, second], "minibatches": int(seen[first, second]),
            "skipped": n_minibatches - int(seen[first, second]),
        }
        for first, second in np.argwhere(seen > 0)
    ]  # fmt: skip
    pairs = pd.DataFrame(table, columns=["batch1", "batch2", "mmd", "minibatches", "skipped"])
    return Discrepancy(pairs, total / max(1, n_minibatches), total / len(rows))


def _pairs(run: TrainedRun, z: Tensor, codes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the discrepancy of every pair of batches in a minibatch and which pairs count, each ``(n_batches, n_batches)``."""
    options, n_levels = run.network.options, len(run.batches)
    values, chosen = pairwise_mmd(z, codes, n_levels, kernel=options.mmd_kernel, pairs=options.mmd_pairs, unbiased=options.mmd_unbiased)
    if options.mmd_mode == "normal":
        return values.double().cpu().numpy(), chosen.cpu().numpy()
    found, counted = np.zeros((n_levels, n_levels)), np.zeros((n_levels, n_levels), dtype=bool)
    sizes = torch.bincount(codes, minlength=n_levels).tolist()
    if options.mmd_pairs == "one_vs_rest":
        pairs = [(level, level) for level in range(n_levels)]
    else:
        present = [level for level in range(n_levels) if sizes[level]]
        pairs = list(combinations(present, 2)) if options.mmd_pairs == "all" else list(pairwise(present))
    for first, second in pairs:
        other = sum(sizes) - sizes[first] if first == second else sizes[second]
        if min(sizes[first], other) < 2:
            continue  # too few cells to pair: adds 0 to the sum, as in training
        of_two = codes != first if first == second else codes == second
        both = (codes == first) | of_two
        value = mmd(z[both], of_two[both].long(), 2, mode="fast", kernel=options.mmd_kernel)
        found[first, second], counted[first, second] = float(value), True
    return found, counted
