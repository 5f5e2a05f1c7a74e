"""Denoised expression: as an array, in chunks, or written to a file that is larger than the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from cellweave.core.models.vae_network import draw
from cellweave.core.query.latent import Cells, positive
from cellweave.core.query.trained_run import QueryError, TrainedRun, require_finite

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch

#: Share of the free memory that one answer may take.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class ExpressionQuestion:
    """How expression is decoded.

    Attributes
    ----------
    features
        Names; None for all.
    transform_batch
        Decode every cell as this batch, or as each of several and take the mean; None keeps each cell's own, which is **not** corrected
        for the batch. ``run.batches`` names all.
    library_size
        Size to which the shares are scaled, or ``"latent"`` for the expected counts at each cell's own library size.
    n_samples
        Draws of the latent whose expressions are averaged; None decodes the posterior mean, so that two calls agree.
    seed
        Determines the draws.
    """

    features: Sequence[str] | None = None
    transform_batch: str | Sequence[str] | None = None
    library_size: float | Literal["latent"] = 1.0
    n_samples: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises
        ------
        QueryError
            Where the library size is not positive or there are no draws.
        """
        if isinstance(self.library_size, str):
            if self.library_size != "latent":
                raise QueryError(f"The library size '{self.library_size}' is not known.", "Give a number, or 'latent' for each cell's own.")
        elif not 0 < self.library_size < float("inf"):
            raise QueryError(f"A library size of {self.library_size:g} is not possible.", "Give a number above 0.")
        if self.n_samples is not None:
            positive(self.n_samples)


def normalised_expression(
    run: TrainedRun, cells: Cells = None, question: ExpressionQuestion | None = None, *, each_sample: bool = False
) -> np.ndarray:
    """Return denoised expression.

    Parameters
    ----------
    run
        An open run.
    cells
        Rows or a mask; None for all usable cells.
    question
        What to decode; None for the defaults.
    each_sample
        Return every draw instead of their mean (needs ``n_samples``).

    Returns
    -------
    ndarray
        float32 ``(n_rows, n_features)``, or ``(n_samples, n_rows, n_features)`` with ``each_sample``.

    Raises
    ------
    QueryError
        Where a feature or batch is not known, or the array would not fit into memory (:func:`write_expression` needs none).
    """
    question, rows = question or ExpressionQuestion(), run.rows(cells)
    n_features = len(run.feature_names(question.features))
    if each_sample and question.n_samples is None:
        raise QueryError("Each draw was asked for, but not how many.", "Set the number of draws.")
    shape = (len(rows), n_features)
    if each_sample:
        assert question.n_samples is not None
        require_memory((question.n_samples, *shape))
        samples = np.empty((question.n_samples, *shape), dtype=np.float32)
        for where, draws in _chunks(run, rows, question):
            samples[:, where] = draws.cpu().numpy()
        return samples
    require_memory(shape)
    found = np.empty(shape, dtype=np.float32)
    for where, values in expression_chunks(run, rows, question):
        found[where] = values
    return found


def expression_chunks(run: TrainedRun, rows: np.ndarray, question: ExpressionQuestion) -> Iterator[tuple[slice, np.ndarray]]:
    """Iterate over denoised expression a few cells at a time.

    Yields
    ------
    where
        Which of ``rows`` these are.
    values
        float32 ``(n_chunk, n_features)``.
    """
    for where, values in _chunks(run, rows, question, averaged=True):
        yield where, values[0].cpu().numpy()


@torch.no_grad()
def _chunks(
    run: TrainedRun, rows: np.ndarray, question: ExpressionQuestion, *, averaged: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Iterate over expression ``(n_samples, n_chunk, n_features)``, or ``(1, ...)`` with the mean of the draws."""
    question.check()
    columns, codes = run.columns(question.features), run.batch_codes(question.transform_batch)
    generator = run.generator(question.seed)
    for where, batch in run.minibatches(rows):
        if question.n_samples is None:
            yield where, _at_means(run, batch, codes, question)[:, columns][None]
            continue
        draws = _draws(run, batch, codes, question, generator)
        if averaged:
            total = next(draws)[:, columns].clone()
            for value in draws:
                total += value[:, columns]
            yield where, (total / question.n_samples)[None]
        else:
            yield where, torch.stack([value[:, columns] for value in draws])


def _at_means(run: TrainedRun, batch: Minibatch, codes: Sequence[int | None], question: ExpressionQuestion) -> Tensor:
    """Return expression at the posterior means, averaged over batches, ``(n_cells, n_features)``."""
    scale = None if question.library_size == "latent" else float(question.library_size)
    if run.cached is None:
        name = next(iter(run.trained.features))
        value = _mean([run.model.expression(batch, transform_batch=code, scaled_to=scale)[name] for code in codes])
    else:
        posterior = run.posterior(batch)
        value = _decoded(run, batch, run.network.latent_mean(posterior), run.observed_library(batch), codes, scale)
    require_finite(value, "expression")
    return value


def _draws(
    run: TrainedRun, batch: Minibatch, codes: Sequence[int | None], question: ExpressionQuestion, generator: torch.Generator
) -> Iterator[Tensor]:
    scale = None if question.library_size == "latent" else float(question.library_size)
    posterior, network = run.posterior(batch), run.network
    assert question.n_samples is not None
    for _ in range(question.n_samples):
        z = network.transform(draw(posterior.mean, posterior.var, generator))
        yield _decoded(run, batch, z, run.draw_library(batch, posterior, generator), codes, scale)


def _decoded(run: TrainedRun, batch: Minibatch, z: Tensor, library: Tensor, codes: Sequence[int | None], scale: float | None) -> Tensor:
    generated = (run.network.generate(batch, z, library, code) for code in codes)
    return _mean([one.mu if scale is None else one.share * scale for one in generated])


def _mean(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values) if len(values) > 1 else total


def require_memory(shape: Sequence[int], itemsize: int = 4) -> None:
    """Refuse an array that would take more than half of the free memory.

    Raises
    ------
    QueryError
        With what it would take, and how to ask for less.
    """
    needed = float(np.prod([float(n) for n in shape])) * itemsize
    free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise QueryError(
            f"The answer would take {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free.",
            "Name fewer features or cells, or write it to a file, which takes a few cells at a time.",
        )
