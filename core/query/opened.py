"""Opening a trained run for questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cellweave.core.errors import DataError, RunFolderError
from cellweave.core.files import sha256_of
from cellweave.core.query.encode import align_to, blocks_of, encode, load_new
from cellweave.core.query.trained_run import TrainedRun
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Study
from cellweave.core.training.devices import choose_device
from cellweave.core.training.model_files import TrainedModel, load_model
from cellweave.core.training.sources import Loader


def open_run(
    folder: str | Path, *, study: Study | None = None, device: str = "cpu", check_data: bool = True, scratch: Path | None = None
) -> TrainedRun:
    """Open a run whose model is trained.

    Parameters
    ----------
    folder
        The run folder.
    study
        The loaded study, where the caller has it already; it must be that of the run.
    device
        ``cpu``, ``cuda``, ``mps`` or ``auto``.
    check_data
        Whether to compare the check sums of the data files with those of the run.
    scratch
        Folder for memory-mapped counts, for data larger than the memory; the caller removes it. None keeps them in memory.

    Returns
    -------
    TrainedRun
        Ready for questions; the model is in evaluation mode.

    Raises
    ------
    RunFolderError
        Where there is no trained model in the folder, or it is still being trained.
    DataError
        Where the data are gone or have changed.
    """
    run, trained, where = open_model(folder, device)
    if study is None:
        study = _same_data(run.spec, check_data=check_data, scratch=scratch)
    aligned, notes = align_to(study, trained.features, partial=run.spec.family.modalities == "many")
    data = encode(run.spec, trained.encoding, aligned, trained.features, trained_on=True, blocks=blocks_of(trained.context))
    return TrainedRun(run.path, run.spec, trained, aligned, data, Loader(data, where, resident=False), tuple(notes))


def open_on_files(folder: str | Path, paths: Sequence[str | Path], *, device: str = "cpu") -> TrainedRun:
    """Open a run for questions about the cells of other files; its own data need not be there.

    Parameters
    ----------
    folder, device
        As in :func:`open_run`.
    paths
        One file, or several that together are one study.

    Raises
    ------
    RunFolderError
        Where there is no trained model in the folder.
    DataError
        Where features, columns or levels of the cells do not fit the model.
    """
    run, trained, where = open_model(folder, device)
    study, notes = align_to(load_new(run.spec, paths), trained.features, partial=run.spec.family.modalities == "many")
    data = encode(run.spec, trained.encoding, study, trained.features, trained_on=False, blocks=blocks_of(trained.context))
    return TrainedRun(run.path, run.spec, trained, study, data, Loader(data, where, resident=False), tuple(notes))


def open_model(folder: str | Path, device: str = "cpu") -> tuple[RunFolder, TrainedModel, torch.device]:
    """Read the trained model of a run without its data.

    Parameters
    ----------
    folder, device
        As in :func:`open_run`.

    Returns
    -------
    run
        The run folder.
    trained
        The model, on the device.
    device
        The device.

    Raises
    ------
    RunFolderError
        Where there is no trained model, or it is still being trained.
    """
    run = RunFolder.open(folder)
    status = run.status
    if status.state.active and not status.lost:
        raise RunFolderError(f"The run '{run.path.name}' is still going on ({status.state.value}).", "Ask again when it is finished, or stop it first.")
    trained = load_model(run.path / "model", run.spec)
    if trained.training.get("reason") == "failed":
        raise RunFolderError(
            f"The training of '{run.path.name}' failed, so its model is not a result.", f"Continue it with 'cellweave resume {run.path}', or train again."
        )
    for name, tensor in trained.model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise RunFolderError(
                f"The model of '{run.path.name}' holds values that are not finite numbers (in {name}).", "Train again with a lower learning rate."
            )
    where = choose_device(device)
    trained.model.to(where)
    return run, trained, where


def _same_data(spec: RunSpec, *, check_data: bool, scratch: Path | None) -> Study:
    from cellweave.core.study import load_study

    for number, name in enumerate(spec.data.paths):
        path = Path(name).expanduser()
        if not path.exists():
            raise DataError(f"The data file '{path}' of the run is not there any more.", "Put it back, or open other cells with the run.")
        if check_data and number < len(spec.data.sha256) and sha256_of(path) != spec.data.sha256[number]:
            raise DataError(
                f"'{path.name}' has changed since the run was trained, so the answers would be about other cells.",
                "Put the original file back, or ask about the changed file as new cells.",
            )
    return load_study(spec.data, scratch=scratch)
