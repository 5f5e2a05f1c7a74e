"""From files to a :class:`~cellweave.core.study.study.Study`: the header first, then the data."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.spec.data import DataSpec
from cellweave.core.study import masks, select
from cellweave.core.study.align import (
    NothingSharedError,
    align_features,
    make_unique,
    move_columns,
    move_rows,
    rows_by_name,
    stack_rows,
)
from cellweave.core.study.annotation import (
    add_columns,
    add_modality_columns,
    combine_columns,
    fill_missing,
    plain_table,
    stack_tables,
)
from cellweave.core.study.counts import CountsReport, order_of_places
from cellweave.core.study.named_masks import mask_from_files, named_mask
from cellweave.core.study.readers.base import ModalitySource, Place, Source, Watch, explained
from cellweave.core.study.readers.detect import absolute, open_source
from cellweave.core.study.readers.midas import expand
from cellweave.core.study.same_cells import File, Part, Refused, join_same_cells
from cellweave.core.study.study import MISSING_VALUES, Modality, SourceFile, Study
from cellweave.core.wording import agree, counted


def load_study(
    data: DataSpec,
    progress: Callable[[float | None, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    scratch: Path | None = None,
) -> Study:
    """Read the files of a spec.

    Parameters
    ----------
    data
        Which files, which matrices, which features, which cells.
    progress
        Called with the share that is done (None where it is not known) and what is being done.
    cancelled
        Asked between blocks.
    scratch
        Folder for memory-mapped counts, for data larger than the memory; the caller removes it. None keeps them in memory.

    Returns
    -------
    Study
        Counts are CSR of float32 (float64 only where a count is above 2**24), with sorted columns and without explicit
        zeros. Cell names are unique, except where one file repeats a name and ``make_names_unique`` is off: then the
        pre-flight check says so. A modality that holds no raw counts anywhere is left out and named in
        ``left_out_modalities``, as long as another one does and the spec does not ask for it.

    Raises
    ------
    DataError
        One sentence on what cannot be read or used, and the mend.
    Cancelled
        Where ``cancelled`` said so.
    """
    watch = Watch(progress, cancelled, scratch=scratch)
    watch.at(0.0, "looking at the files")
    paths = [part for path in data.paths for part in expand(absolute(path))]
    if not paths:
        raise DataError("No data file is named.", "Choose a file, or set data.paths.")
    repeated = next((path for number, path in enumerate(paths) if path in paths[:number]), None)
    if repeated is not None:
        raise DataError(f"'{repeated.name}' is named twice.", "Name each file once.")
    files = [_read_file(path, data, watch.part(0.9 * n / len(paths), 0.9 / len(paths))) for n, path in enumerate(paths)]
    _check_names(data, files)
    study = _join(join_same_cells(files, data.same_cells), data)
    watch.at(0.92, "applying the choices")
    add_columns(study.obs, data.new_columns)
    fill_missing(study.obs, data.fill_missing)
    combine_columns(study.obs, data.combine)
    masks.apply_masks(study)
    select.drop_unmeasured(study, "not measured in any modality that is used")
    select.switch_off(study, data.switched_off)
    select.drop_unmeasured(study, "switched off")
    select.drop_switched_off(study, data.switched_off)
    if data.drop_empty_features:
        select.drop_empty_features(study)
    for name, how in ((name, how) for name, how in data.features.items() if name in study.modalities):
        watch.at(0.95, f"choosing features of {name}")
        select.select_features(study, name, how)
    masks.apply_masks(study)
    select.drop_unmeasured(study, "none of the features that are used was measured")
    if data.drop_empty_cells:
        select.drop_empty_cells(study)
    if study.n_cells == 0:
        if data.masks and not data.switched_off:
            words = f"The mask of {' and '.join(data.masks)} hides every feature of every cell, so there is nothing to learn."
            raise DataError(words, "Give a mask that is 1 where a value was measured.")
        raise DataError("No cell is left after these choices.", "Switch fewer modalities off.")
    watch.at(1.0, "done")
    return study


def _read_file(path: Path, data: DataSpec, watch: Watch) -> File:
    with explained(path), open_source(path) as source:
        obs = plain_table(source.read_obs())
        if len(obs) == 0:
            raise DataError(f"'{path.name}' holds no cells.", "Choose another file.")
        several = len(source.modalities) > 1
        if not obs.index.is_unique and not any(modality.read_names for modality in source.modalities):
            _repeated_cells(obs, data, source.notes, path)
        parts: dict[str, Part] = {}
        without: dict[str, Refused] = {}
        sizes = np.array([max(1, sum(p.matrix.shape[0] * p.n_features for p in m.places.values())) for m in source.modalities], float)
        starts = np.concatenate([[0.0], np.cumsum(sizes / sizes.sum())])
        for number, modality in enumerate(source.modalities):
            part_watch = watch.part(float(starts[number]), float(starts[number + 1] - starts[number]))
            found = _read_modality(modality, source, obs, data, part_watch)
            if isinstance(found, Refused):
                without[modality.name] = found
            else:
                parts[modality.name] = found
        if not parts or (without and not several):
            raise _no_counts(path, without)
        for name in without:
            if name == data.modality or name in data.layers:
                raise _no_counts(path, {name: without[name]})
            source.notes.append(f"The modality {name} of '{path.name}' was left out, because it holds no raw counts: {without[name].why}.")
        return File((SourceFile(path, source.format, len(obs)),), obs, parts, without, list(dict.fromkeys(source.notes)))


def _repeated_cells(obs: pd.DataFrame, data: DataSpec, notes: list[str], path: Path) -> None:
    number = int(obs.index.duplicated().sum())
    if data.make_names_unique:
        obs.index = pd.Index(make_unique(obs.index.to_numpy(dtype=object)), dtype=object)
        notes.append(f"{number:,} repeated cell names in '{path.name}' were made unique.")
    else:
        notes.append(f"{counted(number, 'cell name')} in '{path.name}' {agree(number, 'repeats another', 'repeat others')}.")


def _read_modality(modality: ModalitySource, source: Source, obs: pd.DataFrame, data: DataSpec, watch: Watch) -> Part | Refused:
    """Return the modality, or why it holds no counts."""
    rows = None
    if modality.read_names is not None:
        rows = rows_by_name(obs.index.to_numpy(dtype=object), modality.read_names(), modality.name, source.path.name)
        if modality.read_obs is not None:
            own = plain_table(modality.read_obs())
            add_modality_columns(obs, own, rows, modality.name)
        if (rows < 0).any():
            n = int((rows < 0).sum())
            source.notes.append(
                f"{counted(n, 'cell')} of {modality.name} {agree(n, 'is', 'are')} not among the cells of '{source.path.name}' and "
                f"{agree(n, 'was', 'were')} left out."
            )
    hidden = _mask_layer(modality, data, watch)
    location, counts, reports = _take_counts(modality, data, watch)
    if counts is None or location is None:
        cells = obs.index.to_numpy(dtype=object) if rows is None else obs.index.to_numpy(dtype=object)[rows]
        why = "; ".join(_named(report, modality, cells).finding() for report in reports)
        return Refused(why, any(report.is_usable for report in reports), any(_only_missing(report, data) for report in reports))
    place = modality.places[location]
    var = plain_table(place.read_var())
    if place.columns is not None:
        var = var.iloc[place.columns].copy()
    if not var.index.is_unique:
        number = int(var.index.duplicated().sum())
        if data.make_names_unique:
            var.index = pd.Index(make_unique(var.index.to_numpy(dtype=object)), dtype=object)
            source.notes.append(f"{number:,} repeated feature names of {modality.name} in '{source.path.name}' were made unique.")
        else:
            source.notes.append(
                f"{counted(number, 'feature name')} of {modality.name} in '{source.path.name}' "
                f"{agree(number, 'repeats another', 'repeat others')}."
            )
    if location != "X":
        source.notes.append(f"The counts of {modality.name} in '{source.path.name}' are taken from {location}.")
    counts, missing = masks.without_missing(counts, modality.name)
    names = var.index.to_numpy(dtype=object)
    said = masks.both(missing, None if hidden is None else masks.from_matrix(*hidden[1:]).on_features(hidden[0], names, modality.name))
    measured = np.ones(len(obs), dtype=bool)
    if rows is not None:
        counts = move_rows(counts, rows, len(obs))
        said = None if said is None else said.on_cells(rows, len(obs))
        measured = np.zeros(len(obs), dtype=bool)
        measured[rows[rows >= 0]] = True
    said = masks.both(said, named_mask(modality, source, obs, names, data.masks.get(modality.name), rows))
    return Part(counts, var, measured, location, said)


def _mask_layer(modality: ModalitySource, data: DataSpec, watch: Watch) -> tuple[np.ndarray, sparse.csr_matrix, str] | None:
    """Take the layer that holds the mask out of the places of counts; return its feature names, its values and the modality."""
    location = data.masks.get(modality.name, "")
    if not location.startswith("layers/"):
        return None
    if location not in modality.places:
        raise DataError(f"{modality.name} has no mask at '{location}'.", f"Set data.masks.{modality.name} to one of {', '.join(modality.places)}.")
    place = modality.places.pop(location)
    _, values = place.read(watch.part(0.0, 0.0), keep=True)
    assert values is not None
    features = place.read_var().index.to_numpy(dtype=object)
    return features if place.columns is None else features[place.columns], values, modality.name


def _only_missing(report: CountsReport, data: DataSpec, *, real: bool = False) -> bool:
    """Return whether NaN is all that keeps values from being counts, or real numbers."""
    return report.n_not_finite > 0 and (real or (report.n_negative == 0 and (report.n_non_integer == 0 or data.accept_non_integer)))


def _with_missing(place: Place, report: CountsReport, data: DataSpec, watch: Watch, *, real: bool = False) -> sparse.csr_matrix | None:
    """Return the counts of a place whose NaN stand for values that were not measured; None where that is not wanted or not so."""
    if not (data.nan_is_missing and _only_missing(report, data, real=real)):
        return None
    _, counts = place.read(watch, keep=True)
    return None if counts is None or np.isinf(counts.data).any() else counts


def _take_counts(modality: ModalitySource, data: DataSpec, watch: Watch) -> tuple[str | None, sparse.csr_matrix | None, list[CountsReport]]:
    """Return where the counts are, the counts, and a report for each place that was looked at."""
    real = data.is_real_valued(modality.name)
    wanted = data.layers.get(modality.name) or (("X" if "X" in modality.places else order_of_places(list(modality.places))[0]) if real else None)
    if wanted is not None:
        if wanted not in modality.places:
            raise DataError(
                f"{modality.name} has no matrix at '{wanted}'.", f"It has {', '.join(order_of_places(list(modality.places)))}: set data.layers.{modality.name}."
            )
        report, counts = modality.places[wanted].read(watch, keep=data.accept_non_integer or real)
        usable = report.is_raw or (data.accept_non_integer and report.is_usable) or (real and report.n_not_finite == 0)
        return wanted, counts if usable else _with_missing(modality.places[wanted], report, data, watch, real=real), [report]
    places = order_of_places(list(modality.places))
    reports: list[CountsReport] = []
    spare: tuple[str, sparse.csr_matrix | None, float] | None = None
    for number, location in enumerate(places):
        report, counts = modality.places[location].read(watch.part(number / len(places), 1 / len(places)))
        reports.append(report)
        if report.is_raw and report.maximum > 1:
            return location, counts, reports
        found = _with_missing(modality.places[location], report, data, watch)
        if found is not None:
            return location, found, reports
        if report.is_raw and (spare is None or report.maximum > spare[2]):
            spare = location, counts, report.maximum  # nothing but 0 and 1: taken where no other place has larger counts
    if spare is not None:
        return spare[0], spare[1], reports
    other = next((report.location for report in reports if report.is_usable), None)
    if data.accept_non_integer and other is not None:
        _, counts = modality.places[other].read(watch, keep=True)
        return other, counts, reports
    return None, None, reports


def _named(report: CountsReport, modality: ModalitySource, cells: np.ndarray) -> CountsReport:
    """Return the report with the names of cells and features filled in."""
    place = modality.places[report.location]
    features = place.read_var().index.to_numpy(dtype=object)
    if place.columns is not None:
        features = features[place.columns]
    first = tuple(
        replace(one, cell=str(cells[one.row]) if one.row < len(cells) else "", feature=str(features[one.column])) for one in report.first
    )
    return replace(report, first=first)


def _no_counts(path: Path, without: dict[str, Refused]) -> DataError:
    name, found = next(iter(without.items()))
    if found.only_missing:
        mend = "If NaN means that a value was not measured, set data.nan_is_missing = true; otherwise open a file with raw counts."
    elif found.usable:
        mend = "Open a file with raw counts, or set data.accept_non_integer = true to train on values that are not whole numbers."
    else:
        mend = "Open a file with raw counts."
    return DataError(f"'{path.name}' holds no raw counts of {name}: {found.why}.", mend)


def _check_names(data: DataSpec, files: list[File]) -> None:
    """Refuse a choice for a modality that no file has, with the nearest name."""
    known = list(dict.fromkeys(name for file in files for name in file.parts))
    asked = {f"data.layers.{name}": name for name in data.layers} | {f"data.features.{name}": name for name in data.features}
    asked |= {f"data.masks.{name}": name for name in data.masks} | {f"data.blocks.{name}": name for name in data.blocks}
    asked |= {f"data.real_valued[{number}]": name for number, name in enumerate(data.real_valued)}
    if data.modality is not None:
        asked["data.modality"] = data.modality
    for field_name, name in asked.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"Did you mean '{near[0]}'?" if near else f"The data have {', '.join(known)}."
            raise DataError(f"{field_name} names the modality '{name}', which the data do not have.", hint)


def _join(files: list[File], data: DataSpec) -> Study:
    """Put the cells of all files under one another, with features aligned by name."""
    notes = [note for file in files for note in file.notes]
    lengths = [len(file.obs) for file in files]
    obs = stack_tables([file.obs for file in files], notes)
    if len(files) > 1:
        _name_cells(obs, files, data, notes)
    modalities: dict[str, Modality] = {}
    found: dict[str, masks.CellMask | None] = {}
    left_out = {
        name: f"it holds no raw counts: {found.why}" + (MISSING_VALUES if found.only_missing else "")
        for file in files
        for name, found in file.without_counts.items()
    }
    names = list(dict.fromkeys(name for file in files for name in file.parts))
    for name in names:
        left_out.pop(name, None)  # another file has counts of it
        try:
            modalities[name], found[name] = _join_modality(name, files, lengths, data, notes)
        except NothingSharedError as error:
            if len(names) == 1 or name == data.modality or name in data.features or name in data.layers:
                raise
            left_out[name] = error.cause[:1].lower() + error.cause[1:].rstrip(".")
            notes.append(f"The modality {name} was left out, because {left_out[name]}. {error.mend}")
    if not modalities:
        raise DataError("The files share no feature of any modality.", NothingSharedError.MEND)
    for name, modality in modalities.items():
        found[name] = masks.both(found[name], mask_from_files(data, obs, modality))
    starts = [sum(len(file.sources) for file in files[:number]) for number in range(len(files))]
    mask_group, tables = masks.number_groups(found, len(obs))
    for name, modality in modalities.items():
        modality.feature_mask = tables[name]
    return Study(
        obs=obs,
        modalities=modalities,
        mask_group=mask_group,
        sources=tuple(source for file in files for source in file.sources),
        file_of_cell=np.concatenate([file.file_of_cell + start for file, start in zip(files, starts, strict=True)]),
        row_in_file=np.concatenate([file.row_in_file for file in files]),
        notes=notes,
        left_out_modalities=left_out,
    )


def _name_cells(obs: pd.DataFrame, files: list[File], data: DataSpec, notes: list[str]) -> None:
    """Make cell names unique over the files, and add the column that says which file a cell came from."""
    numbers = np.repeat(np.arange(len(files)), [len(file.obs) for file in files])
    names = obs.index.to_numpy(dtype=object)
    over_files = pd.Series(numbers).groupby(names).nunique()
    shared = int((over_files > 1).sum())
    if shared:
        notes.append(f"{counted(shared, 'cell name occurs', 'cell names occur')} in several files, so '-1', '-2' ... for the file was appended to all names.")
        first, *others = [set(file.parts) for file in files]
        if any(not first & other for other in others):
            notes.append(
                "The same names occur in files with different modalities; their cells are kept apart. "
                "To use them as one cell each, set data.same_cells = 'joined', or save the modalities as one h5mu."
            )
        obs.index = pd.Index([f"{name}-{number + 1}" for name, number in zip(names, numbers, strict=True)], dtype=object)
    if data.batch_from_file:
        column = "file" if "file" not in obs.columns else "source_file"
        labels = make_unique(np.array([_stem(file.sources[0].path) for file in files], dtype=object))
        obs[column] = pd.Series(pd.Categorical.from_codes(numbers, categories=pd.Index(labels)), index=obs.index)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def _join_modality(name: str, files: list[File], lengths: list[int], data: DataSpec, notes: list[str]) -> tuple[Modality, masks.CellMask | None]:
    having = [number for number, file in enumerate(files) if name in file.parts]
    parts = [files[number].parts[name] for number in having]
    locations = list(dict.fromkeys(part.location for part in parts))
    if len(locations) > 1:
        notes.append(f"The counts of {name} are in different places of the files: {', '.join(locations)}.")
    if len(files) == 1:
        part = parts[0]
        return Modality(name, part.counts, part.var, part.measured, None, part.location), part.mask
    aligned = align_features([part.var.index.to_numpy(dtype=object) for part in parts], data.join, name)
    n_features = len(aligned.names)
    blocks, measured = [], []
    own_masks: list[masks.CellMask | None] = []
    columns: list[np.ndarray | None] = []
    for number, length in enumerate(lengths):
        if number in having:
            at = having.index(number)
            part = parts[at]
            columns.append(aligned.columns[at])
            own_masks.append(part.mask)
            blocks.append(move_columns(part.counts, aligned.columns[at], n_features))
            measured.append(part.measured)
        else:
            columns.append(None)
            own_masks.append(None)
            blocks.append(sparse.csr_matrix((length, n_features), dtype=np.float32))
            measured.append(np.zeros(length, dtype=bool))
    joined = Modality(name, stack_rows(blocks), _join_var(parts, aligned.names), np.concatenate(measured), None, locations[0])
    if data.join == "intersection" and any(len(part.var) > n_features for part in parts):
        held = f"{counted(n_features, 'feature')} of {joined.label} {agree(n_features, 'is', 'are')} in all files that have it"
        notes.append(f"{held}; the others were left out.")
    return joined, masks.stacked(own_masks, columns, lengths, n_features)


def _join_var(parts: list[Part], names: np.ndarray) -> pd.DataFrame:
    """Return one row a joint feature; what the first file says of it comes first."""
    index = pd.Index(names, dtype=object)
    columns: dict[str, pd.Series] = {}
    for part in parts:
        table = part.var.reindex(index)
        for column in table.columns:
            if column not in columns:
                columns[column] = table[column]
            elif columns[column].isna().any() and table[column].notna().any():
                columns[column] = columns[column].astype(object).where(columns[column].notna(), table[column].astype(object))
    return plain_table(pd.DataFrame(columns, index=index))
