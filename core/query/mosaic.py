"""What a model of many modalities says of values: imputed, freed of the batch, or translated from some modalities to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from cellweave.core.query.draws import seeds_of_cells
from cellweave.core.query.latent import Cells
from cellweave.core.query.trained_run import QueryError, TrainedRun

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch, Model

What = Literal["imputed", "corrected", "translated"]
Batches = Callable[[], Iterator[tuple[Any, "Minibatch"]]]
SEPARATOR = "_to_"


@dataclass(frozen=True)
class MosaicQuestion:
    """What is asked.

    Attributes
    ----------
    what
        ``"imputed"``: expected values of every modality from all that a cell has; ``"corrected"``: the same with the technical part of the latent
        replaced by one for all cells; ``"translated"``: expected values from the modalities ``given`` alone.
    given
        Modalities that may be looked at; None for all that were measured in a cell.
    modalities
        Modalities that are wanted; None for all (of a translation: those that are not given).
    sampled
        Draw counts from the distributions instead of giving their means (MIDAS only).
    seed
        Determines the draws; those of a cell do not depend on which others are asked of.
    """

    what: What = "imputed"
    given: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    sampled: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the result: ``imputed``, ``corrected``, ``rna_to_adt``."""
        if self.what != "translated":
            return self.what
        return "_".join(sorted(self.given or ())) + SEPARATOR + "_".join(self.modalities or ())

    def among(self, known: Sequence[str]) -> MosaicQuestion:
        """Return the question with its modalities written out.

        Raises
        ------
        QueryError
            Where one is not known, or nothing is left to translate.
        """
        for name in (*(self.given or ()), *(self.modalities or ())):
            if name not in known:
                raise QueryError(f"The model has no modality '{name}'.", f"It has {', '.join(known)}.")
        if self.what == "translated" and not self.given:
            raise QueryError("A translation needs the modalities it starts from.", f"Name some of {', '.join(known)} with --given.")
        if self.what == "corrected" and self.given:
            raise QueryError("Corrected values are told from all that a cell has.", "Leave out --given, or ask for a translation.")
        wanted = self.modalities
        if wanted is None:
            wanted = tuple(name for name in known if self.what != "translated" or name not in (self.given or ()))
        if not wanted:
            raise QueryError("All modalities are given, so none is left to translate to.", "Give fewer, or ask for 'imputed'.")
        return MosaicQuestion(self.what, self.given, wanted, self.sampled, self.seed)


def translations(known: Sequence[str]) -> list[MosaicQuestion]:
    """Return every translation between modalities: from each subset that leaves some out, to those."""
    subsets = (given for size in range(1, len(known)) for given in combinations(known, size))
    return [MosaicQuestion("translated", given).among(known) for given in subsets]


def values_of(
    model: Model, batches: Batches, question: MosaicQuestion, known: Sequence[str], technical: Tensor | None = None
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Iterate over the values that are asked for, one minibatch after the other.

    Parameters
    ----------
    model
        In evaluation mode.
    batches
        Gives places and minibatches of the cells.
    question
        What is asked.
    known
        Modalities of the model.
    technical
        Technical latent ``(n_technical,)`` that corrected values are decoded with (:mod:`cellweave.core.query.centroid`); of the trained run, since
        one told from the asked cells would leave those of a single batch as they are.

    Yields
    ------
    where
        Places of the cells, as ``batches`` gives them.
    values
        By modality float32 ``(n_cells, n_features)``; NaN in cells that have none of the given modalities.

    Raises
    ------
    QueryError
        Where the model cannot answer.
    """
    from cellweave.core.models.midas_network import MidasNetwork

    question = question.among(known)
    wanted = question.modalities or ()
    if not isinstance(model, MidasNetwork):
        if question.what == "corrected" or question.sampled:
            raise QueryError(f"{model.family.title} gives expected values only, imputed or translated.", "Ask for 'imputed' or 'translated'.")
        with torch.no_grad():
            for where, batch in batches():
                found = model.impute(batch, given=question.given)
                yield where, {name: found[name].float().cpu().numpy() for name in wanted}
        return
    if question.what != "corrected":
        technical = None
    elif technical is None:
        raise QueryError("The run keeps no technical latent to correct its cells with.", "Resume the run, which computes its results anew.")
    with torch.no_grad():
        for where, batch in batches():
            seen = model.see(batch, draw=False, told=model.options.batch_expert, given=question.given)
            z = seen.joint.mean if technical is None else model.with_technical(seen.joint.mean, technical)
            if question.sampled:
                found = model.sampled(z, wanted, seeds_of_cells(question.seed, batch.index.cpu().numpy(), len(known)))
            else:
                found = model.means(z, wanted)
            told = model.any_known(seen, z)
            yield where, {name: _known(value, told) for name, value in found.items()}


def _known(value: Tensor, told: Tensor) -> np.ndarray:
    return value.where(told, value.new_full((), float("nan"))).float().cpu().numpy()


def mosaic_chunks(run: TrainedRun, cells: Cells = None, question: MosaicQuestion | None = None) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Iterate over what an open run says of values, in the order of the cells.

    Parameters
    ----------
    run
        An open run of a model of many modalities.
    cells
        Rows or a mask; None for all usable cells.
    question
        What is asked; None for imputed values of everything.

    Yields
    ------
    where
        Which of the cells these are.
    values
        By modality float32 ``(n_rows, n_features)``.

    Raises
    ------
    QueryError
        Where the model cannot answer.
    """
    if run.spec.family.modalities != "many":
        raise QueryError(f"{run.spec.family.title} knows one modality, so nothing of another can be told.", "Train a model of several modalities.")
    from cellweave.core.models.midas_network import MidasNetwork
    from cellweave.core.query.centroid import centroid_of

    rows, asked = run.rows(cells), question or MosaicQuestion()
    technical = centroid_of(run) if asked.what == "corrected" and isinstance(run.model, MidasNetwork) else None
    yield from values_of(run.model, lambda: run.minibatches(rows), asked, tuple(run.trained.features), technical)


def mosaic_values(run: TrainedRun, cells: Cells = None, question: MosaicQuestion | None = None) -> dict[str, np.ndarray]:
    """Return what :func:`mosaic_chunks` gives, whole: by modality float32 ``(n_rows, n_features)``."""
    parts: dict[str, list[np.ndarray]] = {}
    for _, values in mosaic_chunks(run, cells, question):
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(own) for name, own in parts.items()}
