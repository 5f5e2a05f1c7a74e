"""Five seeds of the ambient-regularised models at 512 hidden units and 128 latent dimensions: does every loss stay finite?

Multi-library RNA, RNA with ATAC, and RNA with proteins, all measured.

    python benchmarks/ambient_stability.py --data ../shared/data [--long] [--out benchmarks/results/ambient_stability.md]

With ``--long`` the smaller sets are trained far beyond the best held-out loss, 300 to 400 epochs, and the table has a file of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

SEEDS = 5
QUIET = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores", "attribution")} | {
    "training.threads": 1, "training.preview_every": 0, "training.device": "cpu", "training.checkpoint_every": 1000,
    "training.early_stopping": False, "training.batch_size": 1024, "training.validation_share": 0.1,
    "model.n_hidden": 512, "model.n_latent": 128,
}  # fmt: skip
#: Data, model, epochs and further settings.
CASES = (
    ("RNA, 5 libraries, 1,408 x 5,000", "rna_cell_lines_5batches.h5ad", "ambient", 5, {}),
    ("RNA + ATAC, 2 donors, 500 x 1,134 + 600", "multiome_bmmc_neurips_2batches.h5mu", "multimodal", 10,
     {"model.library_sensitivity": {"rna": 1.0, "atac": 0.2}}),
    ("RNA + ADT, 2 donors, 600 x 1,000 + 134", "cite_bmmc_neurips_2batches.h5mu", "multimodal", 10,
     {"model.latent_scale_prior": "lognormal", "model.z_sparsity_prior": "gamma"}),
    ("RNA, 2 libraries, 2,000 x 9,015", "rna_ifnb_pbmc_2batches.h5ad", "ambient", 3, {}),
    ("RNA with burst decoder and start from moments", "rna_cell_lines_5batches.h5ad", "ambient", 3,
     {"model.decoder_type": "burst_frequency_size", "model.dispersion_init": "data", "losses.weights.background": 1.0}),
    ("RNA + ADT, 2 samples, 5,000 x 12,435 + 48", "cite_reapseq_pbmc_2batches.h5mu", "multimodal", 1, {}),
    ("RNA + ATAC, 9 plates, 7,844 x 1,677 + 25,734", "multiome_snareseq_mouse_cortex_9batches.h5mu", "multimodal", 1,
     {"model.library_sensitivity": {"rna": 1.0, "atac": 0.2}}),
)  # fmt: skip
#: Trained on until long after the held-out loss is best.
LONG = (
    ("RNA + ATAC, 2 donors, 500 x 1,134 + 600", "multiome_bmmc_neurips_2batches.h5mu", "multimodal", 400,
     {"model.library_sensitivity": {"rna": 1.0, "atac": 0.2}}),
    ("RNA + ADT, 2 donors, 600 x 1,000 + 134", "cite_bmmc_neurips_2batches.h5mu", "multimodal", 400,
     {"model.latent_scale_prior": "lognormal", "model.z_sparsity_prior": "gamma"}),
    ("RNA, 5 libraries, 1,408 x 5,000", "rna_cell_lines_5batches.h5ad", "ambient", 300, {}),
)  # fmt: skip


def one(path: Path, kind: str, epochs: int, changes: dict, seed: int, folder: Path) -> tuple[bool, float, float, float, float, int]:
    """Train once; return whether every loss was finite, first and last validation ELBO, seconds an epoch took, best validation ELBO and its epoch."""
    spec = RunSpec().with_changes(
        {"model.kind": kind, "data.paths": str(path), "covariates.batch": "batch", "training.seed": seed, "training.max_epochs": epochs, **QUIET, **changes}
    )
    started = time.process_time()
    execute(spec, folder)
    losses = pd.read_csv(folder / "losses.csv")
    terms = losses[[name for name in losses if name.endswith(("_train", "_validation"))]].dropna(axis=1, how="all")
    finite = len(losses) == epochs and bool(np.isfinite(terms.to_numpy()).all())
    values = losses["elbo_validation"]
    best = int(values.to_numpy().argmin())
    return finite, float(values.iloc[0]), float(values.iloc[-1]), (time.process_time() - started) / epochs, float(values.iloc[best]), best + 1


def main() -> None:
    """Train every case with five seeds and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="Folder of what was found, kept; what is there already is not trained again.")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Stop after so many seconds of CPU; the table is written once all are there.")
    parser.add_argument("--long", action="store_true", help="The smaller sets, to convergence and beyond.")
    parser.add_argument("--out", type=Path, help="Where the table is written; default: in benchmarks/results.")
    parser.add_argument("--report", action="store_true", help="Train nothing more: write the table of what is there.")
    options = parser.parse_args()
    cases, name = (LONG, "stability_long") if options.long else (CASES, "stability")
    out = options.out or Path(__file__).parent / "results" / f"ambient_{name}.md"
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        known = work / f"{name}.json"
        found = json.loads(known.read_text()) if known.exists() else {}
        for number, (_, file, kind, epochs, changes) in enumerate(cases):
            for seed in range(SEEDS):
                key = f"{number}-{seed}"
                if key in found or options.report:
                    continue
                if time.process_time() > options.seconds:
                    return
                found[key] = one(options.data / file, kind, epochs, changes, seed, Path(temporary) / key)
                known.write_text(json.dumps(found))
                print(key, found[key], flush=True)
    rows = []
    for number, (title, _, kind, epochs, _) in enumerate(cases):
        mine = [found[key] for seed in range(SEEDS) if (key := f"{number}-{seed}") in found]
        if not mine:
            continue
        first, last = np.array([row[1] for row in mine]), np.array([row[2] for row in mine])
        good = sum(row[0] for row in mine)
        best, at = np.array([row[4] for row in mine]), [row[5] for row in mine]
        rows.append(
            f"| {title} | {kind} | {epochs} | {good} of {len(mine)} | {first.mean():,.1f} | {last.mean():,.1f} ± {last.std():,.1f} | "
            f"{best.mean():,.1f} | {min(at)}-{max(at)} | {min(row[3] for row in mine):.2f} |"
        )
    lines = [
        "# Stability of the ambient-regularised models at 512 hidden units and 128 latent dimensions", "",
        f"Up to five seeds each, minibatches of 1,024 cells, learning rate 0.001, one thread of {platform.processor() or platform.machine()}, torch "
        f"{version('torch')}. Finite: no term of any epoch, in training or validation, was NaN or infinite. ELBO: negative, nats per cell, of held-out cells.",
        "", "| data | model | epochs | all finite | ELBO after epoch 1 | ELBO at the end (sd over seeds) | best ELBO | in epoch | CPU s / epoch, best |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |", *rows, "",
    ]  # fmt: skip
    out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
