"""Data frames in HDF5 and zarr, in every layout that anndata ever wrote, without anndata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cellweave.core.study.header import ColumnHeader
from cellweave.core.study.readers.store import attribute, child, decoded, encoding, is_group, is_text, read_values

if TYPE_CHECKING:
    import pandas as pd

STRINGS_COUNTED = 50_000  # beyond this many cells the header does not read text columns to count their levels


def index_key(frame: Any) -> str:
    """Return the name of the array that holds the row names."""
    key = attribute(frame, "_index")
    if isinstance(key, str) and key in frame:
        return key
    return next((name for name in ("_index", "index") if name in frame), "")


def n_rows(frame: Any) -> int:
    """Return the number of rows of a frame."""
    if not is_group(frame):
        return int(frame.shape[0])
    key = index_key(frame)
    if key:
        return length(frame[key])
    return max((length(frame[name]) for name in frame.keys() if not name.startswith("__")), default=0)  # noqa: SIM118


def length(column: Any) -> int:
    """Return the number of values of a column, however it is encoded."""
    if is_group(column):
        return next((int(column[part].shape[0]) for part in ("codes", "values") if part in column), 0)
    return int(column.shape[0]) if column.shape else 0


def row_names(frame: Any) -> np.ndarray:
    """Return the names of the rows as an object array of str; numbers where the frame has none."""
    if not is_group(frame):
        fields = frame.dtype.names or ()
        key = next((name for name in ("index", "_index") if name in fields), fields[0] if fields else "")
        values = decoded(frame[key]) if key else np.arange(frame.shape[0])
    else:
        key = index_key(frame)
        values = column_values(frame[key], frame, key) if key else np.arange(n_rows(frame))
    return np.array([str(value) for value in np.asarray(values, dtype=object)], dtype=object)


def column_names(frame: Any) -> list[str]:
    """Return the names of the columns in their order."""
    if not is_group(frame):
        fields = frame.dtype.names or ()
        index = next((name for name in ("index", "_index") if name in fields), fields[0] if fields else "")
        return [name for name in fields if name != index]
    index = index_key(frame)
    there = [name for name in frame.keys() if name != index and not name.startswith("__")]  # noqa: SIM118
    order = attribute(frame, "column-order")
    wanted = [str(name) for name in order] if order is not None and not isinstance(order, str) else []
    ordered = [name for name in wanted if name in there]
    return ordered + [name for name in there if name not in ordered]


def _columns(frame: Any, uns: Any) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over name, node (or array of a compound frame), and old-style categories or None."""
    for name in column_names(frame):
        if is_group(frame):
            old = child(frame, "__categories")
            yield name, frame[name], (old[name] if old is not None and name in old else None)
        else:
            key = f"{name}_categories"
            yield name, frame[name], (uns[key] if uns is not None and key in uns else None)


def column_values(node: Any, frame: Any = None, name: str = "") -> Any:
    """Return the values of a column as an array, a pandas array or a Categorical.

    Raises
    ------
    TypeError
        Where the column is encoded in a way that is not known.
    """
    if isinstance(node, np.ndarray):
        return decoded(node)
    if not is_group(node):
        return read_values(node)
    kind = encoding(node)
    if kind == "categorical" or {"codes", "categories"} <= set(node.keys()):
        ordered = bool(attribute(node, "ordered", default=False))
        return _categorical(read_values(node["codes"]), column_values(node["categories"]), ordered=ordered)
    if "values" in node and "mask" in node:
        values, mask = read_values(node["values"]), read_values(node["mask"]).astype(bool)
        if values.dtype.kind in "OU":
            return np.where(mask, np.nan, values.astype(object))
        if values.dtype.kind == "b" and not mask.any():
            return values
        return np.where(mask, np.nan, values.astype(object if values.dtype.kind == "b" else np.float64))
    message = f"the column '{name}' is encoded as '{kind or 'unknown'}'"
    raise TypeError(message)


