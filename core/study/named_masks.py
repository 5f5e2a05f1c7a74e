"""Masks that the annotation of a file holds, or that the spec names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cellweave.core.errors import DataError
from cellweave.core.spec.data import DataSpec
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.study import masks
from cellweave.core.study.readers.base import ModalitySource, Source
from cellweave.core.study.study import Modality

ANNOTATION = ("obsm/", "var/", "uns/")
#: End of the notes on masks of nothing.
UNUSED = "it was not used"
BY_BATCH = "mask_"  # scmidas writes uns['mask_BATCH']


def named_mask(
    modality: ModalitySource, source: Source, obs: pd.DataFrame, features: np.ndarray, place: str | None, rows: np.ndarray | None
) -> masks.CellMask | None:
    """Return the mask that the annotation of one file holds.

    Parameters
    ----------
    modality, source
        Of the file.
    obs
        All cells of the file.
    features
        Names of the modality's features at the place of its counts.
    place
        What the spec says, or None for masks that are found by themselves.
    rows
        Row in ``obs`` of each of the modality's own cells; None where they are all cells in order.

    Raises
    ------
    DataError
        Where the named mask does not exist or does not fit.
    """
    found = None
    if modality.features_measured is not None:
        found = masks.same_for_all(modality.features_measured, len(obs))
    if modality.read_mask is None:
        if place is not None and place.startswith(ANNOTATION):
            raise DataError(f"'{source.path.name}' has no annotation, so there is no mask at '{place}'.", "Name a CSV file instead.")
        return found
    own = _own_features(modality)
    if place is None:
        return masks.both(found, _found_by_name(modality, source, obs, features, own, rows))
    if not place.startswith(ANNOTATION):
        return found
    where, _, name = place.partition("/")
    value = modality.read_mask(place)
    if value is None and where != "obsm" and modality.mask_names is not None and modality.mask_names(where, f"{name}_"):
        return masks.both(found, _by_batch(modality, source, obs, features, own, rows, where, f"{name}_", wanted=True))
    if value is None:
        raise DataError(f"{modality.name} of '{source.path.name}' has no mask at '{place}'.", f"Correct data.masks.{modality.name}.")
    if where == "obsm":
        cells = obs if rows is None else obs.iloc[np.where(rows >= 0, rows, 0)]
        names, mask = masks.from_array(value, cells, own, place, modality.name)
        mask = mask if rows is None else mask.on_cells(rows, len(obs))
    else:
        names, mask = masks.from_array(value, obs, own, place, modality.name)
    return masks.both(found, mask.on_features(names, features, modality.name))


def _own_features(modality: ModalitySource) -> np.ndarray:
    """Return the names of the features that the annotation is about: those of X or of a layer, else those there are."""
    places = modality.places
    place = next((places[name] for name in places if not name.startswith("raw")), next(iter(places.values())))
    names = place.read_var().index.to_numpy(dtype=object)
    return names if place.columns is None else names[place.columns]


def _found_by_name(
    modality: ModalitySource, source: Source, obs: pd.DataFrame, features: np.ndarray, own: np.ndarray, rows: np.ndarray | None
) -> masks.CellMask | None:
    if modality.mask_names is None or not modality.mask_names("uns", BY_BATCH):
        return None
    return _by_batch(modality, source, obs, features, own, rows, "uns", BY_BATCH, wanted=False)


def _by_batch(
    modality: ModalitySource, source: Source, obs: pd.DataFrame, features: np.ndarray, own: np.ndarray, rows: np.ndarray | None, where: str, prefix: str,
    *, wanted: bool,
) -> masks.CellMask | None:
    """Return the mask that has one entry a batch, ``uns['mask_BATCH']``."""
    assert modality.mask_names is not None and modality.read_mask is not None
    levels = [name.removeprefix(prefix) for name in modality.mask_names(where, prefix)]
    column, label = _column_of(obs, levels), modality_kind(modality.name).label
    if column is None:
        if wanted:
            raise DataError(
                f"The masks {where}['{prefix}{levels[0]}'] ... of {modality.name} are named after no level of a column of '{source.path.name}'.",
                "Name them after the batches.",
            )
        source.notes.append(f"The mask of {label} for {', '.join(levels[:3])} is of no batch in which {label} was measured; {UNUSED}.")
        return None
    present = {str(value) for value in obs[column].dropna().unique()}
    measured = present if rows is None else {str(value) for value in obs[column].iloc[rows[rows >= 0]].dropna().unique()}
    named = {}
    for level in levels:
        if level not in measured:
            why = f"in whose cells {label} was not measured" if level in present else f"which no cell of '{source.path.name}' is of"
            source.notes.append(f"There is a mask of {label} for '{level}', {why}; {UNUSED}.")
            continue
        place = f"{where}/{prefix}{level}"
        names, mask = masks.from_array(modality.read_mask(place), obs, own, place, modality.name)
        named[level] = mask.on_features(names, features, modality.name).rows[0]
    if not named:
        return None
    source.notes.append(f"The masks of {label} by '{column}' say which features were measured.")
    return masks.by_level(named, obs[column])


def _column_of(obs: pd.DataFrame, levels: list[str]) -> str | None:
    """Return the column that has most of these levels; ``batch`` where several do."""
    wanted, best = set(levels), (0, False, "")
    for name in obs.columns:
        if obs[name].dtype.kind != "f":
            best = max(best, (len(wanted & {str(value) for value in obs[name].dropna().unique()}), name == "batch", str(name)))
    return best[2] or None if best[0] else None


def mask_from_files(data: DataSpec, obs: pd.DataFrame, modality: Modality) -> masks.CellMask | None:
    """Return the mask of a modality that the spec takes from a CSV file; None where it takes none.

    Raises
    ------
    DataError
        Where the file cannot be read or does not fit.
    """
    place = data.masks.get(modality.name)
    if place is None or place.startswith((*ANNOTATION, "layers/")):
        return None
    names, mask = masks.from_csv(Path(place).expanduser(), obs, modality.name)
    return mask.on_features(names, modality.var.index.to_numpy(dtype=object), modality.name)
