"""Checks of the counts: raw or not, what is empty, names that repeat, modalities that do not hang together."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import numpy as np

from cellweave.core.spec.modalities import modality_kind
from cellweave.core.spec.run import RunSpec
from cellweave.core.study.checks import Check, Fix, Level
from cellweave.core.study.counts import scan_matrix
from cellweave.core.study.header import FileHeader
from cellweave.core.study.named_masks import UNUSED
from cellweave.core.study.preflight_mosaic import check_mosaic
from cellweave.core.study.same_cells import APART, JOINED
from cellweave.core.study.study import ALL_MASKED, MISSING_VALUES, SWITCHED_OFF, Modality, Study
from cellweave.core.wording import agree, counted

FEW_CELLS = 100


def used_modalities(spec: RunSpec, study: Study) -> list[Modality]:
    """Return the modalities that the model of a spec is trained on."""
    if spec.family.modalities == "many":
        return list(study.modalities.values())
    if spec.data.modality is not None and spec.data.modality not in study.modalities:
        return []
    return [study.main_modality(spec.data.modality)]


def check_data(spec: RunSpec, study: Study) -> list[Check]:
    """Return what was found in the data."""
    used = used_modalities(spec, study)
    if spec.reference is not None:  # features and modalities are the reference's; of these data some may be missing
        used = [modality for modality in used if modality.measured.any()]
    found = list(_modality(spec, list(study.modalities)))
    problems = spec.family.check_study(spec, study)
    found += [Check("model-data", Level.FAIL, "Model and data", f"{problem}.", _declare(spec, study, problem), "model") for problem in problems]
    for modality in used:
        found += _raw_counts(spec, study, modality)
        found += _empty(spec, study, modality)
        found += _features(spec, modality)
        found += _peaks(modality)
    found += _names(spec, study, used)
    found += _left_out(spec, study)
    found += _enough(spec, study, used)
    found += check_mosaic(spec, study, used)
    return found


def _modality(spec: RunSpec, names: Sequence[str]) -> Iterator[Check]:
    wanted = spec.data.modality
    if wanted is not None and wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.3) or list(names[:1])
        fixes = tuple(Fix(f"Use {name}", {"data.modality": name}) for name in near)
        text = f"The data have no modality '{wanted}'; they have {', '.join(names) or 'none'}."
        yield Check("modality", Level.FAIL, "Modality", text, fixes, "data.modality")


def _declare(spec: RunSpec, study: Study, problem: str) -> tuple[Fix, ...]:
    """Offer to say what the values of a modality that the model does not know are drawn from, where that is the problem."""
    knows = getattr(spec.model, "knows", None)
    names = [name for name in study.modalities if knows is not None and not knows(name) and f"model.distribution.{name} " in problem]
    return tuple(Fix(f"Take {name} as counts", {f"model.distribution.{name}": "poisson"}) for name in names)


def _raw_counts(spec: RunSpec, study: Study, modality: Modality) -> Iterator[Check]:
    where = f"data.layers.{modality.name}"
    report = scan_matrix(modality.counts, modality.location, study.obs.index, modality.var.index)
    title = f"Raw counts of {modality.label}"
    if modality.held_out is not None and not modality.measured.any():
        text = f"{modality.label} is switched off in every cell that has it, so that nothing of it can be learned. Leave it on in some cells."
        on = tuple(one.model_dump() for one in spec.data.switched_off if one.modality != modality.name)
        again = Fix(f"Switch {modality.label} on again", {"data.switched_off": on})
        yield Check("raw-counts", Level.FAIL, title, text, (again,), "data.switched_off")
        return
    if report.is_raw:
        largest = f"whole numbers from 0 to {report.maximum:,.0f}" if report.n_values else "without a single count"
        level = Level.OK if report.n_values else Level.FAIL
        yield Check("raw-counts", level, title, f"The values in {modality.location} are {largest}.", where=where)
        return
    other = _place_fixes(spec, modality)
    if spec.data.is_real_valued(modality.name) and report.n_not_finite == 0:
        text = f"The values in {modality.location} are numbers from {report.minimum:g} to {report.maximum:g}, taken as they are."
        counts_only = report.n_negative > 0 and getattr(spec.model, "gene_likelihood", "normal") != "normal"
        mend = " The likelihood of this model is made for counts: choose the normal one." if counts_only else ""
        fix = (Fix("Normal likelihood", {"model.gene_likelihood": "normal"}),) if counts_only else ()
        yield Check("raw-counts", Level.FAIL if counts_only else Level.OK, f"Values of {modality.label}", text + mend, fix, "data.real_valued")
    elif not report.is_usable:
        text = f"{report.sentence()} The likelihoods are made for counts and would give no number."
        yield Check("raw-counts", Level.FAIL, title, text, other, where)
    elif spec.data.accept_non_integer:
        text = f"{report.sentence()} They are accepted as you asked, but the likelihoods are made for counts."
        yield Check("raw-counts", Level.WARN, title, text, other, where)
    else:
        accept = Fix("Accept values that are not whole", {"data.accept_non_integer": True})
        text = f"{report.sentence()} They look normalised; the model needs raw counts."
        yield Check("raw-counts", Level.FAIL, title, text, (*other, accept), where)


def _place_fixes(spec: RunSpec, modality: Modality) -> tuple[Fix, ...]:
    """Offer to look through all places again where the spec names one."""
    if modality.name in spec.data.layers:
        return (Fix("Look for raw counts in every layer", {f"data.layers.{modality.name}": None}),)
    return ()


def _empty(spec: RunSpec, study: Study, modality: Modality) -> Iterator[Check]:
    cells = int((modality.measured & (np.diff(modality.counts.indptr) == 0)).sum())
    if spec.data.is_real_valued(modality.name):
        return  # 0 is a value like any other
    if cells:
        text = (
            f"{cells:,} of {int(modality.measured.sum()):,} cells {agree(cells, 'has', 'have')} not a single count of {modality.label}, so that "
            f"{agree(cells, 'it has', 'they have')} no library size."
        )
        many = spec.family.modalities == "many"
        fix = Fix("Take them as not measured there" if many else "Leave out empty cells", {"data.drop_empty_cells": True})
        level = Level.WARN if getattr(spec.model, "gene_likelihood", "") == "normal" else Level.FAIL
        if spec.family.absent_without_counts:
            text = (
                f"{cells:,} of {int(modality.measured.sum()):,} cells {agree(cells, 'has', 'have')} not a single count of {modality.label}; "
                f"{agree(cells, 'it is taken as a cell', 'they are taken as cells')} that {modality.label} was not measured in."
            )
        if many:
            level = Level.WARN
        yield Check("empty-cells", level, f"Empty cells in {modality.label}", text, (fix,), "data.drop_empty_cells")
    else:
        yield Check("empty-cells", Level.OK, f"Empty cells in {modality.label}", "Every cell that was measured has counts.", where="data.drop_empty_cells")
    features = int((modality.counts.getnnz(axis=0) == 0).sum()) if modality.measured.any() else 0
    if features and spec.reference is None:
        text = (
            f"{features:,} of {modality.n_features:,} features of {modality.label} {agree(features, 'has', 'have')} no count in any cell. "
            f"{agree(features, 'It costs time and teaches', 'They cost time and teach')} nothing."
        )
        fix = Fix("Leave out empty features", {"data.drop_empty_features": True})
        yield Check("empty-features", Level.WARN, f"Empty features in {modality.label}", text, (fix,), "data.drop_empty_features")


def _features(spec: RunSpec, modality: Modality) -> Iterator[Check]:
    how = spec.data.features.get(modality.name)
    if how is not None and how.mode == "variable" and how.n > modality.n_features:
        yield _too_few_features(modality.name, modality.n_features, how.n)


def _too_few_features(name: str, n_features: int, wanted: int) -> Check:
    label = modality_kind(name).label
    text = f"{label} has {counted(n_features, 'feature')}, fewer than the {wanted:,} that are to be kept; {agree(n_features, 'it is', 'all of them are')} used."
    fix = Fix("Use all features", {f"data.features.{name}.mode": "all"})
    return Check("feature-count", Level.WARN, f"Features of {label}", text, (fix,), f"data.features.{name}.n")


def _peaks(modality: Modality) -> Iterator[Check]:
    if modality.name != "atac" or modality.counts.nnz == 0:
        return
    largest, above = float(modality.counts.data.max()), int((modality.counts.data > 1).sum())
    if above:
        text = (
            f"{above:,} of {modality.counts.nnz:,} values {agree(above, 'is', 'are')} above 1 (largest {largest:,.0f}). A model that needs open or "
            "closed makes them 1 by itself."
        )
        yield Check("atac-values", Level.OK, "ATAC counts", text, where="data.modality")


def _names(spec: RunSpec, study: Study, used: list[Modality]) -> Iterator[Check]:
    fix = Fix("Make names unique", {"data.make_names_unique": True})
    where = "data.make_names_unique"
    if study.obs.index.is_unique:
        yield Check("cell-names", Level.OK, "Cell names", "No two cells have the same name.", where=where)
    else:
        repeated = study.obs.index[study.obs.index.duplicated()]
        text = f"{counted(len(repeated), 'cell name repeats another', 'cell names repeat others')} ('{repeated[0]}'). Results could not be told apart by name."
        yield Check("cell-names", Level.FAIL, "Cell names repeat", text, (fix,), where)
    for modality in used:
        index = modality.var.index
        if not index.is_unique:
            repeated = index[index.duplicated()]
            text = (
                f"{counted(len(repeated), 'feature name')} of {modality.label} {agree(len(repeated), 'repeats another', 'repeat others')} "
                f"('{repeated[0]}'). Training works; tables by name would be ambiguous."
            )
            yield Check("feature-names", Level.WARN, f"Feature names of {modality.label} repeat", text, (fix,), where)


def _noted(study: Study) -> Iterator[Check]:
    """Say what was found while the files were read that a person should know before a run."""
    for note in study.notes:
        if JOINED in note:
            yield Check("same-cells", Level.OK, "Cells of several files are paired by name", note, where="data.same_cells")
        elif note.endswith(f"{UNUSED}."):
            yield Check("mask-unused", Level.WARN, "A mask of nothing", note, where="data.masks")
        elif APART in note:
            yield Check("same-cells", Level.WARN, "Cells of several files are not paired", note, where="data.same_cells")
        if note.startswith(ALL_MASKED):
            text = f"{note} If that is not so, look at data.masks, or at the masks in the file (uns['mask_BATCH'], mask/*.csv)."
            yield Check("mask-hides-all", Level.WARN, "A mask hides whole cells", text, where="data.masks")


def _left_out(spec: RunSpec, study: Study) -> Iterator[Check]:
    yield from _noted(study)
    for name, found in study.left_out_modalities.items():
        label = modality_kind(name).label
        text = f"{label} was left out, because {found}."
        fix: tuple[Fix, ...] = ()
        if "share no feature" in found:
            fix = (Fix("Keep the features of all files", {"data.join": "union"}),)
        elif found.endswith(MISSING_VALUES):
            fix = (Fix("Take NaN as not measured", {"data.nan_is_missing": True}),)
        elif "infinite" not in found and found != SWITCHED_OFF:
            whole = () if "negative" in found else (Fix("Accept values that are not whole", {"data.accept_non_integer": True}),)
            fix = (*whole, *_as_real_numbers(spec, name))
        level = Level.WARN if spec.family.modalities == "many" and found != SWITCHED_OFF else Level.OK
        if level is Level.WARN and found.endswith(MISSING_VALUES):
            level = Level.FAIL  # a model of this modality was asked for, and one word says what the holes mean
        yield Check("modality-left-out", level, f"{label} is not used", text, fix, f"data.layers.{name}")
    if spec.family.modalities == "one" and (spec.data.modality is None or spec.data.modality in study.modalities):
        yield from _absent(spec, study, study.main_modality(spec.data.modality))
    if len(study.left_out):
        numbers = study.left_out["reason"].value_counts()
        text = "; ".join(f"{counted(number, 'cell')}: {reason}" for reason, number in numbers.items()) + ". They stay in the exported file."
        yield Check("left-out", Level.OK, "Cells left out", text, where="data")


def _as_real_numbers(spec: RunSpec, name: str) -> tuple[Fix, ...]:
    """Offer to take the values of a modality as they are, where the model can draw them from a normal distribution."""
    if spec.family.modalities != "many" or "distribution" not in type(spec.model).model_fields:
        return ()
    changes: dict[str, object] = {"data.real_valued": (*spec.data.real_valued, name), f"model.distribution.{name}": "gaussian"}
    if "normalisation" in type(spec.model).model_fields:
        changes[f"model.normalisation.{name}"] = "none"
    return (Fix(f"Take {name} as real numbers", changes),)


def _absent(spec: RunSpec, study: Study, modality: Modality) -> Iterator[Check]:
    """Yield what a model of one modality makes of features that some cells were not measured in."""
    if modality.feature_mask is None:
        return
    groups = np.unique(study.mask_group[modality.measured])
    absent = int((~modality.feature_mask[groups].all(axis=0)).sum())
    several = len(study.sources) > 1
    text = f"{counted(absent, 'feature')} of {modality.label} {agree(absent, 'was', 'were')} not measured in {'every file' if several else 'every cell'}"
    if spec.family.knows_masks:
        yield Check("masks", Level.OK, "Features missing in files", f"{text}; they count only where they were measured.", where="data.join")
        return
    text += (
        f"; {spec.family.title} takes them for zeros where they were not, which looks like a batch effect. The ambient-regularised VI and the models of "
        "several modalities know masks."
    )
    fix = (Fix("Keep shared features only", {"data.join": "intersection"}),) if several and spec.data.join == "union" else ()
    yield Check("features-absent", Level.WARN, "Features missing in files", text, fix, "data.join")


def _enough(spec: RunSpec, study: Study, used: list[Modality]) -> Iterator[Check]:
    if not used:
        return
    measured = np.logical_or.reduce([modality.measured for modality in used])
    number, names = int(measured.sum()), " or ".join(modality.name for modality in used)
    if number < 3:
        others = [name for name, modality in study.modalities.items() if modality.measured.sum() >= 3 and modality not in used]
        fixes = tuple(Fix(f"Use {name}", {"data.modality": name}) for name in others)
        text = f"{names} was measured in {counted(number, 'cell')}; at least 3 are needed to train and to validate."
        yield Check("cells", Level.FAIL, "Too few cells", text, fixes, "data.paths")
    elif number < FEW_CELLS:
        text = (
            f"There {agree(number, 'is', 'are')} {counted(number, 'cell')} with {names}. With fewer than {FEW_CELLS} a model learns little; look "
            "at the result with care."
        )
        yield Check("cells", Level.WARN, "Few cells", text, where="data.paths")
    else:
        text = f"{number:,} of {counted(study.n_cells, 'cell')} {agree(number, 'was', 'were')} measured in {names}."
        yield Check("cells", Level.OK, "Cells", text, where="data.paths")


def check_headers(spec: RunSpec, headers: Sequence[FileHeader]) -> list[Check]:
    """Return what headers alone say of modalities, layers and features."""
    modalities = [modality for header in headers for modality in header.modalities]
    names = list(dict.fromkeys(modality.name for modality in modalities))
    found = list(_modality(spec, names))
    for name, location in spec.data.layers.items():
        places = [{matrix.location for matrix in modality.matrices} for modality in modalities if modality.name == name]
        if not places or not all(location in there for there in places):
            shared = sorted(set.intersection(*places)) if places else []
            fixes = (Fix("Look for raw counts in every layer", {f"data.layers.{name}": None}),)
            text = f"{name} has no matrix at '{location}' in every file" + (f"; it has {', '.join(shared)}." if shared else ".")
            found.append(Check("layer", Level.FAIL, f"Counts of {name}", text, fixes, f"data.layers.{name}"))
    for name, how in spec.data.features.items():
        widths = [modality.n_features for modality in modalities if modality.name == name]
        if widths and how.mode == "variable" and how.n > max(widths):
            found.append(_too_few_features(name, max(widths), how.n))
    total = sum(header.n_cells for header in headers)
    if headers and total < FEW_CELLS:
        text = f"There {agree(total, 'is', 'are')} {counted(total, 'cell')}. With fewer than {FEW_CELLS} a model learns little; look at the result with care."
        found.append(Check("cells", Level.WARN, "Few cells", text, where="data.paths"))
    return found
