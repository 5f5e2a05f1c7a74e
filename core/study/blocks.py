"""Blocks of features: peaks by chromosome, read from their names, or as the user divides them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cellweave.core.errors import DataError
from cellweave.core.spec.modalities import modality_kind, modality_kinds
from cellweave.core.study.align import move_columns
from cellweave.core.study.study import Modality
from cellweave.core.wording import agree, counted

#: chr1:100-200, chr1-100-200, chr1_100_200, 1:100-200, GL000194.1:100-200, chrUn_KI270442v1_100_200; a strand may follow.
PEAK = re.compile(r"^(?P<contig>.+?)[:_-](?P<start>\d+)[_-](?P<end>\d+)(?:[:_-][+\-.*])?$")
#: Chromosomes proper: numbers, the letters of sex chromosomes and of the mitochondrion, arms of fruit fly chromosomes, roman numbers of yeast.
CHROMOSOME = re.compile(r"^(?:chr)?(?:\d{1,2}[LR]?|[XYZW]|M|MT|[IVX]{1,4})$", re.IGNORECASE)
#: RefSeq's chromosomes.
REFSEQ = re.compile(r"^NC_\d+(?:\.\d+)?$")
COLUMNS = ("chrom", "chromosome", "chr", "seqnames", "seqname")
UNPLACED = "unplaced"
LAST = {"x": 1, "y": 2, "z": 1, "w": 2, "m": 3, "mt": 3}
ONE_BLOCK = "set data.blocks.{name} = 'one block'"


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of features.

    Attributes
    ----------
    sizes
        Features of each block.
    names
        Name of each block.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]


def contig_of(name: str) -> str | None:
    """Return the contig that the name of a peak begins with, or None where it is not the name of a peak."""
    found = PEAK.match(name)
    return found["contig"] if found else None


def is_chromosome(contig: str) -> bool:
    """Return whether a contig is a chromosome rather than an unplaced or alternative scaffold."""
    return bool(CHROMOSOME.match(contig) or REFSEQ.match(contig))


def natural_order(contig: str) -> tuple[int, int, tuple[tuple[int, int, str], ...]]:
    """Return what chromosomes are sorted by: numbers, other names, X, Y, M, and scaffolds last."""
    if contig == UNPLACED:
        return 2, 0, ()
    bare = re.sub(r"^chr", "", contig, flags=re.IGNORECASE)
    pieces = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", bare) if part)
    return (1, LAST[bare.lower()], pieces) if bare.lower() in LAST else (0, 0, pieces)


def in_blocks(modalities: Sequence[Modality], how: Mapping[str, str]) -> tuple[tuple[Modality, ...], dict[str, Blocks]]:
    """Divide the features of modalities into blocks, and bring them into the order of the blocks.

    Parameters
    ----------
    modalities
        As the study has them; they are not changed.
    how
        ``data.blocks`` of the spec.

    Returns
    -------
    modalities
        Those whose features were not in the order of their blocks are copies; the order within a block stays.
    blocks
        By modality.

    Raises
    ------
    DataError
        Where peaks have no chromosome, or sizes do not add up.
    """
    moved, blocks = [], {}
    for modality in modalities:
        labels = block_labels(modality, how.get(modality.name, "automatic"))
        names = list(dict.fromkeys(labels))
        if all(name.isdigit() for name in names):  # sizes were given: consecutive as they are
            blocks[modality.name] = Blocks(_sizes(labels, names), tuple(f"block {name}" for name in names))
            moved.append(modality)
            continue
        names.sort(key=natural_order)
        rank = {name: place for place, name in enumerate(names)}
        order = np.argsort(np.array([rank[label] for label in labels], dtype=np.int64), kind="stable")
        blocks[modality.name] = Blocks(_sizes(labels, names), tuple(names))
        moved.append(in_order(modality, order))
    return tuple(moved), blocks


def _sizes(labels: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    counts = pd.Series(list(labels)).value_counts()
    return tuple(int(counts[name]) for name in names)


def in_order(modality: Modality, order: np.ndarray) -> Modality:
    """Return a modality with its features in another order, ``(n_features,)`` positions; the same object where it is theirs already."""
    if np.array_equal(order, np.arange(modality.n_features)):
        return modality
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    mask = None if modality.feature_mask is None else modality.feature_mask[:, order]
    held_out = None if modality.held_out is None else modality.held_out.moved(place, len(order))
    counts = move_columns(modality.counts, place, len(order))
    return replace(modality, counts=counts, var=modality.var.iloc[order], feature_mask=mask, held_out=held_out)


def block_labels(modality: Modality, how: str) -> list[str]:
    """Return the block of each feature; digits only where the user gave sizes.

    Raises
    ------
    DataError
        Where peaks have no chromosome, a column does not exist, or sizes do not add up.
    """
    name, label, n_features = modality.name, modality.label, modality.n_features
    if how == "one block":
        return [name] * n_features
    if how.startswith("column "):
        return _of_column(modality, how[7:].strip())
    if how not in {"automatic", "by chromosome"}:
        sizes = [int(part) for part in how.split(",") if part.strip()]
        if sum(sizes) != n_features:
            raise DataError(
                f"The blocks of {label} hold {counted(sum(sizes), 'feature')} together, but {n_features:,} {agree(n_features, 'is', 'are')} used.",
                f"Correct data.blocks.{name}, or {ONE_BLOCK.format(name=name)}.",
            )
        return [str(number + 1) for number, size in enumerate(sizes) for _ in range(size)]
    if how == "automatic" and modality_kind(name).blocks == "one block" and name in modality_kinds():
        return [name] * n_features
    contigs = _contigs(modality)
    without = [number for number, contig in enumerate(contigs) if contig is None]
    if how == "automatic" and len(without) == n_features:
        return [name] * n_features
    if without:
        raise DataError(
            f"{len(without):,} of {n_features:,} features of {label} {agree(len(without), 'has no chromosome in its', 'have no chromosome in their')} "
            f"name ('{modality.var.index[without[0]]}').",
            f"Name peaks like 'chr1:100-200', or {ONE_BLOCK.format(name=name)}.",
        )
    known = [str(contig) for contig in contigs]
    named_blocks = all(contig.startswith("block_") for contig in known)  # sizes of a MIDAS folder, which names no chromosome
    if named_blocks or not any(is_chromosome(contig) for contig in known):
        return known
    return [contig if is_chromosome(contig) else UNPLACED for contig in known]


def _contigs(modality: Modality) -> list[str | None]:
    """Return the contig of each feature: from a column of var, else from its name."""
    names = [contig_of(str(name)) for name in modality.var.index]
    lower = {str(column).lower(): column for column in modality.var.columns}
    column = next((lower[name] for name in COLUMNS if name in lower), None)
    if column is None:
        return names
    values = modality.var[column]
    return [own if pd.isna(value) or not str(value) else str(value) for value, own in zip(values.astype(object), names, strict=True)]


def _of_column(modality: Modality, column: str) -> list[str]:
    if column not in modality.var.columns:
        known = ", ".join(map(str, modality.var.columns[:12])) or "none"
        raise DataError(f"The features of {modality.label} have no column '{column}', which is to divide them.", f"Their columns are: {known}.")
    values = modality.var[column]
    without = int(values.isna().sum())
    if without:
        raise DataError(
            f"{counted(without, 'feature')} of {modality.label} {agree(without, 'has', 'have')} no value in '{column}', which is to divide them.",
            f"Fill it, or {ONE_BLOCK.format(name=modality.name)}.",
        )
    return [f"{column} {value}" if str(value).isdigit() else str(value) for value in values.astype(object)]
