"""scVAEIT's model with Cellweave beside scVAEIT 1.1.1: imputation of hidden values after the same epochs, and seconds a step.

    python benchmarks/vaeit_vs_scvaeit.py --peer PEER_PYTHON [--data FOLDER] [--only speed|quality] [--sets quickstart] [--work FOLDER]

PEER_PYTHON is the interpreter of an environment with scVAEIT (Python 3.11: tensorflow-cpu 2.15.1, tensorflow-probability 0.23.0, numpy < 2, scanpy, and
scVAEIT 1.1.1 without its dependencies). Every run is a process of its own with the same architecture, loss weights, minibatches and threads. Jobs that are
finished in the folder of --work are not done again. Tables go to benchmarks/results/vaeit_vs_scvaeit.md.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from vaeit_jobs import datasets, simple

from cellweave.core.analysis.imputation_scores import auroc, correlation
from cellweave.core.example import example_path
from cellweave.core.system import cpu_name, usable_cores

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "vaeit_vs_scvaeit.json"
WORKERS = {"ours": HERE / "vaeit_jobs" / "cellweave_job.py", "scVAEIT": HERE / "vaeit_jobs" / "scvaeit_job.py"}
SETTINGS = {"hidden": [256], "latent": 32, "beta_unobs": 2 / 3, "beta_kl": 2.0, "p_feat": 0.2, "batch_size": 256, "draws": 10}
#: Of a block, by modality: peaks have a block a chromosome.
UNITS, MASK_UNITS = {"rna": 256, "adt": 128, "atac": 16}, {"rna": 32, "adt": 16, "atac": 2}
EPOCHS = {"quickstart": 100, "reapseq": 40, "bmmc": 100, "snareseq": 20}
SPEED_EPOCHS = {"quickstart": 12, "reapseq": 6, "bmmc": 12, "snareseq": 6}


class Bench:
    """Runs jobs in processes of their own and keeps what they measured."""

    def __init__(self, peer: Path, data: Path, folder: Path, threads: int) -> None:
        self.interpreters = {"ours": Path(sys.executable), "scVAEIT": peer}
        self.data, self.folder, self.threads = data, folder, threads
        self.versions: dict[str, str] = {}

    def prepare(self, name: str) -> dict[str, np.ndarray]:
        """Write the data set for both programs; return its arrays."""
        file, arrays = self.folder / f"{name}.h5mu", self.folder / f"{name}.npz"
        if not file.exists() or not arrays.exists():
            mosaic = datasets.read(name, self.data, example_path())
            mosaic.write_h5mu(file)
            np.savez(arrays, **datasets.arrays(name, mosaic))
        return dict(np.load(arrays))

    def run(self, who: str, name: str, epochs: int, seed: int, tag: str) -> tuple[dict, Path]:
        """Run one job, or take it from the folder; return its clocks and the file of its imputed values."""
        place = self.folder / f"{name}-{who}-{tag}-{seed}"
        arrays = np.load(self.folder / f"{name}.npz")
        names = [str(modality) for modality in arrays["names"]]
        job = {
            **SETTINGS, "units": [UNITS[modality] for modality in names], "mask_units": [MASK_UNITS[modality] for modality in names],
            "beta_modal": [1 / len(names)] * len(names), "timed": tag.startswith("speed"), "arrays": str(self.folder / f"{name}.npz"),
            "data": str(self.folder / f"{name}.h5mu"), "threads": self.threads, "seed": seed, "epochs": epochs, "names": names,
            "n_cells": len(arrays["batch"]), "folder": f"{place}-run",
            "switched_off": [
                {"column": datasets.MOSAICS[name].column, "level": level, "modality": modality} for level, modality in datasets.MOSAICS[name].hidden
            ],
            "result": f"{place}-result.json", "values": f"{place}-values.npy",
        }  # fmt: skip
        if not Path(job["result"]).exists() or not Path(job["values"]).exists():
            Path(f"{place}.json").write_text(json.dumps(job))
            environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
            environment |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
            command = [str(self.interpreters[who]), str(WORKERS[who]), f"{place}.json"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{who} failed:\n{done.stderr[-3000:]}")
        result = json.loads(Path(job["result"]).read_text())
        self.versions |= result["versions"]
        return result, Path(job["values"])


def speed(bench: Bench, sets: list[str], repeats: int) -> Iterator[dict]:
    """Yield seconds a step; the programs take turns, the best of their runs counts, compilation and the first epochs do not."""
    for name in sets:
        arrays = bench.prepare(name)
        best: dict[str, float] = {}
        for repeat in range(repeats):
            for who in ("scVAEIT", "ours"):
                result, _ = bench.run(who, name, SPEED_EPOCHS[name], repeat, f"speed{bench.threads}")
                for clock in ("wall", "cpu"):
                    key = f"{who} {clock}"
                    best[key] = min(best.get(key, np.inf), result[f"{clock} per step"])
        row = {"data": name, "cells": len(arrays["batch"]), "features": int(arrays["sizes"].sum()), "threads": bench.threads, **best}
        print(json.dumps(row), flush=True)
        yield row


def quality(bench: Bench, sets: list[str], our_seeds: int, peer_seeds: int) -> Iterator[dict]:
    """Yield the scores of hidden values after the same epochs, beside the mean of each feature."""
    for name in sets:
        arrays = bench.prepare(name)
        runs = [("feature mean", 0)] + [("scVAEIT", seed) for seed in range(peer_seeds)] + [("ours", seed) for seed in range(our_seeds)]
        for who, seed in runs:
            values = None if who == "feature mean" else np.load(bench.run(who, name, EPOCHS[name], seed, "quality")[1])
            for row in scores(arrays, values):
                yield {"data": name, "who": who, "seed": seed, "epochs": EPOCHS[name], **row}
        for modality in {modality for _, modality in datasets.MOSAICS[name].hidden} - {"rna"}:
            for who, found in simple.predictions(arrays, modality).items():
                values = np.zeros(arrays["truth"].shape, dtype=np.float32)
                edges, place = np.concatenate([[0], np.cumsum(arrays["sizes"])]), [str(own) for own in arrays["names"]].index(modality)
                own = slice(edges[place], edges[place + 1])
                values[arrays["hidden"][:, own].any(1), own] = found
                yield from ({"data": name, "who": who, "seed": 0, "epochs": 0, **row} for row in scores(arrays, values) if row["modality"] == modality)


def scores(arrays: dict[str, np.ndarray], values: np.ndarray | None) -> Iterator[dict]:
    """Yield mean squared error, correlations and, of peaks, AUROC of the hidden values of each modality, on the scale of training."""
    edges = np.concatenate([[0], np.cumsum(arrays["sizes"])])
    for number, modality in enumerate(arrays["names"]):
        own = slice(edges[number], edges[number + 1])
        rows = arrays["hidden"][:, own].any(1)
        if not rows.any():
            continue
        truth, seen = arrays["truth"][rows][:, own], arrays["masks"][:, own] == 0
        mean = (arrays["truth"][:, own] * seen).sum(0) / seen.sum(0)
        found = np.broadcast_to(mean, truth.shape) if values is None else values[rows][:, own]
        each = [correlation(truth[:, column], found[:, column]) for column in range(truth.shape[1])]
        of_peaks = {}
        if modality in datasets.BINARY:
            each_auroc = [auroc(truth[:, column], found[:, column]) for column in range(truth.shape[1])]
            of_peaks = {"auroc": auroc(truth.ravel(), found.ravel()), "auroc_by_feature": None if values is None else _median(each_auroc)}
        yield {
            "modality": str(modality), "hidden": int(truth.size), "mse": float(((found - truth) ** 2).mean()),
            "pearson": correlation(truth.ravel(), found.ravel()),
            "pearson_by_feature": None if values is None else _median(each), **of_peaks,
        }  # fmt: skip


def _median(each: list[float]) -> float | None:
    """Return the median of the features that vary; None where none does."""
    known = [value for value in each if np.isfinite(value)]
    return float(np.median(known)) if known else None


def tables(found: dict) -> Iterator[str]:
    """Yield the lines of the report."""
    about = found["about"]
    yield "# scVAEIT's model: Cellweave beside scVAEIT 1.1.1\n"
    yield f"Made by `python benchmarks/vaeit_vs_scvaeit.py --peer PEER_PYTHON` on {about['date']}: {about['machine']}."
    yield f"Versions: {', '.join(f'{name} {number}' for name, number in about['versions'].items())}."
    yield "Same data, architecture, loss weights, minibatches of 256 and threads; float32; AdamW 3e-4. scVAEIT drops the last short minibatch of an epoch."
    yield f"Other work ran on the machine (load {about['load']:.1f} on {about['cores']} cores): go by ratios, and by the processor time.\n"
    if about.get("note"):
        yield f"{about['note']}\n"
    yield "".join(f"- {name}: {mosaic.words}.\n" for name, mosaic in datasets.MOSAICS.items())
    if found.get("speed"):
        yield "## Seconds a step\n"
        yield "| data | threads | scVAEIT s (CPU s) | Cellweave s (CPU s) | faster | in CPU time |"
        yield "|---|---|---|---|---|---|"
        for row in found["speed"]:
            peer, mine, peer_cpu, my_cpu = (row[key] for key in ("scVAEIT wall", "ours wall", "scVAEIT cpu", "ours cpu"))
            yield (
                f"| {row['data']}, {row['cells']:,} x {row['features']:,} | {row['threads']} | {peer:.3f} ({peer_cpu:.3f}) "
                f"| {mine:.3f} ({my_cpu:.3f}) | {peer / mine:.1f}x | **{peer_cpu / my_cpu:.1f}x** |"
            )
        yield ""
    if found.get("quality"):
        yield "## Hidden values after the same epochs\n"
        yield (
            "On the log1p scale of counts per 10,000, peaks as 0 and 1; Cellweave at the posterior mean, as window, command line and exports give them, "
            "scVAEIT as the mean of ten draws; several seeds as mean ± standard deviation."
        )
        yield (
            "`feature mean` predicts the mean of each feature where it was measured. `neighbours` and `ridge` predict from 30 principal components of "
            "RNA, with a smoothing that cross-validation within the seen cells chose: they say how much can be known at all.\n"
        )
        yield from _quality(found["quality"])
        yield ""
        yield (
            "A modality that was never measured in a batch is decoded by Cellweave as the mean of the batches in which it was; scVAEIT decodes it as the "
            "batch itself, a combination that it has not seen. Cellweave's decoder begins at the mean of each feature in every cell (weights of 0 in its last "
            "layer, chosen on snareseq), scVAEIT's in the middle of the range with random weights."
        )


def _quality(rows: list[dict]) -> Iterator[str]:
    """Yield the table of hidden values, one line for each program, data set and modality."""
    yield "| data | epochs | hidden | who | seeds | MSE | Pearson, all values | AUROC, all values | Pearson by feature, median | AUROC by feature, median |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["modality"], row["who"]), []).append(row)
    for (data, modality, who), own in groups.items():
        mse_digits = 5 if modality in datasets.BINARY else 4
        cells = [_spread([row.get(key) for row in own], digits) for key, digits in (("mse", mse_digits), ("pearson", 4), ("auroc", 4))]
        cells += [_spread([row.get(key) for row in own], 3) for key in ("pearson_by_feature", "auroc_by_feature")]
        trained = who in WORKERS
        yield (
            f"| {data} | {own[0]['epochs'] if trained else ''} | {own[0]['hidden']:,} values of {modality.upper()} | {who} | {len(own) if trained else ''} "
            f"| {' | '.join(cells)} |"
        )


def _spread(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}"


def main() -> int:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--only", choices=("speed", "quality"))
    parser.add_argument("--sets", nargs="+", choices=tuple(datasets.MOSAICS), default=list(datasets.MOSAICS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--our-seeds", type=int, default=3)
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder that keeps finished jobs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cellweave-vaeit-") as temporary:
        folder = (options.work or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(options.peer, options.data, folder, options.threads)
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if options.only != "quality":
            found["speed"] = list(speed(bench, options.sets, options.repeats))
        if options.only != "speed":
            found["quality"] = list(quality(bench, options.sets, options.our_seeds, options.peer_seeds))
        found["about"] = {
            "date": time.strftime("%Y-%m-%d"), "machine": f"{cpu_name()}, {usable_cores()} cores, {platform.system()}, Python {platform.python_version()}",
            "versions": {**found.get("about", {}).get("versions", {}), **bench.versions}, "load": os.getloadavg()[0], "cores": usable_cores(),
        }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text("\n".join(tables(found)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
