"""Attribution that was computed of a trained run: its scores, and keeping it with the run."""

from __future__ import annotations

from pathlib import Path

from cellweave.core.analysis.attribution_scores import AttributionScores
from cellweave.core.errors import CellweaveError
from cellweave.core.query.attribution import Attribution, AttributionQuestion
from cellweave.core.query.trained_run import TrainedRun
from cellweave.core.training.attribution import information, masked, norms, write_attribution


def scores_of(found: Attribution, question: AttributionQuestion) -> AttributionScores:
    """Return the scores of the cells that were asked about, in their order."""
    arrays = {name: masked(found, name, values) for name, values in found.mean_abs.items()}
    return AttributionScores(found.modalities, dict(found.blocks), arrays, norms(found), dict(found.n_features), information(found, question))


def keep_attribution(run: TrainedRun, found: Attribution, question: AttributionQuestion, seconds: float) -> list[Path]:
    """Write the attribution into the results of the run, in place of what was there.

    Raises
    ------
    CellweaveError
        Where it cannot be written.
    """
    try:
        return write_attribution(run.path / "results", found, question, run.data.n_cells, seconds=seconds)
    except OSError as error:
        raise CellweaveError(f"The attribution was not written: {error.strerror or error}.", "Free some space, or make the run folder writable.") from error
