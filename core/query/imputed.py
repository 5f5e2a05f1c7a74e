"""Imputed values of all modalities: expected values given what a person chooses, with their spread, blended with what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np
import pandas as pd
import torch

from cellweave.core.files import write_atomic
from cellweave.core.nn.distributions import distribution
from cellweave.core.query.draws import noise_of_cells
from cellweave.core.query.latent import Cells
from cellweave.core.query.trained_run import QueryError, require_finite
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.core.models.vaeit import Normalisation
    from cellweave.core.query.trained_run import TrainedRun
    from cellweave.core.study.study import Modality

BATCH = 256
CHUNK = 256


@dataclass(frozen=True)
class ImputedQuestion:
    """What is asked.

    Attributes
    ----------
    given
        Modalities that may be looked at; None for all that were measured in a cell.
    modalities
        Modalities that are wanted; None for all.
    draws
        Draws of the latent over which mean and standard deviation are taken; None takes the posterior mean, without a spread.
    blended
        Keep what was measured and fill in only what was not; where the model imputes probabilities, what was measured is 1 or 0.
    normalised
        On the scale of training instead of counts.
    seed
        Determines the draws; those of a cell do not depend on which others are asked of.
    """

    given: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    draws: int | None = None
    blended: bool = False
    normalised: bool = False
    seed: int = 0

    def check(self, run: TrainedRun) -> None:
        """Refuse what this run cannot answer.

        Raises
        ------
        QueryError
            Where the model imputes nothing, has no such modality, or cannot draw.
        """
        if not any(result.kind == "imputation" for result in run.spec.family.results):
            raise QueryError(f"{run.spec.family.title} imputes nothing.", "Train scVAEIT or MIDAS on data of several modalities.")
        names = [modality.name for modality in run.data.modalities]
        for name in (*(self.given or ()), *(self.modalities or ())):
            if name not in names:
                raise QueryError(f"The model has no modality '{name}'.", f"It has {', '.join(names)}.")
        if self.draws is not None and self.draws < 2:
            raise QueryError(f"{counted(self.draws, 'draw gives', 'draws give')} no spread.", "Ask for 2 or more; 50 is usual.")
        if self.draws is not None and not hasattr(run.model, "impute_draws"):
            raise QueryError(f"{run.spec.family.title} gives imputed values without a spread.", "Leave --draws out.")
        if self.normalised and not hasattr(run.model, "impute_normalised"):
            raise QueryError(f"{run.spec.family.title} gives imputed values as counts only.", "Leave --normalised out.")


@torch.no_grad()
def imputed_chunks(run: TrainedRun, rows: np.ndarray, question: ImputedQuestion) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Iterate over imputed values.

    Yields
    ------
    where
        Positions in ``rows``, ascending; one minibatch after the other, unless the family's may not mix patterns of measured modalities.
    mean
        By modality, float32 ``(n, n_features)``; NaN where nothing that is given was measured.
    sd
        The same with the standard deviation over the draws; empty without draws. 0 where a measured value was kept.
    """
    question.check(run)
    model = cast(Any, run.model)
    names = question.modalities or tuple(modality.name for modality in run.data.modalities)
    for where, batch in run.minibatches_by_pattern(rows, BATCH):
        sd: dict[str, torch.Tensor] = {}
        if question.draws is not None:
            noise = noise_of_cells(question.seed, rows[where], question.draws, model.noise_width).to(batch.index.device)
            scale = {"in_counts": False} if question.normalised else {}
            mean, sd = model.impute_draws(batch, noise, given=question.given, **scale)
        elif question.normalised:
            mean = model.impute_normalised(batch, given=question.given)
        else:
            mean = run.model.impute(batch, given=question.given)
        means, spreads = {}, {}
        for name in names:
            value = mean[name].float()
            require_finite(torch.nan_to_num(value, nan=0.0, posinf=float("inf")), "imputed value")
            means[name] = value.cpu().numpy()
            if sd:
                spreads[name] = sd[name].float().cpu().numpy()
        if question.blended:
            _blend(run, rows[where], question, means, spreads)
        yield where, means, spreads


def value_scale(run: TrainedRun, modality: str) -> Normalisation:
    """Return what the values of a modality are to the model of a run.

    Returns
    -------
    str
        ``"binary"``: 0 and 1, imputed as probabilities; ``"log1p"``: counts, which are compared per 10,000 of the cell; ``"none"``: values as they are,
        because they are drawn from real numbers or named in ``data.real_valued``.
    """
    own = getattr(run.model, "value_scale", None)
    if own is not None:
        return cast("Normalisation", own(modality))
    of = getattr(run.spec.model, "distribution_of", None)
    support = distribution(of(modality)).support if of is not None else "counts"
    if support == "binary":
        return "binary"
    return "none" if support == "real" or modality in run.spec.data.real_valued else "log1p"


def _blend(run: TrainedRun, rows: np.ndarray, question: ImputedQuestion, means: dict[str, np.ndarray], spreads: dict[str, np.ndarray]) -> None:
    """Put measured values in the place of imputed ones."""
    for modality in run.data.modalities:
        if modality.name not in means:
            continue
        known = np.repeat(modality.measured[rows][:, None], modality.n_features, axis=1)
        if modality.feature_mask is not None and run.data.mask_group is not None:
            known &= modality.feature_mask[run.data.mask_group[rows]]
        measured = modality.counts[rows].toarray().astype(np.float32)
        scale = value_scale(run, modality.name)
        if scale == "binary":  # imputed values are probabilities, on either scale
            measured = (measured > 0).astype(np.float32)
        elif question.normalised:
            from cellweave.core.models.vaeit_ranges import normalise

            measured = normalise(measured, measured.sum(1, keepdims=True), scale).astype(np.float32)
        means[modality.name] = np.where(known, measured, means[modality.name])
        if spreads:
            spreads[modality.name] = np.where(known, 0.0, spreads[modality.name])


