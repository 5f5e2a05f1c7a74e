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
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
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
SEEDS, MOST_SEEDS = 5, 50
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


def train_for(minutes: float, peer: Path, folder: Path, data: Path, names: Sequence[str], seeds: int) -> bool:
    """Train what is not trained yet until the time is over; return whether everything is."""
    end = time.monotonic() + 60 * minutes
    interpreters = {"ours": Path(sys.executable), "scvi-tools": peer}
    for seed in range(seeds):
        for name in names:
            for who, interpreter in interpreters.items():
                if (folder / f"{name}-{seed}-{who}.json").exists():
                    continue
                if time.monotonic() > end:
                    return False
                began = time.monotonic()
                train(who, name, seed, interpreter, folder, make(name, data, folder))
                print(f"{name}, seed {seed}, {who}: {time.monotonic() - began:.0f} s", flush=True)
    return True


# ---------------------------------------------------------------- what came of it


def final_loss(result: dict) -> float:
    """Return the negative ELBO per held-out cell, mean of the last epochs."""
    return float(np.mean(result["held_out"][-LAST:]))


def score(name: str, folder: Path) -> dict:
    """Return losses and metrics of a set by program and seed, and the metrics of its baseline; what was measured before is not measured again."""
    from cellweave.core.analysis.baseline import baseline_pca
    from cellweave.core.analysis.integration import BASELINE, Embedding, measure

    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    batch = pd.Categorical(adata.obs["batch"]).codes.astype(np.int64)
    labels = pd.Categorical(adata.obs["label"]).codes.astype(np.int64) if "label" in adata.obs else None
    known = np.ones(len(batch), bool) if labels is None else labels >= 0
    stored = folder / f"{name}-scores.json"
    found = json.loads(stored.read_text()) if stored.exists() else {"loss": {}, "metrics": {}, "seconds": {}}
    pca = baseline_pca(sparse.csr_matrix(adata.X), seed=0)[known]
    for who in WORKERS:
        for seed in range(MOST_SEEDS):
            key, place = f"{who}-{seed}", folder / f"{name}-{seed}-{who}.json"
            if key in found["metrics"] or not place.exists():
                continue
            result = json.loads(place.read_text())
            latent = np.load(folder / f"{name}-{seed}-{who}.npy", allow_pickle=False)[known]
            values = measure(
                [Embedding("latent", latent), Embedding(BASELINE, pca)],
                batch=batch[known], labels=None if labels is None else labels[known], seed=0,
            )["values"]  # fmt: skip
            found["loss"][key], found["metrics"][key] = final_loss(result), values["latent"]
            found["seconds"][key] = result["cpu"][-1] - result["cpu"][0]
            found[BASELINE] = values[BASELINE]
            stored.write_text(json.dumps(found, indent=1))
            print(name, key, f"{found['loss'][key]:.2f}", flush=True)
    found |= {"cells": int(adata.n_obs), "genes": int(adata.n_vars), "batches": int(batch.max() + 1), "measured": int(known.sum())}
    return found


def compare(first: list[float], second: list[float]) -> dict:
    """Return means and seed-to-seed standard deviations of both, the difference in units of the pooled deviation, and Welch's p."""
    from scipy.stats import ttest_ind

    deviation = float(np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2))
    difference = float(np.mean(first) - np.mean(second))
    return {
        "ours": [float(np.mean(first)), float(np.std(first, ddof=1))], "scvi-tools": [float(np.mean(second)), float(np.std(second, ddof=1))],
        "difference": difference, "deviations": difference / deviation if deviation > 0 else 0.0,
        "p": float(ttest_ind(first, second, equal_var=False).pvalue) if deviation > 0 else 1.0,
    }  # fmt: skip


