"""Is the learned ambient background the one measured in the empty droplets?

    python benchmarks/ambient_background.py --data ../shared/data [--epochs 60] [--out benchmarks/results/ambient_background.md]

``rna_ambient_pbmc4k.h5ad`` carries the profile of its empty droplets. The background that the ambient model learns from the cells alone is held against it,
beside what two plain profiles give: the mean of all cells, and the mean of that cell type which has least of a gene. Then the marker genes of one cell type are
looked at in the others, in the counts, in scVI's and in the ambient model's denoised expression.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from cellweave.core.query.expression import normalised_expression
from cellweave.core.query.opened import open_run
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

FILE = "rna_ambient_pbmc4k.h5ad"
QUIET = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")} | {
    "training.threads": 1, "training.preview_every": 0, "training.device": "cpu", "training.early_stopping": False, "training.kl_warmup_epochs": 40,
    "training.checkpoint_every": 1000,
}  # fmt: skip
MODELS = (
    ("defaults (starts at 20 % of the mean)", "ambient", {}),
    ("starts at 5 % of the mean", "ambient", {"model.bg_init_gene_fraction": 0.05}),
)
SEEDS = (0, 1)
MEASURED_FROM = 5  # counts in the empty droplets from which a ratio says something
SPECIFIC = 0.2  # a gene is specific where some cell type has less than this share of the most that any has
MARKERS = 10


def ratios(profile: np.ndarray, measured: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Log2 of a profile over the measured one, both as shares of the genes kept."""
    return np.log2((profile[keep] / profile[keep].sum() + 1e-9) / (measured[keep] / measured[keep].sum() + 1e-9))


class Data:
    """Counts, types and the measured profile."""

    def __init__(self, path: Path) -> None:
        found = anndata.read_h5ad(path)
        self.genes, self.measured = np.array(found.var_names), found.var["ambient_counts"].to_numpy(dtype=float)
        x = found.X.tocsr().astype(np.float64)
        self.mean = np.asarray(x.mean(0)).ravel()
        totals = np.asarray(x.sum(1)).ravel()
        self.share = x.multiply(1 / totals[:, None]).tocsr()
        types = found.obs["cell_type"]
        self.types = [str(level) for level in types.cat.categories]
        self.members = [(types == level).to_numpy() for level in types.cat.categories]
        self.by_type = self.type_means(self.share)
        self.keep = self.measured >= MEASURED_FROM
        self.specific = self.keep & (self.by_type.min(0) < SPECIFIC * self.by_type.max(0))

    def type_means(self, values) -> np.ndarray:
        """Mean of each cell type ``(n_types, n_genes)``."""
        return np.stack([np.asarray(values[rows].mean(0)).ravel() for rows in self.members])

    def markers(self) -> list[np.ndarray]:
        """The most specific well expressed genes of each type."""
        found = []
        for place in range(len(self.types)):
            own, others = self.by_type[place], np.delete(self.by_type, place, 0).max(0)
            score = np.where(own * 1e4 > 3, own / (others + 1e-6), 0)
            found.append(np.argsort(-score)[:MARKERS])
        return found

    def row(self, name: str, profile: np.ndarray) -> str:
        """Agreement of a profile with the measured one."""
        off = ratios(profile, self.measured, self.keep)
        own = ratios(profile, self.measured, self.specific)
        return (
            f"| {name} | {spearmanr(profile[self.keep], self.measured[self.keep])[0]:.4f} | {np.median(np.abs(off)):.3f} | {np.mean(np.abs(off) > 1):.1%} | "
            f"{spearmanr(profile[self.specific], self.measured[self.specific])[0]:.4f} | {np.median(np.abs(own)):.3f} |"
        )

    def extremes(self, profile: np.ndarray) -> tuple[str, str]:
        """The genes that a profile overestimates and underestimates most, with the factor."""
        places, off = np.flatnonzero(self.keep & (self.measured >= 50)), None
        off = np.log2((profile / profile.sum())[places] / (self.measured / self.measured.sum())[places])
        order = np.argsort(off)
        over = ", ".join(f"{self.genes[places[i]]} ({2 ** off[i]:.1f}x)" for i in order[::-1][:10])
        return over, ", ".join(f"{self.genes[places[i]]} ({2 ** off[i]:.2f}x)" for i in order[:10])

    def leak(self, by_type: np.ndarray) -> list[float]:
        """Median over the markers of a type of their mean in the other types over that in their own."""
        return [
            float(np.median(np.delete(by_type, place, 0)[:, genes].mean(0) / by_type[place, genes])) for place, genes in enumerate(self.markers())
        ]

    def falling(self, by_type: np.ndarray) -> float:
        """Share of markers whose leak is smaller than in the counts."""
        better = []
        for place, genes in enumerate(self.markers()):
            ours, counts = (np.delete(one, place, 0)[:, genes].mean(0) / one[place, genes] for one in (by_type, self.by_type))
            better += list(ours < counts)
        return float(np.mean(better))


def train(path: Path, kind: str, epochs: int, seed: int, changes: dict, folder: Path) -> Path:
    """Train one model, unless it was trained into this folder before."""
    if (folder / "results" / "latent.npy").exists():
        return folder
    batch = {"covariates.batch": "batch"} if kind == "ambient" else {}
    base = {"model.kind": kind, "data.paths": str(path), "training.max_epochs": epochs, "training.seed": seed}
    execute(RunSpec().with_changes({**base, **QUIET, **batch, **changes}), folder)
    return folder


