"""Cells read the way a trained model was taught to read them: its features, its levels, its scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.models.base import BuildContext
from cellweave.core.spec import RunSpec
from cellweave.core.spec.covariates import LIST_ROLES
from cellweave.core.study.align import move_columns
from cellweave.core.study.blocks import Blocks
from cellweave.core.study.study import Modality, Study
from cellweave.core.training.data import (
    CONTINUOUS,
    MISSING,
    SIZE_FACTOR,
    Encoding,
    TrainingData,
    finite_numbers,
    mask_group_of,
    may_be_missing,
    size_factors,
    split,
    split_groups,
    usable_cells,
)
from cellweave.core.wording import agree, counted

#: Share of a model's features that other data must have, so that the rest may be taken as not observed.
ENOUGH_FEATURES = 0.5


def load_new(spec: RunSpec, paths: Sequence[str | Path]) -> Study:
    """Read other files the way the data of a run were read, but with all their features.

    Parameters
    ----------
    spec
        Of the trained run.
    paths
        One file, or several that together are one study.

    Raises
    ------
    DataError
        Where a file cannot be read or holds no raw counts.
    """
    from cellweave.core.study import load_study

    files = tuple(str(Path(path).expanduser().resolve()) for path in paths)
    changes = {"paths": files, "sha256": (), "features": {}, "layers": {}, "masks": {}, "switched_off": ()}
    return load_study(spec.data.model_copy(update={**changes, "drop_empty_features": False}))


def align_to(study: Study, features: Mapping[str, Sequence[str]], *, partial: bool = False) -> tuple[Study, list[str]]:
    """Return a study with exactly the features of a model, in its order, matched by name.

    Parameters
    ----------
    study
        Any study.
    features
        Feature names of the model by modality.
    partial
        Whether the model copes with modalities that are missing (one of many modalities): then one of them is enough.

    Returns
    -------
    study
        With the model's modalities only; a feature that the data lack has no counts and is masked, a modality that they lack
        was measured in no cell.
    notes
        One sentence for each modality with missing or further features.

    Raises
    ------
    DataError
        Where a modality is missing, names repeat, or fewer than half of the features are there.
    """
    modalities, notes = {}, []
    n_groups = int(study.mask_group.max()) + 1 if len(study.mask_group) else 1
    for name, names in features.items():
        index = pd.Index(np.asarray(names, dtype=object))
        if name in study.modalities:
            modalities[name], said = _aligned(study.modalities[name], index, n_groups, masked=partial)
            notes += said
        elif partial and set(features) & set(study.modalities):
            nothing = sparse.csr_matrix((study.n_cells, len(index)), dtype=np.float32)
            modalities[name] = Modality(name, nothing, pd.DataFrame(index=index), np.zeros(study.n_cells, dtype=bool))
            notes.append(f"These data have no {name}; the model reads what there is.")
        else:
            raise DataError(f"The model reads {name}, which these data do not have.", f"They have {', '.join(study.modalities)}.")
    return replace(study, modalities=modalities), notes


def align_partly(study: Study, features: Mapping[str, Sequence[str]]) -> tuple[Study, list[str]]:
    """Do :func:`align_to` for a model of many modalities; the notes name also those that the model does not know and leaves out."""
    aligned, notes = align_to(study, features, partial=True)
    further = [name for name in study.modalities if name not in features]
    if further:
        notes.append(f"The reference does not know {', '.join(further)}, which {'are' if len(further) > 1 else 'is'} left out.")
    return aligned, notes


def _aligned(modality: Modality, names: pd.Index, n_groups: int, *, masked: bool) -> tuple[Modality, list[str]]:
    own = modality.var.index
    if own.equals(names):
        return modality, []
    for index, whose in ((own, "of the data"), (names, "of the model")):
        if not index.is_unique:
            first = index[index.duplicated()][0]
            raise DataError(f"The feature name '{first}' {whose} is there more than once, so that features cannot be matched.", "Make the names unique.")
    columns = names.get_indexer(own)
    n_found, n_extra = int((columns >= 0).sum()), int((columns < 0).sum())
    if n_found < ENOUGH_FEATURES * len(names):
        raise _too_few(modality.name, names, own)
    notes = []
    if n_found < len(names):
        lacking = names[~names.isin(own)]
        notes.append(
            f"{len(lacking):,} of the {len(names):,} features of {modality.name} {agree(len(lacking), 'is', 'are')} missing in these data and "
            f"{'count as not measured' if masked else 'count as 0'} ('{lacking[0]}' ...)."
        )
    if n_extra:
        notes.append(
            f"{counted(n_extra, 'further feature')} of {modality.name} {agree(n_extra, 'is', 'are')} left out, because the model does not "
            f"know {agree(n_extra, 'it', 'them')}."
        )
    mask = None
    if modality.feature_mask is not None or (masked and n_found < len(names)):
        mask = np.zeros((n_groups, len(names)), dtype=bool)
        mask[:, columns[columns >= 0]] = True if modality.feature_mask is None else modality.feature_mask[:, columns >= 0]
    counts = move_columns(modality.counts, columns, len(names))
    held_out = None if modality.held_out is None else modality.held_out.moved(columns, len(names))
    return replace(modality, counts=counts, var=modality.var.reindex(names), feature_mask=mask, held_out=held_out), notes


def _too_few(modality: str, names: pd.Index, own: pd.Index) -> DataError:
    """Say why too few features match: names of another kind, or a selection of the same."""
    found = names.isin(own)
    n_found = int(found.sum())
    cause = f"These data have {n_found:,} of the {len(names):,} features of {modality} that the model reads, which is too few: "
    if not n_found:
        return DataError(
            f"{cause}the model's are called '{names[0]}' and the like, theirs '{own[0]}'.", "Use data with the same kind of feature names."
        )
    lacking = names[~found]
    some = ", ".join(f"'{name}'" for name in lacking[:5])
    return DataError(
        f"{cause}{len(lacking):,} {agree(len(lacking), 'is', 'are')} missing, among them "
        f"{some}{' and others' if len(lacking) > 5 else ''}.", "Use data with all features, not a selection."
    )


def encode(
    spec: RunSpec,
    encoding: Encoding,
    study: Study,
    features: Mapping[str, Sequence[str]],
    *,
    trained_on: bool,
    blocks: Mapping[str, Blocks] | None = None,
) -> TrainingData:
    """Turn the columns of a study into the codes and numbers a model was trained with.

    Parameters
    ----------
    spec
        Of the trained run.
    encoding
        Of the trained model: levels, means and scales are taken from it, never from these data.
    study
        Aligned by :func:`align_to`.
    features
        Feature names of the model by modality.
    trained_on
        Whether these are the training data: then the parts are those of the training, and cells that were left out of it are unusable.
    blocks
        Blocks of the model's features by modality, where it reads them in blocks.

    Returns
    -------
    TrainingData
        Arrays over all cells of the study.

    Raises
    ------
    DataError
        Where a column is missing, holds a level the model has never seen, or is not a number where it must be.
    """
    categorical = {
        role: _codes(spec, encoding, study.obs, role, columns)
        for role, columns in encoding.columns.items()
        if role not in {CONTINUOUS, SIZE_FACTOR}
    }
    continuous = None
    if encoding.columns.get(CONTINUOUS):
        values = [
            (finite_numbers(_column(study.obs, name, CONTINUOUS), name, "continuous covariate") - encoding.means[name]) / encoding.scales[name]
            for name in encoding.columns[CONTINUOUS]
        ]
        continuous = np.stack(values, axis=1).astype(np.float32)
    if spec.covariates.size_factor is not None:
        _column(study.obs, spec.covariates.size_factor, "size factor")
    modalities = tuple(study.modalities[name] for name in features)
    nobody = np.zeros(0, dtype=np.int64)
    if trained_on:
        usable, reason = usable_cells(spec, study, modalities, categorical)
        train, validation = split(np.flatnonzero(usable), spec, split_groups(spec, modalities, categorical))
    else:
        usable = np.logical_or.reduce([modality.measured for modality in modalities])
        reason = dict.fromkeys(np.flatnonzero(~usable).tolist(), "not measured")
        train, validation = nobody, nobody
    return TrainingData(
        modalities, categorical, continuous, size_factors(spec, study.obs), encoding, usable, reason, train, validation,
        mask_group_of(study, modalities), spec.family.sampler == "pattern", dict(blocks or {}),
    )  # fmt: skip


def _column(obs: pd.DataFrame, name: str, role: str) -> pd.Series:
    if name not in obs.columns:
        known = ", ".join(map(str, obs.columns[:12])) or "none"
        raise DataError(f"The cells have no column '{name}', which the model reads as {role}.", f"Their columns are: {known}.")
    return obs[name]


def _codes(spec: RunSpec, encoding: Encoding, obs: pd.DataFrame, role: str, columns: Sequence[str]) -> np.ndarray:
    """Return the codes of a role; cells without a known level have -1, where the model needs none."""
    needed = not may_be_missing(spec, role)
    codes = []
    for name in columns:
        if not needed and name not in obs.columns:
            codes.append(np.full(len(obs), MISSING, dtype=np.int64))
            continue
        column = _column(obs, name, role)
        found = level_codes(column, encoding.levels[name])
        if needed:
            _refuse_unknown(spec, column, found, name, role, encoding.levels[name])
        codes.append(found)
    return np.stack(codes, axis=1) if role in LIST_ROLES else codes[0]


def blocks_of(context: BuildContext) -> dict[str, Blocks]:
    """Return the blocks of a trained model's features by modality."""
    return {info.name: Blocks(info.blocks, info.block_names) for info in context.modalities if len(info.blocks) > 1}


