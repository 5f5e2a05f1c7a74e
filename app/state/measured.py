"""The integration metrics of all runs, as the Metrics view compares them; read from their folders in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cellweave.app.state.runs import run_label
from cellweave.core.errors import CellweaveError
from cellweave.core.runs.folder import RunFolder

BASELINE = "baseline"


@dataclass(frozen=True)
class Measured:
    """One embedding of a run, or the unintegrated baseline of a data set.

    Attributes
    ----------
    folder
        The run; for a baseline the newest run that has it.
    label
        What the run is called.
    embedding
        Name of the latent, or ``baseline``.
    values
        By metric.
    data
        What tells one data set and one choice of columns from another: only rows of the same are compared.
    data_name
        Name of the data set, from its files.
    columns
        Columns that were measured, in words.
    cells
        Cells measured.
    """

    folder: Path
    label: str
    embedding: str
    values: dict[str, float]
    data: tuple[str, ...]
    data_name: str
    columns: str
    cells: int

    @property
    def baseline(self) -> bool:
        """Whether this is the embedding without integration."""
        return self.embedding == BASELINE

    @property
    def title(self) -> str:
        """What a row or a point is called."""
        if self.baseline:
            return f"Without integration · {self.data_name}"
        return self.label if self.embedding == "latent" else f"{self.label} · {self.embedding.removeprefix('latent_')}"

    @property
    def place(self) -> tuple[float, float] | None:
        """Batch mixing and biology kept, or None where one of them was not measured."""
        if "batch_score" not in self.values or "bio_score" not in self.values:
            return None
        return self.values["batch_score"], self.values["bio_score"]


def read_measured(folders: Iterable[Path], cancelled: Callable[[], bool] = lambda: False) -> list[Measured]:
    """Return the measured embeddings of runs in the given order, then one baseline for each data set.

    Runs that have no metrics, or whose folder cannot be read, are passed over.
    """
    from cellweave.core.analysis import scmib
    from cellweave.core.analysis.integration_results import load

    found: list[Measured] = []
    baselines: dict[tuple[str, ...], Measured] = {}
    for folder in dict.fromkeys(folders):
        if cancelled():
            break
        run = RunFolder(folder)
        tree = load(run.results)
        if tree is None:
            continue
        try:
            spec = run.spec
        except CellweaveError:
            continue
        paths = tuple(spec.data.sha256) or tuple(spec.data.paths)
        columns = {str(role): str(column) for role, column in tree.get("columns", {}).items()}
        data = (*paths, spec.data.modality or "", *(f"{role}={column}" for role, column in sorted(columns.items())))
        name = " + ".join(Path(path).name for path in spec.data.paths[:2]) + (" …" if len(spec.data.paths) > 2 else "")
        words = " · ".join(columns[role] for role in ("batch", "labels") if role in columns)
        mosaic = scmib.load(run.results)
        for embedding, values in tree["values"].items():
            own = dict(values)
            if mosaic is not None and embedding == tree["main"] and mosaic.get("columns") == tree.get("columns"):
                own |= scmib.own_values(mosaic)
            row = Measured(folder, run_label(spec.name or folder.name, folder), embedding, own, data, name, words, int(tree.get("n_cells", 0)))
            if row.baseline:
                baselines.setdefault(data, row)
            else:
                found.append(row)
    return [*found, *baselines.values()]
