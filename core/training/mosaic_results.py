"""Imputed, corrected and translated values of all cells, written into the run folder in study order; and how good the translations are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from cellweave.core.analysis.scmib_counts import FILE as SPACE
from cellweave.core.analysis.scmib_counts import save_space
from cellweave.core.errors import Cancelled
from cellweave.core.files import write_atomic
from cellweave.core.models.base import Minibatch, Model
from cellweave.core.query.corrected_space import corrected_space
from cellweave.core.query.mosaic import MosaicQuestion, translations, values_of
from cellweave.core.query.told import FILE as TRANSLATION
from cellweave.core.query.told import translation_scores, write_translations
from cellweave.core.spec import RunSpec
from cellweave.core.spec.analysis import AnalysisSpec
from cellweave.core.training.sources import Loader

BATCH = 1024
CHUNK_ROWS = 256


def wanted_values(analysis: AnalysisSpec, known: tuple[str, ...]) -> dict[str, list[MosaicQuestion]]:
    """Return the questions that a spec asks, by the file their answers go into."""
    found: dict[str, list[MosaicQuestion]] = {}
    if analysis.imputed:
        found["imputed"] = [MosaicQuestion("imputed")]
    if analysis.corrected:
        found["corrected"] = [MosaicQuestion("corrected")]
    if analysis.translated and len(known) > 1:
        found["translated"] = translations(known)
    return found


def write_values(
    path: Path, model: Model, loader: Loader, questions: list[MosaicQuestion], *, technical: Tensor | None = None,
    progress: Callable[[float], None], cancelled: Callable[[], bool],
) -> None:
    """Write the answers to some questions in chunks, so that a million cells do not fill the memory.

    Parameters
    ----------
    path
        HDF5 with a group a modality that holds ``X`` float32 ``(n_cells, n_features)`` and ``features``, as for denoised expression. Answers to several
        questions are in groups of their names (``rna_to_adt``). Rows of cells that were not measured in what is looked at are NaN.
    model, loader
        Of the run.
    questions
        What is written.
    technical
        Technical latent that corrected values are decoded with, where they are asked for.
    progress, cancelled
        Told the share that is done; asked between minibatches.

    Raises
    ------
    Cancelled
        Where the person asked for it; the file is then not there.
    """
    data = loader.data
    rows = np.flatnonzero(data.measured)
    features = {modality.name: [str(name) for name in modality.var.index] for modality in data.modalities}
    asked = [question.among(tuple(features)) for question in questions]
    passes = len(asked) * len(rows)
    model.eval()

    def write(temporary: Path) -> None:
        done = 0

        def batches() -> Iterator[tuple[np.ndarray, Minibatch]]:
            nonlocal done
            for part, batch in loader.in_order(rows, BATCH):
                if cancelled():
                    raise Cancelled
                yield part, batch
                done += len(part)
                progress(done / passes)

        with h5py.File(temporary, "w") as file:
            for question in asked:
                top = file if len(asked) == 1 else file.create_group(question.name)
                top.attrs.update({"what": question.what, "given": ", ".join(question.given or ()) or "all measured"})
                for name in question.modalities or ():
                    group = top.create_group(name)
                    group.create_dataset("features", data=features[name], dtype=h5py.string_dtype())
                    shape = (data.n_cells, len(features[name]))
                    group.create_dataset("X", shape, "f4", chunks=(max(1, min(CHUNK_ROWS, shape[0])), shape[1]), compression="lzf", fillvalue=np.nan)
                for where, values in values_of(model, batches, question, tuple(features), technical):
                    for name, value in values.items():
                        top[name]["X"][where] = value  # rows are ascending within a minibatch, as h5py wants them

    write_atomic(path, write)


def judge_translations(
    results: Path, spec: RunSpec, model: Model, loader: Loader, *, progress: Callable[[float], None], cancelled: Callable[[], bool]
) -> Path | None:
    """Write how well each modality is told from the others into the folder of results, for the scores of the modalities.

    Parameters
    ----------
    results
        Folder of results; what is there of an earlier model is removed.
    spec, model, loader
        Of the run.
    progress, cancelled
        Told the share that is done; asked between minibatches.

    Returns
    -------
    Path or None
        The file; None where the run has a single modality, gives no latent of each, or wants no alignment.

    Raises
    ------
    Cancelled
        Where the person asked for it.
    """
    from cellweave.core.models.midas_network import MidasNetwork

    (results / TRANSLATION).unlink(missing_ok=True)
    if not spec.analysis.alignment or not isinstance(model, MidasNetwork) or len(loader.data.modalities) < 2:
        return None
    model.eval()
    rows = translation_scores(
        spec, model, loader.data, lambda rows: loader.in_order(rows, BATCH), seed=spec.training.seed, progress=progress, cancelled=cancelled
    )
    return write_translations(results, rows)


def draw_corrected(
    results: Path, spec: RunSpec, model: Model, loader: Loader, technical: Tensor | None, *, progress: Callable[[float], None],
    cancelled: Callable[[], bool],
) -> Path | None:
    """Draw corrected counts for the scores of the mosaic and write what they come to into the folder of results.

    Parameters
    ----------
    results
        Folder of results; what is there of an earlier model is removed.
    spec, model, loader, technical
        Of the run.
    progress, cancelled
        Told the share that is done; asked between minibatches.

    Returns
    -------
    Path or None
        The file; None where nothing is scored.

    Raises
    ------
    Cancelled
        Where the person asked for it.
    """
    from cellweave.core.models.midas_network import MidasNetwork

    (results / SPACE).unlink(missing_ok=True)
    analysis = spec.analysis
    if not (analysis.alignment and analysis.scores and analysis.integration) or not isinstance(model, MidasNetwork) or technical is None:
        return None
    if len(loader.data.modalities) < 2:
        return None
    model.eval()
    space = corrected_space(
        spec, model, loader.data, lambda rows: loader.in_order(rows, CHUNK_ROWS), technical, progress=progress, cancelled=cancelled
    )
    return save_space(results, space)
