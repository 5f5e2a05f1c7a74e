"""Which features and which cells the model sees."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.spec.data import FeatureSelection, SwitchedOff
from cellweave.core.study.annotation import plain_column, require_column
from cellweave.core.study.held_out import HeldOut
from cellweave.core.study.study import SWITCHED_OFF, Modality, Study
from cellweave.core.wording import agree, counted


def keep_features(modality: Modality, keep: np.ndarray) -> None:
    """Keep some features of a modality, in their order; changes it.

    Parameters
    ----------
    modality
        The modality.
    keep
        ``(n_features,)`` bool.
    """
    if keep.all():
        return
    modality.counts = _sorted(modality.counts[:, np.flatnonzero(keep)])
    modality.var = modality.var[keep].copy()
    if modality.feature_mask is not None:
        modality.feature_mask = modality.feature_mask[:, keep]
    if modality.held_out is not None:
        modality.held_out = modality.held_out.features(keep)


def _sorted(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    result = sparse.csr_matrix(matrix)
    result.sort_indices()
    return result


def keep_cells(study: Study, keep: np.ndarray, reason: str | np.ndarray) -> None:
    """Leave cells out of a study and remember which; changes it.

    Parameters
    ----------
    study
        The study.
    keep
        ``(n_cells,)`` bool.
    reason
        Why the others are left out: one text, or one for each cell.
    """
    if keep.all():
        return
    out = ~keep
    why = reason[out] if isinstance(reason, np.ndarray) else [reason] * int(out.sum())
    rows = {
        "file": study.file_of_cell[out], "row": study.row_in_file[out], "name": study.obs.index.to_numpy(dtype=object)[out], "reason": why
    }  # fmt: skip
    table = pd.DataFrame(rows)
    study.left_out = table if study.left_out.empty else pd.concat([study.left_out, table], ignore_index=True)
    study.obs = pd.DataFrame({name: plain_column(values) for name, values in study.obs[keep].items()}, index=study.obs.index[keep])
    study.file_of_cell, study.row_in_file, study.mask_group = study.file_of_cell[keep], study.row_in_file[keep], study.mask_group[keep]
    for modality in study.modalities.values():
        modality.counts = _sorted(modality.counts[np.flatnonzero(keep)])
        modality.measured = modality.measured[keep]
        if modality.held_out is not None:
            modality.held_out = modality.held_out.cells(keep)


def not_measured(modality: Modality, cells: np.ndarray) -> None:
    """Treat a modality as not measured in some cells: their counts go; changes it."""
    cells = cells & modality.measured
    if not cells.any():
        return
    modality.measured = modality.measured & ~cells
    per_cell = np.diff(modality.counts.indptr)
    kept = np.repeat(~cells, per_cell)
    lengths = np.where(cells, 0, per_cell)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(modality.counts.indptr.dtype)
    counts = modality.counts
    modality.counts = sparse.csr_matrix((counts.data[kept], counts.indices[kept], indptr), shape=counts.shape)


def switch_off(study: Study, cells_of_grid: Iterable[SwitchedOff]) -> None:
    """Treat modalities as not measured in the cells of some levels of a column, and keep what was measured aside; changes the study.

    Raises
    ------
    DataError
        Where a column, level or modality does not exist.
    """
    for one in cells_of_grid:
        require_column(study.obs, one.column, "data.switched_off")
        if one.modality not in study.modalities:
            raise DataError(
                f"data.switched_off names the modality '{one.modality}', which the data do not have.",
                f"They have {', '.join(study.modalities)}.",
            )
        cells = (study.obs[one.column].astype(str) == one.level).to_numpy() & study.obs[one.column].notna().to_numpy()
        if not cells.any():
            raise DataError(
                f"data.switched_off names the level '{one.level}' of '{one.column}', which no cell has.", "Choose one of its levels."
            )
        modality = study.modalities[one.modality]
        rows = np.flatnonzero(cells & modality.measured)
        if len(rows):
            modality.held_out = HeldOut(rows, _sorted(modality.counts[rows])).and_also(modality.held_out)
        not_measured(modality, cells)


def drop_switched_off(study: Study, cells_of_grid: Iterable[SwitchedOff]) -> None:
    """Leave out modalities that only cells had which were left out when they were switched off: nothing of them can be learned or judged."""
    for name in sorted({one.modality for one in cells_of_grid}):
        modality = study.modalities[name]
        if study.n_cells and modality.held_out is None and not modality.measured.any():
            del study.modalities[name]
            study.left_out_modalities[name] = SWITCHED_OFF


def drop_unmeasured(study: Study, reason: str) -> None:
    """Leave out cells in which no modality is measured; changes the study."""
    measured = np.logical_or.reduce([modality.measured for modality in study.modalities.values()])
    keep_cells(study, measured, reason)


def drop_empty_cells(study: Study) -> None:
    """Leave out empty cells; changes the study.

    A cell without a single count in a modality counts as not measured there; one in which nothing is measured
    any more is left out.
    """
    for modality in study.modalities.values():
        empty = modality.measured & (np.diff(modality.counts.indptr) == 0)
        if empty.any():
            modality.measured = modality.measured & ~empty
    drop_unmeasured(study, "no counts")


def drop_empty_features(study: Study) -> None:
    """Leave out features that no cell has a count of; changes the study."""
    for modality in study.modalities.values():
        keep_features(modality, modality.counts.getnnz(axis=0) > 0)


def select_features(study: Study, name: str, how: FeatureSelection) -> None:
    """Keep the features of a modality that the spec asks for; changes the study.

    Raises
    ------
    DataError
        Where a list cannot be read or names nothing that was measured, or the ranking is not possible.
    """
    modality = study.modalities[name]
    if not modality.measured.any():
        return  # switched off everywhere, which the check before a run says
    if how.mode == "list":
        keep_features(modality, _listed(modality, how, study.notes))
    elif how.mode == "variable":
        if how.n >= modality.n_features:
            study.notes.append(
                f"{name} has {counted(modality.n_features, 'feature')}, so {agree(modality.n_features, 'it is', 'all of them are')} "
                f"kept instead of the {how.n:,} most variable."
            )
            return
        keep_features(modality, _variable(study, modality, how))


def _listed(modality: Modality, how: FeatureSelection, notes: list[str]) -> np.ndarray:
    if how.file is None:
        raise DataError(f"The features of {modality.name} are to come from a list, but no file is named.", f"Set data.features.{modality.name}.file.")
    path = Path(how.file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"The feature list '{path}' cannot be read.", "Choose a text file with one feature name a line.") from None
    wanted = {line.strip() for line in lines if line.strip()}
    keep = modality.var.index.isin(wanted)
    if not keep.any():
        raise DataError(
            f"{agree(len(wanted), 'The one name', f'None of the {len(wanted):,} names')} in '{path.name}' is {agree(len(wanted), 'no', 'a')} feature "
            f"of {modality.name}.",
            f"The features are called '{modality.var.index[0]}' and the like.",
        )
    unknown = wanted - set(modality.var.index)
    if unknown:
        notes.append(
            f"{len(unknown):,} of {len(wanted):,} names in '{path.name}' {agree(len(unknown), 'is no feature', 'are not features')} of "
            f"{modality.name} ('{sorted(unknown)[0]}' ...)."
        )
    return np.asarray(keep)


# The smoother behind seurat_v3 (loess of scikit-misc, local quadratic on 30 % of the points) fails below 16 points, and
# with fewer than 4 it takes the whole process down.
FEWEST_VARYING = 20
# Beyond so many masks (one a cell, say) their groups are too small to rank within.
MOST_RANKED_GROUPS = 100


def _enough_to_rank(counts: sparse.csr_matrix, batch: pd.Series | None, name: str, how: FeatureSelection) -> None:
    """Refuse a ranking that the smoother cannot do.

    Raises
    ------
    DataError
        Where too few features vary, in all cells or within one level of the batch.
    """
    groups = {"": np.arange(counts.shape[0])} if batch is None else batch.reset_index(drop=True).groupby(batch.to_numpy()).indices
    for level, rows in groups.items():
        part = counts[rows]
        mean = np.asarray(part.mean(axis=0)).ravel()
        varying = int((np.asarray(part.multiply(part).mean(axis=0)).ravel() > mean**2 * (1 + 1e-12)).sum())
        if varying < FEWEST_VARYING:
            within = f" within '{level}'" if level and how.batch_column else ""
            raise _not_rankable(name, f"{within}: only {counted(varying, 'feature varies', 'features vary')} there, at least {FEWEST_VARYING} are needed")


def _not_rankable(name: str, why: str) -> DataError:
    return DataError(
        f"The variability of {name} cannot be ranked{why}.", f"Set data.features.{name}.mode = 'all', or rank without batch_column."
    )


def _variable(study: Study, modality: Modality, how: FeatureSelection) -> np.ndarray:
    """Rank features by variability (seurat_v3, on counts) in the cells in which the modality was measured."""
    import anndata
    import scanpy

    rows = np.flatnonzero(modality.measured)
    counts = modality.counts[rows].astype(np.float64)
    obs = pd.DataFrame(index=pd.RangeIndex(len(rows)).astype(str))
    batch_key = None
    if how.batch_column is not None:
        require_column(study.obs, how.batch_column, f"data.features.{modality.name}.batch_column")
        levels = study.obs[how.batch_column].iloc[rows].astype(object)
        batch_key, obs["batch"] = "batch", pd.Categorical([str(level) if level == level else "missing" for level in levels])
    elif modality.feature_mask is not None and len(np.unique(study.mask_group[rows])) <= MOST_RANKED_GROUPS:
        by_file = np.array_equal(study.mask_group, study.file_of_cell)
        who, where = ("Files", "file") if by_file else ("Cells", "group of cells with the same mask")
        study.notes.append(f"{who} have different features of {modality.name}, so their variability is ranked within each {where}.")
        batch_key, obs["batch"] = "batch", pd.Categorical(study.mask_group[rows].astype(str))
    _enough_to_rank(counts, obs["batch"] if batch_key else None, modality.name, how)
    names = pd.Index([str(number) for number in range(modality.n_features)])
    adata = anndata.AnnData(X=counts, obs=obs, var=pd.DataFrame(index=names))
    try:
        with warnings.catch_warnings():  # small on purpose: the filter holds for the whole process
            warnings.simplefilter("ignore")
            scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=how.n, batch_key=batch_key, inplace=True)
    except (ValueError, ZeroDivisionError, np.linalg.LinAlgError):
        within = f" within each '{how.batch_column}'" if how.batch_column else ""
        raise _not_rankable(modality.name, f"{within}: too few cells or features have enough counts") from None
    return adata.var["highly_variable"].to_numpy(dtype=bool)
