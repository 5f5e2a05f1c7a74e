"""Checks of studies with several modalities: connected or not, batches of mixed cells, blocks of features, what was held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.models.per_modality import unused_names
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.spec.run import RunSpec
from cellweave.core.study.blocks import block_labels
from cellweave.core.study.checks import Check, Fix, Level
from cellweave.core.study.held_out import nothing_left, without_cells
from cellweave.core.study.mosaic import Mosaic, and_list, described
from cellweave.core.study.study import Modality, Study
from cellweave.core.wording import agree, counted

FEW_OF_PATTERN = 10  # cells of one batch and pattern below which a stream of the sampler repeats a handful of cells
SHOWN = 3
#: Weights from here on of a term that multiplies another look like the product of the two.
OLD_PRODUCT = 10.0


def check_mosaic(spec: RunSpec, study: Study, used: Sequence[Modality]) -> Iterator[Check]:
    """Return what was found of the modalities together; nothing for a model of one modality."""
    if spec.family.modalities != "many":
        return
    column = spec.covariates.batch
    mosaic = Mosaic.of(study, column if column is not None and column in study.obs.columns else None, [modality.name for modality in used])
    if len(used) > 1:
        yield _connected(spec, mosaic)
        yield from _mixed(spec, mosaic)
    yield from _unused_options(spec, study)
    yield from _held_out(used)
    gone = nothing_left(without_cells(spec, study.obs))
    if gone:
        yield Check("held-out-whole", Level.WARN, "Cells with nothing left", gone, where="data.switched_off")
    yield from _product_of_weights(spec)
    for modality in used:
        if spec.family.blocks:
            yield from _blocks(spec, modality)
        yield from _masks(study, modality)


def _product_of_weights(spec: RunSpec) -> Iterator[Check]:
    """Warn of a weight of the adversarial term that looks as files of schema 1 had it; one that names no schema is read with today's meaning."""
    terms = {term.name: term for term in spec.terms()}
    for term in terms.values():
        if not term.times or term.times not in terms:
            continue
        own, other = (spec.losses.weights.get(each.name, each.default) for each in (term, terms[term.times]))
        if own < OLD_PRODUCT or not other:
            continue
        usual = term.default * terms[term.times].default
        text = (
            f"'{term.label}' has the weight {own:g}, which multiplies that of '{terms[term.times].label}', {other:g}: {own * other:g} in all, where "
            f"{usual:g} is usual. In specs from before schema 2 the weight was the whole product; if yours is from then, set it to {own / other:g} or write "
            "schema_version = 1 into it."
        )
        path = f"losses.weights.{term.name}"
        yield Check("adversarial-product", Level.WARN, "A very high weight", text, (Fix(f"Set it to {own / other:g}", {path: own / other}),), path)


def _unused_options(spec: RunSpec, study: Study) -> Iterator[Check]:
    """Warn of options of modalities that the data lack; a run that maps onto a reference takes over those of all its modalities."""
    if spec.reference is not None or spec.family.check_study(spec, study):
        return
    names = list(study.modalities)
    for name, fields in unused_names(spec.model, names).items():
        text = f"{and_list(fields)} {'speaks' if len(fields) == 1 else 'speak'} of {name}, which these data do not have (they have {and_list(names)})."
        yield Check("options-unused", Level.WARN, f"Options of {name} are not used", text, where=fields[0])


def _connected(spec: RunSpec, mosaic: Mosaic) -> Check:
    """Cells must hang together through modalities they share."""
    islands = mosaic.islands_of_cells()
    if len(islands) > 1:
        text = (
            f"{mosaic.sentence()} Nothing links them in the latent space. Add cells in which modalities of both were measured, or train on one island."
        )
        return Check("connected", Level.FAIL, "Modalities are not linked", text, _leave_one(spec, mosaic), "data.paths")
    return Check("connected", Level.OK, "Modalities hang together", mosaic.sentence(), where="data.paths")


