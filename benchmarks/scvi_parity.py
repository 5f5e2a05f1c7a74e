"""Same options, same split, same epochs, five seeds each: do Cellweave and scvi-tools end at the same place?

    python benchmarks/scvi_parity.py --peer PEER_PYTHON [--data FOLDER] [--work FOLDER] [--minutes 6]    train what is not trained yet
    python benchmarks/scvi_parity.py --report [--work FOLDER]                                           score the latents, write the tables

On real sets with several batches, each cut to the cells and genes named in ``SETS``, scVI is trained by both programs on the same
training cells with the same options and judged on the same held-out cells: the negative ELBO per cell, KL at full weight, mean of the
last five epochs, since both programs draw once from each posterior. The latents are kept and scored by ``core/analysis/integration.py``.
Training is done in pieces: every call goes on where the last one stopped and ends after ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.system import cpu_name, usable_cores

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scvi_parity.json"
WORKERS = {"ours": HERE / "vae_jobs" / "cellweave_job.py", "scvi-tools": HERE / "vae_jobs" / "scvi_tools_job.py"}
SEEDS = 5
EPOCHS, WARMUP, LAST = 100, 50, 5
OPTIONS = {
    "training.max_epochs": EPOCHS, "training.kl_warmup_epochs": WARMUP, "training.batch_size": 128, "training.early_stopping": False,
    "training.checkpoint_every": 1_000_000, "model.gene_likelihood": "zinb",
}  # fmt: skip


class DataSet(NamedTuple):
    """A real set and what is taken of it."""

    file: str
    cells: int
    genes: int
    labels: str | None


SETS = {
    "ifnb": DataSet("rna_ifnb_pbmc_2batches.h5ad", 2000, 1000, "cell_type"),
    "cell_lines": DataSet("rna_cell_lines_5batches.h5ad", 1408, 1000, "cell_type"),
    "glioblastoma": DataSet("rna_glioblastoma_5patients.h5ad", 2500, 300, None),
}


def make(name: str, data: Path, folder: Path) -> Path:
    """Write the cells and genes of a set: a fixed random sample of cells, the genes most variable within batches."""
    path, chosen = folder / f"{name}.h5ad", SETS[name]
    if path.exists():
        return path
    import scanpy as sc

    adata = ad.read_h5ad(data / chosen.file)
    if adata.n_obs > chosen.cells:
        rows = np.sort(np.random.default_rng(0).choice(adata.n_obs, chosen.cells, replace=False))
        adata = adata[rows].copy()
    if adata.n_vars > chosen.genes:
        sc.pp.highly_variable_genes(adata, n_top_genes=chosen.genes, flavor="seurat_v3", batch_key="batch")
        adata = adata[:, adata.var["highly_variable"].to_numpy()].copy()
    counts = sparse.csr_matrix(adata.X, dtype=np.float32)
    obs = pd.DataFrame({"batch": adata.obs["batch"].astype(str).to_numpy()}, index=adata.obs_names.astype(str))
    if chosen.labels:
        labels = adata.obs[chosen.labels]
        obs["label"] = pd.Categorical(labels.astype(object).where(labels.notna(), None).to_numpy())
    full = np.asarray(counts.sum(axis=1)).ravel() > 0
    part = ad.AnnData(counts[full], obs=obs[full], var=pd.DataFrame(index=adata.var_names.astype(str)))
    part.write_h5ad(path)
    return path


def train(who: str, name: str, seed: int, interpreter: Path, folder: Path, data: Path) -> None:
    """Train once, in a process of its own, unless that was done."""
    place = folder / f"{name}-{seed}-{who}"
    split = folder / f"{name}-{seed}-split.npz"
    job: dict = {
        "data": str(data), "threads": 1, "seed": seed, "folder": f"{place}-run", "result": f"{place}.json.part", "latent": f"{place}.npy",
    }  # fmt: skip
    if who == "ours":
        job |= {"set": OPTIONS, "write_split": str(split), "split": None}
    else:
        plan = {"n_epochs_kl_warmup": WARMUP}
        job |= {"epochs": EPOCHS, "likelihood": "zinb", "batch_size": 128, "learning_rate": 1e-3, "plan": plan, "split": str(split)}
    job_file = folder / f"{place.name}-job.json"
    job_file.write_text(json.dumps(job))
    shutil.rmtree(job["folder"], ignore_errors=True)  # of a call that was ended
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([str(interpreter), str(WORKERS[who]), str(job_file)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{who} failed on {name}, seed {seed}:\n{done.stderr[-3000:]}")
    if who == "ours":
        latent = np.load(Path(job["folder"]) / "results" / "latent.npy", allow_pickle=False)
        np.save(job["latent"], latent)
    Path(job["result"]).rename(place.with_name(place.name + ".json"))


def train_for(minutes: float, peer: Path, folder: Path, data: Path) -> bool:
    """Train what is not trained yet until the time is over; return whether everything is."""
    end = time.monotonic() + 60 * minutes
    interpreters = {"ours": Path(sys.executable), "scvi-tools": peer}
    for seed in range(SEEDS):
        for name in SETS:
            for who, interpreter in interpreters.items():
                if (folder / f"{name}-{seed}-{who}.json").exists():
                    continue
                if time.monotonic() > end:
                    return False
                began = time.monotonic()
                train(who, name, seed, interpreter, folder, make(name, data, folder))
                print(f"{name}, seed {seed}, {who}: {time.monotonic() - began:.0f} s", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "scvi_parity", help="where runs and latents are kept")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further training after this time")
    parser.add_argument("--report", action="store_true", help="score the latents and write the tables")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.peer is not None:
        # absolute(), not resolve(): the interpreter of a virtual environment is a link that must not be followed
        print("all trained" if train_for(options.minutes, options.peer.absolute(), options.work, options.data) else "goes on next time")


if __name__ == "__main__":
    main()
