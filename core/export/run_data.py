"""What exports and figures need of a run folder."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.arrays import load_array
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.wording import counted

OWN_COLUMNS = ("leiden", "split")
GENES = ("gene", "counts", "denoised", "corrected")
#: Whole numbers with at most this many different values are taken for levels, not for a quantity.
MOST_NUMBERED_LEVELS = 30


@dataclass(frozen=True)
class ColumnValues:
    """One value per cell to colour by.

    Attributes
    ----------
    title
        What it is called.
    levels
        Names of the levels, or None where it is a quantity.
    codes
        Level of each cell, ``(n_cells,)``, -1 where it is missing; empty for a quantity.
    numbers
        Value of each cell, ``(n_cells,)`` float32, NaN where it is missing; empty for levels.
    """

    title: str
    levels: tuple[str, ...] | None
    codes: NDArray[np.int32]
    numbers: NDArray[np.float32]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which cells have no value."""
        return np.isnan(self.numbers) if self.levels is None else self.codes < 0

    @classmethod
    def of_numbers(cls, title: str, numbers: Any) -> ColumnValues:
        """Make a quantity."""
        return cls(title, None, np.empty(0, np.int32), np.asarray(numbers, dtype=np.float32))

    @classmethod
    def of_levels(cls, title: str, codes: Any, levels: Any) -> ColumnValues:
        """Make a categorical column."""
        return cls(title, tuple(str(level) for level in levels), np.asarray(codes, dtype=np.int32), np.empty(0, np.float32))

    @classmethod
    def of_series(cls, title: str, series: pd.Series, *, as_levels: bool = False) -> ColumnValues:
        """Tell levels from quantities: numbers are quantities unless they are few and whole, or ``as_levels``."""
        if isinstance(series.dtype, pd.CategoricalDtype):
            series = series.cat.remove_unused_categories()
            return cls.of_levels(title, series.cat.codes, series.cat.categories)
        numeric = pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)
        if numeric and not as_levels:
            numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
            present = np.unique(numbers[np.isfinite(numbers)])
            if len(present) > MOST_NUMBERED_LEVELS or (present != np.round(present)).any():
                return cls.of_numbers(title, numbers)
            found = pd.Categorical(numbers, categories=present)
            return cls.of_levels(title, found.codes, [str(int(value)) for value in present])
        known = series.notna().to_numpy()
        text = series.astype(str).to_numpy(dtype=object)
        levels = sorted(set(text[known]), key=_natural)
        codes = np.full(len(series), -1, dtype=np.int32)
        codes[known] = pd.Categorical(text[known], categories=levels).codes
        return cls.of_levels(title, codes, levels)


