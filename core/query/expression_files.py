"""Denoised expression written to HDF5 a few cells at a time, so that a million cells do not fill the memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from cellweave.core.errors import CellweaveError
from cellweave.core.export.annotate import add_column, add_layer, mapping
from cellweave.core.files import write_atomic
from cellweave.core.query.expression import ExpressionQuestion, expression_chunks
from cellweave.core.query.latent import Cells
from cellweave.core.query.trained_run import QueryError, TrainedRun

CHUNK_ROWS = 128


def write_expression(run: TrainedRun, out: str | Path, cells: Cells = None, question: ExpressionQuestion | None = None) -> Path:
    """Write denoised expression into a new file.

    Parameters
    ----------
    run
        An open run.
    out
        ``.h5ad``: an AnnData file with the values in ``X`` (dense, chunked), the columns the model reads in ``obs``, and how it was made in
        ``uns["cellweave_expression"]``. ``.h5``: the datasets ``X``, ``cells`` and ``features``.
    cells
        Rows or a mask; None for all usable cells.
    question
        What to decode; None for the defaults.

    Returns
    -------
    pathlib.Path
        The file; it is whole, or it is not there.

    Raises
    ------
    CellweaveError
        Where the file cannot be written.
    """
    out, question = Path(out).expanduser().absolute(), question or ExpressionQuestion()
    if out.suffix not in {".h5ad", ".h5"}:
        raise QueryError(f"'{out.name}' ends neither in .h5ad nor in .h5.", "Name the file accordingly.")
    rows, names = run.rows(cells), run.feature_names(question.features)
    question.check()

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            if out.suffix == ".h5ad":
                _frame_of_h5ad(file, run, rows, names, question)
            else:
                text = h5py.string_dtype()
                file.create_dataset("cells", data=run.cell_names[rows].astype(str).to_numpy(dtype=object), dtype=text)
                file.create_dataset("features", data=np.array(names, dtype=object), dtype=text)
                file.attrs.update(_how(run, question))
            shape = (len(rows), len(names))
            kept = file.create_dataset("X", shape, "f4", chunks=(min(CHUNK_ROWS, shape[0]), shape[1]), compression="lzf")
            kept.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for where, values in expression_chunks(run, rows, question):
                kept[where] = values

    write_or_say(out, write)
    return out


def _frame_of_h5ad(file: h5py.File, run: TrainedRun, rows: np.ndarray, names: list[str], question: ExpressionQuestion) -> None:
    """Write everything of an AnnData file but ``X``."""
    from anndata.io import write_elem

    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(file, "obs", covariates_of(run, rows))
    write_elem(file, "var", pd.DataFrame(index=pd.Index(names, dtype=object)))
    for group in ("layers", "obsm", "obsp", "varm", "varp"):
        write_elem(file, group, {})
    write_elem(file, "uns", {"cellweave_expression": _how(run, question)})


def covariates_of(run: TrainedRun, rows: np.ndarray) -> pd.DataFrame:
    """Return the columns that the model reads, of some cells, by cell name; levels as categories, numbers as they are."""
    table = pd.DataFrame(index=run.cell_names[rows].astype(str).astype(object))
    for role, columns in run.trained.encoding.columns.items():
        for column in columns:
            if column in run.study.obs:
                values = run.study.obs[column].iloc[rows]
                numeric = role in {"continuous", "size_factor"}
                table[column] = values.to_numpy(dtype=np.float64) if numeric else pd.Categorical(values.astype(str).where(values.notna()))
    return table


def _how(run: TrainedRun, question: ExpressionQuestion) -> dict[str, object]:
    batches = question.transform_batch
    return {
        "run": run.path.name,
        "transform_batch": "own" if batches is None else batches if isinstance(batches, str) else ", ".join(batches),
        "library_size": str(question.library_size),
        "modality": run.modality_name,
        "transform": ", ".join(f"{column}={level}" for column, level in question.transform.items()),
        "n_samples": "posterior mean" if question.n_samples is None else str(question.n_samples),
        "seed": question.seed,
    }


def add_expression_layer(
    run: TrainedRun, h5ad: str | Path, out: str | Path, layer: str = "denoised", question: ExpressionQuestion | None = None
) -> str:
    """Write a copy of an h5ad with denoised expression as a further layer.

    Parameters
    ----------
    run
        An open run.
    h5ad
        A file with cells of the run, found by their names.
    out
        Where the copy shall be; it may be the same place.
    layer
        Wanted name of the layer.
    question
        What to decode; None for the defaults.

    Returns
    -------
    str
        The layer's name: where the wanted one is taken, it ends in ``_cellweave``. Cells and features that the run does not have read as 0
        and are False in ``obs`` and ``var`` ``["cellweave_denoised"]``.

    Raises
    ------
    QueryError
        Where the file holds none of the cells or features.
    """
    h5ad, out, question = Path(h5ad).expanduser(), Path(out).expanduser().absolute(), question or ExpressionQuestion()
    question.check()
    if not h5ad.is_file():
        raise QueryError(f"There is no file '{h5ad}'.", "Check the path.")
    names = run.feature_names(question.features)
    made = {"layer": ""}

    def write(temporary: Path) -> None:
        shutil.copyfile(h5ad, temporary)
        with h5py.File(temporary, "r+") as file:
            made["layer"] = _add(file, run, names, layer, question)

    write_or_say(out, write)
    return made["layer"]


def _add(file: h5py.File, run: TrainedRun, names: list[str], layer: str, question: ExpressionQuestion) -> str:
    cells, features = _names(file["obs"]), _names(file["var"])
    row_of = pd.Index(run.cell_names.astype(str)).get_indexer(cells)
    row_of[row_of >= 0] = np.where(run.data.usable[row_of[row_of >= 0]], row_of[row_of >= 0], -1)
    column_of = pd.Index(features).get_indexer(names)
    known = np.flatnonzero(column_of >= 0)
    if not (row_of >= 0).any() or not known.size:
        what = "cells" if known.size else "features"
        raise QueryError(f"The file holds none of the run's {what}.", "Choose the file that the run was trained on.")
    order = known[np.argsort(column_of[known], kind="stable")]

    def rows_of(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        there = np.flatnonzero(row_of[start:stop] >= 0)
        if not there.size:
            return there, np.empty((0, len(order)), dtype=np.float32)
        parts = [values[:, order] for _, values in expression_chunks(run, row_of[start:stop][there], question)]
        return start + there, np.concatenate(parts)

    shape = (len(cells), len(features))
    columns = column_of[order].astype(np.int64)
    name = add_layer(mapping(file, "layers"), layer, shape, columns, rows_of, lambda share: None)
    add_column(file["obs"], "cellweave_denoised", pd.Series(row_of >= 0))
    modelled = np.zeros(len(features), dtype=bool)
    modelled[columns] = True
    add_column(file["var"], "cellweave_denoised", pd.Series(modelled))
    return name


def _names(frame: h5py.Group) -> pd.Index:
    from anndata.io import read_elem

    return pd.Index(read_elem(frame).index.astype(str))


def write_or_say(out: Path, write: Callable[[Path], None]) -> None:
    """Write a file atomically; where that is not possible, say so in a sentence."""
    try:
        write_atomic(out, write)
    except OSError as error:
        raise CellweaveError(f"'{out}' cannot be written: {error.strerror or error}.", "Free some space, or choose another place.") from error
