"""Adding results to an h5ad or h5mu file in place, without touching what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.export.provenance import free_name

#: Rows of a layer that are in memory at a time.
ROWS = 2048


@dataclass
class Additions:
    """What is added, for all cells of the file in their order.

    Attributes
    ----------
    obs
        Columns by name: categorical, numbers or bool.
    obsm
        Arrays ``(n_cells, n)`` by name.
    uns
        What goes under ``uns["cellweave"]``, with ``names``: what each addition came to be called.
    names
        What was added to the file before, ``{"layers.denoised": name}``.
    """

    obs: dict[str, pd.Series] = field(default_factory=dict)
    obsm: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def add(file: h5py.Group, additions: Additions) -> None:
    """Write obs columns, obsm arrays and, last, ``uns["cellweave"]``; names the user has taken get the suffix ``_cellweave``.

    An earlier ``uns["cellweave"]`` is kept below the new one as ``previous``.

    Parameters
    ----------
    file
        Root of the file.
    additions
        What to add.
    """
    from anndata.io import read_elem, write_elem

    names = dict(additions.names)
    obs = file["obs"]
    for wanted, column in additions.obs.items():
        names[f"obs.{wanted}"] = add_column(obs, wanted, column)
    obsm = mapping(file, "obsm")
    for wanted, array in additions.obsm.items():
        names[f"obsm.{wanted}"] = name = free_name(wanted, set(obsm))
        write_elem(obsm, name, np.ascontiguousarray(array))
    uns = mapping(file, "uns")
    entry = {**additions.uns, "names": names}
    if "cellweave" in uns:
        entry["previous"] = read_elem(uns["cellweave"])
        del uns["cellweave"]
    write_elem(uns, "cellweave", entry)


def mapping(file: h5py.Group, name: str) -> h5py.Group:
    """Return one of the groups of the layout, made where the file has none."""
    from anndata.io import write_elem

    if name not in file:
        write_elem(file, name, {})
    return file[name]


def add_column(frame: h5py.Group, wanted: str, column: pd.Series) -> str:
    """Append a column to a stored table and return the name it got."""
    from anndata.io import write_elem

    order = [each.decode() if isinstance(each, bytes) else str(each) for each in frame.attrs["column-order"]]
    name = free_name(wanted, {*order, *frame})
    values = column.array if isinstance(column.dtype, pd.CategoricalDtype) else column.to_numpy()
    write_elem(frame, name, values)
    frame.attrs["column-order"] = np.array([*order, name], dtype=h5py.string_dtype())
    return name


def add_layer(
    layers: h5py.Group,
    wanted: str,
    shape: tuple[int, int],
    columns: NDArray[np.int64],
    rows_of: Callable[[int, int], tuple[NDArray[np.int64], NDArray[np.float32]]],
    progress: Callable[[float], None],
) -> str:
    """Write a sparse layer block by block, so that it never has to fit in memory.

    Only the features in ``columns`` of the cells that have values are stored; all other entries read as 0.

    Parameters
    ----------
    layers
        The group of layers.
    wanted
        Name of the layer.
    shape
        ``(n_cells, n_features)`` of the file.
    columns
        Column of each value, rising, ``(n_values,)``.
    rows_of
        From a range of rows to the rows that have values (rising) and their values ``(n_rows, n_values)``.
    progress
        Called with the share that is done.

    Returns
    -------
    str
        The name it got.
    """
    name = free_name(wanted, set(layers))
    group = layers.create_group(name)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array(shape)})
    kind = {"maxshape": (None,), "chunks": (1 << 18,), "compression": "gzip", "compression_opts": 1}
    data = group.create_dataset("data", shape=(0,), dtype=np.float32, **kind)
    indices = group.create_dataset("indices", shape=(0,), dtype=np.int32, **kind)
    per_row = np.zeros(shape[0], dtype=np.int64)
    for start in range(0, shape[0], ROWS):
        rows, values = rows_of(start, min(start + ROWS, shape[0]))
        per_row[rows] = len(columns)
        stop = data.shape[0] + values.size
        for dataset, block in ((data, values.ravel()), (indices, np.tile(columns.astype(np.int32), len(rows)))):
            dataset.resize((stop,))
            dataset[stop - values.size :] = block
        progress(min(1.0, (start + ROWS) / shape[0]))
    group.create_dataset("indptr", data=np.concatenate([[0], np.cumsum(per_row)]))
    return name

