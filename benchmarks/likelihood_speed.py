"""Training speed by likelihood and dispersion: Cellweave's step beside scvi-tools' step, every combination that both have.

    python benchmarks/likelihood_speed.py --peer PEER_PYTHON [--rounds 12] [--cells 128] [--genes 2000]

One step is: minibatch from CSR, forward, loss, backward, Adam. Both programs keep a process of their own with one thread and take turns in
short bursts, so that other work on the machine slows both; the best burst counts, in processor time. The counts are overdispersed draws with
about as many zeros as 10x data have; speed depends on nothing else of them. Tables go to
benchmarks/results/likelihood_speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402  (after the number of threads is set)
import torch  # noqa: E402
from step_likelihood import ADAM, KL_WEIGHT, N_BATCHES, minibatches, simulate  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "likelihood_speed.json"
N_LABELS = 6
COMBINATIONS = [
    *((likelihood, dispersion) for likelihood in ("zinb", "nb") for dispersion in ("gene", "gene-batch", "gene-label", "gene-cell")),
    ("poisson", "gene"),
    ("normal", "gene"),
]


def data(arguments: argparse.Namespace) -> tuple:
    counts, batch = simulate(arguments.cells * 12, arguments.genes)
    return counts, batch, np.random.default_rng(3).integers(0, N_LABELS, len(batch))


class Ours:
    """A training step of our network, fused optimiser, compiled likelihood, as the engine has it."""

    def __init__(self, likelihood: str, dispersion: str, counts, batch, labels) -> None:
        from cellweave.core.models.base import BuildContext, ModalityInfo, StepContext
        from cellweave.core.models.vae import VaeOptions
        from cellweave.core.models.vae_network import build
        from cellweave.core.spec.covariates import CovariateSpec
        from cellweave.core.spec.run import RunSpec

        torch.manual_seed(0)
        roles = CovariateSpec(batch="batch", labels="labels")
        spec = RunSpec(covariates=roles, model=VaeOptions(gene_likelihood=likelihood, dispersion=dispersion))
        n_genes, flat = counts.shape[1], {"rna": np.zeros(N_BATCHES)}
        levels = {"batch": N_BATCHES, "labels": N_LABELS}
        self.network = build(BuildContext(spec, (ModalityInfo("rna", n_genes, (n_genes,)),), levels, 0, counts.shape[0], flat, flat)).train()
        self.counts, self.codes, self.context = counts, {"batch": batch, "labels": labels}, StepContext(True, {})
        self.optimizer = torch.optim.Adam(self.network.parameters(), **ADAM, fused=True)
        self.top = int(counts.data.max())

    def __call__(self, rows: np.ndarray) -> None:
        from cellweave.core.models.base import Minibatch
        from cellweave.core.nn.counts import CountBatch

        part = self.counts[rows]
        counts = CountBatch.from_csr(part.indptr, part.indices, part.data, part.shape[1], integer=True, stores_zeros=False, max_count=self.top)
        categorical = {name: torch.from_numpy(codes[rows]) for name, codes in self.codes.items()}
        minibatch = Minibatch(torch.from_numpy(rows), {"rna": counts}, categorical)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.network.loss_terms(minibatch, self.context)
        (terms["reconstruction"] + KL_WEIGHT * terms["kl_z"]).mean().backward()
        self.optimizer.step()


class Peer:
    """A training step of scvi-tools' module, without the framework around it."""

    def __init__(self, likelihood: str, dispersion: str, counts, batch, labels) -> None:
        from scvi.module import VAE

        torch.manual_seed(0)
        self.module = VAE(counts.shape[1], n_batch=N_BATCHES, n_labels=N_LABELS, gene_likelihood=likelihood, dispersion=dispersion).train()
        self.counts, self.batch, self.labels = counts, batch, labels
        self.optimizer = torch.optim.Adam(self.module.parameters(), **ADAM)

    def __call__(self, rows: np.ndarray) -> None:
        from scvi import REGISTRY_KEYS as KEYS

        tensors = {
            KEYS.X_KEY: torch.from_numpy(self.counts[rows].toarray()), KEYS.BATCH_KEY: torch.from_numpy(self.batch[rows])[:, None],
            KEYS.LABELS_KEY: torch.from_numpy(self.labels[rows])[:, None],
        }  # fmt: skip
        self.optimizer.zero_grad()
        _, _, loss = self.module(tensors, loss_kwargs={"kl_weight": KL_WEIGHT})
        loss.loss.backward()
        self.optimizer.step()


