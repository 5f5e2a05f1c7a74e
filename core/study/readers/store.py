"""Small helpers over HDF5 and zarr groups, which look alike: attributes, strings, matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.study.readers.base import StoredDense, StoredMatrix, StoredSparse

Group = Any  # h5py.Group or zarr.Group: both map names to groups and arrays and have attrs
Array = Any


def is_group(node: Any) -> bool:
    """Return whether a node is a group rather than an array."""
    return hasattr(node, "keys")


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return an attribute with bytes decoded and one-element arrays opened."""
    value = node.attrs.get(name, default)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        return [text(item) for item in value.tolist()]
    return value


def text(value: Any) -> str:
    """Return a value as text; bytes are decoded."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_values(array: Array) -> np.ndarray:
    """Return all values of an array; strings as an object array of str."""
    values = np.asarray(array[()] if array.shape == () else array[...])
    return decoded(values)


def decoded(values: np.ndarray) -> np.ndarray:
    """Return strings (bytes, fixed or variable length) as an object array of str, numbers as they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace").astype(object)
    if values.dtype.kind in "UT":
        return values.astype(object)
    if values.dtype.kind == "O":
        items = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in values.ravel().tolist()]
        result = np.empty(len(items), dtype=object)
        result[:] = items
        return result.reshape(values.shape)
    return values


def is_text(array: Array) -> bool:
    """Return whether an array holds strings."""
    kind = np.dtype(array.dtype).kind if not isinstance(array.dtype, np.dtype) else array.dtype.kind
    return kind in "SUOT"


def encoding(node: Any) -> str:
    """Return the encoding that anndata wrote beside a node, old spellings included."""
    return str(attribute(node, "encoding-type") or attribute(node, "h5sparse_format") or "")


def matrix_at(node: Any, location: str) -> StoredMatrix | None:
    """Return the matrix at a node, sparse or dense; None where the node holds nothing (an AnnData without X).

    Raises
    ------
    DataError
        Where the node holds something that is not a matrix of numbers.
    """
    if is_group(node):
        keys = set(node.keys())
        if not {"data", "indices", "indptr"} <= keys:
            return None
        shape = attribute(node, "shape", attribute(node, "h5sparse_shape"))
        by_column = encoding(node).startswith("csc")
        if shape is None:
            if "shape" not in keys:
                raise DataError(f"The sparse matrix at {location} does not say its shape.", "Write the file again with anndata.")
            shape = node["shape"][...]
        size = (int(shape[0]), int(shape[1]))
        return StoredSparse(location, size, node["data"], node["indices"], node["indptr"], by_column=by_column)
    if encoding(node) == "null" or len(node.shape) != 2 or is_text(node) or node.dtype.names is not None:
        return None
    return StoredDense(location, node)


def child(group: Group, path: str) -> Any:
    """Return the node at a path below a group, or None."""
    return group[path] if path in group else None  # noqa: SIM401  (zarr 2 has no get for paths)
