"""Latents drawn for a whole group of cells, weighted by how well they fit all of it (scvi-tools, ``get_importance_weights``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cellweave.core.models.vae_network import draw
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.likelihoods import normal_log_prob
from cellweave.core.query.evaluate import marginal_ll
from cellweave.core.query.trained_run import TrainedRun

if TYPE_CHECKING:
    from cellweave.core.models.vae_network import Generated

#: Cells of the group against which every latent is weighed, and draws for the marginal likelihood of each.
ANCHORS, MARGINAL_SAMPLES = 64, 100
#: Latents that are weighed, as a multiple of those that are drawn.
CANDIDATES = 2


@torch.no_grad()
def importance_draws(
    run: TrainedRun, rows: np.ndarray, n_draws: int, code: int | None, *, seed: int, generator: torch.Generator, rng: np.random.Generator
) -> tuple[np.ndarray, Tensor, float]:
    """Draw latents that are probable under the model given the whole group.

    With latents ``z`` from the posteriors of single cells and anchors ``i`` of the group, a latent's weight is
    ``p(z) / sum_i q(z | x_i) * sum_i p(x_i | z) / p(x_i)``.

    Parameters
    ----------
    run
        An open run of scVI's kind, with counts.
    rows
        Cells of the group.
    n_draws
        How many are drawn, with replacement.
    code
        Batch that the latents are decoded as; None for each cell's own.
    seed, generator, rng
        Sources of the draws.

    Returns
    -------
    rows
        The cell whose posterior each latent is from, ``(n_draws,)``.
    z
        Latents behind the transformation ``(n_draws, n_latent)``.
    effective
        Effective number of latents that were weighed, ``1 / sum(weight ** 2)``.

    Raises
    ------
    QueryError
        On minified data without counts.
    """
    anchors = np.sort(rng.choice(rows, min(ANCHORS, len(rows)), replace=False))
    log_p_x = torch.from_numpy(marginal_ll(run, anchors, n_samples=MARGINAL_SAMPLES, seed=seed)).to(run.device, torch.float32)
    candidates = np.repeat(rows, n_draws // len(rows) + 1)
    if len(candidates) > CANDIDATES * n_draws:
        candidates = rng.choice(candidates, CANDIDATES * n_draws, replace=False)
    anchor_batch = run.loader.minibatch(anchors)
    posterior = run.posterior(anchor_batch)
    libraries = run.library_mean(anchor_batch, posterior)
    counts = [run.loader.minibatch(anchors[i : i + 1]).counts[run.network.modality] for i in range(len(anchors))]
    latents, weights = [], []
    for _, batch in run.minibatches(candidates):
        own = run.posterior(batch)
        raw = draw(own.mean, own.var, generator)
        z = run.network.transform(raw)
        generated = run.network.generate(batch, z, run.library_mean(batch, own), code)
        log_q = normal_log_prob(raw[:, None], posterior.mean, posterior.var.sqrt()).sum(2)
        log_p_z = normal_log_prob(raw, torch.zeros_like(raw), torch.ones_like(raw)).sum(1)
        fits = torch.stack([_log_likelihood(run, one, generated, size) for one, size in zip(counts, libraries, strict=True)], 1)
        weights.append(log_p_z - torch.logsumexp(log_q, 1) + torch.logsumexp(fits - log_p_x, 1))
        latents.append(z)
    p = torch.softmax(torch.cat(weights).double().cpu(), 0).numpy()
    chosen = rng.choice(len(candidates), size=n_draws, replace=True, p=p / p.sum())
    return candidates[chosen], torch.cat(latents)[torch.from_numpy(chosen).to(run.device)], float(1.0 / np.square(p / p.sum()).sum())


def _log_likelihood(run: TrainedRun, counts: CountBatch, generated: Generated, library: Tensor) -> Tensor:
    """Return the log-likelihood of one cell's counts under every decoded latent, at the cell's library size, ``(n_latents,)``."""
    n = generated.logits.shape[0]
    rows = torch.arange(n, device=run.device).repeat_interleave(counts.nnz, output_size=n * counts.nnz)
    repeated = CountBatch(
        rows, counts.cols.repeat(n), counts.values.repeat(n), (n, counts.n_features), integer=counts.integer, stores_zeros=counts.stores_zeros
    )
    return -run.network.nll(repeated, generated._replace(library=library.expand(n)))