def _leave_one(spec: RunSpec, mosaic: Mosaic) -> tuple[Fix, ...]:
    """Offer to switch the smaller islands off, where each batch is of one island only."""
    islands = mosaic.islands_of_cells()
    if not mosaic.column or len({level for island in islands for level in island.levels}) < sum(len(island.levels) for island in islands):
        return ()
    off = [one.model_dump() for one in spec.data.switched_off] + [
        {"column": mosaic.column, "level": level, "modality": name}
        for island in islands[1:]
        for level in island.levels
        for name, n in zip(mosaic.modalities, mosaic.counts[mosaic.levels.index(level)], strict=True)
        if n
    ]
    return (Fix(f"Train on {described(islands[0])} only", {"data.switched_off": off}),)


def _mixed(spec: RunSpec, mosaic: Mosaic) -> Iterator[Check]:
    found = mosaic.mixed() if mosaic.column else []
    if not found:
        return
    parts = [
        f"'{level}' ({', '.join(counted(n, 'cell') + ' with ' + and_list([modality_kind(name).label for name in names]) for names, n in patterns)})"
        for level, patterns in found[:SHOWN]
    ]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    text = f"The cells of one batch differ in modalities: {', '.join(parts)}{more}. Each batch is trained in parts, one a set of modalities."
    small = min(n for _, patterns in found for _, n in patterns)
    level = Level.WARN if small < FEW_OF_PATTERN and spec.family.sampler == "pattern" else Level.OK
    if level is Level.WARN:
        text += f" The smallest part has {counted(small, 'cell')}, which every epoch repeats many times."
    yield Check("mixed-batches", level, "Batches with several patterns", text, where="data.paths")


def _held_out(used: Sequence[Modality]) -> Iterator[Check]:
    parts = [f"{modality_kind(m.name).label} of {counted(len(m.held_out.rows), 'cell')}" for m in used if m.held_out is not None]
    if parts:
        text = f"{and_list(parts)} was measured but is switched off: it is kept aside as the truth that imputed values can be compared with."
        yield Check("held-out", Level.OK, "Switched off", text, where="data.switched_off")


def _blocks(spec: RunSpec, modality: Modality) -> Iterator[Check]:
    where = f"data.blocks.{modality.name}"
    try:
        labels = block_labels(modality, spec.data.blocks.get(modality.name, "automatic"))
    except DataError as error:
        yield Check("blocks", Level.FAIL, f"Blocks of {modality.label}", str(error), (Fix("Read it as one block", {where: "one block"}),), where)
        return
    names = list(dict.fromkeys(labels))
    if len(names) > 1:
        text = (
            f"The {counted(modality.n_features, 'feature')} of {modality.label} {agree(modality.n_features, 'is', 'are')} read in "
            f"{counted(len(names), 'block')} ({', '.join(names[:SHOWN])} ...)."
        )
        yield Check("blocks", Level.OK, f"Blocks of {modality.label}", text, where=where)
    elif names == [modality.name] and modality_kind(modality.name).blocks == "by chromosome" and modality.name not in spec.data.blocks:
        # All that can be made of them, but nobody should learn of it from the size of the network.
        text = (
            f"No feature of {modality.label} names a chromosome ('{modality.var.index[0]}'), so all {modality.n_features:,} are read in one block. "
            "Name peaks like 'chr1:100-200' to give each chromosome layers of its own."
        )
        fix = Fix("Keep them in one block", {where: "one block"})
        yield Check("blocks", Level.WARN, f"{modality.label} without chromosomes", text, (fix,), where)


def _masks(study: Study, modality: Modality) -> Iterator[Check]:
    if modality.feature_mask is None:
        return
    groups, n = np.unique(study.mask_group[modality.measured], return_counts=True)
    share = float((modality.feature_mask[groups].mean(axis=1) * n).sum() / max(1, n.sum()))
    nobody = int((~modality.feature_mask[groups].any(axis=0)).sum())
    text = f"{share:.0%} of the features of {modality.label} were measured in a cell on average, by {counted(len(groups), 'mask')}; the others are imputed."
    if nobody:
        text += (
            f" {counted(nobody, 'feature was', 'features were')} measured in no cell at all, so that nothing can be learned of "
            f"{agree(nobody, 'it', 'them')}."
        )
    yield Check("masks", Level.WARN if nobody else Level.OK, f"Masks of {modality.label}", text, where=f"data.masks.{modality.name}")
