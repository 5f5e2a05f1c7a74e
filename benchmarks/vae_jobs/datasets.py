"""Real data sets of the VAE benchmark, written as h5ad files that every program reads as they are."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

PBMC = (
    "rna_pbmc3k_labelled.h5ad", "rna_pbmc_3chemistries_unlabelled.h5ad", "rna_ambient_pbmc4k.h5ad", "rna_ifnb_pbmc_2batches.h5ad",
)  # fmt: skip
WORDS = {
    "pbmc": "four PBMC studies, seven batches, joined on their common genes; every cell is real and occurs once",
    "reap": "REAP-seq PBMC, RNA of two batches",
}


def make(name: str, data: Path, folder: Path) -> Path:
    """Write the data set ``name`` from the files in ``data`` and return its path."""
    path = folder / f"{name}.h5ad"
    if not path.exists():
        {"pbmc": pbmc, "reap": reap}[name](data).write_h5ad(path)
    return path


def pbmc(data: Path) -> ad.AnnData:
    """9,668 PBMC by the 1,900 genes that all four studies have."""
    parts = []
    for name in PBMC:
        part = ad.read_h5ad(data / name)
        part.obs_names = [f"{part_name}-{name.split('_')[1]}" for part_name in part.obs_names]
        parts.append(part)
    joined = ad.concat(parts, join="inner")
    return counts_and_batch(joined)


def reap(data: Path) -> ad.AnnData:
    """5,000 PBMC by 12,435 genes."""
    import mudata

    return counts_and_batch(mudata.read_h5mu(data / "cite_reapseq_pbmc_2batches.h5mu")["rna"])


def tiled(adata: ad.AnnData, times: int) -> ad.AnnData:
    """Repeat the cells, to see what memory does; used for the rows on memory and disk alone, never for losses."""
    counts = sparse.vstack([adata.X] * times, format="csr")
    obs = pd.DataFrame({"batch": np.tile(adata.obs["batch"].astype(str), times)}, index=[f"c{i}" for i in range(counts.shape[0])])
    return ad.AnnData(counts, obs=obs, var=adata.var[[]])


def counts_and_batch(adata: ad.AnnData) -> ad.AnnData:
    """Keep raw counts (float32 CSR, as scvi-tools likes them) and the batch."""
    counts = sparse.csr_matrix(adata.X, dtype=np.float32)
    obs = pd.DataFrame({"batch": adata.obs["batch"].astype(str).to_numpy()}, index=adata.obs_names.astype(str))
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names.astype(str)))
