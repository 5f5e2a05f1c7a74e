"""Time the likelihoods, and one whole training step against scvi-tools' step on the same data.

    python benchmarks/step_likelihood.py --peer-python PATH --write benchmarks/results/step_likelihood.md

The peer lives in an environment of its own, given by its Python. One thread; CPU time; all contestants take turns in
short bursts, and the best burst of each counts, because other work on the machine slows them all.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402  (after the number of threads is set)
import scipy.sparse as sp  # noqa: E402
import torch  # noqa: E402

N_BATCHES, KL_WEIGHT = 4, 0.3
ADAM = {"lr": 1e-3, "eps": 0.01, "weight_decay": 1e-6}
LIKELIHOODS = ("zinb", "nb", "poisson")


def simulate(n_cells, n_genes, seed=0):
    """Overdispersed counts with a library size, and the batch of each cell."""
    rng = np.random.default_rng(seed)
    mean, library = rng.gamma(0.5, 0.62, n_genes), rng.gamma(4, 0.25, (n_cells, 1))
    counts = rng.poisson(rng.gamma(1.0, 1.0, (n_cells, n_genes)) * mean * library)
    return sp.csr_matrix(counts.astype(np.float32)), rng.integers(0, N_BATCHES, n_cells)


def minibatches(n_cells, size):
    order = np.random.default_rng(1).permutation(n_cells)
    return [np.sort(order[start : start + size]) for start in range(0, n_cells - size + 1, size)]


def plain_nll(self, counts, generated):
    """The likelihood as it is usually written, every element of a dense matrix."""
    from cellweave.core.nn import likelihoods as plain

    if generated.theta is None:
        return -plain.poisson_log_prob(counts.dense, generated.mu).sum(1)
    theta = generated.theta if generated.group is None else generated.theta[generated.group]
    if generated.zero is None:
        return -plain.nb_log_prob(counts.dense, generated.mu, theta).sum(1)
    return -plain.zinb_log_prob(counts.dense, generated.mu, theta, generated.zero).sum(1)


class Ours:
    """A training step of our network."""

    def __init__(self, likelihood, counts, batch, how):
        from cellweave.core.models.base import BuildContext, ModalityInfo, StepContext
        from cellweave.core.models.vae import VaeOptions
        from cellweave.core.models.vae_network import VaeNetwork, build
        from cellweave.core.spec.covariates import CovariateSpec
        from cellweave.core.spec.run import RunSpec

        torch.manual_seed(0)
        spec = RunSpec(covariates=CovariateSpec(batch="batch"), model=VaeOptions(gene_likelihood=likelihood))
        n_genes, flat = counts.shape[1], {"rna": np.zeros(N_BATCHES)}
        info = ModalityInfo("rna", n_genes, (n_genes,))
        self.network = build(BuildContext(spec, (info,), {"batch": N_BATCHES}, 0, counts.shape[0], flat, flat)).train()
        if how == "plain":
            self.network.nll = plain_nll.__get__(self.network, VaeNetwork)
        self.how, self.counts, self.batch, self.step_context = how, counts, batch, StepContext(True, {})
        self.optimizer = torch.optim.Adam(self.network.parameters(), **ADAM, fused=True)
        self.top = int(counts.data.max())

    def __call__(self, rows):
        from cellweave.core.models.base import Minibatch
        from cellweave.core.nn.compiled_call import without_compiled
        from cellweave.core.nn.counts import CountBatch

        part = self.counts[rows]
        counts = CountBatch.from_csr(
            part.indptr, part.indices, part.data, part.shape[1], integer=True, stores_zeros=False, max_count=self.top
        )
        minibatch = Minibatch(torch.from_numpy(rows), {"rna": counts}, {"batch": torch.from_numpy(self.batch[rows])})
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.how == "bf16"):
            if self.how == "passes":
                with without_compiled():
                    terms = self.network.loss_terms(minibatch, self.step_context)
            else:
                terms = self.network.loss_terms(minibatch, self.step_context)
        (terms["reconstruction"] + KL_WEIGHT * terms["kl_z"]).mean().backward()
        self.optimizer.step()


class Peer:
    """A training step of scvi-tools' module, without the framework around it."""

    def __init__(self, likelihood, counts, batch, how):
        from scvi.module import VAE

        torch.manual_seed(0)
        self.module = VAE(counts.shape[1], n_batch=N_BATCHES, gene_likelihood=likelihood).train()
        self.counts, self.batch = counts, batch
        self.optimizer = torch.optim.Adam(self.module.parameters(), **ADAM)

    def __call__(self, rows):
        from scvi import REGISTRY_KEYS as KEYS

        tensors = {
            KEYS.X_KEY: torch.from_numpy(self.counts[rows].toarray()),
            KEYS.BATCH_KEY: torch.from_numpy(self.batch[rows])[:, None],
            KEYS.LABELS_KEY: torch.zeros(len(rows), 1, dtype=torch.int64),
        }
        self.optimizer.zero_grad()
        _, _, loss = self.module(tensors, loss_kwargs={"kl_weight": KL_WEIGHT})
        loss.loss.backward()
        self.optimizer.step()


