"""What is computed once training is over: neighbours, UMAP, clusters, the baseline and the scores.

Each stage stands alone: it writes its file and a stamp of what it was computed from, is passed over where both are there and
still true, and a stage that fails is reported without taking the others with it.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.analysis import scmib
from cellweave.core.analysis.arrays import load_array, save_array, save_csr
from cellweave.core.analysis.baseline import measured_rows, over_all_cells
from cellweave.core.analysis.cached_stages import CachedStages, Emit, digest, sum_of_counts, sum_of_file
from cellweave.core.analysis.integration import BASELINE
from cellweave.core.analysis.integration_results import FEWEST, JSON_NAME, latent_files, load, metric_rows, store
from cellweave.core.analysis.jobs import Runner
from cellweave.core.analysis.scmib_counts import FILE as SPACE
from cellweave.core.errors import CellweaveError
from cellweave.core.files import sha256_of, write_atomic, write_json_atomic
from cellweave.core.runs.events import Metric, Warned
from cellweave.core.spec import RunSpec
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.study.study import Modality
from cellweave.core.wording import counted

#: Up to this many cells the layout is computed in one thread, so that the same seed gives the same picture.
REPRODUCIBLE_UP_TO = 200_000
#: Points of the picture of all modalities together; a sample of the cells where there are more.
MOST_LAID_OUT = 60_000
WORK = ".analysis"


def analyse(
    spec: RunSpec,
    results: Path,
    *,
    obs: pd.DataFrame,
    modality: Modality | None,
    runner: Runner | None,
    emit: Emit,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Compute what ``spec.analysis`` asks for.

    Parameters
    ----------
    spec
        The run's spec.
    results
        Folder with ``latent.npy`` (NaN rows for cells without a latent); the results are written there: ``umap.npy``,
        ``clusters.csv``, ``baseline_pca.npy``, ``baseline_umap.npy``, ``scores.json``, ``integration.json`` and ``integration.csv``.
    obs
        The cells of the study, in the order of the latent.
    modality
        What the baseline is computed from (``TrainingData.main_modality``): its counts are ``(n_cells, n_features)``, and cells in which
        it was not measured have no baseline (NaN). None leaves the baseline out.
    runner
        Who does the work: the warm process of the window, or None for this process.
    emit
        Takes progress, results, metrics and warnings.
    cancelled
        Asked often; where it says yes, ``Cancelled`` is raised and finished stages stay.

    Raises
    ------
    Cancelled
        Where the person asked for it.
    """
    if runner is None:
        from cellweave.core.analysis.inprocess import InProcess

        runner = InProcess()
    _Pipeline(spec, results, obs, modality, runner, emit, cancelled).run()


def modality_latents(results: Path) -> dict[str, Path]:
    """Return the latents that single modalities give, by modality in the order of their names; none where the model has no such."""
    return {path.stem.removeprefix("c_"): path for path in sorted(results.glob("c_*.npy"))}


