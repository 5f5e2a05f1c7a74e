"""From a study and a spec to what the loop needs: codes, splits, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError, SpecError
from cellweave.core.models.base import BuildContext, ModalityInfo
from cellweave.core.spec import RunSpec
from cellweave.core.spec.covariates import LIST_ROLES
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.spec.roles import effective_roles
from cellweave.core.study.blocks import Blocks, in_blocks
from cellweave.core.study.study import Modality, Study
from cellweave.core.training.schedule import split_sizes
from cellweave.core.wording import counted

CONTINUOUS, SIZE_FACTOR = "continuous", "size_factor"
MISSING = -1
SMALLEST_VAR = 1e-2  # of a batch's log library sizes, where neither it nor the study has any spread


@dataclass(frozen=True)
class Encoding:
    """How obs columns become numbers; kept with the model, so that new data are read the same way.

    Attributes
    ----------
    columns
        Columns by role.
    levels
        Level names by column, in the order of their codes.
    means, scales
        Mean and standard deviation of each continuous column over the training cells.
    """

    columns: Mapping[str, tuple[str, ...]]
    levels: Mapping[str, tuple[str, ...]]
    means: Mapping[str, float] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "columns": {role: list(columns) for role, columns in self.columns.items()},
            "levels": {column: list(levels) for column, levels in self.levels.items()},
            "means": dict(self.means),
            "scales": dict(self.scales),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Encoding:
        """Read what :meth:`to_json` wrote."""
        return cls(
            {role: tuple(columns) for role, columns in tree["columns"].items()},
            {column: tuple(levels) for column, levels in tree["levels"].items()},
            dict(tree["means"]),
            dict(tree["scales"]),
        )


@dataclass
class TrainingData:
    """Everything the loop needs, as arrays over all cells of the study.

    Attributes
    ----------
    modalities
        Those the model is trained on, in the order in which they are concatenated.
    categorical
        Codes by role, int64 ``(n_cells,)`` or ``(n_cells, n_columns)``; -1 for a missing label.
    continuous
        Standardised, float32 ``(n_cells, n_columns)``, or None.
    size_factor
        float32 ``(n_cells,)``, or None.
    encoding
        How the codes were made.
    usable
        Cells that may be trained on: measured, and in a batch that is large enough, bool ``(n_cells,)``.
    reason
        Why a cell is not trained on, by study row (only for those left out).
    train, validation
        Rows of the two parts, each in the order in which it was drawn.
    mask_group
        Row of the modalities' ``feature_mask`` that holds for each cell, int64 ``(n_cells,)``; None where no feature is masked.
    by_pattern
        Whether minibatches may not mix patterns of measured modalities.
    blocks
        Blocks of each modality's features, by name; one block where a modality is not named.
    """

    modalities: tuple[Modality, ...]
    categorical: dict[str, np.ndarray]
    continuous: np.ndarray | None
    size_factor: np.ndarray | None
    encoding: Encoding
    usable: np.ndarray
    reason: dict[int, str]
    train: np.ndarray
    validation: np.ndarray
    mask_group: np.ndarray | None = None
    by_pattern: bool = False
    blocks: Mapping[str, Blocks] = field(default_factory=dict)

    @cached_property
    def patterns(self) -> tuple[np.ndarray, np.ndarray]:
        """Which modalities were measured together.

        Returns
        -------
        code
            Pattern of each cell, int64 ``(n_cells,)``.
        table
            Modalities of each pattern, bool ``(n_patterns, n_modalities)``.
        """
        return measured_patterns(self.modalities)

    @cached_property
    def streams(self) -> np.ndarray:
        """Batch and pattern of each cell as one code, int64 ``(n_cells,)``: the groups that the pattern sampler draws from."""
        return stream_codes(self.modalities, self.categorical.get("batch"))

    @property
    def main_modality(self) -> Modality:
        """The modality that is compared with where there is no integration: RNA, or the one measured in most cells."""
        return next((m for m in self.modalities if m.name == "rna"), None) or max(self.modalities, key=lambda m: int(m.measured.sum()))

    @property
    def n_cells(self) -> int:
        """Cells of the study."""
        return int(self.usable.shape[0])

    @property
    def measured(self) -> np.ndarray:
        """Cells the model can be given: measured in one of its modalities, bool ``(n_cells,)``."""
        return np.logical_or.reduce([modality.measured for modality in self.modalities])

    def n_levels(self) -> dict[str, int | tuple[int, ...]]:
        """Return the number of levels by role."""
        result: dict[str, int | tuple[int, ...]] = {}
        for role, columns in self.encoding.columns.items():
            if role in {CONTINUOUS, SIZE_FACTOR}:
                continue
            sizes = tuple(len(self.encoding.levels[column]) for column in columns)
            result[role] = sizes if role in LIST_ROLES else sizes[0]
        return result

    def context(self, spec: RunSpec) -> BuildContext:
        """Return what the network is built from."""
        batch = self.categorical.get("batch", np.zeros(self.n_cells, dtype=np.int64))
        n_batch = int(self.n_levels().get("batch", 1))  # type: ignore[arg-type]
        rows = np.flatnonzero(self.usable)
        stats = {m.name: library_statistics(m.counts, batch, n_batch, rows[m.measured[rows]]) for m in self.modalities}
        infos = tuple(self._info(m) for m in self.modalities)
        return BuildContext(
            spec=spec,
            modalities=infos,
            n_levels=self.n_levels(),
            n_continuous=0 if self.continuous is None else self.continuous.shape[1],
            n_cells=len(self.train),
            library_log_mean={name: mean for name, (mean, _) in stats.items()},
            library_log_var={name: var for name, (_, var) in stats.items()},
            extras=self._summaries(spec),
        )

    def _info(self, modality: Modality) -> ModalityInfo:
        blocks = self.blocks.get(modality.name) or Blocks((modality.n_features,), (modality.name,))
        return ModalityInfo(modality.name, modality.n_features, blocks.sizes, modality.feature_mask, blocks.names)

    def _summaries(self, spec: RunSpec) -> dict[str, np.ndarray]:
        """Return the data summaries that the family asks for."""
        if not spec.family.summaries:
            return {}
        module, _, function = spec.family.summaries.partition(":")
        return dict(getattr(import_module(module), function)(spec, self))


def library_statistics(counts: sparse.csr_matrix, batch: np.ndarray, n_batch: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and population variance of the log total count in each batch.

    Cells without a count enter with a log of 0, a batch without cells gets mean 0 and variance 1 (scVI spec, section 2). A batch whose
    cells all have the same depth takes the variance over all cells.

    Parameters
    ----------
    counts
        ``(n_cells, n_features)``.
    batch
        Codes ``(n_cells,)``.
    n_batch
        Number of batches.
    rows
        Cells to look at.

    Returns
    -------
    mean, var
        Each float64 ``(n_batch,)``.
    """
    totals = row_totals(counts)[rows]
    logs = np.log(np.where(totals > 0, totals, 1.0))
    mean, var = np.zeros(n_batch), np.ones(n_batch)
    for code in range(n_batch):
        here = logs[batch[rows] == code]
        if here.size:
            # One cell, or several of the same depth, would make a prior of no width, which no posterior can meet.
            mean[code], var[code] = here.mean(), here.var() if np.ptp(here) > 0 else max(float(logs.var()), SMALLEST_VAR)
    return mean, var


