"""The trained run as an h5ad or h5mu: everything that was in the input, and the results beside it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.attribution_scores import AttributionScores
from cellweave.core.errors import CellweaveError, DataError, RunFolderError, SpecError
from cellweave.core.export.annotate import Additions, add
from cellweave.core.export.denoised import add_denoised, add_imputed, imputed_features
from cellweave.core.export.inputs import Input, Progress, StudyLoader, check_unchanged, open_input
from cellweave.core.export.provenance import uns_entry
from cellweave.core.export.run_data import RunData, input_paths
from cellweave.core.files import write_atomic
from cellweave.core.spec import RunSpec
from cellweave.core.wording import agree, counted


def export_h5ad(
    run_folder: str | Path,
    out: str | Path,
    *,
    study_loader: StudyLoader | None = None,
    denoised: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write every cell of the input, in input order, with all it had, and the results of the run.

    Added are ``obsm["X_latent"]`` (and further latents), ``obsm["X_umap"]``, the modality attribution where the run has it (``obsm["X_latent_attr_M"]``,
    ``obs["M_decoder_total_attr"]``, ``obs["M_decoder_own_attr"]``, ``obs["log2_M0_vs_M1_attr"]`` ...), ``obs["leiden"]``, ``obs["cellweave_split"]`` (train,
    validation or left out), ``obs["cellweave_library"]`` where the run has it, and ``uns["cellweave"]`` with the whole spec. A name that
    the input has taken is never overwritten: ours then ends in ``_cellweave``, and ``uns["cellweave"]["names"]`` says what became of
    each. Cells that were left out have NaN in obsm and no cluster.

    ``layers["denoised"]`` (on request) is sparse and free of NaN: it holds values for the features the model was trained on
    (``var["cellweave_denoised"]``) in the cells that have a latent, and reads as 0 elsewhere.

    An h5ad is copied and added to, so that not one of its encodings changes. Of an h5mu the trained modality is written with
    all cells of the file; ``uns["cellweave"]["left_behind"]`` names the others (``export_h5mu`` keeps all). Several
    files are put under one another in the order of the study.

    Parameters
    ----------
    run_folder
        Folder of a trained run.
    out
        The h5ad to write; replaced where it exists, never half-written.
    study_loader
        Reads formats that anndata cannot; None takes Cellweave's own readers.
    denoised
        Whether to add the denoised expression.
    force
        Export although an input file has changed since training.
    progress
        Called with the share that is done and a few words.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    RunFolderError
        Where the run has no latent yet, or no denoised expression although it is asked for.
    DataError
        Where an input is gone or has changed.
    CellweaveError
        Where the file cannot be written.
    """
    run, report = RunData(run_folder), progress or _silent
    out = _place(out, ".h5ad", run.spec)
    _require(run, denoised)
    check_unchanged(run.spec, report, force=force)
    report(None, "reading the input")
    given = open_input(run, study_loader=study_loader)

    def write(temporary: Path) -> None:
        nonlocal given
        if given.adata is None and given.path is not None:
            try:
                shutil.copyfile(given.path, temporary)
                _finish(temporary, run, given, denoised, report)
                return
            except (KeyError, ValueError, TypeError, RuntimeError) as error:
                # a layout that looks like today's and is not: read it, and write it as today's
                given = open_input(run, study_loader=study_loader, whole=True)
                given.notes.append(f"The file was written anew, because it could not be added to as it was ({type(error).__name__}).")
        _write_adata(given, temporary)
        _finish(temporary, run, given, denoised, report)

    _write(out, write)
    report(1.0, "written")
    return out


def export_h5mu(
    run_folder: str | Path, out: str | Path, *, denoised: bool = False, force: bool = False, progress: Progress | None = None
) -> Path:
    """Write an h5mu with all modalities of the input, and the results in its top-level obs, obsm and uns.

    One h5mu is copied and added to. Other data of several modalities (several files, a folder, a table with features of several kinds) are written as they
    were read, each modality with the cells in which it was measured. Values that a model imputes in all cells are in ``obsm["X_imputed_MODALITY"]``, their
    features in ``uns["cellweave"]["imputed_features_MODALITY"]``; the layer of a modality has those of its own cells.

    Parameters
    ----------
    run_folder, denoised, force, progress
        As in :func:`export_h5ad`; the denoised layer goes into the trained modalities.
    out
        The h5mu to write.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    DataError
        Where the input holds one modality only; and as :func:`export_h5ad`.
    """
    from cellweave.core.export.study_h5mu import input_of, paths_are_one_h5mu, whole_study
    from cellweave.core.study.readers.detect import open_source

    run, report = RunData(run_folder), progress or _silent
    out = _place(out, ".h5mu", run.spec)
    _require(run, denoised)
    check_unchanged(run.spec, report, force=force)
    paths = input_paths(run.spec)
    if paths_are_one_h5mu(run):
        with open_source(paths[0]) as source:
            n_cells = source.n_cells

        def write(temporary: Path) -> None:
            shutil.copyfile(paths[0], temporary)
            _finish(temporary, run, Input(None, paths[0], "h5mu", n_cells, np.zeros(1, dtype=np.int64)), denoised, report)
    else:
        report(None, "reading the input")
        study = whole_study(run)

        def write(temporary: Path) -> None:
            _finish(temporary, run, input_of(run, study, temporary), denoised, report)

    _write(out, write)
    report(1.0, "written")
    return out