def _categorical(codes: np.ndarray, categories: Any, *, ordered: bool) -> Any:
    import pandas as pd

    levels = np.asarray(categories)
    if levels.dtype.kind == "O":
        levels = np.array([str(level) for level in levels], dtype=object)
    index = pd.Index(levels)
    if not index.is_unique or codes.max(initial=-1) >= len(levels):
        return np.array([levels[code] if 0 <= code < len(levels) else np.nan for code in codes], dtype=object)
    return pd.Categorical.from_codes(np.where(codes < 0, -1, codes), categories=index, ordered=ordered)


def read_frame(frame: Any, notes: list[str], uns: Any = None, what: str = "obs") -> pd.DataFrame:
    """Read a data frame.

    Parameters
    ----------
    frame
        Group, or compound array of very old files.
    notes
        Gets a sentence for every column that is left out because it has more than one value a row or an
        unknown encoding.
    uns
        Where very old files keep categories.
    what
        Name of the frame in notes.

    Returns
    -------
    pandas.DataFrame
        Strings as object, categories as Categorical, numbers as they are; the index is object.
    """
    import pandas as pd

    if not is_group(frame):
        frame = _Compound(frame)
    index = pd.Index(row_names(frame), dtype=object)
    columns: dict[str, Any] = {}
    for name, node, old in _columns(frame, uns):
        try:
            values = column_values(node, frame, name)
        except TypeError as error:
            notes.append(f"A column of {what} was left out: {error}.")
            continue
        if old is not None and np.asarray(values).dtype.kind in "iu":
            values = _categorical(np.asarray(values), column_values(old), ordered=bool(attribute(old, "ordered", default=False)))
        if getattr(values, "ndim", 1) != 1 or len(values) != len(index):
            notes.append(f"The column '{name}' of {what} was left out: it does not hold one value a row.")
            continue
        columns[name] = values
    result = pd.DataFrame(columns, index=index)
    result.index.name = None
    return result


class _Compound:
    """A compound array read once, so that columns are not read from disk one by one."""

    def __init__(self, array: Any) -> None:
        self._values = array[...]
        self.dtype, self.shape = self._values.dtype, self._values.shape

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._values[name])


def describe_frame(frame: Any, uns: Any = None) -> tuple[ColumnHeader, ...]:
    """Describe the columns of obs; categories are counted, their values are not read."""
    if not is_group(frame):
        frame = _Compound(frame)
    found = []
    for name, node, old in _columns(frame, uns):
        try:
            found.append(_describe(name, node, old))
        except (TypeError, ValueError, KeyError):
            found.append(ColumnHeader(name, "other", None, None))
    return tuple(found)


def _describe(name: str, node: Any, old: Any) -> ColumnHeader:
    if is_group(node) and "codes" in node:
        codes = read_values(node["codes"])
        return ColumnHeader(name, "categorical", length(node["categories"]), int((codes < 0).sum()))
    if old is not None:
        codes = np.asarray(node[...] if not isinstance(node, np.ndarray) else node)
        return ColumnHeader(name, "categorical", length(old), int((codes < 0).sum()))
    if not is_group(node) and not isinstance(node, np.ndarray) and is_text(node) and length(node) > STRINGS_COUNTED:
        return ColumnHeader(name, "string", None, None)
    return describe_values(name, column_values(node, name=name))


def describe_values(name: str, values: Any) -> ColumnHeader:
    """Describe a column that is in memory."""
    import pandas as pd

    series = pd.Series(values)
    n_missing = int(series.isna().sum())
    n_levels = int(series.nunique())
    if isinstance(series.dtype, pd.CategoricalDtype):
        return ColumnHeader(name, "categorical", n_levels, n_missing)
    if series.dtype.kind == "b":
        return ColumnHeader(name, "boolean", n_levels, n_missing)
    if series.dtype.kind in "iu":
        return ColumnHeader(name, "integer", n_levels, n_missing, whole=True)
    if series.dtype.kind == "f":
        finite = series.to_numpy()[np.isfinite(series.to_numpy())]
        return ColumnHeader(name, "float", n_levels, n_missing, whole=bool((finite == np.rint(finite)).all()))
    kinds = {type(value) for value in series.dropna()}
    if kinds <= {bool, np.bool_} and kinds:
        return ColumnHeader(name, "boolean", n_levels, n_missing)
    return ColumnHeader(name, "string" if kinds <= {str} else "other", n_levels, n_missing)