def _natural(text: str) -> tuple[int, float, str]:
    """Sort numbers by size and before words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


class RunData:
    """The results of a run, read when they are asked for.

    Parameters
    ----------
    path
        The run folder.

    Raises
    ------
    RunFolderError
        Where it is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder.open(path)

    @cached_property
    def spec(self) -> RunSpec:
        """The run's spec."""
        return self.folder.spec

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.spec.name or self.folder.path.name

    @property
    def epoch(self) -> int:
        """The epoch whose weights the results are of: the best one where early stopping went back to it, else the last."""
        try:
            training = json.loads((self.folder.path / "model" / "model.json").read_text(encoding="utf-8"))["training"]
        except (OSError, ValueError, KeyError):
            status = self.folder.status
            return status.best_epoch if status.best_epoch and self.spec.training.early_stopping else status.epoch
        return int(training["best_epoch"] or training["epochs"])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """``cells.csv``: every column as text (missing as NaN) but ``file`` and ``row``, in study order."""
        path = self.folder.results / "cells.csv"
        self._require(path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        table["name"] = table["name"].fillna("")
        return table.astype({"file": int, "row": int})

    @cached_property
    def latent(self) -> NDArray[np.float32]:
        """The main latent, ``(n_cells, n_latent)``; NaN rows for cells without one."""
        return self.array("latent")

    def array(self, name: str) -> NDArray[np.float32]:
        """Return ``results/NAME.npy``.

        Raises
        ------
        RunFolderError
            Where the run has no such result.
        """
        path = self.folder.results / f"{name}.npy"
        self._require(path)
        found = np.asarray(load_array(path))
        if len(found) != len(self.cells):
            raise RunFolderError(f"'{path.name}' of this run has {counted(len(found), 'cell')} and its list of cells {len(self.cells)}.", "Compute it again.")
        return found

    def has(self, file: str) -> bool:
        """Return whether the run has a result file."""
        return (self.folder.results / file).is_file()

    @cached_property
    def clusters(self) -> pd.Series | None:
        """The Leiden clusters as a categorical, or None."""
        if not self.has("clusters.csv"):
            return None
        found = pd.read_csv(self.folder.results / "clusters.csv", dtype={"name": str})["leiden"].astype("Int64")
        levels = sorted(int(value) for value in found.dropna().unique())
        codes = pd.Categorical(found, categories=levels).codes
        return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index([str(level) for level in levels], dtype=object)))

    @cached_property
    def transferred(self) -> pd.DataFrame | None:
        """``label`` and ``share`` that cells mapped onto a reference were told, or None."""
        from cellweave.core.analysis.joint import read_transferred

        return read_transferred(self.folder.results, len(self.cells))

    @property
    def scores(self) -> dict[str, Any] | None:
        """``scores.json``, or None."""
        if not self.has("scores.json"):
            return None
        return json.loads((self.folder.results / "scores.json").read_text(encoding="utf-8"))

    def latents(self) -> dict[str, NDArray[np.float32]]:
        """Return every latent the run has by name, the main one first: those declared, and those of single modalities."""
        names = ["latent", *(result.name for result in self.spec.family.results if result.kind == "latent")]
        names += sorted(path.stem for pattern in ("latent_*.npy", "c_*.npy", "u.npy", "u_*.npy") for path in self.folder.results.glob(pattern))
        return {name: self.array(name) for name in dict.fromkeys(names) if self.has(f"{name}.npy")}

    def default_columns(self) -> tuple[str, ...]:
        """Return what an embedding is coloured by where nothing is said: the spec's choice, else batch beside cell type."""
        covariates = self.spec.covariates
        first = covariates.batch or covariates.library or covariates.dataset
        pair = [column for column in (first, covariates.labels or ("leiden" if self.clusters is not None else None)) if column]
        return tuple(self.spec.analysis.colour_by) or tuple(pair) or ("split",)

    # ------------------------------------------------------------------ columns

    def column(self, name: str) -> ColumnValues:
        """Return a column to colour by.

        Parameters
        ----------
        name
            ``leiden``, ``split``, ``latent:3`` (dimensions are counted from 1), ``gene:CD3E`` (log-normalised), ``counts:CD3E``, ``denoised:CD3E``,
            ``corrected:CD3E`` (as each batch and averaged), ``corrected:CD3E@BATCH``,
            ``neighbourhood:failure_mode`` and the other columns of ``neighbourhood.csv``, ``attribution:rna_decoder_total_attr`` and the other
            scores, or a column of obs.

        Raises
        ------
        SpecError
            Where there is no such column; the sentence proposes the nearest.
        """
        kind, _, detail = name.partition(":")
        if kind == "latent" and detail.isdecimal():
            if not 1 <= int(detail) <= self.latent.shape[1]:
                raise SpecError(f"The latent space has {counted(self.latent.shape[1], 'dimension')}, so there is no '{name}'.")
            return ColumnValues.of_numbers(f"Latent dimension {detail}", self.latent[:, int(detail) - 1])
        if kind in GENES and detail:
            from cellweave.core.export.gene_columns import gene_column

            return gene_column(self, name)
        if kind == "neighbourhood" and detail:
            return self._diagnosed(detail)
        if kind == "attribution" and detail:
            return self._attributed(detail)
        if name == "leiden" and self.clusters is not None:
            return ColumnValues.of_series("Leiden clusters", self.clusters)
        if name in ("transferred_label", "transferred_share") and self.transferred is not None:
            return ColumnValues.of_series(name.replace("_", " ").capitalize(), self.transferred[name.removeprefix("transferred_")])
        if name == "split":
            return ColumnValues.of_series("Part in training", self.cells["split"])
        covariates = self.spec.covariates
        quantities = {*covariates.continuous, covariates.size_factor}
        if name in self.cells and name not in {"name", "file", "row", *quantities}:
            return ColumnValues.of_series(name, self.cells[name], as_levels=True)
        obs = self.obs
        if name not in obs:
            known = [*obs.columns, *OWN_COLUMNS]
            near = difflib.get_close_matches(name, [str(column) for column in known], n=1, cutoff=0.5)
            raise SpecError(f"There is no column '{name}'.", f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(map(str, known))}.")
        return ColumnValues.of_series(name, obs[name])

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The annotation of the study's cells, read from the input files without their counts."""
        from cellweave.core.study.annotation import add_columns, combine_columns, fill_missing, stack_tables
        from cellweave.core.study.readers.detect import open_source

        tables = []
        for path in input_paths(self.spec):
            with open_source(path) as source:
                tables.append(source.read_obs())
        starts = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
        obs = stack_tables(tables, []).iloc[starts[self.cells["file"].to_numpy()] + self.cells["row"].to_numpy()]
        obs = obs.set_axis(self.cells["name"])
        data = self.spec.data
        if len(tables) > 1 and data.batch_from_file:
            labels = file_labels(input_paths(self.spec))
            obs["file" if "file" not in obs else "source_file"] = labels[self.cells["file"].to_numpy()]
        add_columns(obs, data.new_columns)
        fill_missing(obs, {column: level for column, level in data.fill_missing.items() if column in obs})
        combine_columns(obs, {new: parts for new, parts in data.combine.items() if set(parts) <= set(obs.columns)})
        return obs

    def _diagnosed(self, name: str) -> ColumnValues:
        from cellweave.core.analysis.neighbourhood_failures import LEAVES
        from cellweave.core.analysis.neighbourhood_run import read_cells

        table = read_cells(self.folder.results)
        if name not in table:
            near = difflib.get_close_matches(name, [str(each) for each in table.columns], n=1, cutoff=0.5)
            raise SpecError(f"The neighbourhood diagnostics have no '{name}'.", f"Did you mean '{near[0]}'?" if near else "See neighbourhood.csv.")
        if not name.startswith(("leaf_", "failure")):
            return ColumnValues.of_series(name.replace("_", " "), table[name])
        titles = {leaf: info.title for leaf, info in LEAVES.items()} | {"ideal": "Nothing: fits everywhere"}
        present = [leaf for leaf in titles if (table[name] == leaf).any()]
        codes = pd.Categorical(table[name], categories=present).codes
        title = {"failure_mode": "What went wrong"}.get(name, name.removeprefix("leaf_").replace("_", " ").capitalize())
        return ColumnValues.of_levels(title, codes, [titles[leaf] for leaf in present])

    def _attributed(self, name: str) -> ColumnValues:
        from cellweave.core.analysis.attribution_scores import AttributionScores

        scores = AttributionScores.load(self.folder.results)
        columns = {} if scores is None else scores.columns()
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"Compute it: cellweave query {self.folder.path} attribution --keep."
            raise SpecError(f"The run has no attribution score '{name}'.", hint)
        return ColumnValues.of_numbers(name.replace("_", " "), columns[name])

    def _require(self, path: Path) -> None:
        if not path.is_file():
            raise RunFolderError(
                f"The run in '{self.folder.path}' has no '{path.name}' yet.",
                f"Let it finish, or continue it with 'cellweave resume {self.folder.path}'.",
            )


def input_paths(spec: RunSpec) -> list[Path]:
    """Return the input files of a spec as the study counts them; a folder of batches is several."""
    from cellweave.core.study.readers.detect import absolute
    from cellweave.core.study.readers.midas import expand

    return [part for path in spec.data.paths for part in expand(absolute(path))]


def file_labels(paths: list[Path]) -> NDArray[np.object_]:
    """Return the names that the column ``file`` of a study of several files holds."""
    from cellweave.core.study.align import make_unique

    names = [path.name.removesuffix(".gz") for path in paths]
    return make_unique(np.array([name.rpartition(".")[0] or name for name in names], dtype=object))
