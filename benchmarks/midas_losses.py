"""MIDAS: do the losses of Cellweave and of scmidas have the same distribution, with everything drawn as each draws it?

    python benchmarks/midas_losses.py --peer PEER_PYTHON [--data FOLDER] [--epochs 17] [--seeds 28] [--first-seed 5020]

midas_steps.py shows that a step is the same where nothing is drawn. Here initial weights, minibatches, dropout, noise and the steps without the batch
are each program's own; the means over many seeds must agree in every stretch of the training. PEER_PYTHON as in midas_vs_scmidas.py. The table goes to
benchmarks/results/midas_losses.md; rows of another number of epochs are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from midas_vs_scmidas import Bench, steps_of
from scipy import stats

from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec
from cellweave.core.study import load_study
from cellweave.core.system import cpu_name
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.loop import Trainer
from cellweave.core.training.sources import Loader
from cellweave.core.training.tools import seed_everything

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "midas_losses.json"
RATE, SIZE, DATA = 3e-4, 128, "bmmc"
#: What scmidas calls a loss, and the name of our term.
NAMES = {
    "rna": "reconstruction_rna", "adt": "reconstruction_adt", "atac": "reconstruction_atac", "s": "reconstruction_batch", "kl": "kl",
    "alignment": "alignment", "adversarial": "adversarial",
}  # fmt: skip
Steps = list[dict[str, float]]


def ours(path: Path, folder: Path, seeds: Sequence[int], epochs: int) -> list[Steps]:
    """Train with each seed in float32; return the losses of every step."""
    torch.set_num_threads(1)
    base = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(path),), "covariates.batch": "batch", "training.max_epochs": epochs, "training.batch_size": SIZE,
        "training.learning_rate": RATE, "training.validation_share": 0.0, "training.threads": 1, "training.precision": "32",
    })  # fmt: skip
    data = prepare(base, load_study(base.data))
    found = []
    for seed in seeds:
        spec = base.with_changes({"training.seed": seed})
        seed_everything(seed, 0, "build")
        model = spec.family.build(data.context(spec)).train()
        run = RunFolder.create(folder / f"run-{seed}", spec)
        trainer = Trainer(spec, model, Loader(data, torch.device("cpu"), resident=False), Journal(run, None), RunControl())
        steps: Steps = []
        whole, weight = model.whole_step, spec.loss_weights()["kl_u"]

        def kept(*arguments, whole=whole, steps=steps, weight=weight):
            terms = whole(*arguments)
            assert terms is not None
            steps.append({**terms, "kl": terms["kl_c"] + weight * terms["kl_u"]})
            return terms

        model.whole_step = kept  # type: ignore[method-assign]
        for epoch in range(epochs):
            seed_everything(seed, epoch, "train")
            for rows in trainer.loader.epoch(trainer.train_rows, SIZE, seed, epoch, at_least=1, n_max=trainer.n_max):
                trainer._step(trainer.loader.minibatch(rows))
                trainer.at.step += 1
        model.release()
        found.append(steps)
    return found


def theirs(bench: Bench, job: dict) -> list[Steps]:
    """Train scmidas with each seed; return the losses of every step."""
    place = bench.folder / "losses.json"
    place.write_text(json.dumps(job))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([str(bench.interpreters["scmidas"]), str(HERE / "midas_jobs" / "scmidas_losses.py"), str(place)], env=environment, check=True)
    return json.loads(Path(job["result"]).read_text())


def stretches(n_steps: int) -> list[tuple[int, int]]:
    """Return parts of a training, shorter where losses fall fast."""
    edges = [0, *(edge for edge in (36, 80, 140, 204, 500, 800) if edge < n_steps), n_steps]
    return list(pairwise(edges))


def compare(first: list[Steps], second: list[Steps]) -> list[dict]:
    """Return mean, standard deviation and Welch's t for each loss and stretch; a seed counts once."""
    rows = []
    for theirs_name, own_name in NAMES.items():
        for start, stop in stretches(len(first[0])):
            means = [
                np.array([np.mean([step[name] for step in steps[start:stop] if name in step]) for steps in runs])
                for name, runs in ((theirs_name, first), (own_name, second))
            ]
            t = stats.ttest_ind(means[1], means[0], equal_var=False)
            rows.append({
                "loss": own_name, "steps": f"{start + 1}-{stop}", "t": float(t.statistic), "p": float(t.pvalue),
                **{f"{who} {what}": float(value) for who, part in zip(("scmidas", "ours"), means, strict=True)
                   for what, value in (("mean", part.mean()), ("sd", part.std(ddof=1)))},
            })  # fmt: skip
    return rows


def report(found: dict) -> str:
    """Return the tables."""
    lines = ["# MIDAS: losses in training beside scmidas', everything drawn\n"]
    about = found["about"]
    lines.append(f"Made by `python benchmarks/midas_losses.py --peer PEER_PYTHON` on {about['date']}: {about['machine']}.")
    lines.append(
        f"The BMMC mosaic, minibatches of {SIZE}, learning rate {RATE:g}, float32. Nats a cell without weights (kl: c and five times u); mean (standard "
        "deviation) over seeds, of each seed's mean over the steps; t is Welch's, ours less scmidas'.\n"
    )
    for part in found["parts"]:
        strongest = max(part["rows"], key=lambda row: abs(row["t"]))
        lines.append(f"## {part['epochs']} epochs: {part['seeds']['scmidas']} seeds of scmidas, {part['seeds']['ours']} of Cellweave\n")
        lines.append(f"Largest of {len(part['rows'])} |t|: {abs(strongest['t']):.1f}. Smallest p {min(row['p'] for row in part['rows']):.3f}.\n")
        lines.append("| loss | steps | scmidas | Cellweave | t |\n|---|---|---|---|---|")
        for row in part["rows"]:
            both = [f"{row[f'{who} mean']:.4g} ({row[f'{who} sd']:.2g})" for who in ("scmidas", "ours")]
            lines.append(f"| {row['loss']} | {row['steps']} | {both[0]} | {both[1]} | {row['t']:.1f} |")
        lines.append("")
    return "\n".join(lines)


def keep(epochs: int, first: list[Steps], second: list[Steps]) -> None:
    """Write a comparison beside those of other numbers of epochs."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"parts": []}
    part = {"epochs": epochs, "seeds": {"scmidas": len(first), "ours": len(second)}, "rows": compare(first, second)}
    found["parts"] = sorted([part, *(other for other in found["parts"] if other["epochs"] != epochs)], key=lambda one: one["epochs"])
    found["about"] = {"date": time.strftime("%Y-%m-%d"), "machine": cpu_name()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(report(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="interpreter of an environment with scmidas")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--epochs", type=int, default=17)
    parser.add_argument("--seeds", type=int, default=28)
    parser.add_argument("--first-seed", type=int, default=5020)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.peer.absolute(), options.data, Path(folder))
        path, dims = bench.prepare(DATA)
        job = {"data": str(path), "dims_x": dims, "seeds": seeds, "epochs": options.epochs, "batch_size": SIZE, "learning_rate": RATE}
        first = theirs(bench, {**job, "result": f"{folder}/scmidas-losses.json"})
        second = ours(path, Path(folder), seeds, options.epochs)
        assert len(first[0]) == len(second[0]) == options.epochs * steps_of(DATA, path, SIZE)
    keep(options.epochs, first, second)


if __name__ == "__main__":
    main()
