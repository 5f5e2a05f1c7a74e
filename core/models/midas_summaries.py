"""What a MIDAS network is told of the data before it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.models.midas import MidasOptions
from cellweave.core.nn.midas_values import ModalityValues
from cellweave.core.spec.modalities import modality_kinds

if TYPE_CHECKING:
    from cellweave.core.spec import RunSpec
    from cellweave.core.training.data import TrainingData

MEASURED_IN = "midas_measured_in"
#: Steps in which the sampler visits every batch and pattern of modalities once.
ROUND = "midas_round"


def summaries(spec: RunSpec, data: TrainingData) -> dict[str, np.ndarray]:
    """Return which batches have which modality, bool ``(n_modalities, n_batches)``, and the steps of a round; refuse values that cannot be drawn.

    Raises
    ------
    DataError
        Where no distribution of a modality is declared, or it has values that the distribution does not know.
    """
    options = spec.model
    assert isinstance(options, MidasOptions)
    n_batches = int(data.n_levels().get("batch", 1))  # type: ignore[arg-type]
    codes = data.categorical.get("batch", np.zeros(data.n_cells, dtype=np.int64))
    found = np.zeros((len(data.modalities), n_batches), dtype=bool)
    for row, modality in zip(found, data.modalities, strict=True):
        if not options.knows(modality.name):
            raise DataError(
                f"MIDAS does not know the modality '{modality.name}': it knows {', '.join(modality_kinds())}.",
                f"Say what its values are drawn from, --set model.distribution.{modality.name}=poisson for counts, or rename it.",
            )
        ModalityValues(options, modality.name, modality.n_features).check(modality.counts)
        row[np.unique(codes[data.usable & modality.measured])] = True
    # A batch whose cells differ in modalities is several streams of the sampler, which one round visits all.
    return {MEASURED_IN: found, ROUND: np.array([max(1, len(np.unique(data.streams[data.train])))])}
