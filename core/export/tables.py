"""Tables of a run as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from cellweave.core.analysis.integration_results import load as load_integration
from cellweave.core.analysis.integration_results import table_of as table_of_metrics
from cellweave.core.errors import CellweaveError, RunFolderError, SpecError
from cellweave.core.export.run_data import RunData
from cellweave.core.files import write_atomic

#: What there is, and what each is called in menus.
TABLES = {
    "losses": "Losses by epoch",
    "latent": "Latent space",
    "umap": "UMAP coordinates",
    "clusters": "Leiden clusters",
    "scores": "Scores",
    "metrics": "Integration metrics",
    "cells": "Cells with everything known of them",
}


def save_table(run_folder: str | Path, kind: str, out: str | Path) -> Path:
    """Write a table of a run.

    Parameters
    ----------
    run_folder
        Folder of the run.
    kind
        One of ``TABLES``. ``latent``, ``umap``, ``clusters`` and ``cells`` have a row for each cell of the study, named in the
        first column, in the study's order; what a cell does not have is empty.
    out
        The CSV to write; with tabs instead of commas where it ends in ``.tsv``.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    SpecError
        Where there is no such table.
    RunFolderError
        Where the run has no such result yet.
    CellweaveError
        Where the file cannot be written.
    """
    if kind not in TABLES:
        raise SpecError(f"There is no table '{kind}'.", f"There are {', '.join(TABLES)}.")
    out = Path(out).expanduser().absolute()
    table = table_of(RunData(run_folder), kind)
    separator = "\t" if out.suffix.lower() in {".tsv", ".txt"} else ","
    try:
        write_atomic(out, lambda temporary: table.to_csv(temporary, index=False, sep=separator, lineterminator="\n"))
    except OSError as error:
        raise CellweaveError(f"'{out}' cannot be written: {error.strerror or error}.", "Free some space, or choose another place.") from error
    return out


def table_of(run: RunData, kind: str) -> pd.DataFrame:
    """Return a table of a run; see :func:`save_table`."""
    makers: dict[str, Callable[[RunData], pd.DataFrame]] = {
        "losses": _losses, "latent": _latent, "umap": _umap, "clusters": _clusters, "scores": _scores, "metrics": _metrics, "cells": _cells,
    }  # fmt: skip
    return makers[kind](run)


def _losses(run: RunData) -> pd.DataFrame:
    rows = run.folder.losses()
    if not rows:
        raise RunFolderError(f"The run '{run.name}' has no losses yet.", "Wait for its first epoch.")
    columns = next(csv.reader(run.folder.losses_file.read_text(encoding="utf-8").splitlines()[:1]))
    return pd.DataFrame(rows, columns=columns).astype({"epoch": int})


def _named(run: RunData) -> pd.DataFrame:
    return pd.DataFrame({"name": run.cells["name"]})


def _latent(run: RunData) -> pd.DataFrame:
    found = [_named(run)]
    for name, values in run.latents().items():
        found.append(pd.DataFrame(values, columns=[f"{name}_{number}" for number in range(1, values.shape[1] + 1)]))
    if len(found) == 1:
        run.array("latent")  # says that there is none yet
    return pd.concat(found, axis=1)


def _umap(run: RunData) -> pd.DataFrame:
    return pd.concat([_named(run), pd.DataFrame(run.array("umap"), columns=["umap_1", "umap_2"])], axis=1)


def _clusters(run: RunData) -> pd.DataFrame:
    if run.clusters is None:
        raise RunFolderError(f"The run '{run.name}' has no clusters.", "They are computed after training where analysis.clusters = true.")
    return _named(run).assign(leiden=run.clusters)


def _scores(run: RunData) -> pd.DataFrame:
    if run.scores is None:
        raise RunFolderError(f"The run '{run.name}' has no scores.", "Scores need a batch or label column and analysis.scores = true.")
    return pd.DataFrame(run.scores["scores"])


def _metrics(run: RunData) -> pd.DataFrame:
    found = load_integration(run.folder.results)
    if found is None:
        raise RunFolderError(f"The run '{run.name}' has no integration metrics.", f"Compute them: cellweave metrics {run.folder.path}.")
    return table_of_metrics(found)


def _cells(run: RunData) -> pd.DataFrame:
    parts = [run.cells]
    if run.clusters is not None:
        parts.append(pd.DataFrame({"leiden": run.clusters}))
    if run.has("umap.npy"):
        parts.append(pd.DataFrame(run.array("umap"), columns=["umap_1", "umap_2"]))
    if run.transferred is not None:
        parts.append(run.transferred[["label", "share"]].add_prefix("transferred_"))
    if run.has("library.npy"):
        parts.append(pd.DataFrame({"library": run.array("library")}))
    return pd.concat(parts, axis=1)
