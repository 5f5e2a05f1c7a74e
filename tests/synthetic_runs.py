"""Run folders without training: the files the engine leaves, filled with plain numbers."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from cellweave.core.analysis.imputation_choice import ImputationQuestion
from cellweave.core.analysis.imputation_scores import Comparison, Evaluation, scores
from cellweave.core.export.differential_files import keep_comparison
from cellweave.core.files import sha256_of
from cellweave.core.query.effects import Effects, LevelTable
from cellweave.core.runs.events import EpochDone, FinishReason, RunState, WeightChanged
from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec

N_LATENT = 4


def make_run(
    folder: Path,
    paths: list[Path],
    sizes: list[int],
    *,
    left_out: tuple[int, ...] = (),
    no_latent: tuple[int, ...] = (),
    columns: dict[str, np.ndarray] | None = None,
    names: list[str] | None = None,
    denoised: dict[str, list[str]] | None = None,
    epochs: int = 30,
    **changes: object,
) -> RunFolder:
    """Write a finished run.

    ``left_out`` are input rows that are not in the study, ``no_latent`` study rows without a latent. The latent of a cell
    holds its input row in its first dimension, its UMAP ``(row, -row)``, denoised value ``row + column / 1000``: exports
    are checked against that.
    """
    spec = RunSpec().with_changes(
        {"name": "synthetic", "data.paths": tuple(map(str, paths)), "data.sha256": tuple(sha256_of(path) for path in paths), **changes}
    )
    run = RunFolder.create(folder, spec)
    file = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    kept = np.setdiff1d(np.arange(len(file)), left_out)
    n_cells = len(kept)
    latent = np.tile(kept[:, None].astype(np.float32), (1, N_LATENT)) + np.arange(N_LATENT, dtype=np.float32)
    latent[list(no_latent)] = np.nan
    umap = np.column_stack([kept, -kept]).astype(np.float32)
    umap[list(no_latent)] = np.nan
    np.save(run.results / "latent.npy", latent)
    np.save(run.results / "umap.npy", umap)
    np.save(run.results / "library.npy", kept.astype(np.float32) + 0.5)
    cells = pd.DataFrame({"name": names or [f"c{each}" for each in kept], "file": file[kept], "row": row[kept]})
    cells["split"] = np.where(kept % 10 == 0, "validation", "train")
    cells.loc[list(no_latent), "split"] = "left out"
    for name, values in (columns or {}).items():
        cells[name] = np.asarray(values)[kept]
    cells.to_csv(run.results / "cells.csv", index=False)
    leiden = pd.array(kept % 3, dtype="Int64")
    clusters = pd.DataFrame({"name": cells["name"], "leiden": leiden})
    clusters.loc[list(no_latent), "leiden"] = pd.NA
    clusters.to_csv(run.results / "clusters.csv", index=False)
    if denoised:
        with h5py.File(run.results / "denoised.h5", "w") as stored:
            for modality, features in denoised.items():
                values = kept[:, None] + np.arange(len(features)) / 1000
                values[list(no_latent)] = np.nan
                group = stored.create_group(modality)
                group.create_dataset("X", data=values.astype(np.float32))
                group.create_dataset("features", data=features, dtype=h5py.string_dtype())
    (run.results / "scores.json").write_text(json.dumps(example_scores()))
    example_loadings().to_csv(run.results / "loadings.csv", index_label="feature")
    keep_comparison(run.path, example_comparison(), {"n_samples": 1000}, method="model")
    (run.results / "integration.json").write_text(json.dumps(example_integration()))
    example_effects(n_cells).save(run.results)
    keep_attribution(run.results, n_cells)
    _train(run, epochs)
    assert n_cells == len(latent)
    return run


def _train(run: RunFolder, epochs: int) -> None:
    journal = Journal(run)
    rng = np.random.default_rng(0)
    for epoch in range(1, epochs + 1):
        reconstruction = 900 + 700 * np.exp(-epoch / 4) + rng.normal(scale=1.5)
        kl = 18 * (1 - np.exp(-epoch / 8)) + rng.normal(scale=0.2)
        train = {"reconstruction": reconstruction, "kl_z": kl, "total": reconstruction + kl, "elbo": reconstruction + kl}
        held_out = {name: value * 1.01 + 2 for name, value in train.items()} if epoch % 2 == 0 else None
        if epoch == 20:
            journal.emit(WeightChanged(term="kl_z", old=1.0, new=3.0, epoch=20, step=400))
        journal.emit(EpochDone(epoch=epoch, max_epochs=epochs, train=train, validation=held_out, weights={"kl_z": 1.0}, best_epoch=min(epoch, 26)))
    journal.state(RunState.DONE, "completed", FinishReason.COMPLETED)


def example_loadings(n_genes: int = 60) -> pd.DataFrame:
    """Loadings: gene ``3 k + j`` is strong in dimension ``k``, positive for even genes."""
    values = np.random.default_rng(0).normal(scale=0.05, size=(n_genes, N_LATENT))
    for gene in range(3 * N_LATENT):
        values[gene, gene // 3] = (1.0 - 0.1 * (gene % 3)) * (1 if gene % 2 == 0 else -1)
    return pd.DataFrame(values, index=[f"g{number}" for number in range(n_genes)], columns=[f"Z_{k}" for k in range(N_LATENT)])


def example_effects(n_cells: int, n_genes: int = 60) -> Effects:
    """Covariate effects of two libraries; the background of gene ``g`` falls with ``g``, in the second library to half of that in the first."""
    background = np.exp(-np.arange(n_genes) / 10) * np.array([[2.0], [1.0]])
    levels = ("l0", "l1")
    return Effects(
        features={"rna": tuple(f"g{number}" for number in range(n_genes))},
        background={"rna": {"library": LevelTable(levels, background)}},
        expression={"rna": {"library": LevelTable(levels, np.full((2, n_genes), 4.0))}},
        norms={"rna": {"latent": 3.0, "covariates": 1.0, "share": 0.25}},
        library={"rna": {"sensitivity": 1.0, "weight": 0.5}},
        cell_fraction={"rna": np.linspace(0.05, 0.3, n_cells)},
    )


def keep_attribution(results: Path, n_cells: int) -> None:
    """Attribution of RNA and ADT: two latent dimensions each, those of the modality itself weigh three times the others'."""
    rng = np.random.default_rng(0)
    info = {"modalities": ["adt", "rna"], "blocks": {"adt": [0, 2], "rna": [2, 4]}, "n_features": {"adt": 20, "rna": 60}, "library": "prior",
            "remove_covariates": "none", "covariate_reference": "zero", "method": "exact", "n_cells": n_cells, "seconds": 1.0, "epoch": None}  # fmt: skip
    for name, (start, stop) in info["blocks"].items():
        values = rng.uniform(0.5, 1.5, size=(n_cells, N_LATENT))
        values[:, start:stop] *= 3
        np.save(results / f"attribution_{name}.npy", values.astype(np.float32))
    np.save(results / "attribution_frobenius.npy", rng.uniform(0.5, 2.0, size=(n_cells, 2, 2)).astype(np.float32))
    (results / "attribution.json").write_text(json.dumps(info))