def report(folder: Path) -> None:
    """Write the tables."""
    from cellweave.core.analysis.integration import ALL, BASELINE

    found, about = {}, {}
    for name in SETS:
        scored = score(name, folder)
        seeds = [seed for seed in range(MOST_SEEDS) if all(f"{who}-{seed}" in scored["loss"] for who in WORKERS)]
        by_who = {who: [f"{who}-{seed}" for seed in seeds] for who in WORKERS}
        rows = {"loss": compare(*([scored["loss"][key] for key in by_who[who]] for who in WORKERS))}
        rows["loss"]["per seed"] = [[scored["loss"][f"{who}-{seed}"] for who in WORKERS] for seed in seeds]
        for metric in ALL:
            if all(metric in scored["metrics"][key] for keys in by_who.values() for key in keys):
                rows[metric] = compare(*([scored["metrics"][key][metric] for key in by_who[who]] for who in WORKERS))
                rows[metric][BASELINE] = scored[BASELINE].get(metric)
        found[name] = {key: scored[key] for key in ("cells", "genes", "batches", "measured")} | {"seeds": len(seeds), "rows": rows}
        found[name]["cpu seconds"] = {who: float(np.mean([scored["seconds"][key] for key in keys])) for who, keys in by_who.items()}
        for who in WORKERS:
            about |= json.loads((folder / f"{name}-0-{who}.json").read_text())["versions"]
    machine = f"{usable_cores()} cores of {cpu_name()}, {platform.system()}, Python {platform.python_version()}"
    tree = {"about": {"date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": about, "epochs": EPOCHS, "warmup": WARMUP}, "sets": found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(tree, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text("\n".join(tables(tree)) + "\n")


def tables(tree: dict) -> list[str]:
    """Return the tables as Markdown lines."""
    from cellweave.core.analysis.integration import ALL, METRICS

    about = tree["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# The same training in Cellweave and scvi-tools", "",
        f"Made by `python benchmarks/scvi_parity.py --peer PEER_PYTHON --report` on {about['date']}: {about['machine']}; {versions}.",
        f"scVI with zinb, 10 latent dimensions, one hidden layer of 128, minibatches of 128, Adam 1e-3, {about['epochs']} epochs, KL raised over",
        f"{about['warmup']} epochs; the same cells are trained on and held out in both programs for each seed. Mean ± seed-to-seed standard",
        "deviation; the difference is also given in units of that deviation (pooled), and marked where it is more than two of them.", "",
        "## Held-out loss: negative ELBO per cell, last five epochs", "",
        "| set | cells x genes, batches | seeds | Cellweave | scvi-tools | difference | in % | CPU s a run, ours / theirs |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in tree["sets"].items():
        row, seconds = found["rows"]["loss"], found["cpu seconds"]
        share = 100 * row["difference"] / row["scvi-tools"][0]
        size = f"{found['cells']:,} x {found['genes']:,}, {found['batches']}"
        lines.append(
            f"| {name} | {size} | {found['seeds']} | {row['ours'][0]:.2f} ± {row['ours'][1]:.2f} | {row['scvi-tools'][0]:.2f} ± {row['scvi-tools'][1]:.2f} "
            f"| {row['difference']:+.2f} | **{share:+.3f} %** | {seconds['ours']:.1f} / {seconds['scvi-tools']:.1f} |"
        )
    for name, found in tree["sets"].items():
        lines += ["", f"## {name}: integration metrics of {found['measured']:,} cells, {found['seeds']} seeds", ""]
        lines += ["| metric | without integration | Cellweave | scvi-tools | difference | in deviations | p (Welch) |", "|---|---|---|---|---|---|---|"]
        for metric, row in found["rows"].items():
            if metric == "loss":
                continue
            base = "" if row["baseline"] is None else f"{row['baseline']:.3f}"
            mark = " **!**" if abs(row["deviations"]) > 2 else ""
            lines.append(
                f"| {ALL[metric].title} | {base} | {row['ours'][0]:.3f} ± {row['ours'][1]:.3f} | {row['scvi-tools'][0]:.3f} ± {row['scvi-tools'][1]:.3f} "
                f"| {row['difference']:+.3f} | {row['deviations']:+.1f}{mark} | {row['p']:.3f} |"
            )
    chances = [(row["p"], name, metric) for name, found in tree["sets"].items() for metric, row in found["rows"].items() if metric in METRICS]
    smallest, name, metric = min(chances)
    lines += [
        "", f"{len(chances)} metrics were compared; the smallest p is {smallest:.3f} ({ALL[metric].title} of {name}), where "
        f"{0.05 / len(chances):.4f} would stand out among so many.",
    ]  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "scvi_parity", help="where runs and latents are kept")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further training after this time")
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS), help="sets to train on")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each set; the report takes all that both programs have")
    parser.add_argument("--report", action="store_true", help="score the latents and write the tables")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.peer is not None:
        # absolute(), not resolve(): the interpreter of a virtual environment is a link that must not be followed
        done = train_for(options.minutes, options.peer.absolute(), options.work, options.data, options.sets, options.seeds)
        print("all trained" if done else "goes on next time")
    if options.report:
        report(options.work)


if __name__ == "__main__":
    main()
