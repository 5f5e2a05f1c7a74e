"""Real mosaics of the benchmark beside scVAEIT: a file for Cellweave, and arrays of the same numbers for the other program."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.study.blocks import contig_of, natural_order

SCALE = 1e4
#: Modalities of which only is said whether there is a count.
BINARY = ("atac",)


@dataclass(frozen=True)
class Mosaic:
    """One data set with measured values that are hidden from training.

    Attributes
    ----------
    words
        What it is.
    column
        Column of the cells whose levels say what is hidden.
    hidden
        Level and modality of what is hidden although it was measured.
    file
        Its file; None for the packaged example.
    n_rna, n_atac
        Most variable genes, and most frequent peaks, that are kept; None keeps all.
    batches
        Batches that are kept; None keeps all.
    """

    words: str
    column: str
    hidden: tuple[tuple[str, str], ...]
    file: str | None = None
    n_rna: int | None = None
    n_atac: int | None = None
    batches: tuple[str, ...] | None = None


MOSAICS = {
    "quickstart": Mosaic("the packaged example: PBMC of four batches (500 genes, 224 antibodies); the ADT of batch p3_0 is hidden", "batch", (("p3_0",
    "adt"),)),
    "reapseq": Mosaic(
        "REAP-seq PBMC of two batches (2,000 variable genes, 48 antibodies); the ADT of PBMC_3 and the RNA of half of PBMC_2 are hidden",
        "part", (("PBMC_3", "adt"), ("PBMC_2b", "rna")), "cite_reapseq_pbmc_2batches.h5mu", 2000,
    ),
    "bmmc": Mosaic(
        "BMMC of four batches, two with ADT and two with ATAC (168 genes, 134 antibodies, 600 peaks); the ATAC of batch multiome_s1d2 is hidden",
        "batch", (("multiome_s1d2", "atac"),), "mosaic_bmmc_rna_adt_atac_4batches.h5mu",
    ),
    "snareseq": Mosaic(
        "SNARE-seq mouse cortex, plates 09A to 09D (1,000 variable genes, the 2,000 most frequent peaks); the ATAC of plate 09D is hidden",
        "batch", (("09D", "atac"),), "multiome_snareseq_mouse_cortex_9batches.h5mu", 1000, 2000, ("09A", "09B", "09C", "09D"),
    ),
}  # fmt: skip


def read(name: str, data: Path, example: Path) -> mudata.MuData:
    """Read the raw counts of a data set; peaks are in the order of their chromosomes."""
    about = MOSAICS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mudata.read_h5mu(example if about.file is None else data / about.file)
        if about.batches is not None:
            found = found[found.obs["batch"].astype(str).isin(about.batches).to_numpy()].copy()
        batch = pd.Series(found.obs["batch"].astype(str).to_numpy(), index=found.obs_names)
        part = batch.copy()
        if name == "reapseq":
            second = np.flatnonzero(batch == "PBMC_2")
            part.iloc[second[: len(second) // 2]], part.iloc[second[len(second) // 2 :]] = "PBMC_2a", "PBMC_2b"
        parts = {}
        for modality, adata in found.mod.items():
            chosen = adata[:, _columns(about, modality, adata)].copy()
            chosen.obs = pd.DataFrame({"batch": batch[chosen.obs_names], "part": part[chosen.obs_names]}, index=chosen.obs_names)
            chosen.var = pd.DataFrame(index=chosen.var_names)
            parts[modality] = chosen
        joined = mudata.MuData(parts)
        joined = joined[found.obs_names].copy()
        joined.obs = pd.DataFrame({"batch": batch, "part": part}, index=found.obs_names)
    return joined


def _columns(about: Mosaic, modality: str, adata: ad.AnnData) -> np.ndarray:
    """Return the features that are kept, in their order."""
    keep = np.arange(adata.n_vars)
    if modality == "rna" and about.n_rna is not None:
        keep = np.sort(np.argsort(-_dispersion(adata.X))[: about.n_rna])
    if modality == "atac":
        if about.n_atac is not None:
            seen = np.ones(adata.n_obs, dtype=bool)
            for level, which in about.hidden:  # what is hidden has no say
                seen &= (adata.obs[about.column].astype(str) != level).to_numpy() | (which != modality)
            frequent = np.asarray((adata.X[seen] > 0).sum(0)).ravel()
            keep = np.sort(np.argsort(-frequent, kind="stable")[: about.n_atac])
        rank = {name: place for place, name in enumerate(sorted({_contig(name) for name in adata.var_names[keep]}, key=natural_order))}
        keep = keep[np.argsort([rank[_contig(name)] for name in adata.var_names[keep]], kind="stable")]
    return keep


def _contig(name: str) -> str:
    return contig_of(name) or name


def _dispersion(counts: sparse.csr_matrix) -> np.ndarray:
    """Return the variance of log-normalised counts over its expectation from the mean, by ranks within twenty bins of the mean."""
    values = normalised(counts)
    mean = np.asarray(values.mean(0)).ravel()
    variance = np.asarray(values.multiply(values).mean(0)).ravel() - mean**2
    ratio = variance / np.maximum(mean, 1e-9)
    ratio[mean < np.quantile(mean, 0.5)] = -1.0  # genes of few counts vary by chance alone
    return ratio


def normalised(counts: sparse.spmatrix) -> sparse.csr_matrix:
    """Return ``log1p(count / total of the cell * 1e4)``."""
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    total = np.asarray(counts.sum(1)).ravel()
    scaled = sparse.diags(SCALE / np.maximum(total, 1)).dot(counts).tocsr().astype(np.float32)
    scaled.data = np.log1p(scaled.data)
    return scaled


def arrays(name: str, mosaic: mudata.MuData) -> dict[str, np.ndarray]:
    """Return what the other program is given, and the truth.

    Returns
    -------
    dict
        ``features``, modality and name of each ``(n_features,)``, in the order of all columns below; ``Y`` float32 ``(n_cells, n_features)``, hidden and
        missing entries 0; ``truth`` the same with what is hidden; ``masks`` int8, -1 for missing and
        hidden entries, else 0; ``hidden`` bool; ``batch`` codes; ``sizes`` features by modality; ``names`` of the modalities; ``blocks`` features by block
        (peaks by chromosome) and ``block_names``, the modality of each.
    """
    rows = {cell: row for row, cell in enumerate(mosaic.obs_names)}
    truth, masks, hidden = [], [], []
    blocks: list[int] = []
    block_names: list[str] = []
    for modality, adata in mosaic.mod.items():
        place = np.array([rows[cell] for cell in adata.obs_names])
        values = np.zeros((mosaic.n_obs, adata.n_vars), dtype=np.float32)
        values[place] = (adata.X > 0).toarray() if modality in BINARY else normalised(adata.X).toarray()
        measured = np.zeros(mosaic.n_obs, dtype=bool)
        measured[place] = True
        levels = [level for level, which in MOSAICS[name].hidden if which == modality]
        hide = measured & mosaic.obs[MOSAICS[name].column].isin(levels).to_numpy()
        truth.append(values)
        masks.append(np.repeat(np.where(measured & ~hide, 0, -1).astype(np.int8)[:, None], adata.n_vars, 1))
        hidden.append(np.repeat(hide[:, None], adata.n_vars, 1))
        contigs = [_contig(name) if modality in BINARY else modality for name in adata.var_names]
        own = [len(list(group)) for _, group in groupby(contigs)]
        blocks += own
        block_names += [modality] * len(own)
    whole, mask = np.concatenate(truth, 1), np.concatenate(masks, 1)
    return {
        "features": np.array([f"{modality} {feature}" for modality, adata in mosaic.mod.items() for feature in adata.var_names]),
        "Y": np.where(mask == 0, whole, 0).astype(np.float32), "truth": whole, "masks": mask, "hidden": np.concatenate(hidden, 1),
        "batch": pd.Categorical(mosaic.obs["batch"].astype(str)).codes.astype(np.int64),
        "sizes": np.array([adata.n_vars for adata in mosaic.mod.values()]), "names": np.array(list(mosaic.mod)),
        "blocks": np.array(blocks), "block_names": np.array(block_names),
    }  # fmt: skip
