"""What the analysis process can do: each task takes paths and plain values and gives plain values back.

Arrays change hands as files, so that nothing is ever unpickled and a process that dies takes no data with it.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cellweave.core.analysis.arrays import load_array, load_csr, load_neighbours, save_array, save_csr, save_neighbours
from cellweave.core.analysis.neighbours import Neighbours, find_neighbours
from cellweave.core.analysis.scores import Column, beside, neighbour_scores, scored_rows
from cellweave.core.errors import DataError
from cellweave.core.wording import counted

Arguments = Mapping[str, Any]


class Progress(Protocol):
    """How a task says how far it is; raises ``Cancelled`` where the task shall end."""

    def __call__(self, fraction: float | None, text: str = "") -> None:
        """Report a share between 0 and 1 (None: not known) and a few words."""


Task = Callable[[Arguments, Progress], dict[str, Any]]


def _finite(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a latent's finite rows and which they are."""
    latent = np.asarray(load_array(Path(path)), dtype=np.float32)
    rows = np.flatnonzero(np.isfinite(latent).all(axis=1))
    if len(rows) < 3:
        few = f"Only {counted(len(rows), 'cell has', 'cells have')}"
        raise DataError(f"{few} a latent, which is too few for an embedding.", "Train on more cells.")
    return latent[rows], rows