def row_totals(counts: sparse.csr_matrix, rows: int = 16_384) -> np.ndarray:
    """Return the total count of each cell, float64 ``(n_cells,)``; in blocks, as the counts may lie on disk."""
    totals = np.zeros(counts.shape[0])
    for start in range(0, counts.shape[0], rows):
        stop = min(start + rows, counts.shape[0])
        pointers = counts.indptr[start : stop + 1]
        running = np.concatenate([[0.0], np.cumsum(counts.data[pointers[0] : pointers[-1]], dtype=np.float64)])
        totals[start:stop] = np.diff(running[pointers - pointers[0]])
    return totals


def prepare(spec: RunSpec, study: Study) -> TrainingData:
    """Encode covariates, find the cells that can be trained on and split them.

    Parameters
    ----------
    spec
        The run's spec.
    study
        The loaded study.

    Returns
    -------
    TrainingData
        Arrays over all cells of the study.

    Raises
    ------
    DataError, SpecError
        Where a column is missing or unusable, or too few cells are left.
    """
    many = spec.family.modalities == "many"
    wanted = getattr(spec.model, "modalities", ())
    several = tuple(modality for name, modality in study.modalities.items() if not wanted or name in wanted)
    modalities = several if many else (study.main_modality(spec.data.modality),)
    blocks: dict[str, Blocks] = {}
    if spec.family.blocks:
        modalities, blocks = in_blocks(modalities, spec.data.blocks)
    encoding, categorical = _encode(spec, study.obs)
    usable, reason = usable_cells(spec, study, modalities, categorical)
    train, validation = split(np.flatnonzero(usable), spec, split_groups(spec, modalities, categorical))
    continuous, encoding = _standardise(spec, study.obs, encoding, train)
    return TrainingData(
        modalities, categorical, continuous, size_factors(spec, study.obs), encoding, usable, reason, train, validation,
        mask_group_of(study, modalities), spec.family.sampler == "pattern", blocks,
    )  # fmt: skip


