"""Questions to a trained model: the same weights asked by Cellweave and by scvi-tools, and expression larger than memory should hold.

    python benchmarks/query_vs_scvi.py --peer PEER_PYTHON [--data FOLDER] [--cells 200000]

PEER_PYTHON is the interpreter of an environment that has scvi-tools. The model is trained once by Cellweave and handed over.
The table goes to benchmarks/results/query_vs_scvi.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from cellweave.core.nn.scvi_names import to_scvi
from cellweave.core.query.differential import DifferentialOptions, differential_by_column
from cellweave.core.query.evaluate import elbo, marginal_ll
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.expression_files import write_expression
from cellweave.core.query.latent import latent_mean
from cellweave.core.query.opened import open_run
from cellweave.core.query.sampling import feature_correlation
from cellweave.core.query.trained_run import TrainedRun
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Modality, Study
from cellweave.core.system import cpu_name, usable_cores

HERE = Path(__file__).resolve().parent
SET = "rna_kang_2conditions_2donors_labelled.h5ad"
QUIET = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")}


def trained(data: Path, folder: Path) -> TrainedRun:
    """Train a model on one thread and open it."""
    changes = {
        "data.paths": str(data), "covariates.batch": "batch", "training.max_epochs": 40, "training.threads": 1, "training.preview_every": 0,
        "training.device": "cpu", **QUIET,
    }  # fmt: skip
    execute(RunSpec().with_changes(changes), folder)
    return open_run(folder)


def ask(run: TrainedRun) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Ask every question; return the answers and the processor seconds each took."""
    order = list(run.features)
    questions = {
        "latent": lambda: latent_mean(run),
        "expression": lambda: normalised_expression(run, None, ExpressionQuestion(n_samples=50)),
        "elbo": lambda: np.array([elbo(run, seed=seed) for seed in range(10)]),
        "marginal": lambda: marginal_ll(run, n_samples=100),
        "correlation": lambda: feature_correlation(run, n_samples=10).to_numpy(),
        "de_change": lambda: differential_by_column(run, "batch", "stim", "ctrl").loc[order],
        "de_vanilla": lambda: differential_by_column(run, "batch", "stim", "ctrl", options=DifferentialOptions(mode="vanilla")).loc[order],
    }
    elbo(run)  # the first use compiles the likelihood
    answers, clock = {}, {}
    for name, question in questions.items():
        start = time.process_time()
        answers[name] = question()
        clock[name] = time.process_time() - start
    clock["elbo"] /= 10
    answers["lfc"] = answers["de_change"]["lfc_mean"].to_numpy()
    answers["de_change"], answers["de_vanilla"] = answers["de_change"]["proba_de"].to_numpy(), answers["de_vanilla"]["proba_m1"].to_numpy()
    return answers, clock