def warm(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Import and compile what the first UMAP needs."""
    # The likelihood's loops are compiled here first: the machine code is kept on disk, where training, which
    # runs in the window's process, finds it and need not hold up the window with a compiler.
    with contextlib.suppress(ImportError):
        importlib.import_module("cellweave.core.nn.compiled")
    from cellweave.core.analysis.layout import warm_up

    began = time.perf_counter()
    warm_up()
    return {"seconds": time.perf_counter() - began}


def neighbours(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Find neighbours: ``latent``, ``k``, ``seed`` -> ``out`` (``.npz``), counted among the cells that have a latent."""
    points, rows = _finite(arguments["latent"])
    progress(None, "looking for neighbours")
    found = find_neighbours(points, int(arguments["k"]), seed=int(arguments.get("seed", 0)), progress=progress)
    save_neighbours(Path(arguments["out"]), found)
    return {"n_cells": len(rows), "k": found.k}


def graph(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Turn neighbours into UMAP's graph: ``neighbours``, ``n_neighbors`` -> ``out`` (``.npz``)."""
    from cellweave.core.analysis.layout import fuzzy_graph

    progress(None, "building the graph")
    found = fuzzy_graph(load_neighbours(Path(arguments["neighbours"])), int(arguments["n_neighbors"]))
    save_csr(Path(arguments["out"]), found)
    return {"n_edges": int(found.nnz)}


def umap(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Lay out all cells: ``latent``, ``graph`` (or None), ``n_neighbors``, ``min_dist``, ``n_epochs``, ``seed``, ``start`` -> ``out``."""
    from cellweave.core.analysis.layout import fuzzy_graph, initial_layout, lay_out

    points, rows = _finite(arguments["latent"])
    n_neighbors = int(arguments.get("n_neighbors", 15))
    seed = arguments.get("seed", 0)
    progress(None, "preparing the layout")
    if arguments.get("graph"):
        network = load_csr(Path(arguments["graph"]))
    else:
        network = fuzzy_graph(find_neighbours(points, n_neighbors - 1, seed=seed or 0), n_neighbors)
    start = np.asarray(load_array(Path(arguments["start"])))[rows] if arguments.get("start") else initial_layout(points)
    layout = lay_out(
        network,
        start,
        min_dist=float(arguments.get("min_dist", 0.3)),
        n_epochs=arguments.get("n_epochs"),
        seed=seed,
        progress=lambda share: progress(share, "laying out"),
    )
    n_cells = int(load_array(Path(arguments["latent"]), mapped=True).shape[0])
    full = np.full((n_cells, 2), np.nan, dtype=np.float32)
    full[rows] = layout
    save_array(Path(arguments["out"]), full)
    return {"n_cells": len(rows)}


def refresh(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Refresh the live embedding: ``latent`` of a sample, ``previous`` layout (or None), ``n_epochs`` (or None) -> ``out``.

    The result gives the seconds it took and how far the median cell moved, as a share of the picture's standard deviation.
    """
    from cellweave.core.analysis.layout import refresh as refresh_layout

    began = time.perf_counter()
    points, rows = _finite(arguments["latent"])
    n_cells = int(load_array(Path(arguments["latent"]), mapped=True).shape[0])
    previous = None
    if arguments.get("previous"):
        stored = np.asarray(load_array(Path(arguments["previous"])), dtype=np.float32)
        if stored.shape == (n_cells, 2) and np.isfinite(stored[rows]).all():
            previous = stored[rows]
    layout = refresh_layout(
        points,
        previous,
        n_neighbors=int(arguments.get("n_neighbors", 15)),
        min_dist=float(arguments.get("min_dist", 0.3)),
        n_epochs=arguments.get("n_epochs"),
    )
    full = np.full((n_cells, 2), np.nan, dtype=np.float32)
    full[rows] = layout
    save_array(Path(arguments["out"]), full)
    moved = None
    if previous is not None:
        moved = float(np.median(np.linalg.norm(layout - previous, axis=1)) / max(float(layout.std()), 1e-12))
    return {"seconds": time.perf_counter() - began, "moved": moved, "n_cells": len(rows)}


def leiden(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Cluster: ``graph``, ``latent`` (for the rows), ``resolution``, ``seed`` -> ``out`` (int32 ``.npy``, -1 without a latent)."""
    from cellweave.core.analysis.clusters import leiden as cluster

    progress(None, "clustering")
    latent = np.asarray(load_array(Path(arguments["latent"]), mapped=True))
    rows = np.isfinite(latent).all(axis=1)
    found = cluster(
        load_csr(Path(arguments["graph"])), resolution=float(arguments.get("resolution", 1.0)), seed=int(arguments.get("seed", 0))
    )
    full = np.full(len(latent), -1, dtype=np.int32)
    full[rows] = found
    save_array(Path(arguments["out"]), full)
    return {"n_clusters": int(found.max()) + 1}


def pca(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Compute the baseline: ``counts`` (csr ``.npz``), ``n_components``, ``seed`` -> ``out``."""
    from cellweave.core.analysis.baseline import baseline_pca

    progress(None, "principal components of the log-normalised counts")
    components = baseline_pca(
        load_csr(Path(arguments["counts"])), n_components=int(arguments.get("n_components", 30)), seed=int(arguments.get("seed", 0))
    )
    save_array(Path(arguments["out"]), components)
    return {"n_components": int(components.shape[1])}


def scores(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Score ``latent`` and, where given, ``baseline``: ``k``, ``seed``, ``batch`` and ``labels`` as ``{codes: path, levels: [...]}``.

    ``neighbours`` (with at least ``k`` neighbours of the latent) spares the search where no sample is taken.
    """
    _, rows = _finite(arguments["latent"])
    seed, k = int(arguments.get("seed", 0)), int(arguments.get("k", 30))
    chosen = rows[scored_rows(len(rows), seed=seed)]
    columns = {role: _column(arguments[role]).take(chosen) for role in ("batch", "labels") if arguments.get(role)}
    progress(0.1, "scoring the latent space")
    found = neighbour_scores(_scored_neighbours(arguments, rows, chosen, k, seed), **columns)
    base = None
    if arguments.get("baseline"):
        progress(0.5, "scoring the baseline")
        points = np.asarray(load_array(Path(arguments["baseline"])))
        there = chosen[np.isfinite(points[chosen]).all(axis=1)]  # of several modalities the baseline has one, which some cells lack
        if len(there) >= 3:
            own = {role: _column(arguments[role]).take(there) for role in columns}
            base = neighbour_scores(find_neighbours(points[there], k, seed=seed), **own)
    return {"k": k, "n_cells": len(chosen), "scores": beside(found, base)}


def _scored_neighbours(arguments: Arguments, rows: np.ndarray, chosen: np.ndarray, k: int, seed: int) -> Neighbours:
    if arguments.get("neighbours") and len(chosen) == len(rows):
        ready = load_neighbours(Path(arguments["neighbours"]))
        if ready.k >= min(k, len(rows) - 1) and len(ready.indices) == len(rows):
            return ready.nearest(k)
    points = np.asarray(load_array(Path(arguments["latent"])), dtype=np.float32)[chosen]
    return find_neighbours(points, k, seed=seed)


def _column(value: Mapping[str, Any]) -> Column:
    return Column(np.asarray(load_array(Path(value["codes"])), dtype=np.int64), tuple(str(level) for level in value["levels"]))


def integration(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Measure batch mixing and biology kept; see :func:`cellweave.core.analysis.integration_results.integration_task`."""
    from cellweave.core.analysis.integration_results import integration_task

    return integration_task(arguments, progress)


def measure_run(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Measure a finished run and store the result; see :func:`cellweave.core.analysis.integration_results.measure_run_task`."""
    from cellweave.core.analysis.integration_results import measure_run_task

    return measure_run_task(arguments, progress)


def figure(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Draw a figure of a run: ``run``, ``what``, ``options``, ``preview`` -> ``out`` (png, svg or pdf by its suffix).

    ``columns`` hands over what the run folder does not have, ``{name: {"title": ..., "numbers": path}}`` or
    ``{name: {"title": ..., "codes": path, "levels": [...]}}``, one value a cell in study order.
    """
    from cellweave.core.export.figures import FigureOptions, save_figure
    from cellweave.core.export.run_data import ColumnValues

    progress(None, "drawing")
    extra = {}
    for name, value in dict(arguments.get("columns") or {}).items():
        title = str(value.get("title", name))
        if "numbers" in value:
            extra[name] = ColumnValues.of_numbers(title, load_array(Path(value["numbers"])))
        else:
            extra[name] = ColumnValues.of_levels(title, load_array(Path(value["codes"])), value["levels"])
    size = save_figure(
        Path(arguments["run"]),
        str(arguments["what"]),
        Path(arguments["out"]),
        FigureOptions.model_validate(arguments.get("options", {})),
        preview=bool(arguments.get("preview", False)),
        extra_columns=extra,
    )
    return {"path": str(arguments["out"]), "width": size[0], "height": size[1]}


def neighbourhood(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Compute neighbourhood diagnostics of ``run``: ``library``, ``dataset``, ``technical``, ``labels``, ``stratify``, ``k``, ``markers`` to its results."""
    from cellweave.core.analysis.neighbourhood_run import NeighbourhoodOptions, diagnose_run

    lists = {name: None if arguments.get(name) is None else tuple(arguments[name]) for name in ("technical", "labels")}
    options = NeighbourhoodOptions(
        library=arguments.get("library"), dataset=arguments.get("dataset"), k=arguments.get("k"), markers=arguments.get("markers"),
        stratify=tuple(arguments.get("stratify") or ()), **lists,
    )  # fmt: skip
    found = diagnose_run(arguments["run"], options, progress=progress)
    return {"composite": found["composite"], "n_cells": found["n_cells"]}


def alignment(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Judge how the modalities of a run lie together: ``latents`` (path by modality), ``codes`` of labels (path or None), ``seed``."""
    from cellweave.core.analysis.alignment import alignment_task

    return alignment_task(arguments, progress)


def scmib(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Put the scores of a mosaic together; see :func:`cellweave.core.analysis.scmib.score_task`."""
    from cellweave.core.analysis.scmib import score_task

    return score_task(arguments, progress)


def deseq2(arguments: Arguments, progress: Progress) -> dict[str, Any]:
    """Test two groups of samples; see :func:`cellweave.core.analysis.deseq.deseq2_task`."""
    from cellweave.core.analysis.deseq import deseq2_task

    return deseq2_task(arguments, progress)


TASKS: dict[str, Task] = {
    "warm": warm,
    "neighbours": neighbours,
    "graph": graph,
    "umap": umap,
    "refresh": refresh,
    "leiden": leiden,
    "pca": pca,
    "scores": scores,
    "integration": integration,
    "measure_run": measure_run,
    "figure": figure,
    "neighbourhood": neighbourhood,
    "alignment": alignment,
    "scmib": scmib,
    "deseq2": deseq2,
}
