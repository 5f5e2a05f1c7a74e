"""What modality attribution costs: exact derivatives by the fast way, by forward mode through the whole decoder, and by finite differences.

    python benchmarks/attribution.py [--cells 200] [--out benchmarks/results/attribution.md]

The networks are those of the multimodal model at several sizes, untrained, on counts drawn at random: the cost does not depend on the weights. The ways
take turns, the best of three counts, in processor seconds of one thread; the cost of 10,000 cells is that of the measured ones scaled up. The
largest differences between the ways are given relative to the larger scores, so that one sees that the same is computed.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cellweave.core.models.base import BuildContext
from cellweave.core.models.registry import family
from cellweave.core.query.attribution import AttributionQuestion, attribute
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Modality, SourceFile, Study
from cellweave.core.training.data import prepare
from cellweave.core.training.sources import Loader

SIZES = (
    ("RNA 2,000 + ADT 100, defaults", {"rna": 2000, "adt": 100}, 128, 10),
    ("RNA 12,000 + ADT 50, defaults", {"rna": 12000, "adt": 50}, 128, 10),
    ("RNA 2,000 + ATAC 20,000, defaults", {"rna": 2000, "atac": 20000}, 128, 10),
    ("RNA 2,000 + ATAC 20,000, 512 hidden, 64 + 64 latent", {"rna": 2000, "atac": 20000}, 512, 64),
)
WAYS = ("exact", "forward", "finite")


def study_of(features, n_cells):
    rng = np.random.default_rng(0)
    modalities = {}
    for name, n in features.items():
        counts = sparse.random(n_cells, n, density=0.05, format="csr", random_state=rng, data_rvs=lambda k: rng.integers(1, 6, k)).astype(np.float32)
        var = pd.DataFrame(index=[f"{name}{number}" for number in range(n)])
        modalities[name] = Modality(name, counts, var, np.ones(n_cells, bool))
    obs = pd.DataFrame({"batch": pd.Categorical(rng.integers(0, 2, n_cells).astype(str))}, index=[f"c{number}" for number in range(n_cells)])
    zeros = np.zeros(n_cells, int)
    return Study(obs, modalities, (SourceFile(Path("random"), "random", n_cells),), zeros, np.arange(n_cells))


def network(features, hidden, latent, n_cells):
    study = study_of(features, n_cells)
    spec = RunSpec().with_changes({"model.kind": "multimodal"})
    spec = spec.with_changes({"model.n_hidden": hidden, "model.n_latent": latent, "covariates.batch": "batch"})
    data = prepare(spec, study)
    context: BuildContext = data.context(spec)
    torch.manual_seed(0)
    return family("multimodal").build(context).eval(), Loader(data, torch.device("cpu"), resident=False)


def measure(model, loader, rows, way, repeats):
    best, found = float("inf"), None
    for _ in range(repeats):
        began = time.process_time()
        found = attribute(model, loader, rows, AttributionQuestion(method=way))
        best = min(best, time.process_time() - began)
    return best, found


def difference(one, other):
    return max(
        float(np.max(np.abs(one.mean_abs[name] - other.mean_abs[name]) / np.maximum(np.abs(other.mean_abs[name]), 1e-3 * np.abs(other.mean_abs[name]).max())))
        for name in one.mean_abs
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attribution.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Cost of modality attribution", "",
        "Processor seconds for 10,000 cells, one thread, scaled up from the cells measured (column \"cells\"); the best of "
        f"{options.repeats}. Differences are of the mean absolute derivatives, relative.", "",
        "| network | cells | exact | forward mode, whole decoder | finite differences | exact vs. forward | exact vs. finite |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for title, features, hidden, latent in SIZES:
        n_cells = options.cells if hidden < 512 else max(20, options.cells // 10)
        model, loader = network(features, hidden, latent, max(n_cells, 60))
        rows = np.arange(n_cells)
        found = {way: measure(model, loader, rows, way, options.repeats if way == "exact" else 1) for way in WAYS}
        seconds = [f"{found[way][0] / n_cells * 10_000:,.0f} s" for way in WAYS]
        apart = [f"{difference(found['exact'][1], found[way][1]):.1e}" for way in WAYS[1:]]
        lines.append(f"| {title} | {n_cells} | {' | '.join(seconds)} | {' | '.join(apart)} |")
        print(lines[-1], flush=True)
    lines += ["", f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {platform.system()}."]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
