"""Batch-corrected counts of every modality, drawn for a sample of cells and brought to few dimensions: what scMIB judges beside the latent space."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from torch import Tensor

from cellweave.core.analysis.count_space import Kind, reduced
from cellweave.core.analysis.integration import stratified_rows
from cellweave.core.analysis.scmib_counts import CountSpace
from cellweave.core.errors import Cancelled
from cellweave.core.nn.distributions import distribution
from cellweave.core.query.mosaic import MosaicQuestion, values_of

if TYPE_CHECKING:
    from cellweave.core.models.base import Model
    from cellweave.core.query.told import Minibatches
    from cellweave.core.spec import RunSpec
    from cellweave.core.training.data import TrainingData

#: Cells that are drawn; a seeded sample in which every batch has its share where there are more.
MOST_CELLS = 20_000


def corrected_space(
    spec: RunSpec,
    model: Model,
    data: TrainingData,
    minibatches: Minibatches,
    technical: Tensor,
    *,
    progress: Callable[[float], None] = lambda share: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> CountSpace:
    """Draw the counts of all modalities, measured or not, as one batch would have had them, and reduce each modality on its own.

    Parameters
    ----------
    spec
        Of the run; its seed fixes sample and draws.
    model
        A trained MIDAS, in evaluation mode.
    data
        Its cells.
    minibatches
        Given rows, iterates over them in minibatches.
    technical
        Technical latent of the one batch, ``(n_technical,)``.
    progress, cancelled
        Told the share that is done; asked between minibatches and modalities.

    Raises
    ------
    Cancelled
        Where the person asked for it.
    """
    names, seed = tuple(modality.name for modality in data.modalities), int(spec.training.seed)
    usable = np.flatnonzero(data.usable)
    codes = data.categorical.get("batch", np.zeros(data.n_cells, dtype=np.int64))[usable]
    rows = usable[stratified_rows(codes, MOST_CELLS, seed)]
    parts: dict[str, list[sparse.csr_matrix]] = {name: [] for name in names}
    places, done = [], 0
    for where, values in values_of(model, lambda: minibatches(rows), MosaicQuestion("corrected", sampled=True, seed=seed), names, technical):
        if cancelled():
            raise Cancelled
        places.append(where)
        for name, value in values.items():
            parts[name].append(sparse.csr_matrix(np.nan_to_num(value)))
        done += len(where)
        progress(0.7 * done / len(rows))
    drawn = np.concatenate(places)
    order = np.argsort(drawn)  # minibatches of one pattern of modalities come together
    drawn, counts = drawn[order], {name: sparse.csr_matrix(sparse.vstack(own))[order] for name, own in parts.items()}
    kinds = {name: kind_of(spec, name) for name in names}
    empty = np.zeros(len(drawn), dtype=bool)
    for name, matrix in counts.items():
        if kinds[name] != "real":
            empty |= np.asarray(matrix.sum(axis=1)).ravel() <= 0
    kept, n_components = np.flatnonzero(~empty), int(getattr(spec.model, "n_latent", 32))
    points = {}
    for number, (name, matrix) in enumerate(counts.items()):
        if cancelled():
            raise Cancelled
        if len(kept) > 1:
            points[name] = reduced(matrix[kept], kinds[name], n_components, seed=seed)
        progress(0.7 + 0.3 * (number + 1) / len(counts))
    return CountSpace(drawn[kept], points, int(empty.sum()), len(usable))


def kind_of(spec: RunSpec, modality: str) -> Kind:
    """Return how the values of a modality are brought to few dimensions."""
    of = getattr(spec.model, "distribution_of", None)
    support = distribution(of(modality)).support if of is not None else "counts"
    if support == "counts":
        return "proteins" if modality == "adt" else "counts"
    return "binary" if support == "binary" else "real"