def serve(kind, arguments):
    """Answer each line ``how likelihood`` on standard input with the CPU milliseconds of a step, best mean of a burst."""
    torch.set_num_threads(1)
    counts, batch = simulate(arguments.cells, arguments.genes)
    rows = minibatches(arguments.cells, arguments.batch)[: arguments.steps]
    made = {}
    if kind == "peer":
        import scvi

        print(json.dumps({"scvi-tools": scvi.__version__, "torch": torch.__version__}), flush=True)
    else:
        import numba

        print(json.dumps({"torch": torch.__version__, "numba": numba.__version__, "numpy": np.__version__}), flush=True)
    for line in sys.stdin:
        how, likelihood = line.split()
        if (how, likelihood) not in made:
            made[how, likelihood] = (Peer if kind == "peer" else Ours)(likelihood, counts, batch, how)
            for part in rows[:3]:
                made[how, likelihood](part)
        start = time.process_time()
        for part in rows:
            made[how, likelihood](part)
        print((time.process_time() - start) / len(rows) * 1e3, flush=True)


def start(python, kind, arguments):
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("cells", "genes", "batch", "steps")]
    process = subprocess.Popen(
        [python, __file__, "--worker", kind, *sizes],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )
    return process, json.loads(process.stdout.readline())


def ask(process, question):
    process.stdin.write(question + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def time_steps(arguments):
    """Return the best milliseconds of a step by (contestant, likelihood), and versions."""
    ours, versions = start(sys.executable, "ours", arguments)
    contestants = [(ours, how) for how in ("compiled", "passes", "plain", "bf16")]
    if arguments.peer_python:
        peer, peer_versions = start(arguments.peer_python, "peer", arguments)
        contestants.append((peer, "scvi-tools"))
        versions = versions | {"scvi-tools": peer_versions["scvi-tools"], "torch of the peer": peer_versions["torch"]}
    best = {}
    for _ in range(arguments.bursts):
        for likelihood in LIKELIHOODS:
            for process, how in contestants:
                found = ask(process, f"{how} {likelihood}")
                best[how, likelihood] = min(found, best.get((how, likelihood), np.inf))
    for process in {process for process, _ in contestants}:
        process.stdin.close()
        process.wait()
    return best, versions


def time_likelihoods(arguments):
    """Return the best milliseconds of value and gradients by (form, likelihood, layout of the dispersion)."""
    from cellweave.core.nn import likelihoods as plain
    from cellweave.core.nn.compiled_call import without_compiled
    from cellweave.core.nn.counts import CountBatch
    from cellweave.core.nn.sparse_likelihoods import nb_nll

    torch.set_num_threads(1)
    counts, batch = simulate(arguments.batch, arguments.genes)
    x = CountBatch.from_csr(counts.indptr, counts.indices, counts.data, arguments.genes)
    x.dense  # noqa: B018  (made once, as in training)
    generator = torch.Generator().manual_seed(0)
    mu = (torch.rand(x.shape, generator=generator) + 0.01).requires_grad_()
    zero = torch.randn(x.shape, generator=generator).requires_grad_()
    group = torch.from_numpy(batch)
    best = {}
    for layout, shape in (("gene", x.shape[1:]), ("gene-batch", (N_BATCHES, x.shape[1])), ("gene-cell", x.shape)):
        theta = (torch.rand(shape, generator=generator) + 0.1).requires_grad_()
        codes = group if layout == "gene-batch" else None

        def wide(theta=theta, codes=codes):
            return theta if codes is None else theta[codes]

        def fast(zi=None, theta=theta, codes=codes):
            return nb_nll(x, mu, theta, zi_logits=zi, group=codes)

        def passes(zi=None, fast=fast):
            with without_compiled():
                return fast(zi)

        forms = {
            ("plain", "nb"): lambda wide=wide: -plain.nb_log_prob(x.dense, mu, wide()).sum(1),
            ("plain", "zinb"): lambda wide=wide: -plain.zinb_log_prob(x.dense, mu, wide(), zero).sum(1),
            ("passes", "nb"): passes, ("passes", "zinb"): lambda passes=passes: passes(zero),
            ("compiled", "nb"): fast, ("compiled", "zinb"): lambda fast=fast: fast(zero),
        }
        for _ in range(arguments.bursts):
            for (form, likelihood), value in forms.items():
                leaves = (mu, theta, zero) if likelihood == "zinb" else (mu, theta)
                for _ in range(2):
                    begin = time.process_time()
                    torch.autograd.grad(value().mean(), leaves)
                    spent = (time.process_time() - begin) * 1e3
                    key = form, likelihood, layout
                    best[key] = min(spent, best.get(key, np.inf))
    return best, x.nnz / (x.n_cells * x.n_features)


def hardware():
    """Words on the machine: processor, cores; nothing that names it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def report(arguments):
    likelihood, density = time_likelihoods(arguments)
    steps, versions = time_steps(arguments)
    lines = [
        "# Likelihood and training step", "",
        f"{arguments.batch} cells x {arguments.genes} genes, {density:.0%} of the counts not 0; one thread; best of "
        f"{arguments.bursts} bursts taken in turn; load of the machine at the end {os.getloadavg()[0]:.1f}.", "",
        f"{hardware()}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", "",
        "## Value and gradients of the likelihood, CPU milliseconds", "",
        "| likelihood | dispersion | plain | passes | compiled | plain / compiled |", "|---|---|---|---|---|---|",
    ]
    for name in ("nb", "zinb"):
        for layout in ("gene", "gene-batch", "gene-cell"):
            plain, passes, fast = (likelihood[form, name, layout] for form in ("plain", "passes", "compiled"))
            lines.append(f"| {name} | {layout} | {plain:.1f} | {passes:.2f} | {fast:.2f} | {plain / fast:.1f}x |")
    peer = ("scvi-tools", "zinb") in steps
    order = [*(["scvi-tools"] if peer else []), "plain", "passes", "compiled", "bf16"]
    lines += [
        "", "## Training step (minibatch from CSR, forward, backward, Adam), CPU milliseconds", "",
        "`plain`, `passes` and `compiled` are our network with the three forms of the likelihood; `bf16` is `compiled` with "
        "matrix products in bfloat16.", "",
        "| likelihood | " + " | ".join(order) + " |" + (" scvi-tools / compiled | scvi-tools / bf16 |" if peer else ""),
        "|---" * (len(order) + 1 + 2 * peer) + "|",
    ]
    for name in LIKELIHOODS:
        row = f"| {name} | " + " | ".join(f"{steps[how, name]:.2f}" for how in order) + " |"
        if peer:
            theirs = steps["scvi-tools", name]
            row += f" {theirs / steps['compiled', name]:.2f}x | {theirs / steps['bf16', name]:.2f}x |"
        lines.append(row)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default="", help="Python of an environment with scvi-tools")
    parser.add_argument("--cells", type=int, default=2560)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="steps in a burst")
    parser.add_argument("--bursts", type=int, default=30)
    parser.add_argument("--write", default="", help="file for the table")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker, arguments)
        return
    text = report(arguments)
    print(text)
    if arguments.write:
        Path(arguments.write).write_text(text)


if __name__ == "__main__":
    main()