def latent_given(run: TrainedRun, given: Sequence[str], cells: Cells = None) -> np.ndarray:
    """Return the posterior mean of the latent given some modalities only, float32 ``(n_rows, n_latent)``; NaN where none of them was measured.

    Raises
    ------
    QueryError
        Where the model always looks at all it has.
    """
    if not hasattr(run.model, "latent_given"):
        raise QueryError(f"{run.spec.family.title} cannot be asked for a latent given some modalities only.", "Train scVAEIT or MIDAS.")
    ImputedQuestion(given=tuple(given)).check(run)
    with torch.no_grad():
        model = cast(Any, run.model)
        parts = [model.latent_given(batch, given).float().cpu().numpy() for _, batch in run.minibatches(run.rows(cells))]
    return np.concatenate(parts)


def write_imputed(run: TrainedRun, path: Path, cells: Cells, question: ImputedQuestion) -> None:
    """Write imputed values as ``.h5``, ``.h5mu``, ``.h5ad`` or ``.csv``, in chunks where the format allows it.

    ``.h5``: a group a modality with ``X`` and, with draws, ``sd``, float32 ``(n_cells, n_features)``, and ``features``; ``cells`` beside them. ``.h5ad`` and
    ``.csv`` hold one modality; of the spread, ``.h5ad`` and ``.h5mu`` have a layer ``sd``.

    Raises
    ------
    QueryError
        Where the question cannot be answered, or the format cannot hold it.
    """
    question.check(run)
    modalities = [modality for modality in run.data.modalities if question.modalities is None or modality.name in question.modalities]
    if path.suffix in {".csv", ".h5ad"} and len(modalities) > 1:
        names = ", ".join(modality.name for modality in modalities)
        raise QueryError(f"'{path.name}' holds one modality, and the model imputes {names}.", "Choose one modality, or write a .h5mu or .h5 file.")
    if path.suffix == ".csv" and question.draws is not None:
        raise QueryError("A CSV file holds no spread beside the values.", "Write a .h5ad, .h5mu or .h5 file, or ask without draws.")
    rows = run.rows(cells)
    write_atomic(path.absolute(), lambda temporary: _WRITERS[path.suffix](run, temporary, rows, question, modalities))


def _h5(run: TrainedRun, path: Path, rows: np.ndarray, question: ImputedQuestion, modalities: list[Modality]) -> None:
    with h5py.File(path, "w") as file:
        text = h5py.string_dtype()
        file.create_dataset("cells", data=[str(name) for name in run.cell_names[rows]], dtype=text)
        for modality in modalities:
            group = file.create_group(modality.name)
            group.create_dataset("features", data=[str(name) for name in modality.var.index], dtype=text)
            shape = (len(rows), modality.n_features)
            for key in ("X", "sd") if question.draws is not None else ("X",):
                group.create_dataset(key, shape, "f4", chunks=(min(CHUNK, max(1, shape[0])), shape[1]), compression="lzf")
        for where, means, spreads in imputed_chunks(run, rows, question):
            for name, value in means.items():
                file[name]["X"][where] = value
                if spreads:
                    file[name]["sd"][where] = spreads[name]


def _adata(run: TrainedRun, rows: np.ndarray, question: ImputedQuestion, modalities: list[Modality]) -> dict[str, Any]:
    import anndata as ad

    obs = run.study.obs.iloc[rows]
    found = {}
    for modality in modalities:
        values = np.empty((len(rows), modality.n_features), dtype=np.float32)
        found[modality.name] = ad.AnnData(values, obs=obs.copy(), var=pd.DataFrame(index=modality.var.index.astype(str)))
        found[modality.name].uns["imputed"] = {
            "given": list(question.given or ()), "scale": "training" if question.normalised else "counts", "blended": question.blended, "run": run.path.name
        }  # fmt: skip
        if question.draws is not None:
            found[modality.name].layers["sd"] = np.empty_like(values)
    for where, means, spreads in imputed_chunks(run, rows, question):
        for name, value in means.items():
            found[name].X[where] = value
            if spreads:
                found[name].layers["sd"][where] = spreads[name]
    return found


def _h5ad(run: TrainedRun, path: Path, rows: np.ndarray, question: ImputedQuestion, modalities: list[Modality]) -> None:
    _adata(run, rows, question, modalities)[modalities[0].name].write_h5ad(path, compression="gzip")


def _h5mu(run: TrainedRun, path: Path, rows: np.ndarray, question: ImputedQuestion, modalities: list[Modality]) -> None:
    import warnings

    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # mudata's own, of columns that it pulls together
        mudata.MuData(_adata(run, rows, question, modalities)).write_h5mu(path, compression="gzip")


def _csv(run: TrainedRun, path: Path, rows: np.ndarray, question: ImputedQuestion, modalities: list[Modality]) -> None:
    name, columns = modalities[0].name, modalities[0].var.index
    if run.data.by_pattern:  # the cells come in another order
        values = np.empty((len(rows), len(columns)), dtype=np.float32)
        for where, means, _ in imputed_chunks(run, rows, question):
            values[where] = means[name]
        pd.DataFrame(values, index=run.cell_names[rows], columns=columns).rename_axis("cell").to_csv(path)
        return
    for where, means, _ in imputed_chunks(run, rows, question):
        table = pd.DataFrame(means[name], index=run.cell_names[rows[where]], columns=columns).rename_axis("cell")
        table.to_csv(path, mode="a", header=where[0] == 0)


_WRITERS = {".h5": _h5, ".h5ad": _h5ad, ".h5mu": _h5mu, ".csv": _csv}
SUFFIXES = tuple(_WRITERS)