# ---------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Rows:
    """Where each cell of the study is in the export.

    Attributes
    ----------
    row
        Row of the export of each study cell, ``(n_study,)``.
    n_cells
        Rows of the export.
    """

    row: NDArray[np.int64]
    n_cells: int

    def spread(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return float values over all rows, NaN where the study has no cell."""
        wide = np.full((self.n_cells, *values.shape[1:]), np.nan, dtype=np.float32)
        wide[self.row] = values
        return wide

    def spread_levels(self, series: pd.Series, default: str | None = None) -> pd.Series:
        """Return a categorical over all rows; ``default`` stands for cells that are not in the study, missing where None."""
        levels = [str(level) for level in series.cat.categories]
        if default is not None and default not in levels:
            levels.append(default)
        codes = np.full(self.n_cells, -1 if default is None else levels.index(default), dtype=np.int32)
        codes[self.row] = series.cat.codes
        return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(levels, dtype=object)))


def _silent(fraction: float | None, text: str = "") -> None:
    """Report to nobody."""


def _place(out: str | Path, suffix: str, spec: RunSpec) -> Path:
    out = Path(out).expanduser().absolute()
    if out.exists() and any(Path(path).exists() and out.samefile(path) for path in spec.data.paths):
        raise SpecError(f"'{out.name}' is the data this run was trained on, which an export never overwrites.", "Choose another name.")
    if out.suffix != suffix:
        raise SpecError(f"'{out.name}' does not end in {suffix}.", f"Name the file '{out.stem}{suffix}'.")
    if not out.parent.is_dir():
        raise SpecError(f"There is no folder '{out.parent}'.", "Make it first, or choose another one.")
    return out


def _require(run: RunData, denoised: bool) -> None:
    if not run.has("latent.npy"):
        raise RunFolderError(
            f"The run '{run.name}' has no latent space yet.", f"Let it finish, or continue it with 'cellweave resume {run.folder.path}'."
        )
    if denoised and not run.has("denoised.h5"):
        raise RunFolderError(
            f"The run '{run.name}' has no denoised expression.",
            "Train with analysis.denoised = true, or export without it.",
        )


def _write(out: Path, write: Callable[[Path], None]) -> None:
    try:
        write_atomic(out, write)
    except OSError as error:
        raise CellweaveError(f"'{out}' cannot be written: {error.strerror or error}.", "Free some space, or choose another place.") from error


def _finish(path: Path, run: RunData, given: Input, denoised: bool, report: Progress) -> None:
    """Add the results to a file that holds the input, and look whether it can be read."""
    rows = _rows(run, given)
    with h5py.File(path, "r+") as file:
        if _n_cells(file) != given.n_cells:
            raise DataError(
                f"The input has {counted(_n_cells(file), 'cell')} where {given.n_cells} {agree(given.n_cells, 'was', 'were')} "
                "expected.", "Put the original file back."
            )
        additions = _additions(run, given, rows)
        if denoised:
            additions.names.update(add_denoised(file, run, given, rows.row, report))
        report(None, "adding the results")
        add(file, additions)
        if denoised or run.has("imputed.h5") or run.has("corrected.h5"):
            add_imputed(file, run, rows.row, rows.n_cells)
    if given.format != "h5mu" or given.adata is not None:
        import anndata

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            back = anndata.read_h5ad(path, backed="r")
            shape = back.obsm[additions.names.get("obsm.X_latent", "X_latent")].shape
            back.file.close()
        if shape[0] != given.n_cells:
            raise ValueError(shape)


def _n_cells(file: h5py.Group) -> int:
    obs = file["obs"]
    index = obs.attrs["_index"]
    return len(obs[index.decode() if isinstance(index, bytes) else index])


def _rows(run: RunData, given: Input) -> _Rows:
    cells = run.cells
    row = given.starts[cells["file"].to_numpy()] + cells["row"].to_numpy()
    if given.place is not None:
        row = given.place[row]
    if len(row) and row.max() >= given.n_cells:
        raise DataError("The input has fewer cells than the run was trained on.", "Put the original file back.")
    return _Rows(row, given.n_cells)


def _additions(run: RunData, given: Input, rows: _Rows) -> Additions:
    obs = {"cellweave_split": rows.spread_levels(run.cells["split"].astype("category"), "left out")}
    if run.clusters is not None:
        obs["leiden"] = rows.spread_levels(run.clusters)
    if run.transferred is not None:
        obs["cellweave_transferred_label"] = rows.spread_levels(run.transferred["label"].astype("category"))
        obs["cellweave_transferred_share"] = pd.Series(rows.spread(run.transferred["share"].to_numpy(np.float32)))
    if run.has("library.npy"):
        obs["cellweave_library"] = pd.Series(rows.spread(run.array("library")))
    latents = run.latents()
    obsm = {f"X_{name}": rows.spread(values) for name, values in latents.items()}
    scores = AttributionScores.load(run.folder.results)
    if scores is not None and len(scores.frobenius) == len(run.cells):
        obs |= {name: pd.Series(rows.spread(values)) for name, values in scores.columns().items()}
        obsm |= {name: rows.spread(values) for name, values in scores.matrices().items()}
    libraries = sorted(path.stem for path in run.folder.results.glob("library_*.npy"))
    obs |= {f"cellweave_{name}": pd.Series(rows.spread(run.array(name))) for name in libraries}
    if run.has("umap.npy"):
        obsm["X_umap"] = rows.spread(run.array("umap"))
    obs |= _diagnosed(run, rows)
    without = int(given.n_cells - np.isfinite(latents["latent"]).all(axis=1).sum())
    more: dict[str, Any] = {"cells_without_latent": without, **imputed_features(run)}
    if scores is not None:
        more["attribution"] = json.dumps(scores.info)
    if given.left_behind:
        more["left_behind"] = np.array(given.left_behind, dtype=object)
    if given.notes:
        more["notes"] = np.array(given.notes, dtype=object)
    return Additions(obs, obsm, uns_entry(run, **more))


def _diagnosed(run: RunData, rows: _Rows) -> dict[str, pd.Series]:
    """Return what the neighbourhood diagnostics say of each cell: the failure, and the correlations with neighbours."""
    if not run.has("neighbourhood.csv"):
        return {}
    table = pd.read_csv(run.folder.results / "neighbourhood.csv", usecols=lambda name: name == "failure_mode" or name.startswith("corr_avg_"))
    if len(table) != len(run.cells):
        return {}
    found = {f"neighbourhood_{name}": pd.Series(rows.spread(table[name].to_numpy(np.float32))) for name in table if name != "failure_mode"}
    if "failure_mode" in table:
        found["neighbourhood_failure_mode"] = rows.spread_levels(table["failure_mode"].astype("category"))
    return found


def _write_adata(given: Input, path: Path) -> None:
    """Write what was read into memory; what today's anndata cannot store is left out and noted."""
    adata = given.adata
    assert adata is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _drop_unwritable(given)
        adata.write_h5ad(path, convert_strings_to_categoricals=False, compression="gzip")


def _drop_unwritable(given: Input) -> None:
    """Take out what cannot be written: it would fail the export of all the rest."""
    from anndata.io import write_elem

    adata = given.adata
    assert adata is not None
    with h5py.File("probe", "w", driver="core", backing_store=False) as probe:
        for name in list(adata.uns):
            try:
                write_elem(probe, "probe", adata.uns[name])
            except Exception as error:  # noqa: BLE001  (each type has its own way to refuse; the note says which entry and why)
                given.notes.append(f"uns['{name}'] could not be written and was left behind ({type(error).__name__}).")
                del adata.uns[name]
        for what, frame in (("obs", adata.obs), ("var", adata.var)):
            for column in list(frame.columns):
                try:
                    write_elem(probe, "probe", frame[column].array if frame[column].dtype == "category" else frame[column].to_numpy())
                except Exception:  # noqa: BLE001  (text with gaps, or values of mixed types: levels can hold either)
                    known = frame[column].notna()
                    if not all(isinstance(value, str) for value in frame[column][known]):
                        given.notes.append(f"{what}['{column}'] holds values of mixed types and was written as text.")
                    frame[column] = frame[column].astype(str).where(known).astype("category")
