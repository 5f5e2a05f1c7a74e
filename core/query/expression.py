"""Denoised expression: as an array, in chunks, or written to a file that is larger than the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from cellweave.core.query.decoding import Decoding, Target, decoding_of
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
    transform
        Level by column: decode every cell as these levels of further covariates the decoder is told of (what if all cells were of this donor).
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
    transform: Mapping[str, str] = field(default_factory=dict)

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
    columns, how = run.columns(question.features), _Asked.of(run, question)
    generator = run.generator(question.seed)
    for where, batch in run.minibatches(rows):
        if question.n_samples is None:
            yield where, how.at_means(batch)[:, columns][None]
            continue
        draws = how.draws(batch, question.n_samples, generator)
        if averaged:
            total = next(draws)[:, columns].clone()
            for value in draws:
                total += value[:, columns]
            yield where, (total / question.n_samples)[None]
        else:
            yield where, torch.stack([value[:, columns] for value in draws])


@dataclass(frozen=True)
class _Asked:
    """A question in the terms of the model.

    Attributes
    ----------
    run
        The open run.
    decoding
        None for a model that only gives expression at its posterior means.
    targets
        What the cells are decoded as, each in turn; the result is the mean.
    scale
        Library size of the result; None for expected counts.
    """

    run: TrainedRun
    decoding: Decoding | None
    targets: tuple[Target, ...]
    scale: float | None

    @classmethod
    def of(cls, run: TrainedRun, question: ExpressionQuestion) -> _Asked:
        codes = run.batch_codes(question.transform_batch)
        decoding = decoding_of(run) if question.transform or question.n_samples is not None or run.decodes else None
        columns = run.column_codes(question.transform, decoding.columns) if decoding is not None else {}
        scale = None if question.library_size == "latent" else float(question.library_size)
        return cls(run, decoding, tuple(Target(code, columns) for code in codes), scale)

    def at_means(self, batch: Minibatch) -> Tensor:
        """Return expression at the posterior means, averaged over the targets, ``(n_cells, n_features)``."""
        if self.decoding is None:
            name = self.run.modality_name
            value = _mean([self.run.model.expression(batch, transform_batch=one.batch, scaled_to=self.scale)[name] for one in self.targets])
        else:
            value = self._decoded(batch, self.decoding.encode(batch), None)
        require_finite(value, "expression")
        return value

    def draws(self, batch: Minibatch, n_samples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Iterate over draws ``(n_cells, n_features)``."""
        assert self.decoding is not None
        encoded = self.decoding.encode(batch)
        for _ in range(n_samples):
            yield self._decoded(batch, encoded, generator)

    def _decoded(self, batch: Minibatch, encoded: Any, generator: torch.Generator | None) -> Tensor:
        assert self.decoding is not None
        z = self.decoding.latent(batch, encoded, generator)
        library = self.decoding.library(batch, encoded, generator) if self.scale is None else None
        return _mean([self.decoding.decoded(batch, z, target, scale=self.scale, library=library) for target in self.targets])


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
