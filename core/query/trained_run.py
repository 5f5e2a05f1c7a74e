"""A trained run: the model, the cells, what can be chosen of them, and minibatches of them in order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cellweave.core.errors import Cancelled, CellweaveError
from cellweave.core.models.vae_network import Posterior, VaeNetwork, draw
from cellweave.core.query.encode import align_to, blocks_of, encode
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Modality, Study
from cellweave.core.training.data import TrainingData
from cellweave.core.training.model_files import TrainedModel
from cellweave.core.training.sources import Loader
from cellweave.core.wording import agree, counted

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch, Model

#: Cells computed at a time.
BATCH = 512


class QueryError(CellweaveError):
    """A question that this model, or these cells, cannot answer."""

    exit_code = 2


@dataclass(frozen=True)
class CachedPosterior:
    """Posteriors kept with minified data, in the order of its cells.

    Attributes
    ----------
    mean, var
        Of the latent before any transformation, float32 ``(n_cells, n_latent)``.
    library
        Observed total count, float32 ``(n_cells,)``.
    has_counts
        Whether the counts were kept too.
    """

    mean: np.ndarray
    var: np.ndarray
    library: np.ndarray
    has_counts: bool


def _nobody(fraction: float) -> None:
    """Tell progress to nobody."""


def _never() -> bool:
    """Never cancel."""
    return False


@dataclass(frozen=True)
class TrainedRun:
    """A trained model and the cells it is asked about.

    Attributes
    ----------
    path
        The run folder.
    spec
        Of the run.
    trained
        The model as it was saved.
    study, data
        The cells, and their codes as the model reads them.
    loader
        Makes minibatches of them, on the model's device.
    notes
        Sentences on what was done to read these cells (features that count as 0 ...).
    cached
        Posteriors of minified data, or None where the encoder is asked.
    modality
        Modality that questions of features are about; None for RNA, or the first. Set with :meth:`of_modality`.
    progress, cancelled
        Told the share that is done; asked between minibatches. Set with :meth:`watched`.
    """

    path: Path
    spec: RunSpec
    trained: TrainedModel
    study: Study
    data: TrainingData
    loader: Loader
    notes: tuple[str, ...] = ()
    cached: CachedPosterior | None = None
    modality: str | None = None
    progress: Callable[[float], None] = field(default=_nobody, compare=False)
    cancelled: Callable[[], bool] = field(default=_never, compare=False)

    # ------------------------------------------------------------------ what it is

    @property
    def model(self) -> Model:
        """The model, in evaluation mode."""
        return self.trained.model

    @property
    def network(self) -> VaeNetwork:
        """The model, where it is of scVI's kind.

        Raises
        ------
        QueryError
            Where it is not.
        """
        if not isinstance(self.model, VaeNetwork):
            raise QueryError(
                f"{self.spec.family.title} cannot answer this: it needs one latent, one decoder and one likelihood, as scVI and LDVAE have.",
                "Ask for its latent space, its denoised expression, or another result that it lists.",
            )
        return self.model

    @property
    def decodes(self) -> bool:
        """Whether latents of the model can be drawn and decoded (:mod:`cellweave.core.query.decoding`)."""
        from cellweave.core.models.regularised_network import RegularisedNetwork

        return isinstance(self.model, VaeNetwork | RegularisedNetwork)

    @property
    def n_cells(self) -> int:
        """Cells of the study."""
        return self.data.n_cells

    @property
    def cell_names(self) -> pd.Index:
        """Names of all cells of the study."""
        return self.study.obs.index

    @property
    def features(self) -> tuple[str, ...]:
        """Feature names of the modality that is asked about, in the order of the model."""
        return self.trained.features[self.modality_name]

    @property
    def modality_name(self) -> str:
        """The modality that questions of features are about."""
        known = self.trained.features
        return self.modality or ("rna" if "rna" in known else next(iter(known)))

    @property
    def counts(self) -> Modality:
        """The counts of that modality."""
        return next(modality for modality in self.data.modalities if modality.name == self.modality_name)

    def of_modality(self, name: str | None) -> TrainedRun:
        """Return the same run, asked about the features of a modality.

        Raises
        ------
        QueryError
            Where the model does not have it.
        """
        if name is not None and name not in self.trained.features:
            raise QueryError(f"The model does not read {name}.", f"It reads {', '.join(self.trained.features)}.")
        return replace(self, modality=name)

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the levels of the batch, in the order of their codes; empty where the model has no batch."""
        known = self.trained.encoding.columns
        columns = known.get("batch") or (known.get("library", ()) if "library" in self.spec.family.fan_out else ())
        return self.trained.encoding.levels[columns[0]] if columns else ()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.loader.device

    def watched(self, progress: Callable[[float], None] | None = None, cancelled: Callable[[], bool] | None = None) -> TrainedRun:
        """Return the same run, whose questions tell their progress and may be cancelled."""
        return replace(self, progress=progress or self.progress, cancelled=cancelled or self.cancelled)

    @property
    def can_be_cancelled(self) -> bool:
        """Whether somebody may cancel what is asked."""
        return self.cancelled is not _never

    # ------------------------------------------------------------------ other cells

    def on(self, study: Study) -> TrainedRun:
        """Return the same model asked about other cells.

        Parameters
        ----------
        study
            Any study; features are matched by name, levels must be known to the model.

        Raises
        ------
        DataError
            Where features, columns or levels do not fit.
        """
        aligned, notes = align_to(study, self.trained.features, partial=self.spec.family.modalities == "many")
        blocks = blocks_of(self.trained.context)
        data = encode(self.spec, self.trained.encoding, aligned, self.trained.features, trained_on=False, blocks=blocks)
        return replace(self, study=aligned, data=data, loader=Loader(data, self.device, resident=False), notes=tuple(notes), cached=None)

    # ------------------------------------------------------------------ choosing

    def rows(self, cells: Sequence[int] | Sequence[bool] | np.ndarray | None = None) -> np.ndarray:
        """Return rows of the study.

        Parameters
        ----------
        cells
            Row numbers, or a mask over all cells; None for all cells the model can read.

        Returns
        -------
        ndarray
            int64 ``(n_rows,)``, in the order given.

        Raises
        ------
        QueryError
            Where there are none, a row does not exist, or a cell was not measured or was left out.
        """
        if cells is None:
            return np.flatnonzero(self.data.usable)
        found = np.asarray(cells)
        if found.dtype == bool:
            if found.shape != (self.n_cells,):
                had = f"{counted(found.size, 'entry', 'entries')} for {counted(self.n_cells, 'cell')}"
                raise QueryError(f"The mask has {had}.", "Give one entry for each cell of the study.")
            found = np.flatnonzero(found)
        elif found.size and not np.issubdtype(found.dtype, np.integer):
            raise QueryError("Cells are chosen by row numbers or by a mask.", "Give whole numbers, or True and False.")
        if not found.size:
            raise QueryError("No cells are chosen.", "Choose at least one.")
        found = found.astype(np.int64).ravel()
        if found.min() < 0 or found.max() >= self.n_cells:
            raise QueryError(f"There is no cell in row {found[(found < 0) | (found >= self.n_cells)][0]}.", f"Rows go from 0 to {self.n_cells - 1}.")
        unusable = found[~self.data.usable[found]]
        if unusable.size:
            why = self.data.reason.get(int(unusable[0]), "left out")
            raise QueryError(
                f"{unusable.size:,} of the {found.size:,} chosen cells {agree(unusable.size, 'was', 'were')} left out of this run "
                f"('{self.cell_names[unusable[0]]}': {why}).", "Choose others."
            )
        return found

    def columns(self, names: Sequence[str] | None) -> np.ndarray | slice:
        """Return the columns of features by name; all where ``names`` is None.

        Raises
        ------
        QueryError
            Where a name is not known; the sentence proposes the nearest.
        """
        if names is None:
            return slice(None)
        if not len(names):
            raise QueryError("The list of features is empty.", "Name at least one, or leave the list out.")
        known = set(self.features)
        unknown = [name for name in names if name not in known]
        if unknown:
            near = [(name, difflib.get_close_matches(name, known, n=1, cutoff=0.6)) for name in unknown[:5]]
            hints = [f"'{found[0]}' for '{name}'" for name, found in near if found]
            shown = ", ".join(f"'{name}'" for name in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
            raise QueryError(
                f"The model does not know {len(unknown)} of the {len(names)} features asked for: {shown}.",
                f"Did you mean {', '.join(hints)}?" if hints else f"Its features are called '{self.features[0]}' and the like.",
            )
        place = {name: number for number, name in reversed(list(enumerate(self.features)))}  # the first of a repeated name
        return np.array([place[name] for name in dict.fromkeys(names)], dtype=np.int64)

    def feature_names(self, names: Sequence[str] | None) -> list[str]:
        """Return the names that :meth:`columns` chooses, each once."""
        chosen = self.columns(names)
        return [self.features[place] for place in (range(len(self.features)) if isinstance(chosen, slice) else chosen)]

    def batch_codes(self, names: str | Sequence[str] | None) -> list[int | None]:
        """Return the codes of batches by name; ``[None]`` (each cell's own) where ``names`` is None.

        Raises
        ------
        QueryError
            Where a batch is not known, or the model has none.
        """
        if names is None:
            return [None]
        wanted = [names] if isinstance(names, str) else [str(name) for name in names]
        if not self.batches:
            raise QueryError("The model was trained without a batch, so cells cannot be decoded as another one.", "Leave the batch out.")
        if not wanted:
            raise QueryError("No batch is named.", f"Choose among {', '.join(self.batches[:12])}.")
        for name in wanted:
            if name not in self.batches:
                near = difflib.get_close_matches(name, self.batches, n=1, cutoff=0.4)
                hint = f"Did you mean '{near[0]}'?" if near else f"It knows {', '.join(self.batches[:12])}."
                raise QueryError(f"The model has no batch '{name}'.", hint)
        return [self.batches.index(name) for name in dict.fromkeys(wanted)]

    def column_codes(self, levels: Mapping[str, str], allowed: Sequence[str]) -> dict[str, int]:
        """Return the codes of levels by column, of columns that cells can be decoded as.

        Raises
        ------
        QueryError
            Where a column is none of them, or a level is not known.
        """
        found = {}
        for column, level in levels.items():
            if column not in allowed:
                near = difflib.get_close_matches(column, allowed, n=1, cutoff=0.5)
                hint = f"Did you mean '{near[0]}'?" if near else f"They can be decoded as levels of {', '.join(allowed) or 'no column'}."
                raise QueryError(f"The decoder is not told of '{column}', so cells cannot be decoded as a level of it.", hint)
            known = self.trained.encoding.levels[column]
            if level not in known:
                near = difflib.get_close_matches(level, known, n=1, cutoff=0.4)
                hint = f"Did you mean '{near[0]}'?" if near else f"It knows {', '.join(known[:12])}."
                raise QueryError(f"The model has no level '{level}' of '{column}'.", hint)
            found[column] = known.index(level)
        return found

    # ------------------------------------------------------------------ computing

    def generator(self, seed: int) -> torch.Generator:
        """Return a source of draws that only ``seed`` determines."""
        return torch.Generator(device=self.device).manual_seed(seed)

    def minibatches(self, rows: np.ndarray, size: int = BATCH, *, with_counts: bool = True) -> Iterator[tuple[slice, Minibatch]]:
        """Iterate over rows in order, telling progress; a decoder alone needs no counts.

        For families whose minibatches may not mix patterns of measured modalities use :meth:`minibatches_by_pattern`.

        Yields
        ------
        where
            Which of ``rows`` these are.
        batch
            The minibatch.

        Raises
        ------
        Cancelled
            Where the person asked for it.
        """
        for start in range(0, len(rows), size):
            if self.cancelled():
                raise Cancelled
            stop = min(start + size, len(rows))
            yield slice(start, stop), self.loader.minibatch(rows[start:stop], with_counts=with_counts)
            self.progress(stop / len(rows))

    def minibatches_by_pattern(self, rows: np.ndarray, size: int = BATCH, *, with_counts: bool = True) -> Iterator[tuple[np.ndarray, Minibatch]]:
        """Iterate over rows in minibatches that never mix patterns of measured modalities where the family asks for it, telling progress.

        Yields
        ------
        where
            Positions in ``rows``, ascending; each occurs once.
        batch
            The minibatch.

        Raises
        ------
        Cancelled
            Where the person asked for it.
        """
        done = 0
        for where in self.loader.parts(rows, size):
            if self.cancelled():
                raise Cancelled
            yield where, self.loader.minibatch(rows[where], with_counts=with_counts)
            done += len(where)
            self.progress(done / len(rows))

    def posterior(self, batch: Minibatch) -> Posterior:
        """Return the posterior of the cells: from the encoder, or as it was stored with minified data.

        Raises
        ------
        QueryError
            Where it holds values that are not finite.
        """
        if self.cached is None:
            found = self.network.posterior(batch)
        else:
            rows = batch.index.cpu().numpy()
            found = Posterior(self._to_device(self.cached.mean[rows]), self._to_device(self.cached.var[rows]), None)
        require_finite(found.mean, "latent")
        return found

    def observed_library(self, batch: Minibatch) -> Tensor:
        """Return the size factor or the total count of each cell ``(n_cells,)``; of minified data as it was stored."""
        if self.cached is None or self.network.has_size_factor:
            return self.network.observed_library(batch)
        return self._to_device(self.cached.library[batch.index.cpu().numpy()])

    def library_mean(self, batch: Minibatch, posterior: Posterior) -> Tensor:
        """Return the observed library size, or the posterior mean of the learned one, ``(n_cells,)``."""
        return self.observed_library(batch) if posterior.log_library is None else self.network.library_mean(batch, posterior)

    def draw_library(self, batch: Minibatch, posterior: Posterior, generator: torch.Generator) -> Tensor:
        """Return the observed library size, or a draw of the learned one, ``(n_cells,)``."""
        if posterior.log_library is None:
            return self.observed_library(batch)
        return torch.exp(draw(*posterior.log_library, generator))

    def require_counts(self, what: str) -> None:
        """Refuse a question that needs counts where they were not kept.

        Raises
        ------
        QueryError
            On minified data without counts.
        """
        if self.cached is not None and not self.cached.has_counts:
            raise QueryError(
                f"{what[:1].upper()}{what[1:]} needs the counts, and these minified data were written without them.",
                "Ask the run with its original data, or write the minified data with counts.",
            )

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def require_finite(values: Tensor, what: str) -> None:
    """Refuse values that are not finite.

    Raises
    ------
    QueryError
        Where one is not.
    """
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values.reshape(len(values), -1)).all(1)).sum())
        raise QueryError(
            f"The {what} of {counted(bad, 'cell')} is not a finite number, so nothing can be said of {agree(bad, 'it', 'them')}.",
            "The training went wrong: train again with a lower learning rate, or look for cells with extreme counts.",
        )
