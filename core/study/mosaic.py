"""Which batch was measured in which modality, and whether the batches hang together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellweave.core.spec.modalities import modality_kind

if TYPE_CHECKING:
    from cellweave.core.study.study import Study

NOBODY = "without a value"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Island:
    """Batches that are connected through modalities they share.

    Attributes
    ----------
    levels
        The batches.
    modalities
        What was measured in them.
    """

    levels: tuple[str, ...]
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Mosaic:
    """Counts of cells by level of a column and modality.

    Attributes
    ----------
    column
        The obs column whose levels are the rows.
    levels
        Its levels; cells without a value are one of their own.
    modalities
        Names of the columns of the grid.
    counts
        Cells that were measured and are used, ``(n_levels, n_modalities)``.
    held_out
        Cells whose counts were switched off, ``(n_levels, n_modalities)``.
    patterns
        Sets of modalities that occur in one cell, bool ``(n_patterns, n_modalities)``.
    by_pattern
        Cells of each level with each pattern, ``(n_levels, n_patterns)``.
    """

    column: str
    levels: tuple[str, ...]
    modalities: tuple[str, ...]
    counts: np.ndarray
    held_out: np.ndarray
    patterns: np.ndarray
    by_pattern: np.ndarray

    @classmethod
    def of(cls, study: Study, column: str | None, modalities: Collection[str] | None = None) -> Mosaic:
        """Count the cells of a study.

        Parameters
        ----------
        study
            The study.
        column
            Levels of this column are the rows; None makes one row of all cells.
        modalities
            Those to look at; None for all.
        """
        used = [m for name, m in study.modalities.items() if modalities is None or name in modalities]
        if column is None:
            codes, levels = np.zeros(study.n_cells, dtype=np.int64), ["all cells"]
        else:
            values = study.obs[column].astype("category").cat
            codes, levels = values.codes.to_numpy().astype(np.int64), [str(level) for level in values.categories]
            if (codes < 0).any():
                codes, levels = np.where(codes < 0, len(levels), codes), [*levels, NOBODY]
        measured = np.stack([m.measured for m in used], axis=1)
        held = np.zeros_like(measured)
        for place, modality in enumerate(used):
            if modality.held_out is not None:
                held[modality.held_out.rows, place] = True
        table, code = np.unique(measured, axis=0, return_inverse=True)
        pairs = np.bincount(codes * len(table) + code.reshape(-1), minlength=len(levels) * len(table)).reshape(len(levels), len(table))
        by_level = [np.stack([np.bincount(codes[kind[:, place]], minlength=len(levels)) for place in range(len(used))], axis=1) for kind in (measured, held)]
        return cls(column or "", tuple(levels), tuple(m.name for m in used), by_level[0], by_level[1], table, pairs)

    def islands(self) -> list[Island]:
        """Return the groups of batches that share no modality with each other, the largest first."""
        there = (self.by_pattern > 0) @ self.patterns.astype(int) > 0
        left, found = [level for level in range(len(self.levels)) if there[level].any()], []
        while left:
            group, modalities = [left[0]], there[left[0]].copy()
            grown = True
            while grown:
                more = [level for level in left if level not in group and (there[level] & modalities).any()]
                grown = bool(more)
                group += more
                modalities |= there[more].any(axis=0) if more else False
            left = [level for level in left if level not in group]
            names = tuple(name for name, known in zip(self.modalities, modalities, strict=True) if known)
            found.append(Island(tuple(self.levels[level] for level in sorted(group)), names))
        return sorted(found, key=lambda island: -len(island.levels))

    def islands_of_cells(self) -> list[Island]:
        """Return the groups of patterns of modalities, cell by cell, that share none, most cells first; batches of several appear in each."""
        whole = Mosaic(
            self.column, tuple(str(number) for number in range(len(self.patterns))), self.modalities, np.zeros(0), np.zeros(0),
            self.patterns, np.diag(self.by_pattern.sum(axis=0)),
        )  # fmt: skip
        found = []
        for island in whole.islands():
            own = self.by_pattern[:, [int(number) for number in island.levels]]
            levels = tuple(level for level, known in zip(self.levels, np.atleast_1d(own.any(axis=1)), strict=True) if known)
            found.append((int(own.sum()), Island(levels, island.modalities)))
        return [island for _, island in sorted(found, key=lambda one: -one[0])]

    def links(self) -> tuple[str, ...]:
        """Return the modalities through which batches are connected: those of all batches, or else those of more than one."""
        n_batches, own = int((self.counts > 0).any(axis=1).sum()), (self.counts > 0).sum(axis=0)
        everywhere = tuple(name for name, n in zip(self.modalities, own, strict=True) if n == n_batches)
        return everywhere or tuple(name for name, n in zip(self.modalities, own, strict=True) if n > 1)

    def sentence(self) -> str:
        """Return whether the batches are connected, and through what, as one sentence."""
        islands = self.islands_of_cells()
        if len(islands) > 1:
            return f"{spelled(len(islands)).capitalize()} islands that share no modality: {'; '.join(described(island) for island in islands)}."
        if sum(bool(row.any()) for row in self.counts) < 2:
            return "One batch, so there is nothing to connect."
        return f"All batches are connected through {and_list([modality_kind(name).label for name in self.links()])}."

    def mixed(self) -> list[tuple[str, list[tuple[tuple[str, ...], int]]]]:
        """Return the levels whose cells differ in modalities, each with its patterns and the number of their cells."""
        found = []
        for level, row in zip(self.levels, self.by_pattern, strict=True):
            own = [(self._names(pattern), int(n)) for pattern, n in zip(self.patterns, row, strict=True) if n and pattern.any()]
            if len(own) > 1:
                found.append((level, sorted(own, key=lambda one: -one[1])))
        return found

    def _names(self, pattern: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, known in zip(self.modalities, pattern, strict=True) if known)


def described(island: Island, most: int = 4) -> str:
    """Return "p1, p2 (RNA, ADT)"."""
    levels = ", ".join(island.levels[:most]) + (f" and {len(island.levels) - most} more" if len(island.levels) > most else "")
    return f"{levels} ({', '.join(modality_kind(name).label for name in island.modalities)})"


def and_list(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"


def spelled(number: int) -> str:
    """Return a small number in words."""
    return NUMBERS[number] if number < len(NUMBERS) else f"{number}"