def serve(kind: str, arguments: argparse.Namespace) -> None:
    """Answer each line ``likelihood dispersion`` with the processor milliseconds of a step."""
    torch.set_num_threads(1)
    made, (counts, batch, labels) = {}, data(arguments)
    rows = minibatches(len(batch), arguments.cells)[: arguments.steps]
    versions = {"torch": torch.__version__}
    if kind == "scvi-tools":
        import scvi

        versions["scvi-tools"] = scvi.__version__
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        key = tuple(line.split())
        if key not in made:
            made[key] = (Peer if kind == "scvi-tools" else Ours)(*key, counts, batch, labels)
            for part in rows[:3]:
                made[key](part)
        start = time.process_time()
        for part in rows:
            made[key](part)
        print((time.process_time() - start) / len(rows) * 1e3, flush=True)


def start(python: Path, kind: str, arguments: argparse.Namespace) -> tuple[subprocess.Popen, dict]:
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("cells", "genes", "steps")]
    process = subprocess.Popen(
        [str(python), __file__, "--worker", kind, *sizes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return process, json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6, help="steps in a burst")
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--worker", choices=("ours", "scvi-tools"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker, arguments)
        return
    if arguments.peer is None:
        parser.error("name the peer's interpreter with --peer")
    load_before = os.getloadavg()[0]
    processes, versions = {}, {}
    for kind, python in (("ours", Path(sys.executable)), ("scvi-tools", arguments.peer.absolute())):
        processes[kind], found = start(python, kind, arguments)
        versions |= found
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for likelihood, dispersion in COMBINATIONS:
            row = best.setdefault(f"{likelihood} {dispersion}", {})
            for kind, process in processes.items():
                process.stdin.write(f"{likelihood} {dispersion}\n")
                process.stdin.flush()
                row[kind] = min(float(process.stdout.readline()), row.get(kind, np.inf))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    from cellweave.core.system import cpu_name, usable_cores

    counts = data(arguments)[0]
    density = counts.nnz / (counts.shape[0] * counts.shape[1])
    about = {
        "date": time.strftime("%Y-%m-%d"), "machine": f"{usable_cores()} cores of {cpu_name()}, {platform.system()}, Python {platform.python_version()}",
        "versions": versions, "cells": arguments.cells, "genes": arguments.genes, "density": density, "load": [load_before, os.getloadavg()[0]],
    }  # fmt: skip
    RESULTS.write_text(json.dumps({"about": about, "milliseconds": best}, indent=1) + "\n")
    words = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        "# Training speed by likelihood and dispersion", "",
        f"Made by `python benchmarks/likelihood_speed.py --peer PEER_PYTHON` on {about['date']}: {about['machine']}; {words}.",
        f"One step on {arguments.cells} cells x {arguments.genes:,} genes ({density:.0%} of the counts not 0), one thread, processor milliseconds, best of",
        f"{arguments.rounds} bursts taken in turn; load of the machine {load_before:.1f} to {about['load'][1]:.1f}.", "",
        "| likelihood | dispersion | scvi-tools | Cellweave | faster |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for key, row in best.items():
        likelihood, dispersion = key.split()
        lines.append(f"| {likelihood} | {dispersion} | {row['scvi-tools']:.2f} | {row['ours']:.2f} | **{row['scvi-tools'] / row['ours']:.2f}x** |")
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
