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
#: Features that are looked at densely at a time.
COLUMNS = 512
#: Rounds in which the mean profile and the share of it that was measured are found of each other.
ROUNDS = 20
TOP_SHARE, TOP_MOST = 0.01, 500
SMALLEST = 1e-12


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
    totals, mask, mask_group = row_totals(modality.counts), modality.feature_mask, data.mask_group
    chosen = np.zeros(data.n_cells, dtype=bool)
    chosen[data.train] = True
    chosen &= modality.measured
    present = chosen & (totals > 0)
    if mask is not None and mask_group is not None:
        totals = totals / coverage(mask, profile(modality.counts, mask, mask_group, np.flatnonzero(present), totals))[mask_group]
    group = data.categorical.get("library_size", np.zeros(data.n_cells, dtype=np.int64))
    n_groups = _levels(data, "library_size")[0]
    log_mean, log_var = group_statistics(totals, group, n_groups, np.flatnonzero(chosen))
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
    in_level = _measuring(ambient, mask, mask_group)
    n = np.maximum(_measuring(present[None, :], mask, mask_group)[0], 1)
    first = _levels(data, "ambient")[0]
    mean = sums / n
    result = {
        "mean": mean,
        "var": np.maximum(squares / n - mean**2, 0.0),
        # Every cell has one level of the first column, so that its levels add up to all cells.
        "share": shares[:first].sum(0) / n,
        "ambient_share": shares / np.maximum(in_level, 1),
        "library_mean": log_mean,
        "library_var": log_var,
        "totals": np.array([totals[present].mean() if n_cells else 1.0, totals[present].var() if n_cells else 0.0, float(n_cells)]),
    }
    if highest is not None:
        result["top_share"] = highest.mean(0).astype(np.float64)
    return result


def _measuring(cells: np.ndarray, mask: np.ndarray | None, mask_group: np.ndarray | None) -> np.ndarray:
    """Return how many of the cells of each row measured each feature, ``(n_rows, n_features)``, or ``(n_rows, 1)`` where all measured all."""
    if mask is None or mask_group is None:
        return cells.sum(1, keepdims=True)
    return np.stack([np.bincount(mask_group[row], minlength=len(mask)) @ mask for row in cells])


def profile(counts: sparse.csr_matrix, mask: np.ndarray, mask_group: np.ndarray, rows: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return the mean share of each feature in all counts, where some cells measured some of the features only, ``(n_features,)``.

    A cell's total is that of the features it was measured in; what it would be of all follows from the profile, and the profile from those totals.
    """
    sums, depth = np.zeros(mask.shape), np.zeros(len(mask))
    for code in np.unique(mask_group[rows]):
        own = rows[mask_group[rows] == code]
        depth[code] = totals[own].sum()
        for start in range(0, len(own), BLOCK):
            sums[code] += np.asarray(counts[own[start : start + BLOCK]].sum(0)).ravel()
    found = np.full(mask.shape[1], 1.0 / mask.shape[1])
    for _ in range(ROUNDS):
        whole = (depth / coverage(mask, found)) @ mask
        found = np.divide(sums.sum(0), whole, out=np.zeros_like(found), where=whole > 0)
        found /= max(float(found.sum()), SMALLEST)
    return found


def coverage(mask: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return which share of all counts lies in the features that each group measured, ``(n_groups,)``; 1 for a group that measured none."""
    found = mask @ shares / max(float(shares.sum()), SMALLEST)
    return np.where(found > 0, found, 1.0)


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
    for left in range(0, block.shape[1], COLUMNS):
        part = slice(left, min(left + COLUMNS, block.shape[1]))
        both = np.concatenate([kept[:, part], block[:, part].toarray().astype(np.float32)])
        kept[:, part] = np.partition(both, len(both) - most, axis=0)[-most:]
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
