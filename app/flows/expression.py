"""Genes on the embedding: counts, log counts, denoised and corrected expression, read or computed in a thread and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject

from cellweave.app.state.results import Cells, RunResults
from cellweave.core.errors import Cancelled, CellweaveError
from cellweave.core.export.gene_values import SOURCES, decoded_values, feature_names, measured_values

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow
    from cellweave.app.workers.tasks import Task

MOST = 4  # genes beside one another
KEPT = 64  # values that stay in memory, one of each a gene


class ExpressionFlow(QObject):
    """Answers the gene field of the Embedding view.

    Parameters
    ----------
    window
        The main window.
    """

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self._kept: OrderedDict[tuple[Path, str], tuple[Cells, np.ndarray]] = OrderedDict()
        self._task: Task | None = None
        self._named: Path | None = None
        self._offered: Path | None = None

    def offer(self, results: RunResults | None) -> None:
        """Offer the genes and batches of a run in the bar of the embedding."""
        bar = self._window.embedding.bar
        if self._offered != self._window.watching.shown:
            bar.genes.forget_problem()
        self._offered = self._window.watching.shown
        decodes = results is not None and not results.trains and any(result.kind == "expression" for result in results.spec.family.results)
        batches: tuple[str, ...] = ()
        if results is not None and results.cells is not None and results.spec.covariates.batch in results.cells.columns:
            batches = tuple(results.cells.columns[results.spec.covariates.batch].levels or ())
        bar.set_sources(batches if decodes else (), decodes=decodes)
        if results is None or results.cells is None or self._named == results.folder:
            return
        self._named = results.folder
        folder, context = results.folder, self._window.centre.context

        def names(_report: Any) -> list[str]:
            return feature_names(folder)

        def done(found: list[str]) -> None:
            if self._named == folder:
                bar.set_gene_names(found)

        context.run(names, done, lambda error, details: None)

    def show(self, genes: Sequence[str], source: str = "gene", batch: str = "") -> None:
        """Colour the panels by genes.

        Parameters
        ----------
        genes
            Names; at most four are shown beside one another.
        source
            A key of ``SOURCES``.
        batch
            For ``corrected``: the batch that every cell is decoded as; empty for the mean over all.
        """
        watching, bar = self._window.watching, self._window.embedding.bar
        folder, spec, cells, results = watching.shown, watching.spec, watching.cells, watching.results
        genes = list(dict.fromkeys(filter(None, genes)))[:MOST]
        if folder is None or spec is None or cells is None or not genes:
            return
        bar.show_genes(genes, source, batch)
        names = [column_name(gene, source, batch) for gene in genes]
        lacking = [gene for gene, name in zip(genes, names, strict=True) if self._values(folder, name, cells) is None]
        if not lacking:
            self._put(folder, names, source)
            return
        context = self._window.centre.context
        study = watching.study()

        def measured(report: Any) -> np.ndarray:
            data = study if study is not None or results is None else context.study(results, report)
            if data is None:
                raise CellweaveError("The data of this run are not loaded yet.", "Try again when they are, or when the run has ended.")
            return measured_values(data, spec.data.modality, lacking, cells.rows, log=source == "gene")

        def decoded(report: Any) -> np.ndarray:
            assert results is not None
            run = context.opened(results, report)
            batches = None if source == "denoised" else (batch,) if batch else run.batches
            return decoded_values(run, lacking, cells.rows, batches)

        def done(values: np.ndarray) -> None:
            self._task = None
            for number, gene in enumerate(lacking):
                self._keep(folder, column_name(gene, source, batch), cells, values[:, number])
            if watching.cells is cells:
                self._put(folder, names, source)

        if self._task is not None:
            self._task.cancel()
        words = f"{SOURCES[source][0]}: {', '.join(lacking)}"  # type: ignore[index]
        self._task = context.run(decoded if source in ("denoised", "corrected") else measured, done, self._failed, doing=words)

    def _failed(self, error: Exception, details: str) -> None:
        self._task = None
        if isinstance(error, CellweaveError):
            self._window.embedding.bar.say_gene_problem(str(error))
        elif not isinstance(error, Cancelled):
            self._window.show_error(error, details)

    def _keep(self, folder: Path, name: str, cells: Cells, values: np.ndarray) -> None:
        self._kept[folder, name] = (cells, values)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _values(self, folder: Path, name: str, cells: Cells) -> np.ndarray | None:
        found = self._kept.get((folder, name))
        return found[1] if found is not None and found[0] is cells else None

    def _put(self, folder: Path, names: Sequence[str], source: str) -> None:
        """Colour the first panels by columns whose values are kept."""
        from cellweave.app.views import ColumnData

        embedding = self._window.embedding
        unit = SOURCES[source][1]  # type: ignore[index]
        for name in reversed(names):  # each takes the first panel, so the first gene ends up there
            values = self._kept[folder, name][1]
            # Cells of a reference that are shown too stand behind the run's own; nothing is known of their genes here.
            values = np.append(values, np.full(max(embedding.points().size - len(values), 0), np.nan, values.dtype))
            column = ColumnData.continuous(values, unit=unit)
            embedding.add_column(name, column)
        shown = embedding.shown_columns()
        embedding.show_columns([*names, *shown[len(names) :]])


def column_name(gene: str, source: str, batch: str = "") -> str:
    """Return the name of the column that holds a gene: ``gene:CD3E``, ``counts:CD3E``, ``corrected:CD3E@b1``."""
    return f"{source}:{gene}" + (f"@{batch}" if source == "corrected" and batch else "")
