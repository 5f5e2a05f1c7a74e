"""MIDAS: Cellweave beside scmidas, on the same real mosaics, architecture, threads and number of steps.

    python benchmarks/midas_vs_scmidas.py --peer PEER_PYTHON [--data FOLDER] [--only speed|quality] [--sets pbmc bmmc snare] [--seeds 5]

PEER_PYTHON is the interpreter of an environment that has scmidas (torch, scanpy, lightning, toml, natsort, requests, and
``pip install --no-deps scmidas==0.3.0``). Every run is a process of its own; the two programs take turns, so that a machine whose
speed drifts slows both. Tables go to benchmarks/results/midas_vs_scmidas.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import mudata
import numpy as np
import pandas as pd

from cellweave.core.analysis.clusters import leiden
from cellweave.core.analysis.layout import fuzzy_graph
from cellweave.core.analysis.neighbours import find_neighbours
from cellweave.core.study.blocks import natural_order
from cellweave.core.system import cpu_name, usable_cores

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "midas_vs_scmidas.json"
WORKERS = {"ours": HERE / "midas_jobs" / "cellweave_job.py", "scmidas": HERE / "midas_jobs" / "scmidas_job.py"}
SETS = {
    "pbmc": ("mosaic_pbmc_rna_adt_4batches", "cell_type", "1,600 cells, RNA 500 x ADT 224, four donors: RNA only, ADT only, both, both"),
    "bmmc": ("mosaic_bmmc_rna_adt_atac_4batches", "cell_type_l1", "1,100 cells, RNA 168, ADT 134, ATAC 600 by chromosome; RNA+ADT twice, RNA+ATAC twice"),
    "snare": ("multiome_snareseq_mouse_cortex_9batches", "cell_type_coarse", "7,844 cells, RNA 1,677 x ATAC 25,734 by chromosome, nine plates of both"),
}
#: What is changed in our run for each way of computing its products; the peer knows float32 only.
OURS = {"ours": {"training.precision": "32"}, "ours bf16": {"training.precision": "bf16"}}
RESOLUTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


class Bench:
    """Runs jobs in processes of their own and keeps what they measured."""

    def __init__(self, peer: Path, data: Path, folder: Path) -> None:
        self.interpreters = {"ours": Path(sys.executable), "scmidas": peer}
        self.data, self.folder, self.count = data, folder, 0
        self.versions: dict[str, str] = {}
        self.prepared: dict[str, tuple[Path, dict]] = {}

    def prepare(self, name: str) -> tuple[Path, dict]:
        """Write a copy of a data set that both programs read alike: peaks in the order of their chromosomes; return the blocks' sizes."""
        if name not in self.prepared:
            data = mudata.read_h5mu(self.data / f"{SETS[name][0]}.h5mu")
            dims = {key: [part.n_vars] for key, part in data.mod.items()}
            if "atac" in data.mod:
                chromosome = data["atac"].var["chrom"].astype(str).to_numpy()
                kept = np.array([label.startswith("chr") for label in chromosome])
                names = sorted(set(chromosome[kept]), key=natural_order)
                order = np.concatenate([np.flatnonzero(chromosome == label) for label in names])
                parts = {key: part.copy() if key != "atac" else part[:, order].copy() for key, part in data.mod.items()}
                obs, data = data.obs, mudata.MuData(parts)
                data.obs["batch"] = obs["batch"].reindex(data.obs_names)
                dims["atac"] = [int((chromosome == label).sum()) for label in names]
            path = self.folder / f"{name}.h5mu"
            data.write_h5mu(path)
            self.prepared[name] = path, dims
        return self.prepared[name]

    def run(self, who: str, name: str, job: dict) -> dict:
        """Run one job; return its clocks and the latents by batch and modality."""
        self.count += 1
        place = self.folder / f"job-{self.count}"
        path, dims = self.prepare(name)
        program = "scmidas" if who == "scmidas" else "ours"
        job = {
            "threads": 1, "seed": 0, "folder": f"{place}-run", "result": f"{place}-result.json", "latents": f"{place}-latents.npz",
            "data": str(path), "dims_x": dims, "set": OURS.get(who, {}), **job,
        }  # fmt: skip
        place.with_suffix(".json").write_text(json.dumps(job))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "GOMP_"))}
        environment |= {"OMP_NUM_THREADS": str(job["threads"]), "MKL_NUM_THREADS": str(job["threads"])}
        command = [str(self.interpreters[program]), str(WORKERS[program]), str(place.with_suffix(".json"))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=self.folder)  # scmidas saves where it is
        if done.returncode != 0:
            sys.exit(f"{who} failed:\n{done.stderr[-3000:]}")
        result = json.loads(Path(job["result"]).read_text())
        self.versions |= result["versions"]
        with np.load(job["latents"]) as arrays:
            result["latents"] = {key: arrays[key] for key in arrays.files}
        return result


