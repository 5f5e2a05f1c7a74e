"""Throughput of the ambient model beside our VAE and scvi-tools: one run, one thread, the same data and minibatches.

    python benchmarks/ambient_speed.py --peer PYTHON_WITH_SCVI_TOOLS --data ../shared/data [--epochs 4] [--repeats 2]

The best epoch counts, the first left out, by CPU time, because machines are noisy. float32 unless said otherwise, nothing held out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import anndata

JOBS = Path(__file__).parent / "vae_jobs"
FILE = "rna_ifnb_pbmc_2batches.h5ad"
LARGE = {"model.n_hidden": 512, "model.n_latent": 128, "training.batch_size": 1024}
OURS = (
    ("VAE, negative binomial", {"model.kind": "vae", "model.gene_likelihood": "nb"}),
    ("VAE, zero-inflated", {"model.kind": "vae", "model.gene_likelihood": "zinb"}),
    ("ambient, defaults", {"model.kind": "ambient"}),
    ("ambient, one draw of dispersions a step", {"model.kind": "ambient", "model.dispersion_draws": "group"}),
    ("ambient, products in bf16", {"model.kind": "ambient", "training.precision": "bf16"}),
    ("VAE, negative binomial, 512/128, minibatch 1,024", {"model.kind": "vae", "model.gene_likelihood": "nb", **LARGE}),
    ("ambient, 512/128, minibatch 1,024", {"model.kind": "ambient", **LARGE}),
)  # fmt: skip


def run(python: str, script: str, job: dict, folder: Path) -> dict:
    """Run one job in a process of its own."""
    path, result = folder / "job.json", folder / "result.json"
    path.write_text(json.dumps({**job, "result": str(result)}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MKL_NUM_THREADS": "1"}
    subprocess.run([python, str(JOBS / script), str(path)], check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads(result.read_text())


def best(results: list[dict]) -> float:
    """CPU seconds of the best epoch."""
    return min(late - early for result in results for early, late in pairwise(result["cpu"][1:]))


def main() -> None:
    """Time everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", default="")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ambient_speed.md")
    options = parser.parse_args()
    path = options.data / FILE
    n_cells, n_genes = anndata.read_h5ad(path, backed="r").shape
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for repeat in range(options.repeats):
            for title, settings in OURS:
                base = {"training.max_epochs": options.epochs, "training.validation_share": 0.0, "training.early_stopping": False, "training.device": "cpu"}
                folder = Path(temporary) / f"{repeat}-{len(found)}-{title[:9]}-{len(found.get(title, []))}"
                job = {"data": str(path), "threads": 1, "seed": repeat, "set": {**base, **settings}, "folder": str(folder)}
                found.setdefault(title, []).append(run(sys.executable, "cellweave_job.py", job, Path(temporary)))
            if options.peer:
                job = {"data": str(path), "threads": 1, "seed": repeat, "epochs": options.epochs, "batch_size": 128}
                job |= {"learning_rate": 1e-3, "plan": {}, "split": ""}
                for likelihood in ("nb", "zinb"):
                    result = run(options.peer, "scvi_tools_job.py", {**job, "likelihood": likelihood}, Path(temporary))
                    found.setdefault(f"scvi-tools SCVI, {likelihood}", []).append(result)
    reference = best(found["VAE, negative binomial"])
    rows = [f"| {title} | {best(results):.2f} | {n_cells / best(results):,.0f} | {best(results) / reference:.2f} |" for title, results in found.items()]
    versions = {name: number for results in found.values() for name, number in results[0]["versions"].items()}
    numbers = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    lines = [
        "# Throughput of the ambient-regularised model", "",
        f"`{FILE}`, {n_cells:,} cells, {n_genes:,} genes, one thread of {platform.processor() or platform.machine()}; minibatches of 128 unless said "
        f"otherwise, best epoch of {options.repeats} runs of {options.epochs}, CPU time. {numbers}.", "",
        "| model | s / epoch | cells / s | time relative to our VAE |", "| --- | --- | --- | --- |", *rows, "",
    ]  # fmt: skip
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