def level_codes(column: pd.Series, levels: Sequence[str]) -> np.ndarray:
    """Return the code of each value among ``levels``, int64 ``(n_cells,)``; -1 for others and for missing values."""
    place = {level: code for code, level in enumerate(levels)}
    category = column.astype("category").cat
    table = np.array([*(place.get(str(level), MISSING) for level in category.categories), MISSING], dtype=np.int64)
    return table[category.codes.to_numpy()]


def unknown_levels(column: pd.Series, levels: Sequence[str]) -> list[str]:
    """Return the levels of a column that are not among ``levels``, in their order."""
    known = set(levels)
    present = column.astype("category").cat.remove_unused_categories().cat.categories
    return [str(level) for level in present if str(level) not in known]


def _refuse_unknown(spec: RunSpec, column: pd.Series, codes: np.ndarray, name: str, role: str, levels: Sequence[str]) -> None:
    missing = int(column.isna().sum())
    if missing:
        raise DataError(
            f"The column '{name}' ({role}) has no value in {counted(missing, 'cell')}.", f"Name a level for them: --set data.fill_missing.{name}={levels[0]}."
        )
    if (codes == MISSING).any():
        strange = unknown_levels(column, levels)
        shown = ", ".join(f"'{level}'" for level in strange[:5]) + (" ..." if len(strange) > 5 else "")
        raise DataError(
            f"The model was not trained on the level{'s' * (len(strange) > 1)} {shown} of '{name}' ({role}); it knows {', '.join(levels[:8])}.",
            "Map the data onto the model first, so that it learns them: cellweave map REFERENCE_RUN DATA."
            if spec.family.maps
            else f"{spec.family.title} cannot learn new ones: train anew with all data, or give these cells a level that it knows.",
        )