def steps_of(name: str, path: Path, batch_size: int) -> int:
    """Return the steps of an epoch, the same in both programs: full rounds over all batches."""
    sizes = mudata.read_h5mu(path).obs["batch"].value_counts()
    return -(-int(sizes.max()) // batch_size) * len(sizes)


def speed(bench: Bench, sets: Sequence[str], repeats: int, threads: Sequence[int], batch_sizes: Sequence[int]) -> Iterator[dict]:
    """Same batch size, same arithmetic (float32, and bf16 products for ours): milliseconds a step."""
    for name in sets:
        path, _ = bench.prepare(name)
        for batch_size in batch_sizes:
            steps = steps_of(name, path, batch_size)
            epochs = max(3, -(-80 // steps) + 1)  # the first is left out
            for n_threads in threads:
                job = {"epochs": epochs, "batch_size": batch_size, "learning_rate": 1e-4, "threads": n_threads}
                row: dict = {"data": name, "batch_size": batch_size, "threads": n_threads, "steps": steps}
                found: dict[str, list[dict]] = {who: [] for who in (*OURS, "scmidas")}
                for _ in range(repeats):
                    for who, results in found.items():
                        results.append(bench.run(who, name, job))
                for who, results in found.items():
                    for clock in ("wall", "cpu"):
                        row[f"{who} {clock}"] = min(1e3 * (b - a) / steps for result in results for a, b in pairwise(result[clock][1:]))
                    row[f"{who} memory"] = min(result["peak_bytes"] for result in results)
                yield row


def quality(bench: Bench, sets: Sequence[str], seeds: Sequence[int], steps: int, programs: Sequence[str]) -> Iterator[dict]:
    """The same number of steps with each program: clusters against labels, and how well the modalities of a cell lie together."""
    for name in sets:
        path, _ = bench.prepare(name)
        epochs = -(-steps // steps_of(name, path, 128))
        for seed in seeds:
            for who in programs:
                job = {"epochs": epochs, "batch_size": 128, "learning_rate": 3e-4, "seed": seed}
                result = bench.run(who, name, job)
                scores = score(result["latents"], name, path)
                clocks = {clock: result[clock][-1] - result[clock][0] for clock in ("wall", "cpu")}
                yield {"data": name, "seed": seed, "who": who, "epochs": epochs, **clocks, **scores}


def score(latents: dict[str, np.ndarray], name: str, path: Path) -> dict[str, float]:
    """Return ARI and NMI at the resolution with the best NMI, batch mixing, FOSCTTM and label transfer between modalities."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
    from sklearn.neighbors import KNeighborsClassifier

    data = mudata.read_h5mu(path)
    modality = next(iter(data.mod))
    labels = pd.concat([part.obs[SETS[name][1]].astype(str) for part in data.mod.values()])
    labels = labels[~labels.index.duplicated()].reindex(data.obs_names)
    batch = data.obs["batch"].astype(str)
    batches = sorted(batch.unique())
    by_batch = {level: labels[(batch == level).to_numpy()].to_numpy() for level in batches}
    joint = np.concatenate([latents[f"{level}/joint"] for level in batches])
    truth = np.concatenate([by_batch[level] for level in batches])
    codes = np.concatenate([np.full(len(by_batch[level]), level) for level in batches])
    graph = fuzzy_graph(find_neighbours(joint, 14, seed=0), 15)
    found = [(normalized_mutual_info_score(truth, own), adjusted_rand_score(truth, own)) for own in (leiden(graph, resolution=r, seed=0) for r in RESOLUTIONS)]
    nmi, ari = max(found)
    neighbours = find_neighbours(joint, 30, seed=0).indices[:, 1:]
    shares = pd.Series(codes).value_counts(normalize=True)
    same = (codes[neighbours] == codes[:, None]).mean()
    result = {
        "nmi": nmi, "ari": ari, "label asw": float(silhouette_score(joint, truth)),
        "batch mixing": float((1 - same) / (1 - (shares**2).sum())),
    }  # fmt: skip
    closer, transfers = [], []
    for level in batches:
        keys = sorted(key.split("/")[1] for key in latents if key.startswith(f"{level}/") and not key.endswith("/joint"))
        for first in keys:
            for second in keys:
                if first == second:
                    continue
                a, b = latents[f"{level}/{first}"], latents[f"{level}/{second}"]
                distance = ((a[:, None] - b[None]) ** 2).sum(-1)
                own = np.diag(distance)[:, None]
                closer.append(1 - ((distance < own).sum(1) / (len(a) - 1)).mean())
                guess = KNeighborsClassifier(5, weights="distance").fit(a, by_batch[level]).predict(b)
                transfers.append(float((guess == by_batch[level]).mean()))
    return {**result, "foscttm": float(np.mean(closer)), "transfer f1": float(np.mean(transfers)), "paired by": modality}


def tables(found: dict) -> Iterator[str]:
    """Yield the lines of the report."""
    about = found["about"]
    yield "# MIDAS: Cellweave beside scmidas\n"
    yield f"Made by `python benchmarks/midas_vs_scmidas.py --peer PEER_PYTHON` on {about['date']}: {about['machine']}."
    yield f"Versions: {', '.join(f'{name} {number}' for name, number in about['versions'].items())}."
    yield "Data: " + "; ".join(f"{name}: {SETS[name][2]}" for name in SETS) + "."
    for part, load in found["loads"].items():
        yield (
            f"Load of the machine at the end of the {part} rows: {load:.1f} on {about['cores']} "
            f"cores{' (other work ran: go by the processor times)' if load > about['cores'] else ''}."
        )
    yield from found.get("notes", [])  # written by hand into the JSON: what a reader must know of rows that were kept
    yield ""
    if found.get("speed"):
        yield "## Milliseconds a step, equal settings\n"
        yield (
            "The documented network of scmidas 0.3.0. `Cellweave` computes everything in float32, as scmidas does. `Cellweave bf16` "
            "(`training.precision = bf16`, and what `auto`, MIDAS' default, chooses on this machine) has in bf16 what enters or leaves a matrix product "
            "of encoders, decoders and discriminators: activations, the slopes that flow back beside them, a copy of the weights, the weights' gradients. "
            "Weights, Adam and its moments, layer norms, activation functions, sparse first layers, product of experts, losses, the discriminators' last "
            "maps and the batch networks stay in float32. Best epoch of all runs, the first left out; CPU ms in brackets."
        )
        yield (
            "scmidas runs without worker processes, the fastest way on these data. Where more other work ran than there are cores, wall times are "
            "not compared (busy).\n"
        )
        yield (
            "| data | minibatch | threads | load | scmidas | Cellweave | faster | in CPU time | Cellweave bf16 | faster | in CPU time | "
            "peak memory MB, theirs / ours / ours bf16 |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
        for row in sorted(found["speed"], key=lambda row: (list(SETS).index(row["data"]), row["threads"], row["batch_size"])):
            cells = [f"{row[f'{who} wall']:.1f} ({row[f'{who} cpu']:.1f})" for who in ("scmidas", "ours", "ours bf16")]
            ratios = [[f"{row[f'scmidas {clock}'] / row[f'{who} {clock}']:.1f}x" for clock in ("wall", "cpu")] for who in ("ours", "ours bf16")]
            if row.get("load", 0.0) > found["about"]["cores"]:  # other work slowed one program more than the other
                ratios = [["busy", cpu] for _, cpu in ratios]
            memory = " / ".join(f"{row[f'{who} memory'] / 1e6:.0f}" for who in ("scmidas", "ours", "ours bf16") if f"{who} memory" in row)
            yield (
                f"| {row['data']} | {row['batch_size']} | {row['threads']} | {row.get('load', 0):.0f} | {cells[0]} | {cells[1]} | "
                f"{' | '.join(ratios[0])} | {cells[2]} | "
                f"{' | '.join(ratios[1])} | {memory} |"
            )
        yield ""
    if found.get("quality"):
        yield from quality_table(found["quality"])


def quality_table(rows: list[dict]) -> Iterator[str]:
    """Yield mean and standard deviation over the seeds."""
    names = ("ari", "nmi", "label asw", "batch mixing", "foscttm", "transfer f1")
    yield "## The same number of steps: mean (standard deviation) over the seeds\n"
    yield (
        "Minibatches of 128, learning rate 3e-4, no held-out cells, one thread. ARI and NMI of Leiden clusters of c at the resolution with the best "
        "NMI; batch mixing is the "
        "share of the 29 nearest neighbours from other batches, over that expected by chance (1 is perfect); FOSCTTM is one minus the fraction of "
        "cells closer than the true match (1 is best); label transfer "
        "is the micro F1 of 5 nearest neighbours from one modality's c to another's.\n"
    )
    yield "| data | program | seeds | epochs | seconds (CPU) | " + " | ".join(names) + " |"
    yield "|---" * (5 + len(names)) + "|"
    table = pd.DataFrame(rows)
    labels = {"ours": "Cellweave, float32", "ours bf16": "Cellweave, bf16 products", "scmidas": "scmidas"}
    for (data, who), own in table.groupby(["data", "who"]):
        values = " | ".join(f"{own[name].mean():.3f} ({own[name].std():.3f})" for name in names)
        yield f"| {data} | {labels[who]} | {len(own)} | {own['epochs'].iloc[0]} | {own['wall'].mean():.0f} ({own['cpu'].mean():.0f}) | {values} |"
    yield ""


def _made_anew(row: dict, part: str, options: argparse.Namespace) -> bool:
    """Return whether a row of an earlier call is replaced by this one."""
    if row["data"] not in options.sets:
        return False
    if part == "quality":
        return row["who"] in options.programs and row["seed"] in seeds_of(options)
    return row["batch_size"] in options.batch_sizes and row["threads"] in options.threads


def seeds_of(options: argparse.Namespace) -> range:
    """Return the seeds of the quality rows that a call makes."""
    return range(options.first_seed, options.first_seed + options.seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="interpreter of an environment with scmidas")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--only", choices=("speed", "quality"))
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=("pbmc", "bmmc"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="rows of other seeds are kept")
    parser.add_argument("--steps", type=int, default=1040, help="steps of the quality rows")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", nargs="+", type=int, default=(1,))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(128, 256))
    parser.add_argument("--programs", nargs="+", choices=(*OURS, "scmidas"), default=(*OURS, "scmidas"), help="whose quality rows are made; others are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts = [options.only] if options.only else ["speed", "quality"]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.peer.absolute(), options.data, Path(folder))
        for part in parts:
            if part == "speed":
                rows = speed(bench, options.sets, options.repeats, options.threads, options.batch_sizes)
            else:
                rows = quality(bench, options.sets, seeds_of(options), options.steps, options.programs)
            kept = [row for row in found.get(part, []) if not _made_anew(row, part, options)]
            for row in rows:
                kept.append({**row, "load": os.getloadavg()[1]})
                print(json.dumps(row), flush=True)
                found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another call may measure the other part
                found[part] = kept
                found.setdefault("loads", {})[part] = os.getloadavg()[1]
                machine = f"{usable_cores()} cores of {cpu_name()}, {platform.system()}, Python {platform.python_version()}"
                versions = found.get("about", {}).get("versions", {}) | bench.versions
                found["about"] = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": versions, "cores": usable_cores()}
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
                RESULTS.with_suffix(".md").write_text("\n".join(tables(found)) + "\n")


if __name__ == "__main__":
    main()