class _Pipeline:
    def __init__(
        self,
        spec: RunSpec,
        results: Path,
        obs: pd.DataFrame,
        modality: Modality | None,
        runner: Runner,
        emit: Emit,
        cancelled: Callable[[], bool],
    ) -> None:
        self.spec, self.results, self.obs, self.modality = spec, results, obs, modality
        self.emit, self.stages = emit, CachedStages(results, runner, emit, cancelled)
        self.latent = results / "latent.npy"
        self.work = results / WORK
        self.latent_sum = ""
        self.n_cells = 0

    def run(self) -> None:
        analysis = self.spec.analysis
        self.n_cells = len(load_array(self.latent, mapped=True))
        if self.n_cells != len(self.obs):
            raise CellweaveError(
                f"The latent space has {counted(self.n_cells, 'cell')} and the study {len(self.obs)}.", "Train the run again: its results are of other data."
            )
        self.latent_sum = sha256_of(self.latent)
        self.work.mkdir(exist_ok=True)
        if analysis.umap:
            self.stages.stage("umap", "UMAP", self._graph_key() | {"min_dist": analysis.min_dist, "epochs": analysis.umap_epochs}, "umap.npy", self._umap)
        if analysis.clusters:
            self.stages.stage("clusters", "Clusters", self._graph_key() | {"resolution": analysis.resolution}, "clusters.csv", self._clusters)
        has_baseline = False
        n_latent = int(np.isfinite(load_array(self.latent, mapped=True)).all(axis=1).sum())
        measured = self._measured_columns() if analysis.scores and analysis.integration and n_latent >= FEWEST else {}
        if self.modality is not None and (analysis.baseline or analysis.baseline_umap or measured):
            key = {"counts": sum_of_counts(self.modality.counts), "seed": self.spec.training.seed}
            if not self.modality.measured.all():
                key["measured"] = zlib.crc32(self.modality.measured.tobytes())
            has_baseline = self.stages.stage("baseline", "Baseline", key, "baseline_pca.npy", self._baseline)
        if analysis.scores and self.spec.covariates.scored():
            self._scores(has_baseline and analysis.baseline)
        if measured:
            self._integration(measured, with_baseline=has_baseline)
        if has_baseline and analysis.baseline_umap:
            key = {"baseline": sha256_of(self.results / "baseline_pca.npy"), **self._layout_options()}
            self.stages.stage("baseline_umap", "UMAP of the baseline", key, "baseline_umap.npy", self._baseline_umap)
        if analysis.alignment:
            self._modalities()
        if self.spec.reference is not None:
            self._with_reference(self.spec.reference)
        if analysis.neighbourhood:
            self._neighbourhood(has_baseline)
        shutil.rmtree(self.work, ignore_errors=True)

    # ------------------------------------------------------------------ stages

    def _umap(self, out: Path) -> None:
        self.stages.do("umap", "UMAP", latent=self.latent, graph=self._graph(), out=out, **self._layout_options())

    def _clusters(self, out: Path) -> None:
        codes = self.work / "leiden.npy"
        arguments = {"resolution": self.spec.analysis.resolution, "seed": self.spec.training.seed}
        self.stages.do("leiden", "Clusters", latent=self.latent, graph=self._graph(), out=codes, **arguments)
        found = np.asarray(load_array(codes))
        table = pd.DataFrame({"name": self.obs.index, "leiden": pd.array(found, dtype="Int32")})
        table.loc[found < 0, "leiden"] = pd.NA
        write_atomic(out, lambda temporary: table.to_csv(temporary, index=False))

    def _baseline(self, out: Path) -> None:
        modality = self.modality
        assert modality is not None
        label, rows = modality_kind(modality.name).label, measured_rows(modality)
        counts = self.work / "counts.npz"
        save_csr(counts, modality.counts if len(rows) == self.n_cells else sparse.csr_matrix(modality.counts[rows]))
        try:
            self.stages.do("pca", "Baseline", counts=counts, out=out, seed=self.spec.training.seed)
        finally:
            counts.unlink(missing_ok=True)
        if len(rows) < self.n_cells:
            save_array(out, over_all_cells(np.asarray(load_array(out)), rows, self.n_cells))
            self.emit(
                Warned(
                    text=f"The baseline without integration is of {label} alone; {self.n_cells - len(rows):,} of {self.n_cells:,} cells, "
                    "in which it was not measured, have none, and baseline scores are of the others."
                )
            )

    def _baseline_umap(self, out: Path) -> None:
        self.stages.do("umap", "UMAP of the baseline", latent=self.results / "baseline_pca.npy", out=out, **self._layout_options())

    def _scores(self, with_baseline: bool) -> None:
        k, seed = self.spec.analysis.score_neighbors, self.spec.training.seed
        columns = {role: _codes(self.obs[column]) for role, column in self.spec.covariates.scored().items() if column in self.obs}
        baseline = self.results / "baseline_pca.npy" if with_baseline else None
        key = {
            "latent": self.latent_sum,
            "baseline": sha256_of(baseline) if baseline else None,
            "k": k,
            "seed": seed,
            "columns": {role: [zlib.crc32(codes.tobytes()), levels] for role, (codes, levels) in columns.items()},
        }

        def compute(out: Path) -> None:
            arguments: dict[str, Any] = {"neighbours": self._neighbours()}
            for role, (codes, levels) in columns.items():
                path = self.work / f"{role}.npy"
                save_array(path, codes)
                arguments[role] = {"codes": str(path), "levels": levels}
            found = self.stages.do("scores", "Scores", latent=self.latent, baseline=baseline, k=k, seed=seed, **arguments)
            write_json_atomic(out, {**found, "columns": self.spec.covariates.scored()})

        if self.stages.stage("scores", "Scores", key, "scores.json", compute):
            # Also where the scores were there already: whoever continues a run has begun a new list of metrics.
            for row in json.loads((self.results / "scores.json").read_text(encoding="utf-8"))["scores"]:
                self.emit(Metric(**row))

    def _measured_columns(self) -> dict[str, str]:
        """Return the columns that the integration metrics look at, by role."""
        analysis, columns = self.spec.analysis, self.spec.covariates.scored()
        chosen = {"batch": analysis.integration_batch or columns.get("batch"), "labels": analysis.integration_labels or columns.get("labels")}
        for column in chosen.values():
            if column and column not in self.obs:
                self.emit(Warned(text=f"There is no column '{column}' for the integration metrics.", mend="Choose another in the analysis settings."))
        return {role: column for role, column in chosen.items() if column and column in self.obs}

    def _integration(self, columns: dict[str, str], *, with_baseline: bool) -> None:
        analysis, seed = self.spec.analysis, self.spec.training.seed
        embeddings = latent_files(self.results, self.spec.family)
        if with_baseline:
            embeddings[BASELINE] = self.results / "baseline_pca.npy"
        coded = {role: _codes(self.obs[column]) for role, column in columns.items()}
        key = {
            "embeddings": {name: self.latent_sum if path == self.latent else sha256_of(path) for name, path in embeddings.items()},
            "columns": {role: [columns[role], zlib.crc32(codes.tobytes())] for role, (codes, _) in coded.items()},
            "metrics": analysis.integration_metrics, "cells": analysis.integration_cells, "seed": seed,
        }  # fmt: skip

        def compute(out: Path) -> None:
            arguments: dict[str, Any] = {}
            for role, (codes, _) in coded.items():
                save_array(self.work / f"{role}.npy", codes)
                arguments[role] = self.work / f"{role}.npy"
            found = self.stages.do(
                "integration", "Integration metrics", embeddings={name: str(path) for name, path in embeddings.items()},
                names=list(analysis.integration_metrics), limit=analysis.integration_cells, seed=seed, **arguments,
            )  # fmt: skip
            store(out.parent, found, columns, analysis.integration_metrics)

        if self.stages.stage("integration", "Integration metrics", key, JSON_NAME, compute):
            tree = load(self.results)
            for row in metric_rows(tree) if tree else ():
                self.emit(Metric(**row))

    def _modalities(self) -> None:
        """Judge how modalities lie together, and lay out what each alone says of its cells beside what all say; where the model gives a latent of each."""
        latents = modality_latents(self.results)
        if not latents:
            return
        label = self.spec.covariates.scored().get("labels")
        coded = _codes(self.obs[label]) if label and label in self.obs else None
        sums = {name: sha256_of(path) for name, path in latents.items()}
        key: dict[str, Any] = {"latents": sums, "labels": None if coded is None else zlib.crc32(coded[0].tobytes()), "seed": self.spec.training.seed}

        def judge(out: Path) -> None:
            codes = None if coded is None else self.work / "alignment_labels.npy"
            if codes is not None and coded is not None:
                save_array(codes, coded[0])
            paths = {name: str(path) for name, path in latents.items()}
            found = self.stages.do("alignment", "Alignment of modalities", latents=paths, codes=codes, seed=self.spec.training.seed)
            write_json_atomic(out, {**found, "labels": label if coded is not None else None})

        if len(latents) > 1:
            self.stages.stage("alignment", "Alignment of modalities", key, "alignment.json", judge)
            self._scmib(latents, sums)
        if self.spec.analysis.umap:
            layout_key = {"latents": sums, "joint": self.latent_sum, **self._layout_options()}
            self.stages.stage("modality_umap", "UMAP of the modalities", layout_key, "modality_umap.npy", lambda out: self._modality_umap(out, latents))

    def _scmib(self, latents: dict[str, Path], sums: dict[str, str]) -> None:
        """Put the scores of the mosaic together from the integration metrics, the alignment in every batch and how well translations are."""
        tree = load(self.results) if self.spec.analysis.scores and self.spec.analysis.integration else None
        wanted = tree["columns"] if tree is not None else self.spec.covariates.scored()  # all parts are of the same columns
        columns = {role: column for role, column in wanted.items() if role in {"batch", "labels"} and column in self.obs}
        coded = {role: _codes(self.obs[column])[0] for role, column in columns.items()}
        measured = tree["values"][tree["main"]] if tree is not None else None
        space = self.results / SPACE if measured is not None and (self.results / SPACE).is_file() else None
        told = scmib.read_translations(self.results)
        sources = {role: zlib.crc32(codes.tobytes()) for role, codes in coded.items()}
        key: dict[str, Any] = {"latents": sums, "columns": sources, "measured": measured, "told": told, "seed": self.spec.training.seed}
        key |= {"space": sha256_of(space) if space else None, "version": scmib.VERSION}

        def judge(out: Path) -> None:
            paths: dict[str, Any] = {}
            for role, codes in coded.items():
                paths[role] = self.work / f"scmib_{role}.npy"
                save_array(paths[role], codes)
            files = {name: str(path) for name, path in latents.items()}
            arguments = {"latents": files, "measured": measured, "told": told, "space": space, "seed": self.spec.training.seed, **paths}
            found = self.stages.do("scmib", "Scores of the mosaic", **arguments)
            scmib.store(out.parent, found, columns)

        if self.stages.stage("scmib", "Scores of the mosaic", key, scmib.FILE, judge):
            found = scmib.load(self.results)
            for row in scmib.score_rows(found) if found else ():
                self.emit(Metric(**row))

    def _modality_umap(self, out: Path, latents: dict[str, Path]) -> None:
        """Lay out joint and single latents in one picture: ``(1 + n_modalities, n_cells, 2)``, the joint first, NaN where there is none."""
        parts = [np.asarray(load_array(path), dtype=np.float32) for path in (self.latent, *latents.values())]
        chosen = np.arange(self.n_cells)
        most = MOST_LAID_OUT // len(parts)
        if self.n_cells > most:
            chosen = np.sort(np.random.default_rng([self.spec.training.seed, 29]).choice(self.n_cells, most, replace=False))
        stacked, placed = self.work / "modalities.npy", self.work / "modality_layout.npy"
        save_array(stacked, np.concatenate([part[chosen] for part in parts]))
        self.stages.do("umap", "UMAP of the modalities", latent=stacked, out=placed, **self._layout_options())
        layout = np.full((len(parts), self.n_cells, 2), np.nan, dtype=np.float32)
        layout[:, chosen] = np.asarray(load_array(placed)).reshape(len(parts), len(chosen), 2)
        save_array(out, layout)

    def _with_reference(self, folder: str) -> None:
        """Tell the labels of mapped cells, and lay them out with those of their reference; both from what the reference wrote."""
        from cellweave.core.analysis import joint

        try:
            reference = joint.reference_cells(folder)
        except (CellweaveError, OSError, ValueError) as error:
            mend = error.mend if isinstance(error, CellweaveError) else ""
            cause = error.cause if isinstance(error, CellweaveError) else str(error)
            self.emit(Warned(text=f"The new cells cannot be laid out with those of the reference: {cause}", mend=mend))
            return
        latent = np.asarray(load_array(self.latent), dtype=np.float32)
        if reference.latent.shape[1:] != latent.shape[1:]:
            self.emit(Warned(text="The new cells cannot be laid out with those of the reference: their latents have other dimensions."))
            return
        key = {"latent": self.latent_sum, "reference": reference.sum, "labels": reference.labels}
        told = joint.transferred(reference, latent)
        if told is not None:
            table = pd.concat([pd.DataFrame({"name": self.obs.index}), told], axis=1)
            self.stages.stage("transferred_labels", "Labels of the reference", key, joint.LABELS, lambda out: joint.save_table(out, table))
        if not self.spec.analysis.umap:
            return

        def lay_out(out: Path) -> None:
            shown, rows = joint.sampled(reference, self.spec.training.seed), np.flatnonzero(np.isfinite(latent).all(axis=1))
            cells = pd.read_csv(self.results / "cells.csv", dtype=str, keep_default_na=False, na_values=[""])
            stacked, placed = self.work / "joint.npy", self.work / "joint_layout.npy"
            save_array(stacked, np.concatenate([latent[rows], shown.latent]))
            self.stages.do("umap", "UMAP with the reference", latent=stacked, out=placed, **self._layout_options())
            joint.save_table(self.results / joint.CELLS, joint.joint_table(cells, rows, shown, told))
            save_array(out, np.asarray(load_array(placed)))

        self.stages.stage("joint_umap", "UMAP with the reference", {**key, **self._layout_options()}, joint.LAYOUT, lay_out)

    def _neighbourhood(self, has_baseline: bool) -> None:
        covariates, analysis = self.spec.covariates, self.spec.analysis
        key = {
            "latent": self.latent_sum,
            "baseline": sha256_of(self.results / "baseline_pca.npy") if has_baseline else None,
            "k": analysis.neighbourhood_neighbors,
            "markers": sum_of_file(analysis.marker_file),
            "columns": [covariates.library or covariates.batch, covariates.dataset, list(covariates.technical), covariates.labels],
            "seed": self.spec.training.seed,
        }
        # The process reads the study itself: it needs the symbols and all the columns, and works on the run folder alone, as it does later.
        self.stages.stage(
            "neighbourhood", "Neighbourhood diagnostics", key, "neighbourhood.json", self._diagnose_neighbours,
        )  # fmt: skip

    def _diagnose_neighbours(self, out: Path) -> None:
        self.stages.do("neighbourhood", "Neighbourhood diagnostics", run=self.results.parent)

    # ------------------------------------------------------------------ what several stages stand on

    def _neighbours(self) -> Path:
        """Return the file of the latent's neighbours, computed by whichever stage needs it first."""
        path = self.work / "neighbours.npz"
        analysis = self.spec.analysis
        k = max(analysis.n_neighbors - 1, analysis.score_neighbors if analysis.scores else 0)
        key = digest({"latent": self.latent_sum, "k": k, "seed": self.spec.training.seed})
        if not self.stages.is_done("neighbours", path, key):
            self.stages.do("neighbours", "Neighbours", latent=self.latent, k=k, seed=self.spec.training.seed, out=path)
            self.stages.stamp("neighbours", key)
        return path

    def _graph(self) -> Path:
        """Return the file of the graph that the UMAP and the clusters share."""
        path = self.work / "graph.npz"
        key = digest(self._graph_key())
        if not self.stages.is_done("graph", path, key):
            self.stages.do("graph", "Neighbours", neighbours=self._neighbours(), n_neighbors=self.spec.analysis.n_neighbors, out=path)
            self.stages.stamp("graph", key)
        return path

    def _graph_key(self) -> dict[str, Any]:
        return {"latent": self.latent_sum, "n_neighbors": self.spec.analysis.n_neighbors, "seed": self.spec.training.seed}

    def _layout_options(self) -> dict[str, Any]:
        analysis = self.spec.analysis
        return {
            "n_neighbors": analysis.n_neighbors,
            "min_dist": analysis.min_dist,
            "n_epochs": analysis.umap_epochs,
            "seed": self.spec.training.seed if self.n_cells <= REPRODUCIBLE_UP_TO else None,
        }


def _codes(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return the levels of a column as int32 codes (-1 where missing) and their names."""
    known = column.notna().to_numpy()
    names = column.astype(str).to_numpy(dtype=object)
    levels, codes = np.unique(names[known].astype(str), return_inverse=True)
    full = np.full(len(column), -1, dtype=np.int32)
    full[known] = codes
    return full, [str(level) for level in levels]
