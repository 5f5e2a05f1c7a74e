"""The live embedding: how long a refresh takes in the warm analysis process, and how far the picture moves.

    python benchmarks/live_refresh.py [--cells 10000] [--refreshes 12] [--data FOLDER]

While a model trains its latent drifts from one cloud to groups. The benchmark drifts one in the same way: a mixture of twenty
groups, and (with --data) the log counts of ten thousand real cells of eleven studies. Each refresh goes the whole way through the
process: file of latents in, neighbours, graph, 50 epochs from the previous layout, file of the layout out. The table goes to
benchmarks/results/live_refresh.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

from cellweave.core.analysis.layout import align
from cellweave.core.analysis.process import AnalysisProcess
from cellweave.core.system import cpu_name, usable_cores

RESULTS = Path(__file__).resolve().parent / "results" / "live_refresh.md"
TARGET, AIM = 1.0, 0.6
DRIFT = 5  # refreshes over which the groups come apart


def mixture(n: int) -> np.ndarray:
    """Return a mixture of twenty groups in ten dimensions."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20, 10)) * 2)[rng.integers(0, 20, n)] + rng.normal(size=(n, 10))


def real_cells(folder: Path, n: int) -> np.ndarray:
    """Return the log counts of nine proteins of real cells, standardised."""
    import anndata

    adata = anndata.read_h5ad(folder / "large_adt_11studies_116k.h5ad")
    rows = np.sort(np.random.default_rng(0).choice(adata.n_obs, n, replace=False))
    values = np.log1p(adata.X[rows].toarray())
    return (values - values.mean(axis=0)) / values.std(axis=0)


class Bench:
    """One drifting latent, refreshed again and again."""

    def __init__(self, folder: Path, target: np.ndarray) -> None:
        self.target, self.folder = target, folder
        self.noise = np.random.default_rng(1).normal(size=target.shape)
        self.latent, self.layout = folder / "latent.npy", folder / "layout.npy"

    def write(self, step: int) -> None:
        """Write the latent of a step: it drifts for some steps, then only trembles."""
        share = min(1.0, step / DRIFT)
        tremble = np.random.default_rng(100 + step).normal(scale=0.05, size=self.target.shape)
        np.save(self.latent, (share * self.target + (1 - share) * self.noise + tremble).astype(np.float32))

    def refresh(self, process: AnalysisProcess, step: int) -> tuple[float, float | None]:
        """Refresh once; return seconds and how far the median cell moved."""
        self.write(step)
        began = time.perf_counter()
        found = process.run("refresh", latent=self.latent, previous=self.layout if step else None, out=self.layout)
        return time.perf_counter() - began, found["moved"]

    def trust(self) -> float:
        """Return the trustworthiness of the layout that is shown, on a sample."""
        from sklearn.manifold import trustworthiness

        rows = np.random.default_rng(2).choice(len(self.target), 2500, replace=False)
        return float(trustworthiness(np.load(self.latent)[rows], np.load(self.layout)[rows], n_neighbors=10))


def cold(bench: Bench) -> float:
    """Return the seconds from starting the process to the first embedding, without warming up."""
    process = AnalysisProcess()
    began = time.perf_counter()
    process.start(warm=False)
    bench.refresh(process, 0)
    seconds = time.perf_counter() - began
    process.close()
    return seconds


def run(bench: Bench, n: int) -> dict[str, object]:
    """Measure one latent in a warm process."""
    with AnalysisProcess() as process:
        process.run("warm")
        child = psutil.Process(process.pid)
        first, _ = bench.refresh(process, 0)
        times, moved, processor = [], [], []
        for step in range(1, n + 1):
            before = sum(child.cpu_times()[:2])
            seconds, move = bench.refresh(process, step)
            times.append(seconds)
            moved.append(move)
            processor.append(sum(child.cpu_times()[:2]) - before)
        trust, shown = bench.trust(), np.load(bench.layout)
        fresh_file = bench.folder / "fresh.npy"
        began = time.perf_counter()
        process.run("refresh", latent=bench.latent, out=fresh_file, n_epochs=500)
        fresh = time.perf_counter() - began
        other = align(np.load(fresh_file), shown)
        jump = float(np.median(np.linalg.norm(np.load(fresh_file) - shown, axis=1)) / shown.std())
        turned = float(np.median(np.linalg.norm(other - shown, axis=1)) / shown.std())
        bench.layout.write_bytes(fresh_file.read_bytes())
        fresh_trust = bench.trust()
    return {
        "first": first, "best": min(times), "median": statistics.median(times), "cpu": min(processor), "drifting": statistics.median(moved[:DRIFT]),
        "settled": statistics.median(moved[DRIFT:]), "trust": trust, "fresh": fresh, "jump": jump, "turned": turned, "fresh_trust": fresh_trust,
    }  # fmt: skip


def report(rows: dict[str, dict[str, object]], warm: float, cold_start: float, cells: int, command: str) -> str:
    """Return the tables as Markdown."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    packages = ", ".join(f"{name} {version(name)}" for name in ("umap-learn", "numba", "scikit-learn", "numpy"))
    lines = [
        f"# Live refresh of the embedding, {cells:,} cells", "", f"`{command}`: through the analysis process, wall seconds.", "",
        "| start | s |", "|---|---|",
        f"| first embedding from a cold process | {cold_start:.1f} |", f"| warming up, in the background while training starts | {warm:.1f} |", "",
        "| latent | first, warm | refresh, best | median | target | aim | processor seconds, best | fresh fit, 500 epochs |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {name} | {r['first']:.2f} | **{r['best']:.2f}** | {r['median']:.2f} | {TARGET} | {AIM} | {r['cpu']:.2f} | {r['fresh']:.2f} |"
        for name, r in rows.items()
    ]
    lines += [
        "", "How far the median cell moves, as a share of the standard deviation of the picture, and how true the picture is (trustworthiness of 10 "
        "neighbours, 2,500 cells):", "",
        "| latent | a refresh while it drifts | once settled | a fresh fit would move it | the same, turned onto the picture | trust, refreshed "
        "| trust, fresh |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {name} | {r['drifting']:.2f} | {r['settled']:.2f} | {r['jump']:.2f} | {r['turned']:.2f} | {r['trust']:.3f} | {r['fresh_trust']:.3f} |"
        for name, r in rows.items()
    ]
    machine = f"{cpu_name()}, {usable_cores()} cores, load {load:.1f}, {platform.system()} {platform.machine()}"
    return "\n".join([*lines, "", f"{machine}. Python {platform.python_version()}, {packages}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--refreshes", type=int, default=12)
    parser.add_argument("--data", type=Path, default=Path(os.environ["CELLWEAVE_DATA"]) if os.environ.get("CELLWEAVE_DATA") else None)
    args = parser.parse_args()
    latents = {"mixture of 20 groups": mixture(args.cells)}
    if args.data is not None:
        latents["real cells, 9 proteins"] = real_cells(args.data, args.cells)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = Bench(folder, next(iter(latents.values())))
        cold_start = cold(first)
        with AnalysisProcess() as process:
            began = time.perf_counter()
            process.run("warm")
            warm = time.perf_counter() - began
        rows = {title: run(Bench(folder, target), args.refreshes) for title, target in latents.items()}
    command = f"python benchmarks/live_refresh.py --cells {args.cells}"
    text = report(rows, warm, cold_start, args.cells, command)
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