def main() -> None:
    """Train, compare, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--work", type=Path, help="Folder of the runs, kept; what is there already is not trained again.")
    parser.add_argument("--at-most", type=int, default=1000, help="Train so many models and stop; the report is written once all are there.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ambient_background.md")
    options = parser.parse_args()
    path = options.data / FILE
    data = Data(path)
    least = data.by_type.min(0)
    rows = [data.row("mean of all cells", data.mean), data.row("least of the cell types (needs labels)", least)]
    leaks = [("counts", data.leak(data.by_type), float("nan"))]
    extremes, totals, learned = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        wanted = [(kind, seed, changes, work / f"{number}-{seed}") for number, (_, kind, changes) in enumerate(MODELS) for seed in SEEDS]
        wanted.append(("vae", 0, {"model.gene_likelihood": "nb"}, work / "vae"))
        missing = [job for job in wanted if not (job[3] / "results" / "latent.npy").exists()]
        for kind, seed, changes, folder in missing[: options.at_most]:
            train(path, kind, options.epochs, seed, changes, folder)
        if len(missing) > options.at_most:
            return
        for number, (title, _, _) in enumerate(MODELS):
            profiles, means = [], []
            for seed in SEEDS:
                run = open_run(work / f"{number}-{seed}")
                profiles.append(next(iter(run.model.ambient_profile()["rna"].values()))[0].numpy().astype(float))
                rows.append(data.row(f"{title}, seed {seed}", profiles[-1]))
                print(rows[-1], flush=True)
                means.append(data.type_means(normalised_expression(run)))
            learned[title] = np.mean(profiles, 0)
            extremes[title] = data.extremes(learned[title])
            totals[title] = np.mean(profiles, 0).sum() / data.mean.sum()
            leaks.append((f"ambient, {title}", data.leak(np.mean(means, 0)), data.falling(np.mean(means, 0))))
        plain = open_run(work / "vae")
        means = data.type_means(normalised_expression(plain))
        leaks.insert(1, ("scVI (negative binomial)", data.leak(means), data.falling(means)))
    options.out.write_text(report(data, rows, leaks, extremes, totals, options.epochs, verdict(data, learned, leaks)), encoding="utf-8")


def verdict(data: Data, profiles: dict[str, np.ndarray], leaks: list) -> str:
    """Return in words whether the learned background beats the mean of the cells, and whether markers fall."""
    mean = spearmanr(data.mean[data.keep], data.measured[data.keep])[0]
    best = max(profiles, key=lambda title: spearmanr(profiles[title][data.keep], data.measured[data.keep])[0])
    ours = spearmanr(profiles[best][data.keep], data.measured[data.keep])[0]
    beats = "better than" if ours > mean else "not better than"
    counts = {name: values for name, values, _ in leaks}["counts"]
    plain = next(values for name, values, _ in leaks if name.startswith("scVI"))
    own = max((one for one in leaks if one[0].startswith("ambient")), key=lambda one: one[2])
    each = ", ".join(
        f"{level} {before:.4f} to {after:.4f} (scVI {other:.4f})" for level, before, after, other in zip(data.types, counts, own[1], plain, strict=True)
    )
    return (
        f"**In short.** As a ranking of the genes the learned background ({best}: Spearman {ours:.4f}) is {beats} the mean of the cells ({mean:.4f}): what "
        f"floats in the solution is nearly the mean of what was in it, and where all cell types express a gene alike nothing tells background from expression, "
        f"so that it stays near where it began. What the background is for is another matter: leak of markers from the counts to the denoised expression "
        f"({own[0]}): {each}; it falls for {own[2]:.0%} of the markers."
    )


def report(data: Data, rows: list[str], leaks: list, extremes: dict, totals: dict, epochs: int, words: str) -> str:
    """Return the tables as text."""
    names = pd.Series(data.genes)
    lines = [
        "# The learned ambient background beside the one measured in empty droplets", "",
        f"`{FILE}`, {data.share.shape[0]:,} cells, {data.share.shape[1]:,} genes, 10x PBMC 4k; {epochs} epochs, one thread of "
        f"{platform.processor() or platform.machine()}, torch {version('torch')}. Genes with at least {MEASURED_FROM} counts in "
        f"the empty droplets ({int(data.keep.sum()):,}); *specific* are those of them of which some cell type has less than {SPECIFIC:.0%} of the "
        f"most that any has ({int(data.specific.sum()):,}). log2: of the profile over the measured one, both as shares.", "", words, "",
        "| profile | Spearman | median abs log2 | off by more than 2x | Spearman, specific | median abs log2, specific |",
        "| --- | --- | --- | --- | --- | --- |", *rows, "",
        "Share of a mean cell's counts that the learned background makes up: "
        + "; ".join(f"{title}: {value:.1%}" for title, value in totals.items()) + ".", "",
        "## Genes that are off most (at least 50 counts in the empty droplets; mean of the seeds)", "",
    ]  # fmt: skip
    for title, (over, under) in extremes.items():
        lines += [f"- {title}. Over: {over}. Under: {under}."]
    lines += [
        "", "## Marker genes of one cell type in the others", "",
        f"The {MARKERS} most specific well expressed genes of each type; the mean in the other types over that in their own, median of the markers. "
        "*Falls*: share of all markers for which this is less than in the counts.", "",
        f"| expression | {' | '.join(data.types)} | falls |", f"| --- |{' --- |' * len(data.types)} --- |",
        *(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} | {'' if np.isnan(falls) else f'{falls:.0%}'} |" for name, values, falls in leaks), "",
        "Markers: " + "; ".join(f"{level}: {', '.join(names[genes])}" for level, genes in zip(data.types, data.markers(), strict=True)) + ".", "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