def example_evaluation(n_cells: int = 60, n_features: int = 30) -> Evaluation:
    """What was judged of RNA (counts) and ATAC (0 and 1): feature ``k`` is told the better the smaller ``k``; the last RNA feature does not vary."""
    rng = np.random.default_rng(0)
    comparisons, tables, overall = {}, [], {}
    for name, binary in (("rna", False), ("atac", True)):
        truth = (rng.random((n_cells, n_features)) < 0.4).astype(np.float32) if binary else rng.gamma(2.0, 1.0, (n_cells, n_features)).astype(np.float32)
        noise = np.linspace(0.1, 2.0, n_features) * rng.normal(size=truth.shape)
        imputed = 1 / (1 + np.exp(-4 * (truth - 0.5) - 2 * noise)) if binary else truth + noise
        if not binary:
            truth[:, -1] = 0.0
        features = np.array([f"{name}{number}" for number in range(n_features)], object)
        one = Comparison(np.arange(n_cells), features, truth, imputed.astype(np.float32), truth.mean(0), binary)
        table, overall[name] = scores(one)
        table.insert(0, "modality", name)
        tables.append(table)
        comparisons[name] = one
    return Evaluation(ImputationQuestion("modality"), pd.concat(tables, ignore_index=True), overall, comparisons, ["RNA: 60 cells.", "ATAC: 60 cells."])


