"""The neighbourhood diagnostics of a trained run: what is read, what is written, and several runs beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis import neighbourhood_failures as failures
from cellweave.core.analysis import neighbourhood_summary as summary
from cellweave.core.analysis.arrays import load_array
from cellweave.core.analysis.neighbourhood import Keys
from cellweave.core.analysis.neighbourhood_markers import published_markers, read_markers
from cellweave.core.analysis.neighbourhood_report import Answer, Question, diagnose, leaf_counts, plain
from cellweave.core.analysis.scores import Column, scored_rows
from cellweave.core.errors import DataError, RunFolderError, SpecError
from cellweave.core.files import write_atomic, write_json_atomic
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Modality, Study
from cellweave.core.wording import counted

TABLE, SUMMARY = "neighbourhood.csv", "neighbourhood.json"
#: Names by which tables of features keep their gene symbols, where the index holds other identifiers.
SYMBOLS = ("gene_symbols", "gene_symbol", "gene_name", "gene_names", "SYMBOL", "symbol", "feature_name", "hgnc_symbol")
Progress = Callable[[float | None, str], None]


@dataclass(frozen=True)
class NeighbourhoodOptions:
    """What is asked; None takes what the run's spec says.

    Attributes
    ----------
    library, dataset
        Columns; the library falls back to the batch.
    technical
        Columns.
    labels
        Columns whose levels have markers.
    stratify
        Further columns by whose levels the metrics are summed up.
    k
        Neighbours per cell, the cell itself counted.
    markers
        The user's list (CSV), in place of the published one.
    """

    library: str | None = None
    dataset: str | None = None
    technical: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    stratify: tuple[str, ...] = ()
    k: int | None = None
    markers: str | None = None

    def resolved(self, spec: RunSpec) -> NeighbourhoodOptions:
        """Fill in what the run's spec says."""
        covariates, analysis = spec.covariates, spec.analysis
        return NeighbourhoodOptions(
            library=self.library or covariates.library or covariates.batch,
            dataset=self.dataset or covariates.dataset,
            technical=covariates.technical if self.technical is None else self.technical,
            labels=((covariates.labels,) if covariates.labels else ()) if self.labels is None else self.labels,
            stratify=self.stratify,
            k=self.k or analysis.neighbourhood_neighbors,
            markers=self.markers or analysis.marker_file,
        )


def diagnose_run(
    folder: str | Path, options: NeighbourhoodOptions | None = None, *, out: Path | None = None, progress: Progress = lambda share, text: None
) -> dict[str, Any]:
    """Compute the diagnostics of a run and write ``neighbourhood.csv`` (one row a cell of the study) and ``neighbourhood.json``.

    Parameters
    ----------
    folder
        The run folder, with a latent space.
    options
        What is asked; None takes the run's spec.
    out
        Folder to write into; None takes the run's results.
    progress
        Told how far it is; may raise ``Cancelled``.

    Returns
    -------
    dict
        The summary.

    Raises
    ------
    RunFolderError
        Where the run has no latent space.
    DataError
        Where a library lies in two data sets, the data changed, or there are too few markers.
    SpecError
        Where a column does not exist, or none is given that says where cells come from.
    """
    from cellweave.core.export.inputs import check_unchanged
    from cellweave.core.export.run_data import RunData
    from cellweave.core.study import load_study

    run = RunData(folder)
    asked = (options or NeighbourhoodOptions()).resolved(run.spec)
    if not run.has("latent.npy"):
        raise RunFolderError(f"The run '{run.name}' has no latent space yet.", f"Let it finish, or continue it with 'cellweave resume {folder}'.")
    check_unchanged(run.spec)
    progress(None, "loading data")
    study = load_study(run.spec.data)
    modality = expression_modality(study, run.spec)
    results = run.folder.results
    latent = np.asarray(load_array(results / "latent.npy"))
    if len(latent) != study.n_cells:
        raise RunFolderError(
            f"The latent space has {counted(len(latent), 'cell')} and the study "
            f"{study.n_cells}.", "Train the run again: its results are of other data."
        )
    baseline = np.asarray(load_array(results / "baseline_pca.npy")) if (results / "baseline_pca.npy").is_file() else None
    rows = np.flatnonzero(np.isfinite(latent).all(axis=1) & modality.measured)
    if len(rows) < 3:
        raise DataError("Too few cells have both a latent and counts of the modality.", "Train on more cells.")
    rows = rows[scored_rows(len(rows), seed=run.spec.training.seed)]
    question = _question(study, modality, rows, latent, baseline, asked, run.spec)
    answer = diagnose(replace(question, ambient_fraction=_background(results, modality.name, rows, study.n_cells)), progress)
    found = {**answer.summary, "columns": _columns(asked), "modality": modality.name, "n_study": study.n_cells, "run": run.name}
    _write(out or results, study, rows, answer, found)
    return found