def mask_group_of(study: Study, modalities: Sequence[Modality]) -> np.ndarray | None:
    """Return the mask group of each cell, or None where no modality has a mask."""
    masked = any(modality.feature_mask is not None for modality in modalities)
    return study.mask_group.astype(np.int64) if masked else None


def measured_patterns(modalities: Sequence[Modality]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pattern of each cell, int64 ``(n_cells,)``, and the patterns, bool ``(n_patterns, n_modalities)``."""
    table, code = np.unique(np.stack([modality.measured for modality in modalities], axis=1), axis=0, return_inverse=True)
    return code.reshape(-1).astype(np.int64), table


def stream_codes(modalities: Sequence[Modality], batch: np.ndarray | None) -> np.ndarray:
    """Return batch and pattern of each cell as one code, int64 ``(n_cells,)``."""
    code, table = measured_patterns(modalities)
    if batch is not None:
        code = batch.astype(np.int64) * len(table) + code
    return np.unique(code, return_inverse=True)[1].reshape(-1).astype(np.int64)


def split_groups(spec: RunSpec, modalities: Sequence[Modality], categorical: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the groups within which cells are held out: batch and pattern of a pattern family, patterns of one of many modalities, else none."""
    if spec.family.sampler == "pattern":
        return stream_codes(modalities, categorical.get("batch"))
    return stream_codes(modalities, None) if spec.family.modalities == "many" else None


def _encode(spec: RunSpec, obs: pd.DataFrame) -> tuple[Encoding, dict[str, np.ndarray]]:
    columns = dict(effective_roles(spec.covariates, spec.family).columns)
    levels: dict[str, tuple[str, ...]] = {}
    categorical: dict[str, np.ndarray] = {}
    for role, names in columns.items():
        for name in names:
            if name not in obs.columns:
                known = ", ".join(map(str, obs.columns[:12]))
                raise DataError(f"The cells have no column '{name}', which is to be the {role}.", f"Choose one of: {known}.")
        if role in {CONTINUOUS, SIZE_FACTOR}:
            continue
        codes = []
        for name in names:
            code, level = encode_column(obs[name])
            if (code == MISSING).any() and not may_be_missing(spec, role):
                n = int((code == MISSING).sum())
                raise DataError(
                    f"The column '{name}' ({role}) has no value in {counted(n, 'cell')}.",
                    f"Name a level for them, for instance --set data.fill_missing.{name}=unknown, or choose another column.",
                )
            levels[name] = level
            codes.append(code)
        categorical[role] = np.stack(codes, axis=1) if role in LIST_ROLES else codes[0]
    return Encoding(columns, levels), categorical


def may_be_missing(spec: RunSpec, role: str) -> bool:
    """Return whether cells need no value in a role: labels, unless the model has a part for each, and what only the diagnostics read."""
    if role == "labels":
        return getattr(spec.model, "dispersion", "") != "gene-label"
    return role in {"dataset", "technical"}


def encode_column(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return codes and level names of a categorical column.

    Levels are those that occur, sorted: a categorical keeps its own order. Missing values get -1.

    Returns
    -------
    codes
        int64 ``(n_cells,)``.
    levels
        Names in the order of the codes.
    """
    if not isinstance(column.dtype, pd.CategoricalDtype):
        values = column.astype(object).where(column.notna(), None)
        present = values.dropna().unique()
        try:
            order = sorted(present)
        except TypeError:  # numbers and text in one column
            order = sorted(present, key=str)
        column = pd.Series(pd.Categorical(values, categories=order))
    column = column.cat.remove_unused_categories()
    return column.cat.codes.to_numpy().astype(np.int64), tuple(str(level) for level in column.cat.categories)


def usable_cells(
    spec: RunSpec, study: Study, modalities: tuple[Modality, ...], categorical: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[int, str]]:
    """Return which cells can be trained on, bool ``(n_cells,)``, and why the others cannot, by row."""
    measured = np.zeros(study.n_cells, dtype=bool)
    for modality in modalities:
        measured |= modality.measured
    names = " or ".join(modality_kind(m.name).label for m in modalities)
    reason = dict.fromkeys(np.flatnonzero(~measured).tolist(), f"{names} not measured")
    usable = measured.copy()
    batch = categorical.get("batch", categorical.get("library"))
    if batch is not None:
        sizes = np.bincount(batch[measured], minlength=int(batch.max()) + 1)
        small = measured & (sizes[batch] < spec.data.min_cells_per_batch)
        reason.update(dict.fromkeys(np.flatnonzero(small).tolist(), "batch too small"))
        usable &= ~small
    if usable.sum() < 3:
        raise DataError(
            f"Only {counted(int(usable.sum()), 'cell')} can be trained on: {names} was measured in {int(measured.sum())} of {counted(study.n_cells, 'cell')}.",
            "Choose another modality (data.modality) or another batch column.",
        )
    return usable, reason


def split(rows: np.ndarray, spec: RunSpec, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into training and validation (scvi-tools' rule: a seeded permutation, validation cells first).

    Parameters
    ----------
    rows
        Cells to split.
    spec
        Share, seed.
    groups
        Group of every cell of the study; each is split by itself, and one of a single cell is trained on. None for no groups.

    Returns
    -------
    train, validation
        Rows in the order in which they were drawn.
    """
    n_train, n_validation = split_sizes(len(rows), spec.training.validation_share)
    if n_train < 2:
        raise SpecError(f"Of {counted(len(rows), 'cell')} only {n_train} would be trained on.", "Lower training.validation_share.")
    order = np.random.RandomState(spec.training.seed).permutation(len(rows))
    if groups is None or (groups[rows] == groups[rows[0]]).all():
        return rows[order[n_validation : n_validation + n_train]], rows[order[:n_validation]]
    drawn = rows[order]
    held_out = np.zeros(len(drawn), dtype=bool)
    for code in np.unique(groups[drawn]):
        own = np.flatnonzero(groups[drawn] == code)
        held_out[own[: split_sizes(len(own), spec.training.validation_share)[1]]] = True
    return drawn[~held_out], drawn[held_out]


def _standardise(spec: RunSpec, obs: pd.DataFrame, encoding: Encoding, train: np.ndarray) -> tuple[np.ndarray | None, Encoding]:
    columns = encoding.columns.get(CONTINUOUS, ())
    if not columns:
        return None, encoding
    means, scales, values = {}, {}, []
    for name in columns:
        numbers = finite_numbers(obs[name], name, "continuous covariate")
        mean, scale = float(numbers[train].mean()), float(numbers[train].std())
        if scale == 0.0:
            raise DataError(
                f"The continuous covariate '{name}' has the same value in all training cells.", "Take it out: it carries nothing."
            )
        means[name], scales[name] = mean, scale
        values.append((numbers - mean) / scale)
    return np.stack(values, axis=1).astype(np.float32), Encoding(encoding.columns, encoding.levels, means, scales)


def size_factors(spec: RunSpec, obs: pd.DataFrame) -> np.ndarray | None:
    """Return the size factor of each cell, float32 ``(n_cells,)``, or None where no column is one."""
    name = spec.covariates.size_factor
    if name is None:
        return None
    values = finite_numbers(obs[name], name, "size factor")
    if (values <= 0).any():
        raise DataError(
            f"The size factor '{name}' is 0 or less in {counted(int((values <= 0).sum()), 'cell')}.", "Size factors must be positive: choose another column."
        )
    return values.astype(np.float32)


def finite_numbers(column: pd.Series, name: str, what: str) -> np.ndarray:
    """Return a column as float64 ``(n_cells,)``; a value that is not a finite number is refused with a sentence."""
    values = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DataError(f"The {what} '{name}' is not a finite number in {counted(bad, 'cell')}.", "Choose a numeric column without missing values.")
    return values
