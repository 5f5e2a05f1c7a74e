"""What the ambient-regularised models must know of the counts before they begin, in one pass over the training cells.

No copy of the counts is made: blocks of rows are multiplied with a few selector rows (one a level), so that means of normalised counts, moments and
library statistics come of one reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cellweave.core.models.per_modality import value_of
from cellweave.core.training.data import row_totals

if TYPE_CHECKING:
    from cellweave.core.spec import RunSpec
    from cellweave.core.study.study import Modality
    from cellweave.core.training.data import TrainingData

BLOCK = 5_000
TOP_SHARE, TOP_MOST = 0.01, 500


def summaries(spec: RunSpec, data: TrainingData) -> dict[str, np.ndarray]:
    """Return the summaries of every modality.

    Parameters
    ----------
    spec
        The run's spec, of one of the two families.
    data
        The encoded study.

    Returns
    -------
    dict
        By ``"MODALITY/NAME"``: ``mean``, ``var`` of raw counts ``(n_features,)``; ``share``, mean of ``x / total`` ``(n_features,)``, and the same by
        level of the ambient columns, one column's levels after another, ``ambient_share`` ``(n_levels, n_features)``; ``top_share`` where the decoder begins
        at the highest counts; ``library_mean``, ``library_var`` of log totals by group; ``totals``, mean and variance of totals and number of cells. And by
        ``"commonest/ROLE"`` the commonest level of each column.
    """
    found: dict[str, np.ndarray] = {}
    options: Any = spec.model
    for role in ("decoder", "feature_scaling", "ambient"):
        codes = data.categorical.get(role)
        if codes is not None:
            found[f"commonest/{role}"] = np.array([np.bincount(column[data.train]).argmax() for column in codes.T], dtype=np.int64)
    for modality in data.modalities:
        top = value_of(options.init_decoder_bias, modality.name) == "topN"
        for name, values in _of_modality(modality, data, top=top).items():
            found[f"{modality.name}/{name}"] = values
    return found


def _of_modality(modality: Modality, data: TrainingData, *, top: bool) -> dict[str, np.ndarray]:
    totals = row_totals(modality.counts)
    chosen = np.zeros(data.n_cells, dtype=bool)
    chosen[data.train] = True
    chosen &= modality.measured
    group = data.categorical.get("library_size", np.zeros(data.n_cells, dtype=np.int64))
    n_groups = _levels(data, "library_size")[0]
    log_mean, log_var = group_statistics(totals, group, n_groups, np.flatnonzero(chosen))
    present = chosen & (totals > 0)
    ambient = _selector(data, "ambient", present)
    n_features, n_cells = modality.n_features, int(present.sum())
    sums, squares, shares = np.zeros(n_features), np.zeros(n_features), np.zeros((len(ambient), n_features))
    most = min(max(int(TOP_SHARE * n_cells), 1), TOP_MOST)
    highest = np.zeros((most, n_features), dtype=np.float32) if top else None
    for start in range(0, data.n_cells, BLOCK):
        stop = min(start + BLOCK, data.n_cells)
        rows = np.flatnonzero(present[start:stop])
        if not rows.size:
            continue
        block = modality.counts[start + rows].astype(np.float64)
        sums += np.asarray(block.sum(0)).ravel()
        squares += np.asarray(block.power(2).sum(0)).ravel()
        share = sparse.diags(1.0 / np.maximum(totals[start + rows], 1.0)) @ block
        weights = sparse.csr_matrix(ambient[:, start + rows].astype(np.float64))
        shares += (weights @ share).toarray()
        if highest is not None:
            highest = _highest(highest, share.tocsc())
    n = max(n_cells, 1)
    in_level = ambient.sum(1)
    first = _levels(data, "ambient")[0]
    mean = sums / n
    result = {
        "mean": mean,
        "var": np.maximum(squares / n - mean**2, 0.0),
        # Every cell has one level of the first column, so that its levels add up to all cells.
        "share": shares[:first].sum(0) / n,
        "ambient_share": shares / np.maximum(in_level, 1)[:, None],
        "library_mean": log_mean,
        "library_var": log_var,
        "totals": np.array([totals[present].mean() if n_cells else 1.0, totals[present].var() if n_cells else 0.0, float(n_cells)]),
    }
    if highest is not None:
        result["top_share"] = highest.mean(0).astype(np.float64)
    return result


def _levels(data: TrainingData, role: str) -> tuple[int, ...]:
    found = data.n_levels().get(role, 1)
    return found if isinstance(found, tuple) else (found,)


def _selector(data: TrainingData, role: str, present: np.ndarray) -> np.ndarray:
    """Return one row a level of every column of a role, bool ``(n_levels, n_cells)``; one row of all cells where it has no column."""
    codes = data.categorical.get(role)
    if codes is None:
        return present[None, :].copy()
    levels = _levels(data, role)
    return np.concatenate([(column == np.arange(n)[:, None]) & present for column, n in zip(codes.T, levels, strict=True)])


def _highest(kept: np.ndarray, block: sparse.csc_matrix) -> np.ndarray:
    """Return the highest values of each feature among those kept and a block, ``(n_kept, n_features)``."""
    most = len(kept)
    for column in range(block.shape[1]):
        values = block.data[block.indptr[column] : block.indptr[column + 1]]
        if values.size:
            both = np.concatenate([kept[:, column], values.astype(np.float32)])
            kept[:, column] = np.partition(both, len(both) - most)[-most:]
    return kept


def group_statistics(totals: np.ndarray, group: np.ndarray, n_groups: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and population variance of log totals by group, each float64 ``(n_groups,)``.

    Cells without a count are left out: they say nothing of a library's depth. A group without cells has mean 0 and variance 1 around the mean of
    the others; one without spread takes the variance over all cells.
    """
    rows = rows[totals[rows] > 0]
    logs, codes = np.log(totals[rows]), group[rows]
    mean, var, filled = np.zeros(n_groups), np.ones(n_groups), np.zeros(n_groups, dtype=bool)
    for code in range(n_groups):
        here = logs[codes == code]
        if here.size:
            filled[code] = True
            mean[code], var[code] = here.mean(), here.var() if np.ptp(here) > 0 else max(float(logs.var()), 1e-2)
    if filled.any():
        mean[~filled] = mean[filled].mean()
    return mean, var
