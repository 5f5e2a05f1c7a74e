"""The annotation of cells: joining tables, filling missing values, combining columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellweave.core.errors import DataError


def plain_column(values: pd.Series) -> pd.Series:
    """Return a column as plain pandas: Categorical with text levels, object text, numbers or bool."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.remove_unused_categories()
    if values.dtype.kind in "biuf" and isinstance(values.dtype, np.dtype):
        return values
    present = [value for value in values if not is_missing(value)]
    if present and all(isinstance(value, bool | np.bool_) for value in present):
        if len(present) == len(values):
            return values.astype(bool)
        return pd.Series([np.nan if is_missing(v) else str(bool(v)) for v in values], index=values.index, dtype=object)
    if present and all(isinstance(value, int | float | np.integer | np.floating) for value in present):
        return pd.to_numeric(values.astype(object)).astype(np.float64)
    return pd.Series([np.nan if is_missing(value) else str(value) for value in values], index=values.index, dtype=object)


def is_missing(value: Any) -> bool:
    """Return whether a single value stands for nothing."""
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def plain_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns are plain pandas and whose names are text."""
    columns = {str(name): plain_column(table[name]) for name in table.columns}
    return pd.DataFrame(columns, index=table.index)


def add_modality_columns(obs: pd.DataFrame, own: pd.DataFrame, rows: np.ndarray, modality: str) -> None:
    """Add the columns of a modality's own table to that of all cells.

    A column that all cells have is only filled where it is missing; where the two disagree, the modality's
    is added as ``modality:column``.

    Parameters
    ----------
    obs
        One row a cell; changed in place.
    own
        One row for each of the modality's cells.
    rows
        Row in ``obs`` of each of them, -1 for none.
    modality
        Its name.
    """
    kept = rows >= 0
    for name in own.columns:
        spread = _spread(own[name][kept], rows[kept], obs.index)
        if name not in obs.columns:
            obs[name] = spread
        elif _agree(obs[name], spread):
            if obs[name].isna().any() and (obs[name].isna() & spread.notna()).any():
                obs[name] = _filled(obs[name], spread)
        else:
            obs[f"{modality}:{name}"] = spread


def _spread(values: pd.Series, rows: np.ndarray, index: pd.Index) -> pd.Series:
    """Return values over all cells, missing where there are none."""
    place = np.full(len(index), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes = np.where(place >= 0, values.cat.codes.to_numpy()[place] if len(values) else -1, -1)
        return pd.Series(pd.Categorical.from_codes(codes, dtype=values.dtype), index=index)
    if (place >= 0).all():
        return pd.Series(values.to_numpy()[place], index=index)
    filler = values.to_numpy(dtype=np.float64) if values.dtype.kind in "iuf" else values.to_numpy(dtype=object)
    result = np.full(len(index), np.nan, dtype=filler.dtype)
    result[place >= 0] = filler[place[place >= 0]]
    return plain_column(pd.Series(result, index=index))


def _agree(first: pd.Series, second: pd.Series) -> bool:
    both = (first.notna() & second.notna()).to_numpy()
    if first.dtype.kind in "biuf" and second.dtype.kind in "biuf":
        return bool(np.array_equal(first.to_numpy(np.float64)[both], second.to_numpy(np.float64)[both]))
    if isinstance(first.dtype, pd.CategoricalDtype):
        codes = first.cat.categories.get_indexer(pd.Index(second.to_numpy(dtype=object), dtype=object))
        return bool(np.array_equal(first.cat.codes.to_numpy()[both], codes[both]))
    return bool(np.array_equal(first.to_numpy(dtype=object)[both], second.to_numpy(dtype=object)[both]))


def _filled(first: pd.Series, second: pd.Series) -> pd.Series:
    values = first.astype(object).where(first.notna(), second.astype(object))
    if isinstance(first.dtype, pd.CategoricalDtype):
        levels = list(dict.fromkeys([*first.cat.categories, *(v for v in values if not is_missing(v))]))
        return pd.Series(pd.Categorical(values, categories=levels), index=first.index)
    return plain_column(values)


def stack_tables(tables: Sequence[pd.DataFrame], notes: list[str]) -> pd.DataFrame:
    """Return the tables of several files one under the other, with the columns of all of them.

    Parameters
    ----------
    tables
        One a file.
    notes
        Gets a sentence where a column is a number in one file and text in another.
    """
    if len(tables) == 1:
        return tables[0]
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    index = pd.Index(np.concatenate([table.index.to_numpy(dtype=object) for table in tables]), dtype=object)
    columns = {}
    for name in names:
        parts = [table.get(name) for table in tables]
        columns[name] = _stack_column(name, parts, [len(table) for table in tables], notes).set_axis(index)
    return pd.DataFrame(columns, index=index)


def _stack_column(name: str, parts: list[pd.Series | None], lengths: list[int], notes: list[str]) -> pd.Series:
    there = [part for part in parts if part is not None and part.notna().any()]
    numeric = [part.dtype.kind in "iuf" for part in there]
    if any(numeric) and not all(numeric):
        notes.append(f"The column '{name}' holds numbers in one file and text in another: it is text here.")
    values: list[np.ndarray] = []
    for part, length in zip(parts, lengths, strict=True):
        if part is None:
            values.append(np.full(length, np.nan, dtype=object))
        elif part.dtype.kind in "iuf" and not all(numeric):
            values.append(np.array([np.nan if is_missing(v) else f"{v:g}" for v in part], dtype=object))
        else:
            values.append(part.to_numpy(dtype=object))
    joined = pd.Series(np.concatenate(values), dtype=object)
    if there and all(numeric):
        if all(part is not None and part.dtype.kind in "iu" for part in parts):
            return pd.to_numeric(joined)
        return joined.astype(np.float64)
    if any(isinstance(part.dtype, pd.CategoricalDtype) for part in there):
        joined = pd.Series([np.nan if is_missing(v) else str(v) for v in joined], dtype=object)
        levels = list(dict.fromkeys(level for part in there for level in _levels(part)))
        return pd.Series(pd.Categorical(joined, categories=levels))
    return plain_column(joined)


def _levels(part: pd.Series) -> Iterable[str]:
    if isinstance(part.dtype, pd.CategoricalDtype):
        return [str(level) for level in part.cat.categories]
    return sorted({f"{v:g}" if part.dtype.kind in "iuf" else str(v) for v in part if not is_missing(v)})


def fill_missing(obs: pd.DataFrame, levels: Mapping[str, str]) -> None:
    """Replace missing values of columns by a level of its own; changes ``obs``.

    Raises
    ------
    DataError
        Where a column does not exist, or holds numbers that a text cannot stand in for.
    """
    for name, level in levels.items():
        require_column(obs, name, "data.fill_missing")
        values = obs[name]
        if isinstance(values.dtype, pd.CategoricalDtype):
            if level not in values.cat.categories:
                values = values.cat.add_categories([level])
            obs[name] = values.fillna(level)
        elif values.dtype.kind in "iuf":
            try:
                number = float(level)
            except ValueError:
                text = np.array([level if is_missing(v) else f"{v:g}" for v in values], dtype=object)
                obs[name] = pd.Series(text, index=obs.index, dtype=object)
            else:
                obs[name] = values.fillna(number)
        elif values.dtype.kind != "b":
            obs[name] = pd.Series([level if is_missing(v) else v for v in values], index=obs.index, dtype=object)


def add_columns(obs: pd.DataFrame, values: Mapping[str, str]) -> None:
    """Add columns that have one value in all cells; changes ``obs``.

    Raises
    ------
    DataError
        Where there is such a column already.
    """
    for name, value in values.items():
        if name in obs.columns:
            raise DataError(f"data.new_columns.{name} would hide the column '{name}' of the data.", f"Leave it out: --set data.new_columns.{name}=none.")
        obs[name] = pd.Series(pd.Categorical.from_codes(np.zeros(len(obs), dtype=np.int8), categories=pd.Index([value], dtype=object)), index=obs.index)


def combine_columns(obs: pd.DataFrame, combine: Mapping[str, Sequence[str]]) -> None:
    """Add columns that join the values of others with an underscore; changes ``obs``.

    A cell with a missing value in one of them has a missing value.
    """
    for name, parts in combine.items():
        if not parts:
            raise DataError(f"data.combine.{name} names no columns.", "Name the columns to be joined.")
        for part in parts:
            require_column(obs, part, f"data.combine.{name}")
        missing = np.logical_or.reduce([obs[part].isna().to_numpy() for part in parts])
        pieces = [[str(value) for value in obs[part]] for part in parts]
        joined = np.array(["_".join(row) for row in zip(*pieces, strict=True)], dtype=object)
        joined[missing] = np.nan
        obs[name] = pd.Series(pd.Categorical(joined), index=obs.index)


def require_column(obs: pd.DataFrame, name: str, who: str) -> None:
    """Raise where a column does not exist.

    Raises
    ------
    DataError
        Naming the nearest column there is.
    """
    if name not in obs.columns:
        near = difflib.get_close_matches(name, [str(column) for column in obs.columns], n=1, cutoff=0.5)
        known = ", ".join(str(column) for column in obs.columns[:12]) or "none"
        hint = f"Did you mean '{near[0]}'?" if near else f"The data have these: {known}."
        raise DataError(f"{who} names the column '{name}', which the data do not have.", hint)
