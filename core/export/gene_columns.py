"""Genes as columns to colour a figure by: counts, log counts, and what the trained model decodes, which is kept between two drawings."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from cellweave.core.errors import SpecError
from cellweave.core.export.gene_values import SOURCES, Source, decoded_values, measured_values
from cellweave.core.export.run_data import ColumnValues

if TYPE_CHECKING:
    from cellweave.core.export.run_data import RunData

KEPT = 16  # decoded columns, so that a figure that is changed a little is not decoded anew
_decoded: OrderedDict[tuple[Path, int, str], NDArray[np.float32]] = OrderedDict()


def gene_column(run: RunData, name: str) -> ColumnValues:
    """Return a gene as a column of all cells of a run.

    Parameters
    ----------
    run
        The run.
    name
        ``gene:CD3E`` (log counts), ``counts:CD3E``, ``denoised:CD3E``, ``corrected:CD3E`` (the mean over all batches) or ``corrected:CD3E@BATCH``.

    Raises
    ------
    CellweaveError
        Where the gene or the batch is not known, or the model decodes no expression.
    """
    named, _, gene = name.partition(":")
    source = cast(Source, named)
    title, unit, _ = SOURCES[source]
    if source in ("denoised", "corrected"):
        words = f"{gene.replace('@', ' as ')}, {title.lower()}, {unit}"
        return ColumnValues.of_numbers(words, _decode(run, source, gene, name))
    from cellweave.core.study import load_study

    study = load_study(run.spec.data)
    values = measured_values(study, run.spec.data.modality, [gene], np.arange(len(run.cells)), log=source == "gene")
    return ColumnValues.of_numbers(gene if source == "gene" else f"{gene}, {unit}", values[:, 0])


def is_gene(name: str) -> bool:
    """Return whether a name of a column is that of a gene."""
    source, _, gene = name.partition(":")
    return source in SOURCES and bool(gene)


def _decode(run: RunData, source: str, gene: str, name: str) -> NDArray[np.float32]:
    """Return what the model decodes, ``(n_cells,)``, NaN for cells without a latent."""
    folder = run.folder.path
    key = (folder, (folder / "model" / "model.json").stat().st_mtime_ns if (folder / "model" / "model.json").is_file() else 0, name)
    if key in _decoded:
        _decoded.move_to_end(key)
        return _decoded[key]
    from cellweave.core.query.opened import open_run

    opened = open_run(folder)
    gene, batch = _batch_of(gene, opened.features)
    rows, batches = opened.rows(), None
    if source == "corrected":
        batches = (batch,) if batch else opened.batches
        if not opened.batches:
            raise SpecError("The model was trained without a batch, so it corrects for none.", f"Colour by denoised:{gene}.")
    found = np.full(len(run.cells), np.nan, dtype=np.float32)
    found[rows] = decoded_values(opened, [gene], rows, batches)[:, 0]
    _decoded[key] = found
    while len(_decoded) > KEPT:
        _decoded.popitem(last=False)
    return found


def _batch_of(text: str, features: tuple[str, ...]) -> tuple[str, str]:
    """Return gene and batch of ``GENE@BATCH``; a gene may have the sign in its own name."""
    if text in features or "@" not in text:
        return text, ""
    gene, _, batch = text.partition("@")
    return gene, batch
