"""Checks of the covariates: that columns exist, hold groups or numbers, and say different things."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cellweave.core.spec.covariates import LIST_ROLES
from cellweave.core.spec.roles import effective_roles, role_conflicts
from cellweave.core.spec.run import RunSpec
from cellweave.core.study.checks import Check, Fix, Level
from cellweave.core.study.columns import (
    CONDITION_NAMES,
    MANY_NUMBERS,
    USUAL_NAMES,
    confounded,
    crosstab,
    describe_column,
    is_level_per_cell,
    is_measurement,
    several_parents,
    simple_name,
    suggest_roles,
)
from cellweave.core.study.header import ColumnHeader, FileHeader
from cellweave.core.study.preflight_data import FEW_CELLS, used_modalities
from cellweave.core.study.study import Study
from cellweave.core.wording import agree, counted

FEW_FOR_MIDAS = 5000  # its author's advice for each batch, midas issue 13
NUMBER_ROLES = ("continuous", "size_factor")


def check_covariates(spec: RunSpec, study: Study) -> list[Check]:
    """Return what was found in the columns that have a role."""
    obs = study.obs
    found: list[Check] = [*_required(spec), *_conflicts(spec)]
    usable: list[tuple[str, str]] = []
    for role, columns in spec.covariates.assigned().items():
        for column in columns:
            if column not in obs.columns:
                found.append(_vanished(spec, role, column, [str(name) for name in obs.columns]))
            elif role in NUMBER_ROLES:
                found += _numbers(spec, role, column, obs[column])
            else:
                here = groups(spec, role, describe_column(obs[column]).header, study.n_cells)
                found += here
                if all(check.level is not Level.FAIL for check in here):
                    usable.append((role, column))
    good = {column for _, column in usable}
    batch = spec.covariates.batch
    if batch in good and batch is not None:
        found += _batch_sizes(spec, study, batch)
        found += _batch_modalities(spec, study, batch)
        found += _same_as_batch(spec, obs, batch, good)
    elif batch is None:
        found += _no_batch(spec, obs)
    found += _libraries(spec, obs, good)
    return found


def _required(spec: RunSpec) -> Iterator[Check]:
    assigned = spec.covariates.assigned()
    for use in spec.family.roles:
        if use.required and use.role not in assigned:
            text = f"{spec.family.title} needs a column as {_words(use.role)}. {use.help}"
            yield Check(f"{use.role}-missing", Level.FAIL, f"No {_words(use.role)}", text, where=f"covariates.{use.role}")


def _conflicts(spec: RunSpec) -> Iterator[Check]:
    """Roles that contradict one another in this family."""
    for conflict in role_conflicts(spec.covariates, spec.family):
        fixes = [Fix(f"Take {_words(conflict.role)} away from '{column}'", _without(spec, conflict.role, column)) for column in conflict.columns[:1]]
        title = f"{_words(conflict.role).capitalize()} contradicts another role"
        yield Check("roles-conflict", Level.FAIL, title, conflict.text, _valid(spec, *fixes), f"covariates.{conflict.role}")
    parts = tuple(dict.fromkeys(part for targets in spec.family.fan_out.values() for part in targets))
    roles = effective_roles(spec.covariates, spec.family).columns
    if spec.family.parts_together and parts and not any(part in roles for part in parts):
        text = "No column is the batch or the library, so that all cells share one background, one set of dispersions and one prior of library sizes."
        yield Check("one-group", Level.WARN, "One group of cells", text, where="covariates.batch")


def _words(role: str) -> str:
    return role.replace("_", " ")


def _without(spec: RunSpec, role: str, column: str) -> dict[str, object]:
    """Return the change that takes a column out of its role."""
    if role in LIST_ROLES:
        return {f"covariates.{role}": tuple(name for name in getattr(spec.covariates, role) if name != column)}
    return {f"covariates.{role}": None}


def _instead(spec: RunSpec, role: str, column: str, new: str) -> dict[str, object]:
    if role in LIST_ROLES:
        names = [new if name == column else name for name in getattr(spec.covariates, role)]
        return {f"covariates.{role}": tuple(dict.fromkeys(names))}
    return {f"covariates.{role}": new}


def _valid(spec: RunSpec, *fixes: Fix) -> tuple[Fix, ...]:
    """Return the fixes that give a valid spec: a role that an option of the model needs cannot be emptied."""
    from cellweave.core.errors import SpecError

    good = []
    for fix in fixes:
        try:
            spec.with_changes(fix.changes)
        except SpecError:
            continue
        good.append(fix)
    return tuple(good)


def _vanished(spec: RunSpec, role: str, column: str, known: Sequence[str]) -> Check:
    near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
    offers = [Fix(f"Use '{name}'", _instead(spec, role, column, name)) for name in near]
    offers.append(Fix(f"Go on without '{column}'", _without(spec, role, column)))
    there = f" Did you mean '{near[0]}'?" if near else f" There are: {', '.join(known[:12]) or 'none'}."
    text = f"The cells have no column '{column}', which is to be the {_words(role)}.{there}"
    return Check("column", Level.FAIL, f"No column '{column}'", text, _valid(spec, *offers), f"covariates.{role}")


def groups(spec: RunSpec, role: str, header: ColumnHeader, n_cells: int) -> list[Check]:
    """Return what is to be said of a column whose levels are groups of cells."""
    column, where, title = header.name, f"covariates.{role}", f"{_words(role).capitalize()} '{header.name}'"
    out = Fix(f"Do not use '{column}'", _without(spec, role, column))
    if header.kind == "other" or header.n_levels == 0:
        text = f"The column '{column}' holds {'no values' if header.n_levels == 0 else 'neither text nor numbers'}."
        return [Check("column-kind", Level.FAIL, title, text, _valid(spec, out), where)]
    if is_measurement(header):
        extra = _to_continuous(spec, role, column)
        text = f"The column '{column}' holds {header.n_levels:,} different numbers: a measurement, not groups of cells."
        return [Check("column-kind", Level.FAIL, title, text, _valid(spec, *extra, out), where)]
    if is_level_per_cell(header, n_cells):
        text = (
            f"The column '{column}' has {counted(header.n_levels or 0, 'level')} for {counted(n_cells, 'cell')}, nearly one a cell: nothing could be "
            "learned of any."
        )
        return [Check("level-per-cell", Level.FAIL, title, text, _valid(spec, out), where)]
    found = []
    if header.n_missing:
        found.append(_missing(spec, role, header))
    if header.n_levels == 1 and role != "labels" and spec.reference is None:
        text = f"The column '{column}' has one level only, so that it changes nothing."
        found.append(Check("one-level", Level.WARN, title, text, _valid(spec, out), where))
    elif header.kind in ("integer", "float") and (header.n_levels or 0) > MANY_NUMBERS:
        text = f"The column '{column}' holds {header.n_levels:,} different whole numbers, each of which is taken for a group."
        found.append(Check("column-kind", Level.WARN, title, text, _valid(spec, *_to_continuous(spec, role, column), out), where))
    elif not found:
        levels = counted(header.n_levels, "level") if header.n_levels is not None else "levels"
        found.append(Check("column", Level.OK, title, f"{levels}, none missing.", where=where))
    return found


def _to_continuous(spec: RunSpec, role: str, column: str) -> tuple[Fix, ...]:
    if role == "labels" or spec.family.uses("continuous") is None:
        return ()
    changes = {**_without(spec, role, column), "covariates.continuous": tuple(dict.fromkeys([*spec.covariates.continuous, column]))}
    return (Fix(f"Use '{column}' as a continuous covariate", changes),)


def _missing(spec: RunSpec, role: str, header: ColumnHeader) -> Check:
    title, where = f"{_words(role).capitalize()} '{header.name}'", f"covariates.{role}"
    n = header.n_missing or 0
    if role == "labels" and getattr(spec.model, "dispersion", "") != "gene-label":
        text = (
            f"{counted(n, 'cell has', 'cells have')} no label in '{header.name}'. {agree(n, 'It is', 'They are')} "
            "trained on all the same and left out of the scores."
        )
        return Check("labels-missing", Level.OK, title, text, where=where)
    if role in {"dataset", "technical"}:
        text = (
            f"{counted(n, 'cell has', 'cells have')} no value in '{header.name}'. {agree(n, 'It is', 'They are')} "
            f"trained on all the same; the diagnostics say nothing of {agree(n, 'it', 'them')}."
        )
        return Check("diagnostics-missing", Level.WARN, title, text, where=where)
    text = f"{counted(n, 'cell has', 'cells have')} no value in '{header.name}'. Each cell must belong to a level."
    fill = Fix(f"Give {agree(n, 'it', 'them')} the level 'missing'", {f"data.fill_missing.{header.name}": "missing"})
    return Check("missing-values", Level.FAIL, title, text, _valid(spec, fill, Fix(f"Do not use '{header.name}'", _without(spec, role, header.name))), where)


def _numbers(spec: RunSpec, role: str, column: str, values: pd.Series) -> Iterator[Check]:
    title, where = f"{_words(role).capitalize()} '{column}'", f"covariates.{role}"
    out = _valid(spec, Fix(f"Do not use '{column}'", _without(spec, role, column)))
    numbers = pd.to_numeric(values.astype(object), errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(numbers)
    if bad.any():
        first = values.index[int(np.argmax(bad))]
        if bad.all():
            decoder: tuple[Fix, ...] = ()
            if role == "continuous" and spec.family.uses("decoder") is not None:
                changes = {**_without(spec, role, column), "covariates.decoder": tuple(dict.fromkeys([*spec.covariates.decoder, column]))}
                decoder = _valid(spec, Fix(f"Use '{column}' as groups", changes))
            yield Check("not-numbers", Level.FAIL, title, f"The column '{column}' does not hold numbers.", (*decoder, *out), where)
        else:
            text = f"The column '{column}' is not a finite number in {counted(int(bad.sum()), 'cell')}, the first is '{first}'."
            yield Check("not-numbers", Level.FAIL, title, text, out, where)
    elif role == "size_factor" and (numbers <= 0).any():
        text = f"The column '{column}' is 0 or less in {counted(int((numbers <= 0).sum()), 'cell')}; a size factor multiplies and must be positive."
        yield Check("size-factor", Level.FAIL, title, text, out, where)
    elif role == "continuous" and numbers.size and numbers.min() == numbers.max():
        text = f"The column '{column}' has the same value in all cells, so that it carries nothing."
        yield Check("constant", Level.FAIL, title, text, out, where)
    else:
        yield Check("numbers", Level.OK, title, f"Numbers from {numbers.min():g} to {numbers.max():g}.", where=where)


def _batch_sizes(spec: RunSpec, study: Study, batch: str) -> Iterator[Check]:
    used = used_modalities(spec, study)
    if not used:
        return
    measured = np.logical_or.reduce([modality.measured for modality in used])
    sizes = study.obs[batch][measured].value_counts()
    sizes = sizes[sizes > 0]
    smallest = spec.data.min_cells_per_batch
    out, small = sizes[sizes < smallest], sizes[(sizes >= smallest) & (sizes < FEW_CELLS)]
    where = "covariates.batch"
    if len(sizes) and len(out) == len(sizes):
        text = f"No batch of '{batch}' has {counted(smallest, 'cell')}, so that none would be trained on."
        fixes = (Fix("Train on every batch of 2 or more", {"data.min_cells_per_batch": 2}),) if sizes.max() >= 2 and smallest > 2 else ()
        yield Check("batch-size", Level.FAIL, "Batches too small", text, (*fixes, *_coarser(spec, study.obs, batch)), where)
        return
    if len(out):
        text = (
            f"{_listed(out)} of '{batch}' {'has' if len(out) == 1 else 'have'} fewer than {smallest:,} cells and "
            f"{'is' if len(out) == 1 else 'are'} not trained on; the cells still get a latent."
        )
        yield Check("batch-size", Level.WARN, "Batches left out of training", text, _coarser(spec, study.obs, batch), where)
    if len(small):
        text = f"{_listed(small)} of '{batch}' {'has' if len(small) == 1 else 'have'} fewer than {FEW_CELLS} cells: little can be learned of what is theirs."
        leave = Fix("Leave small batches out of training", {"data.min_cells_per_batch": FEW_CELLS})
        fixes = (leave,) if (sizes >= FEW_CELLS).any() else ()
        yield Check("small-batches", Level.WARN, "Small batches", text, (*fixes, *_coarser(spec, study.obs, batch)), where)
    if spec.model.kind == "midas" and (sizes < FEW_FOR_MIDAS).any():
        text = f"Batches of fewer than {FEW_FOR_MIDAS:,} cells are hard for MIDAS, as its authors say; the smallest has {int(sizes.min()):,}."
        yield Check("midas-batches", Level.WARN, "Small batches for MIDAS", text, where=where)


def _listed(sizes: pd.Series) -> str:
    names = [f"'{level}' ({int(number):,})" for level, number in list(sizes.items())[:4]]
    more = f" and {len(sizes) - 4} more" if len(sizes) > 4 else ""
    return ("Level " if len(sizes) == 1 else "Levels ") + ", ".join(names) + more


def _coarser(spec: RunSpec, obs: pd.DataFrame, batch: str) -> tuple[Fix, ...]:
    """Offer columns that hold several batches each, so that small ones stand together with others."""
    fixes = []
    for name in obs.columns:
        if name == batch or simple_name(str(name)) not in USUAL_NAMES["batch"]:
            continue
        within = f"Each level of '{batch}' lies within one level of '{name}'." == confounded(obs, batch, str(name))
        if within and obs[name].notna().all():
            fixes.append(Fix(f"Use '{name}' as the batch", {"covariates.batch": str(name)}))
    return _valid(spec, *fixes)


def _batch_modalities(spec: RunSpec, study: Study, batch: str) -> Iterator[Check]:
    """A batch in which a modality was not measured, or holds nothing although it is said to be."""
    codes, found = pd.factorize(study.obs[batch], sort=True)
    levels = [str(level) for level in found]
    known = codes >= 0
    for modality in used_modalities(spec, study):
        measured = np.bincount(codes[known & modality.measured], minlength=len(levels))
        filled = np.bincount(codes[known & (np.diff(modality.counts.indptr) > 0)], minlength=len(levels))
        absent = [level for level, number in zip(levels, measured, strict=True) if number == 0]
        hollow = [level for level, there, number in zip(levels, measured, filled, strict=True) if there > 0 and number == 0]
        if absent:
            names = ", ".join(f"'{level}'" for level in absent[:4])
            one = spec.family.modalities == "one"
            what = "their cells are not trained on and get no latent" if one else "it is inferred from their other modalities"
            text = f"{modality.label} was not measured in {len(absent)} of {counted(len(levels), 'batch', 'batches')} ({names}): {what}."
            yield Check("batch-modality", Level.WARN if one else Level.OK, f"{modality.label} is missing in batches", text, where="covariates.batch")
        if hollow and len(study.modalities) > 1:
            off = tuple({"column": batch, "level": level, "modality": modality.name} for level in hollow)
            kept = tuple(one.model_dump() for one in spec.data.switched_off)
            fix = Fix(f"Treat {modality.label} as not measured there", {"data.switched_off": kept + off})
            names = ", ".join(f"'{level}'" for level in hollow[:4])
            text = f"{modality.label} has not a single count in the batches {names}: it was probably not measured there."
            yield Check("batch-hollow", Level.WARN, f"{modality.label} is empty in batches", text, _valid(spec, fix), "data.switched_off")


def _same_as_batch(spec: RunSpec, obs: pd.DataFrame, batch: str, usable: set[str]) -> Iterator[Check]:
    labels = spec.covariates.labels
    others = [labels] if labels in usable and labels != batch else []
    others += [str(name) for name in obs.columns if simple_name(str(name)) in CONDITION_NAMES and name not in (batch, labels)]
    if labels == batch:
        text = f"'{batch}' is both batch and labels: removing the one removes the other."
        out = _valid(spec, Fix("Go on without labels", {"covariates.labels": None}))
        yield Check("confounded", Level.FAIL, "Batch and labels are the same column", text, out, "covariates.batch")
    for other in others:
        found = confounded(obs, batch, other)
        if not found:
            continue
        if found.startswith(f"Each level of '{batch}'") and other != labels:
            text = f"{found} What differs between the levels of '{other}' may be removed together with the batch effect."
            yield Check("confounded", Level.WARN, f"'{other}' lies across batches", f"{text} {_table(obs, batch, other)}", where="covariates.batch")
        else:
            text = f"{found} What belongs to '{other}' cannot be told from the batch effect and would be removed with it."
            out = _valid(spec, Fix("Go on without a batch", {"covariates.batch": None}))
            yield Check("confounded", Level.WARN, f"Batch and '{other}' are confounded", f"{text} {_table(obs, batch, other)}", out, "covariates.batch")


def _table(obs: pd.DataFrame, first: str, second: str) -> str:
    """Return a small cross table as text."""
    table = crosstab(obs, first, second)
    rows = []
    for level, row in table.iloc[:4].iterrows():
        there = ", ".join(f"{name} {number:,}" for name, number in row.items() if number > 0)
        rows.append(f"{level}: {there if len(there) < 80 else there[:77] + '...'}")
    more = f"; and {len(table) - 4} more" if len(table) > 4 else ""
    return f"Cells: {'; '.join(rows)}{more}."


def _no_batch(spec: RunSpec, obs: pd.DataFrame) -> Iterator[Check]:
    proposed = suggest_roles(obs).get("batch")
    if proposed and spec.family.uses("batch") is not None:
        text = f"No column is the batch, so that batch effects stay in the latent space. '{proposed}' looks like one."
        fix = Fix(f"Use '{proposed}' as the batch", {"covariates.batch": proposed})
        yield Check("no-batch", Level.OK, "No batch", text, _valid(spec, fix), "covariates.batch")


def _libraries(spec: RunSpec, obs: pd.DataFrame, usable: set[str]) -> Iterator[Check]:
    """Each library lies in one data set; a batch that fills the parts of a model stands for the library where none is given."""
    library, dataset = spec.covariates.library, spec.covariates.dataset
    role = "library"
    if library is None and "batch" in spec.family.fan_out:
        library, role = spec.covariates.batch, "batch"
    if library is None or dataset is None or library == dataset or not {library, dataset} <= usable:
        return
    where = f"covariates.{role}"
    for name in (library, dataset):
        without = int(obs[name].isna().sum())
        if without:
            text = (
                f"{counted(without, 'cell has', 'cells have')} no value of '{name}': measures of mixing between libraries and data sets leave "
                f"{agree(without, 'it', 'them')} out."
            )
            yield Check("library-missing", Level.WARN, "Cells without a library or data set", text, where=where if name == library else "covariates.dataset")
    spread = several_parents(obs, library, dataset)
    if spread:
        name = f"{dataset}_{library}"
        join = Fix("Tell libraries of different data sets apart", {f"data.combine.{name}": (dataset, library), where: name})
        parents = obs.groupby(library, observed=True)[dataset].unique()
        parents.index = parents.index.map(str)
        offenders = [f"'{level}' lies in {', '.join(str(one) for one in parents[level] if not pd.isna(one))}" for level in spread[:4]]
        more = f"; and {len(spread) - 4} more" if len(spread) > 4 else ""
        text = (
            f"Each library belongs to one data set, but {len(spread)} {'library' if len(spread) == 1 else 'libraries'} of '{library}' "
            f"{'lies' if len(spread) == 1 else 'lie'} in several levels of '{dataset}': "
            f"{'; '.join(offenders)}{more}."
        )
        yield Check("library-datasets", Level.FAIL, "Libraries in two data sets", text, _valid(spec, join), where)
    else:
        yield Check("library-datasets", Level.OK, "Libraries", "Each library lies in one data set.", where=where)


def check_headers(spec: RunSpec, headers: Sequence[FileHeader]) -> list[Check]:
    """Return what headers alone say of the columns that have a role."""
    if not headers:
        return []
    made = set(spec.data.combine) | set(spec.data.new_columns) | ({"file", "source_file"} if spec.data.batch_from_file and len(headers) > 1 else set())
    known = list(dict.fromkeys([column.name for header in headers for column in header.obs_columns] + sorted(made)))
    found = list(_conflicts(spec))
    for role, columns in spec.covariates.assigned().items():
        for column in columns:
            if column not in known:
                found.append(_vanished(spec, role, column, known))
            elif role not in NUMBER_ROLES and column not in made and len(headers) == 1:
                header = next(item for item in headers[0].obs_columns if item.name == column)
                if column in spec.data.fill_missing:
                    header = replace(header, n_levels=(header.n_levels or 0) + 1, n_missing=0)
                found += groups(spec, role, header, headers[0].n_cells)
    return found
