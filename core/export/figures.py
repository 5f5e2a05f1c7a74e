"""Figures of a run as PNG, SVG and PDF, with their origin inside the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellweave.core.errors import SpecError
from cellweave.core.export.ambient_figure import ambient_figure
from cellweave.core.export.attribution_figure import attribution_figure
from cellweave.core.export.canvas import MM_PER_INCH, Canvas, check_format, save, styled
from cellweave.core.export.embedding_figure import embedding_figure
from cellweave.core.export.figure_options import FIGURES, ORIGIN, FigureKind, FigureOptions
from cellweave.core.export.imputation_figure import imputation_figure
from cellweave.core.export.joint_columns import joint_column, joint_layout
from cellweave.core.export.loadings_figure import loadings_figure
from cellweave.core.export.loss_figure import loss_figure
from cellweave.core.export.metrics_figure import metrics_figure
from cellweave.core.export.modalities_figure import modalities_figure
from cellweave.core.export.provenance import provenance
from cellweave.core.export.run_data import ColumnValues, RunData
from cellweave.core.export.score_figure import scores_figure
from cellweave.core.export.volcano_figure import volcano_figure

__all__ = ["FIGURES", "FigureKind", "FigureOptions", "embedding_figure", "loss_figure", "save_figure", "scores_figure"]
PREVIEW_PIXELS = 1400  # the longer side of a preview, at most


def save_figure(
    run_folder: str | Path,
    what: str,
    out: str | Path,
    options: FigureOptions | None = None,
    *,
    preview: bool = False,
    extra_columns: Mapping[str, ColumnValues] | None = None,
) -> tuple[int, int]:
    """Draw a figure of a run and write it.

    Parameters
    ----------
    run_folder
        Folder of the run.
    what
        A key of ``FIGURES``.
    out
        Ends in ``.png``, ``.svg`` or ``.pdf``.
    options
        Size, fonts, colours ...; None takes the defaults.
    preview
        Write a PNG for the screen, the same picture with fewer pixels.
    extra_columns
        Columns that the run folder does not have, by the name used in ``options.columns``.

    Returns
    -------
    tuple of int
        Width and height in pixels.

    Raises
    ------
    SpecError
        Where there is no such figure or column, or the figure is too small for its content.
    RunFolderError
        Where the run has no such result yet.
    CellweaveError
        Where the file cannot be written.
    """
    options = options or FigureOptions()
    if what not in FIGURES:
        raise SpecError(f"There is no figure '{what}'.", f"There are {', '.join(FIGURES)}.")
    out = Path(out).expanduser().absolute()
    check_format(out)
    run = RunData(run_folder)
    with styled(options):
        canvas, shown = _draw(run, what, options, extra_columns or {})
        dpi = options.dpi
        if preview:
            dpi = min(dpi, int(PREVIEW_PIXELS * MM_PER_INCH / max(canvas.width, canvas.height)))
        return save(canvas, out, provenance(run, figure=what, **shown), dpi=dpi)


def _draw(run: RunData, what: str, options: FigureOptions, extra: Mapping[str, ColumnValues]) -> tuple[Canvas, dict[str, Any]]:
    if what == "losses":
        return loss_figure(run, options), {}
    if what == "scores":
        return scores_figure(run, options), {}
    if what == "metrics":
        return metrics_figure(run, options), {"runs": list(options.runs)}
    if what == "loadings":
        return loadings_figure(run, options), {"genes_each": options.genes_each}
    if what == "ambient":
        return ambient_figure(run, options)
    if what in ("attribution", "modalities"):
        names = options.columns[:1] or run.default_columns()[-1:]
        column = (extra[names[0]] if names[0] in extra else run.column(names[0])) if names else None
        canvas, shown = (attribution_figure if what == "attribution" else modalities_figure)(run, options, column)
        return canvas, {**shown, "columns": list(names)}
    if what == "volcano":
        return volcano_figure(run, options)
    if what == "imputation":
        return imputation_figure(run, options)
    return _embedding(run, options, extra)


def _embedding(run: RunData, options: FigureOptions, extra: Mapping[str, ColumnValues]) -> tuple[Canvas, dict[str, Any]]:
    """Draw the cells of a run, alone or among those of the reference they were mapped onto."""
    if options.layout == "joint":
        layout, table = joint_layout(run)
        labels = "transferred_label" if "transferred_label" in table else run.spec.covariates.labels
        coloured: Sequence[str] = options.columns or tuple(name for name in (ORIGIN, labels) if name)
        columns = [extra[name] if name in extra else joint_column(run, table, name) for name in coloured]
    else:
        layout = run.array("umap" if options.layout == "umap" else "baseline_umap")
        coloured = tuple(name for name in options.columns if name != ORIGIN) or run.default_columns()
        columns = [extra[name] if name in extra else run.column(name) for name in coloured]
    return embedding_figure(layout, columns, options), {"columns": list(coloured), "layout": options.layout, "n_cells": len(layout)}
