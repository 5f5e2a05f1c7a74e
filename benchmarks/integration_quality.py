"""Do batches mix and labels stay? Neighbour scores before (PCA) and after integration on real sets.

    python benchmarks/integration_quality.py --data ../shared/data [--epochs N] [--out benchmarks/results/integration_quality.md]

Every set is trained by ``cellweave``'s own engine with the VAE's defaults, seed 0, and scored on the 30 nearest neighbours; the
definitions of the scores are in ``core/analysis/scores.py``.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from cellweave.core.example import example_path
from cellweave.core.runs.execute import execute
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec

VARIABLE = {"mode": "variable", "n": 2000}
SETS: tuple[tuple[str, dict], ...] = (
    ("rna_cell_lines_5batches.h5ad", {"covariates.labels": "cell_type", "data.features.rna": VARIABLE}),
    ("rna_ifnb_pbmc_2batches.h5ad", {"covariates.labels": "cell_type", "data.features.rna": VARIABLE}),
    ("rna_kang_2conditions_2donors_labelled.h5ad", {"covariates.labels": "cell_type"}),
    ("rna_pbmc_3chemistries_unlabelled.h5ad", {"data.features.rna": VARIABLE}),
    ("rna_glioblastoma_5patients.h5ad", {}),
    ("example", {"covariates.labels": "celltype"}),
)
SHOWN = ("batch_same_share", "batch_mixing", "batch_mixing_in_label", "label_purity", "label_accuracy")


def train(path: Path, changes: dict, epochs: int | None, folder: Path) -> tuple[RunFolder, float]:
    spec = RunSpec().with_changes(
        {"data.paths": str(path), "covariates.batch": "batch", "training.max_epochs": epochs, "training.preview_every": 0, "analysis.umap": False}
    )
    start = time.perf_counter()
    execute(spec.with_changes(changes), folder, listener=lambda event: None)
    return RunFolder.open(folder), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "integration_quality.md")
    options = parser.parse_args()
    lines = [
        "# Batch mixing and labels, before and after",
        "",
        f"`python benchmarks/integration_quality.py --data ../shared/data{f' --epochs {options.epochs}' if options.epochs else ''}`",
        f"on {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, one run a set, seed 0.",
        "",
        "VAE with its defaults (zinb, 10 latent dimensions, 128 hidden units, batch in the decoder, early stopping). Before: PCA of the",
        "log-normalised counts of the same features. 30 nearest neighbours; `by chance` is what shuffled cells would give.",
        "",
        "| set | cells | epochs (best) | score | before | after | by chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, changes in SETS:
        path = example_path() if name == "example" else options.data / name
        with tempfile.TemporaryDirectory() as folder:
            run, seconds = train(path, changes, options.epochs, Path(folder) / "run")
            status = run.status
            cells = sum(1 for _ in (run.results / "cells.csv").open()) - 1
            rows = [row for row in csv.DictReader(run.metrics_file.open()) if not row["group"] and row["name"] in SHOWN]
            for number, row in enumerate(sorted(rows, key=lambda row: SHOWN.index(row["name"]))):
                head = f"| {name} | {cells} | {status.epoch} ({status.best_epoch}) |" if number == 0 else "| | | |"
                values = " | ".join(f"{float(row[key]):.3f}" if row[key] else "" for key in ("baseline", "value", "expected"))
                lines.append(f"{head} {row['name']} | {values} |")
        print(name, f"{seconds:.0f} s", flush=True)
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