def _background(results: Path, modality: str, rows: NDArray[np.int64], n_cells: int) -> NDArray[np.float64] | None:
    """Return the share of background in each cell, where the run's model tells it."""
    path = results / "effects.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        name = f"cells/{modality}"
        return np.asarray(stored[name], dtype=np.float64)[rows] if name in stored and len(stored[name]) == n_cells else None


def expression_modality(study: Study, spec: RunSpec) -> Modality:
    """Return the modality whose features are genes: RNA where there is any, else the one the model was trained on."""
    return study.modalities.get("rna") or study.main_modality(spec.data.modality)


def symbols_of(modality: Modality) -> list[str]:
    """Return the gene symbols of the features: a column that holds them where the index has other identifiers."""
    for name in SYMBOLS:
        if name in modality.var:
            column = modality.var[name]
            return [str(own if pd.isna(value) else value) for own, value in zip(modality.var.index, column, strict=True)]
    return [str(name) for name in modality.var.index]


def _question(
    study: Study, modality: Modality, rows: NDArray[np.int64], latent: NDArray[Any], baseline: NDArray[Any] | None, asked: NeighbourhoodOptions, spec: RunSpec
) -> Question:
    def column(name: str) -> Column:
        return column_of(study.obs, name).take(rows)

    library = column(asked.library) if asked.library else None
    dataset = column(asked.dataset) if asked.dataset else None
    technical = {name: column(name) for name in asked.technical or ()}
    if library is None and dataset is None and not technical:
        raise SpecError(
            "Nothing says where the cells come from, so neighbours cannot be told apart.", "Give a library (or batch), a data set or a technical column."
        )
    check_hierarchy(library, dataset)
    listed = read_markers(asked.markers) if asked.markers else published_markers()
    by = {asked.library, asked.dataset, *(asked.technical or ()), *(asked.labels or ()), *asked.stratify}
    if baseline is not None and (len(baseline) != len(latent) or not np.isfinite(baseline[rows]).all()):
        baseline = None
    return Question(
        latent=latent[rows], counts=modality.counts[rows], symbols=symbols_of(modality), keys=Keys(library, dataset, technical),
        labels=[column(name) for name in asked.labels or ()], baseline=None if baseline is None else baseline[rows], listed=listed,
        k=asked.k or 50, seed=spec.training.seed, stratify={name: column(name) for name in sorted(filter(None, by))},
    )  # fmt: skip


def column_of(obs: pd.DataFrame, name: str) -> Column:
    """Return a column of obs as codes, -1 where it is missing.

    Raises
    ------
    SpecError
        Where there is no such column.
    """
    import difflib

    if name not in obs:
        near = difflib.get_close_matches(name, [str(each) for each in obs.columns], n=1, cutoff=0.5)
        raise SpecError(f"The cells have no column '{name}'.", f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(map(str, obs.columns))}.")
    known = obs[name].notna().to_numpy()
    text = obs[name].astype(str).to_numpy(dtype=object)
    levels, codes = np.unique(text[known].astype(str), return_inverse=True)
    full = np.full(len(obs), -1, dtype=np.int64)
    full[known] = codes
    return Column(full, tuple(str(level) for level in levels))


def check_hierarchy(library: Column | None, dataset: Column | None) -> None:
    """Make sure that each library lies in one data set.

    Raises
    ------
    DataError
        Where one does not; the sentence names them.
    """
    if library is None or dataset is None:
        return
    known = (library.codes >= 0) & (dataset.codes >= 0)
    pairs = np.unique(np.column_stack([library.codes[known], dataset.codes[known]]), axis=0)
    codes, counts = np.unique(pairs[:, 0], return_counts=True)
    bad = codes[counts > 1]
    if len(bad):
        listed = "; ".join(
            f"'{library.levels[code]}' in {', '.join(dataset.levels[other] for other in pairs[pairs[:, 0] == code, 1])}" for code in bad[:5]
        )
        raise DataError(
            f"{len(bad)} librar{'y lies' if len(bad) == 1 else 'ies lie'} in more than one data set: {listed}.",
            "Each library belongs to one data set: correct the column, or combine the two columns into the library.",
        )


def _columns(asked: NeighbourhoodOptions) -> dict[str, Any]:
    return {
        "library": asked.library, "dataset": asked.dataset, "technical": list(asked.technical or ()), "labels": list(asked.labels or ()),
        "markers": asked.markers or "published",
    }  # fmt: skip