def example_comparison(n_genes: int = 60) -> pd.DataFrame:
    """A comparison in mode change: the first ten genes are higher in A, the next ten in B, the others do not change."""
    rng = np.random.default_rng(0)
    change = np.concatenate([np.linspace(3, 1, 10), np.linspace(-3, -1, 10), rng.normal(scale=0.1, size=n_genes - 20)])
    proba = np.where(np.abs(change) > 0.9, 0.999 - 0.01 * rng.random(n_genes), 0.2 * rng.random(n_genes))
    table = pd.DataFrame(
        {"proba_de": proba, "proba_not_de": 1 - proba, "bayes_factor": np.log(proba / (1 - proba)), "scale1": np.exp2(change) * 1e-3, "scale2": 1e-3,
         "lfc_mean": change, "lfc_median": change, "is_de_fdr_0.05": proba > 0.9, "comparison": "A vs B", "group1": "A", "group2": "B"},
        index=[f"g{number}" for number in range(n_genes)],
    )  # fmt: skip
    table.attrs = {"notes": ["A note."]}
    return table


def example_scores() -> dict:
    """Scores as the pipeline writes them."""
    rows = [
        ("batch_mixing", "", 0.81, 0.12, 1.0), ("batch_same_share", "", 0.59, 0.94, 0.5), ("batch_mixing_in_label", "", 0.84, 0.10, 1.0),
        ("label_purity", "", 0.88, 0.86, 0.24), ("label_accuracy", "", 0.93, 0.91, 0.4), ("label_purity", "T cell", 0.91, 0.90, 0.4),
    ]  # fmt: skip
    keys = ("name", "group", "value", "baseline", "expected")
    return {"k": 30, "n_cells": 500, "columns": {"batch": "batch", "labels": "cell_type"}, "scores": [dict(zip(keys, row, strict=True)) for row in rows]}


def example_integration() -> dict:
    """Integration metrics as the analysis writes them."""
    latent = {
        "ilisi": 0.62, "kbet": 0.55, "silhouette_batch": 0.9, "graph_connectivity": 0.95, "pcr": 0.88, "bras": 0.8, "clisi": 0.99,
        "silhouette_label": 0.66, "isolated_labels": 0.61, "nmi": 0.82, "ari": 0.8, "batch_score": 0.78, "bio_score": 0.776, "scib_total": 0.7776,
    }  # fmt: skip
    baseline = {
        "ilisi": 0.05, "kbet": 0.02, "silhouette_batch": 0.7, "graph_connectivity": 0.9, "pcr": 0.0, "bras": 0.5, "clisi": 1.0,
        "silhouette_label": 0.6, "isolated_labels": 0.58, "nmi": 0.7, "ari": 0.6, "batch_score": 0.334, "bio_score": 0.696, "scib_total": 0.5512,
    }  # fmt: skip
    return {
        "version": 1, "main": "latent", "columns": {"batch": "batch", "labels": "cell_type"}, "asked": [], "values": {"latent": latent, "baseline": baseline},
        "notes": ["3 of 500 cells have no label and are left out."], "n_cells": 497, "n_known": 497, "n_all": 500, "seed": 0,
    }  # fmt: skip
