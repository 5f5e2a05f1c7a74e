"""Training scVI's VAE: Cellweave beside scvi-tools, on the same real cells, architecture, threads and epochs.

    python benchmarks/vae_vs_scvi.py --peer PEER_PYTHON [--data FOLDER] [--only speed|loss|memory] [--sets pbmc] [--threads 1 2]
    python benchmarks/vae_vs_scvi.py --make-peer FOLDER      make a virtual environment with scvi-tools, then go on

PEER_PYTHON is the interpreter of an environment that has scvi-tools. Every run is a process of its own; the two programs
take turns, so that a machine whose speed drifts slows both. Tables go to benchmarks/results/vae_vs_scvi.md.
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
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import anndata as ad
from vae_jobs import datasets

from cellweave.core.system import cpu_name, usable_cores

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "vae_vs_scvi.json"
WORKERS = {"ours": HERE / "vae_jobs" / "cellweave_job.py", "scvi-tools": HERE / "vae_jobs" / "scvi_tools_job.py"}
EQUAL = {"training.batch_size": 128, "training.early_stopping": False, "training.checkpoint_every": 1_000_000}
DATA_SETS = ("pbmc", "reap")


class Bench:
    """Runs jobs in processes of their own and keeps what they measured."""

    def __init__(self, peer: Path, data: Path, folder: Path, threads: Sequence[int]) -> None:
        self.threads = threads
        self.interpreters = {"ours": Path(sys.executable), "scvi-tools": peer}
        self.data, self.folder, self.count = data, folder, 0
        self.versions: dict[str, str] = {}

    def run(self, who: str, threads: int, job: dict) -> dict:
        """Run one job; return its clocks and losses, per epoch."""
        self.count += 1
        place = self.folder / f"job-{self.count}"
        job = {"threads": threads, "seed": 0, "split": None, "folder": f"{place}-run", "result": f"{place}-result.json", **job}
        place.with_suffix(".json").write_text(json.dumps(job))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "GOMP_"))}
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [str(self.interpreters[who]), str(WORKERS[who]), str(place.with_suffix(".json"))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{who} failed:\n{done.stderr[-3000:]}")
        result = json.loads(Path(job["result"]).read_text())
        self.versions |= result["versions"]
        return result


def ours(path: Path, epochs: int, **settings: object) -> dict:
    """Return a job for Cellweave."""
    return {"data": str(path), "set": {"training.max_epochs": epochs, **settings}}


def theirs(path: Path, epochs: int, likelihood: str, **more: object) -> dict:
    """Return a job for scvi-tools."""
    return {
        "data": str(path), "epochs": epochs, "likelihood": likelihood, "batch_size": 128, "learning_rate": 1e-3, "plan": {}, **more,
    }  # fmt: skip


def per_epoch(result: dict, clock: str) -> float:
    """Return the best seconds of an epoch, the first (warm-up) left out."""
    return min(late - early for early, late in pairwise(result[clock][1:]))


def speed(bench: Bench, sets: Sequence[str], repeats: int, epochs: int) -> list[dict]:
    """Same batch size, same arithmetic (float32), no look at held-out cells: seconds an epoch."""
    rows = []
    for name in sets:
        path = datasets.make(name, bench.data, bench.folder)
        n_cells, n_genes = ad.read_h5ad(path, backed="r").shape
        for likelihood in ("zinb", "nb"):
            for threads in bench.threads:
                settings = {**EQUAL, "training.validation_share": 0.0, "model.gene_likelihood": likelihood}
                found: dict[str, list[dict]] = {"ours": [], "scvi-tools": []}
                for _ in range(repeats):
                    found["ours"].append(bench.run("ours", threads, ours(path, epochs, **settings)))
                    found["scvi-tools"].append(bench.run("scvi-tools", threads, theirs(path, epochs, likelihood)))
                row = {"data": name, "cells": n_cells, "genes": n_genes, "likelihood": likelihood, "threads": threads}
                for who, results in found.items():
                    for clock in ("wall", "cpu"):
                        row[f"{who} {clock}"] = min(per_epoch(result, clock) for result in results)
                    row[f"{who} memory"] = min(result["peak_bytes"] for result in results)
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def time_to_loss(bench: Bench, repeats: int, preset: str, peer_epochs: int, our_epochs: int) -> list[dict]:
    """Recommended settings against scvi-tools' defaults: time until the same held-out loss is reached.

    Both see the same training cells and are judged on the same held-out ones after every epoch: the negative ELBO per cell with
    the KL at full weight, which both programs report. The clock includes those looks. The peer's targets are the lowest losses
    that it had reached after a quarter, half and all of its epochs.
    """
    path = datasets.make("pbmc", bench.data, bench.folder)
    split = bench.folder / "split.npz"
    rows = []
    for threads in bench.threads:
        for repeat in range(repeats):
            job = ours(path, our_epochs, **{"training.early_stopping": False})
            mine = bench.run("ours", threads, {**job, "preset": preset, "write_split": str(split), "seed": repeat})
            other = bench.run("scvi-tools", threads, theirs(path, peer_epochs, "zinb", split=str(split), seed=repeat))
            for share in (0.25, 0.5, 1.0):
                upto = round(peer_epochs * share)
                target = min(other["held_out"][:upto])
                row = {"threads": threads, "seed": repeat, "peer epochs": upto, "target": target, "ours lowest": min(mine["held_out"])}
                for who, result in (("ours", mine), ("scvi-tools", other)):
                    epoch = next((i + 1 for i, value in enumerate(result["held_out"]) if value <= target), None)
                    for clock in ("wall", "cpu"):
                        row[f"{who} {clock}"] = None if epoch is None else result[clock][epoch] - result[clock][0]
                    row[f"{who} epochs"] = epoch
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def memory(bench: Bench, epochs: int, times: int) -> list[dict]:
    """Counts in memory against the memory-mapped cache on disk, on the cells of the first set repeated."""
    path = bench.folder / "tiled.h5ad"
    datasets.tiled(ad.read_h5ad(datasets.make("pbmc", bench.data, bench.folder)), times).write_h5ad(path)
    n_cells, n_genes = ad.read_h5ad(path, backed="r").shape
    rows = []
    for source in ("memory", "disk"):
        settings = {**EQUAL, "training.batch_size": 1024, "training.validation_share": 0.0, "training.source": source}
        result = bench.run("ours", 1, ours(path, epochs, **{"model.gene_likelihood": "nb", **settings}))
        row = {"cells": n_cells, "genes": n_genes, "who": f"ours, {source}", "peak": result["peak_bytes"]}
        rows.append({**row, "wall": per_epoch(result, "wall"), "cpu": per_epoch(result, "cpu")})
        print(json.dumps(rows[-1]), flush=True)
    result = bench.run("scvi-tools", 1, theirs(path, 2, "nb", batch_size=1024))
    row = {"cells": n_cells, "genes": n_genes, "who": "scvi-tools", "peak": result["peak_bytes"]}
    rows.append({**row, "wall": per_epoch(result, "wall"), "cpu": per_epoch(result, "cpu")})
    return rows


def tables(found: dict) -> Iterator[str]:
    """Yield the lines of the report."""
    about = found["about"]
    yield "# Training scVI's VAE: Cellweave beside scvi-tools\n"
    yield f"Made by `python benchmarks/vae_vs_scvi.py --peer PEER_PYTHON` on {about['date']}: {about['machine']}."
    yield f"Versions: {', '.join(f'{name} {number}' for name, number in about['versions'].items())}."
    yield "Seconds differ between machines and hours, so look at the ratios: the two programs took turns. CPU is the processor time of all threads."
    busy = {part: load for part, load in found["loads"].items() if load > about["cores"] + 0.5}
    if busy:
        rows = ", ".join(f"{part} rows at load {load:.0f}" for part, load in busy.items())
        yield f"**Other work ran on the machine** for some of it ({rows}, on {about['cores']} cores): go by the processor times there."
    yield ""
    if found.get("speed"):
        yield from speed_table(found["speed"])
    if found.get("loss"):
        yield from loss_table(found["loss"], found["preset"])
    if found.get("memory"):
        yield from memory_table(found["memory"])


def speed_table(rows: list[dict]) -> Iterator[str]:
    """Yield the table of seconds an epoch."""
    yield "## Equal settings: seconds an epoch\n"
    yield "Batch size 128, float32, one hidden layer of 128, 10 latent dimensions, Adam; best epoch of all runs.\n"
    yield "| data | likelihood | threads | scvi-tools s (CPU s) | Cellweave s (CPU s) | faster | in CPU time | peak memory GB, theirs / ours |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        peer, mine = row["scvi-tools wall"], row["ours wall"]
        peer_cpu, my_cpu = row["scvi-tools cpu"], row["ours cpu"]
        memory_words = f"{row['scvi-tools memory'] / 1e9:.2f} / {row['ours memory'] / 1e9:.2f}"
        yield (
            f"| {row['data']}, {row['cells']:,} x {row['genes']:,} | {row['likelihood']} | {row['threads']} | {peer:.2f} ({peer_cpu:.2f}) "
            f"| {mine:.2f} ({my_cpu:.2f}) | {peer / mine:.1f}x | **{peer_cpu / my_cpu:.1f}x** | {memory_words} |"
        )
    yield "\n" + "; ".join(f"{name}: {datasets.WORDS[name]}" for name in dict.fromkeys(row["data"] for row in rows)) + ".\n"


def loss_table(rows: list[dict], preset: str) -> Iterator[str]:
    """Yield the table of times to the same held-out loss."""
    yield f"## Recommended settings (preset '{preset}') against scvi-tools' defaults: time to the same held-out loss\n"
    yield (
        "Data: pbmc. The same cells are held out in both programs; the loss is the negative ELBO per cell, KL at full weight. The target is the "
        "lowest loss that scvi-tools had reached after so many of its epochs. The looks at held-out cells count.\n"
    )
    yield (
        "| threads | seed | scvi-tools epochs | loss to reach | scvi-tools s (CPU s) | Cellweave s (CPU s), epochs "
        "| faster | in CPU time | lowest of Cellweave |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        start = f"| {row['threads']} | {row['seed']} | {row['peer epochs']} | {row['target']:.2f} "
        peer = f"| {row['scvi-tools wall']:.1f} ({row['scvi-tools cpu']:.1f}) "
        if row["ours epochs"] is None:
            yield f"{start}{peer}| not reached | | | {row['ours lowest']:.2f} |"
            continue
        mine = f"| {row['ours wall']:.1f} ({row['ours cpu']:.1f}), {row['ours epochs']} "
        ratios = f"| {row['scvi-tools wall'] / row['ours wall']:.1f}x | **{row['scvi-tools cpu'] / row['ours cpu']:.1f}x** "
        yield f"{start}{peer}{mine}{ratios}| {row['ours lowest']:.2f} |"
    yield ""


def memory_table(rows: list[dict]) -> Iterator[str]:
    """Yield the table of memory and disk."""
    yield "## Memory, and counts on disk\n"
    yield f"{rows[0]['cells']:,} x {rows[0]['genes']:,} (the cells of pbmc repeated), nb, batch size 1024, one thread.\n"
    yield "| who | s an epoch (CPU s) | peak memory of the process GB |"
    yield "|---|---|---|"
    for row in rows:
        yield f"| {row['who']} | {row['wall']:.1f} ({row['cpu']:.1f}) | {row['peak'] / 1e9:.2f} |"
    yield ""


def make_peer(folder: Path) -> Path:
    """Make an environment with scvi-tools and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "-q", "torch>=2.6,<2.14", "scvi-tools"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--make-peer", type=Path, help="make such an environment in this folder")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--only", choices=("speed", "loss", "memory"))
    parser.add_argument("--sets", nargs="+", choices=DATA_SETS, default=DATA_SETS, help="data of the speed rows")
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the speed rows")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--peer-epochs", type=int, default=60, help="epochs of scvi-tools in the loss rows")
    parser.add_argument("--our-epochs", type=int, default=60, help="epochs of ours in the loss rows")
    parser.add_argument("--tile", type=int, default=20, help="repeats of the cells in the memory rows")
    options = parser.parse_args()
    if options.peer is None and options.make_peer is None:
        parser.error("name the peer's interpreter with --peer, or make it with --make-peer")
    # absolute(), not resolve(): the interpreter of a virtual environment is a link that must not be followed
    peer = (make_peer(options.make_peer) if options.make_peer else options.peer).absolute()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    load_before = os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(peer, options.data, Path(folder), options.threads)
        if options.only in (None, "speed"):
            found["speed"] = speed(bench, options.sets, options.repeats, options.epochs)
        if options.only in (None, "loss"):
            found["loss"] = time_to_loss(bench, options.repeats, options.preset, options.peer_epochs, options.our_epochs)
            found["preset"] = options.preset
        if options.only in (None, "memory"):
            found["memory"] = memory(bench, 3, options.tile)
        machine = f"{usable_cores()} cores of {cpu_name()}, {platform.system()}, Python {platform.python_version()}"
        versions = found.get("about", {}).get("versions", {}) | bench.versions
        about = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": versions}
        found["about"] = {**about, "cores": usable_cores()}
        measured = [options.only] if options.only else ["speed", "loss", "memory"]
        found.setdefault("loads", {}).update(dict.fromkeys(measured, max(load_before, os.getloadavg()[1])))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text("\n".join(tables(found)) + "\n")


if __name__ == "__main__":
    main()