def _write(folder: Path, study: Study, rows: NDArray[np.int64], answer: Answer, found: dict[str, Any]) -> None:
    table = answer.cells.set_axis(rows).reindex(np.arange(study.n_cells))
    for name in table:
        if str(name).startswith("n_neighbours"):
            table[name] = table[name].astype("Int32")
    table.insert(0, "name", study.obs.index)
    write_atomic(folder / TABLE, lambda temporary: table.to_csv(temporary, index=False, float_format="%.6g"))
    write_json_atomic(folder / SUMMARY, found)


# ---------------------------------------------------------------------- several runs


def read_cells(results: Path) -> pd.DataFrame:
    """Read ``neighbourhood.csv``: one row a cell of the study, in its order.

    Raises
    ------
    RunFolderError
        Where the run has none.
    """
    path = results / TABLE
    if not path.is_file():
        raise RunFolderError(f"The run in '{results.parent}' has no neighbourhood diagnostics yet.", f"Compute them: cellweave neighbourhood {results.parent}.")
    return pd.read_csv(path, dtype={"name": str})


def compare_runs(folders: Sequence[Path], *, progress: Progress = lambda share, text: None) -> dict[str, dict[str, Any]]:
    """Hold runs of the same cells against each other, and write what follows into each of them.

    The integration failure rate (H13) then compares with all the runs, and a cell without neighbours in other data sets is told by the others'
    success: kept apart by this run, or of a population that only its data set has.

    Parameters
    ----------
    folders
        Run folders that have their diagnostics.
    progress
        Told how far it is.

    Returns
    -------
    dict
        The new summary by folder.

    Raises
    ------
    DataError
        Where the runs are not of the same cells, or not of the same columns.
    """
    places = [Path(folder) / "results" for folder in folders]
    tables = [read_cells(place) for place in places]
    told = [json.loads((place / SUMMARY).read_text(encoding="utf-8")) for place in places]
    for table, other, folder in zip(tables[1:], told[1:], folders[1:], strict=True):
        if not table["name"].equals(tables[0]["name"]):
            raise DataError(f"'{folder}' is a run of other cells than '{folders[0]}'.", "Compare runs of the same data.")
        if other["across"] != told[0]["across"]:
            raise DataError(f"'{folder}' and '{folders[0]}' were diagnosed by other columns.", "Compute both anew with the same columns.")
    across, found = told[0]["across"], {}
    values = [table[f"corr_avg_{across}"].to_numpy(dtype=np.float64) for table in tables]
    numbers = [table[f"n_neighbours_{across}"].fillna(0).to_numpy(dtype=np.int64) for table in tables]
    alone = summary.consensus_isolated(list(zip(values, numbers, strict=True)))
    for place, table, own, values_own, folder in zip(places, tables, told, values, folders, strict=True):
        scored = table["n_neighbours_total"].notna().to_numpy()
        rate = summary.failure_rate(values_own[scored], [each[scored] for each in values])
        own["headline"]["integration_failure_rate"] = rate if math.isfinite(rate) else None
        own["compared_with"] = [str(other) for other in folders if other != folder]
        own["consensus_isolated"] = int((alone & scored).sum())
        if "leaf_across_datasets" in table:
            _with_others(table, own, scored, ~alone)
        table["consensus_isolated"] = np.where(scored, alone, np.nan)
        write_atomic(place / TABLE, lambda temporary, table=table: table.to_csv(temporary, index=False, float_format="%.6g"))  # type: ignore[misc]
        write_json_atomic(place / SUMMARY, plain(own))
        found[str(folder)] = own
        progress(len(found) / len(folders), "comparing")
    return found


def _with_others(table: pd.DataFrame, told: dict[str, Any], scored: NDArray[np.bool_], connected: NDArray[np.bool_]) -> None:
    """Tell isolated cells by the success of other models, in place."""
    leaves = table["leaf_across_datasets"].fillna("").to_numpy(dtype="U32")
    isolated = np.isin(leaves, ["XD-0_isolated_unknown", "XD-0a_dataset_enriched", "XD-0b_under_integration"])
    leaves = np.where(isolated, np.where(connected, "XD-0b_under_integration", "XD-0a_dataset_enriched"), leaves)
    table["leaf_across_datasets"] = pd.Series(leaves).where(scored)
    levels = [table[name].fillna("").to_numpy(dtype="U32") for name in table if str(name).startswith("leaf_")]
    table["failure_mode"] = pd.Series(failures.most_severe(levels)).where(scored)
    told["leaves"]["leaf_across_datasets"] = leaf_counts(leaves[scored])
    told["leaves"]["failure_mode"] = leaf_counts(table["failure_mode"][scored].to_numpy(dtype="U32"))