def peer_answers(peer: Path, data: Path, run: TrainedRun, folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Ask scvi-tools with the same weights, in a process of its own."""
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in to_scvi(run.network).items()})
    job = {"data": str(data), "weights": str(folder / "weights.npz"), "out": str(folder / "peer.npz"), "clock": str(folder / "clock.json")}
    (folder / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [str(peer), str(HERE / "query_scvi_job.py"), str(folder / "job.json")], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"scvi-tools failed:\n{done.stderr[-3000:]}")
    return dict(np.load(folder / "peer.npz", allow_pickle=False)), json.loads((folder / "clock.json").read_text())


def large(run: TrainedRun, n_cells: int, folder: Path) -> str:
    """Write the corrected expression of many cells (those of the run, repeated); return a row on memory."""
    rows = np.random.default_rng(0).integers(0, run.n_cells, n_cells)
    obs = run.study.obs.iloc[rows].set_axis([f"c{number}" for number in range(n_cells)])
    modality = Modality("rna", run.data.modalities[0].counts[rows], run.data.modalities[0].var, np.ones(n_cells, dtype=bool))
    many = run.on(Study(obs, {"rna": modality}, (), np.zeros(n_cells, dtype=int), np.arange(n_cells)))
    with Memory() as memory:
        start = time.process_time()
        write_expression(many, folder / "large.h5ad", None, ExpressionQuestion(transform_batch=run.batches))
        seconds = time.process_time() - start
    array = 4 * n_cells * len(run.features) / 1e6
    return f"| {n_cells:,} x {len(run.features):,} | {array:,.0f} | {memory.further / 1e6:,.0f} | {seconds:.0f} |"


class Memory:
    """Looks 50 times a second at how much memory the process holds beyond what it held at first."""

    def __enter__(self) -> Memory:
        self._process, self._done, self.further = psutil.Process(), threading.Event(), 0
        self._first = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.further = max(self.further, self._process.memory_info().rss - self._first)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def correlated(one: np.ndarray, two: np.ndarray) -> str:
    return f"{np.corrcoef(np.ravel(one), np.ravel(two))[0, 1]:.5f}"


def rows_of(ours: dict, theirs: dict, clock: dict, peer_clock: dict) -> list[tuple[str, str, str, str, str, str]]:
    def row(name: str, label: str, one: str, two: str, agreement: str) -> tuple[str, str, str, str, str, str]:
        return label, one, two, agreement, f"{clock[name]:.2f}", f"{peer_clock[name]:.2f}"

    elbos = [f"{each['elbo'].mean():.2f} ± {each['elbo'].std():.2f}" for each in (ours, theirs)]
    called = [f"{(each['de_change'] > 0.95).sum()} above 0.95" for each in (ours, theirs)]
    furthest = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ("latent", "correlation", "de_change", "de_vanilla")}
    return [
        row("latent", "latent mean", "", "", f"furthest {furthest['latent']:.1e}"),
        row("expression", "expression, 50 draws", "", "", f"correlation of logs {correlated(np.log(ours['expression']), np.log(theirs['expression']))}"),
        row("elbo", "ELBO, nats a cell", *elbos, ""),
        row("marginal", "marginal likelihood, 100 draws", f"{ours['marginal'].mean():.2f}", f"{theirs['marginal'].mean():.2f}",
            f"correlation over cells {correlated(ours['marginal'], theirs['marginal'])}"),
        row("correlation", "correlation of features", "", "", f"furthest {furthest['correlation']:.3f}"),
        row("de_change", "differential expression, change", *called,
            f"furthest probability {furthest['de_change']:.3f}, fold changes {correlated(ours['lfc'], theirs['lfc'])}"),
        row("de_vanilla", "differential expression, vanilla", "", "", f"furthest probability {furthest['de_vanilla']:.3f}"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--cells", type=int, default=200_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = trained(given.data / SET, folder / "run")
        memory = large(run, given.cells, folder)  # first, while nothing else has taken memory yet
        ours, clock = ask(run)
        theirs, peer = peer_answers(given.peer, given.data / SET, run, folder)
        table = rows_of(ours, theirs, clock, peer["clock"])
    lines = [
        "# Questions to a trained model", "",
        f"{SET}: {run.n_cells:,} cells x {len(run.features):,} genes, two batches, scVI with its defaults, 40 epochs, trained by Cellweave; the "
        "same weights in both programs. One thread, processor seconds. "
        "What is drawn differs between the programs, so answers agree within the noise of the draws.", "",
        f"{cpu_name()}, {usable_cores()} cores, {platform.system()}, Python {platform.python_version()}; torch {torch.__version__}, numpy {np.__version__}; "
        f"scvi-tools {peer['versions']['scvi-tools']}, torch of the peer {peer['versions']['torch']}; load {os.getloadavg()[0]:.1f}.", "",
        "| question | Cellweave | scvi-tools | agreement | Cellweave, s | scvi-tools, s |", "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in table), "",
        "## Corrected expression written to h5ad", "",
        "| cells x genes | the array, MB | further memory, MB | processor seconds |", "|---|---|---|---|", memory, "",
    ]  # fmt: skip
    (HERE / "results" / "query_vs_scvi.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
