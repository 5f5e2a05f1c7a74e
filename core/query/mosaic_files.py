"""Imputed, corrected and translated values written to HDF5 a few cells at a time, so that a million cells do not fill the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cellweave.core.query.expression_files import covariates_of, write_or_say
from cellweave.core.query.latent import Cells
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_chunks
from cellweave.core.query.trained_run import QueryError, TrainedRun

CHUNK_ROWS = 128
SUFFIXES = (".h5mu", ".h5ad", ".h5")
ANNDATA = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
#: What every MuData file begins with, so that it is known as one without being opened.
HEADER = b"MuData (format-version=0.1.0;creator=cellweave;creator-version=0)".ljust(512, b"\0")
MUDATA = {"encoding-type": "MuData", "encoding-version": "0.1.0", "encoder": "cellweave"}


def write_mosaic(run: TrainedRun, out: str | Path, cells: Cells = None, question: MosaicQuestion | None = None) -> Path:
    """Write imputed, corrected or translated values into a new file.

    Parameters
    ----------
    run
        An open run of a model of many modalities.
    out
        ``.h5mu``: a MuData file with the values of each modality in its ``X``, and which cells were measured in it in ``obs["measured"]``; ``.h5ad``
        where one modality is asked for; ``.h5``: a group a modality with ``X`` and ``features``, as in a run folder.
    cells
        Rows or a mask; None for all usable cells.
    question
        What is asked; None for imputed values of everything.

    Returns
    -------
    pathlib.Path
        The file; it is whole, or it is not there.

    Raises
    ------
    CellweaveError
        Where the model cannot answer, or the file cannot be written.
    """
    out, question = Path(out).expanduser().absolute(), (question or MosaicQuestion()).among(tuple(run.trained.features))
    wanted = question.modalities or ()
    if out.suffix not in SUFFIXES:
        raise QueryError(f"'{out.name}' ends in none of .h5mu, .h5ad and .h5.", "Name the file accordingly.")
    if out.suffix == ".h5ad" and len(wanted) != 1:
        raise QueryError(f"An h5ad file holds one modality, and {', '.join(wanted)} are asked for.", "Name one with --modality, or write an h5mu file.")
    rows = run.rows(cells)
    obs = covariates_of(run, rows)
    features = {name: run.trained.features[name] for name in wanted}

    def write(temporary: Path) -> None:
        is_mudata = out.suffix == ".h5mu"
        with h5py.File(temporary, "w", **({"userblock_size": len(HEADER)} if is_mudata else {})) as file:
            groups = _groups(file, out.suffix, obs, features, run, rows, question)
            targets = {name: _matrix(group, len(rows), len(features[name])) for name, group in groups.items()}
            for where, values in mosaic_chunks(run, cells, question):
                for name, value in values.items():
                    targets[name][where] = value
        if is_mudata:
            with temporary.open("r+b") as raw:
                raw.write(HEADER)

    write_or_say(out, write)
    return out


def _matrix(group: h5py.Group, n_rows: int, n_columns: int) -> h5py.Dataset:
    made = group.create_dataset("X", (n_rows, n_columns), "f4", chunks=(max(1, min(CHUNK_ROWS, n_rows)), n_columns), compression="lzf", fillvalue=np.nan)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return made


def _groups(
    file: h5py.File, suffix: str, obs: pd.DataFrame, features: Mapping[str, Sequence[str]], run: TrainedRun, rows: np.ndarray, question: MosaicQuestion
) -> dict[str, h5py.Group]:
    """Write everything but the values, and return the group of each modality."""
    given, values = ", ".join(question.given or ()) or "all measured", "draws" if question.sampled else "means"
    how = {"run": run.path.name, "what": question.name, "given": given, "values": values}
    if suffix == ".h5":
        file.attrs.update(how)
        text = h5py.string_dtype()
        file.create_dataset("cells", data=obs.index.to_numpy(dtype=object), dtype=text)
        found = {}
        for name, names in features.items():
            found[name] = file.create_group(name)
            found[name].create_dataset("features", data=np.array(names, dtype=object), dtype=text)
        return found
    known = {modality.name: modality.measured[rows] for modality in run.data.modalities}
    if suffix == ".h5ad":
        (name,) = features
        write_frame(file, obs.assign(measured=known[name]), features[name], {"cellweave_values": how})
        return {name: file}
    return _mudata(file, obs, features, known, how)


def _mudata(
    file: h5py.File, obs: pd.DataFrame, features: Mapping[str, Sequence[str]], known: Mapping[str, np.ndarray], how: Mapping[str, Any]
) -> dict[str, h5py.Group]:
    from anndata.io import write_elem

    file.attrs.update({**MUDATA, "axis": 0})
    mod = file.create_group("mod")
    mod.attrs["mod-order"] = list(features)
    found, n_before, n_all = {}, 0, sum(len(names) for names in features.values())
    places = np.arange(1, len(obs) + 1, dtype=np.uint32)
    write_elem(file, "obs", obs)
    write_elem(file, "var", pd.DataFrame(index=pd.Index(list(_unique(features)), dtype=object)))
    write_elem(file, "obsm", {name: np.ones(len(obs), dtype=bool) for name in features})
    write_elem(file, "obsmap", dict.fromkeys(features, places))
    varm, varmap = {}, {}
    for name, names in features.items():
        inside = np.zeros(n_all, dtype=bool)
        inside[n_before : n_before + len(names)] = True
        varm[name], own = inside, np.zeros(n_all, dtype=np.uint32)
        own[inside] = np.arange(1, len(names) + 1)
        varmap[name], n_before = own, n_before + len(names)
        found[name] = mod.create_group(name)
        write_frame(found[name], obs.assign(measured=known[name]), names, {})
    write_elem(file, "varm", varm)
    write_elem(file, "varmap", varmap)
    for group in ("obsp", "varp"):
        write_elem(file, group, {})
    write_elem(file, "uns", {"cellweave_values": dict(how)})
    return found


def write_frame(group: h5py.Group, obs: pd.DataFrame, features: Sequence[str], uns: Mapping[str, Any]) -> None:
    """Write everything of an AnnData file but ``X``."""
    from anndata.io import write_elem

    group.attrs.update(ANNDATA)
    write_elem(group, "obs", obs)
    write_elem(group, "var", pd.DataFrame(index=pd.Index(list(features), dtype=object)))
    for part in ("layers", "obsm", "obsp", "varm", "varp"):
        write_elem(group, part, {})
    write_elem(group, "uns", dict(uns))


def _unique(features: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Return the names of all features, those that repeat with their modality before them, as mudata does."""
    counts = pd.Series([name for names in features.values() for name in names]).value_counts()
    repeated = set(counts.index[counts > 1])
    return (f"{modality}:{name}" if name in repeated else name for modality, names in features.items() for name in names)
