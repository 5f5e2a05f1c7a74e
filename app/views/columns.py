"""Columns that points are coloured by: levels or numbers, and the colours that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellweave.core.export.palette import category_colours, colour_table, hex_to_rgb, look, value_range
from cellweave.core.wording import agree, counted

ThemeName = Literal["light", "dark"]
STEPS = 256
GENE, LATENT = "gene:", "latent:"
EXPRESSION = {GENE: "gene", "counts:": "counts", "denoised:": "denoised", "corrected:": "corrected"}
"""Prefixes of columns that hold a gene, and what is said behind its name."""


def column_title(name: str) -> str:
    """Return what a column holds in words: ``gene:CD3E`` is 'CD3E', ``denoised:CD3E`` 'CD3E, denoised', ``latent:3`` 'Latent dimension Z_2'."""
    if name.startswith(GENE):
        return name.removeprefix(GENE)
    prefix = next((prefix for prefix in EXPRESSION if name.startswith(prefix)), "")
    if prefix:
        gene, _, batch = name.removeprefix(prefix).partition("@")
        return f"{gene}, {EXPRESSION[prefix]}" + (f" as {batch}" if batch else "")
    number = name.removeprefix(LATENT)
    return f"Latent dimension Z_{int(number) - 1}" if name.startswith(LATENT) and number.isdigit() else name  # counted as in the files


def column_label(name: str) -> str:
    """Return the title as it stands among the names of other columns: 'CD3E (gene)'."""
    return f"{column_title(name)} (gene)" if name.startswith(GENE) else column_title(name)


@dataclass(frozen=True, eq=False)
class ColumnData:
    """One value for each point; make it with :meth:`categorical` or :meth:`continuous`.

    Attributes
    ----------
    codes
        Level of each point, -1 where it is missing, of shape ``(n,)``; None for numbers.
    levels
        Names of the levels.
    values
        Numbers, NaN where missing, of shape ``(n,)``; None for levels.
    diverging
        Whether the numbers are ratios around 0.
    unit
        Of the numbers.
    """

    codes: NDArray[np.int32] | None = None
    levels: tuple[str, ...] = ()
    values: NDArray[np.float32] | None = None
    diverging: bool = False
    unit: str = ""

    @classmethod
    def categorical(cls, codes: ArrayLike, levels: Sequence[object]) -> ColumnData:
        """Return a column of levels.

        Parameters
        ----------
        codes
            Index into ``levels`` for each point, below 0 where the value is missing.
        levels
            Names.
        """
        numbers = np.asarray(codes).astype(np.int32)
        names = tuple(str(level) for level in levels)
        if len(numbers) and numbers.max() >= len(names):
            message = f"a code is {numbers.max()}, but there {agree(len(names), 'is', 'are')} {counted(len(names), 'level')}"
            raise ValueError(message)
        return cls(codes=np.maximum(numbers, -1), levels=names)

    @classmethod
    def continuous(cls, values: ArrayLike, *, diverging: bool = False, unit: str = "") -> ColumnData:
        """Return a column of numbers."""
        return cls(values=np.asarray(values, dtype=np.float32), diverging=diverging, unit=unit)

    def __len__(self) -> int:
        part = self.codes if self.codes is not None else self.values
        return 0 if part is None else len(part)

    @property
    def is_categorical(self) -> bool:
        """Whether it has levels."""
        return self.codes is not None

    def counts(self, among: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
        """Return how many points have each level, the missing ones first, of shape ``(n_levels + 1,)``."""
        assert self.codes is not None
        codes = self.codes if among is None else self.codes[among]
        return np.bincount(codes + 1, minlength=len(self.levels) + 1)

    @cached_property
    def range(self) -> tuple[float, float]:
        """The range that the colours are spread over: 1st to 99th percentile, centred at 0 for ratios."""
        assert self.values is not None
        low, high = value_range(self.values)
        if self.diverging:
            reach = max(abs(low), abs(high))
            return -reach, reach
        return low, high

    def point_codes(self) -> NDArray[np.int32]:
        """Return the code of each point for drawing: 0 is missing, then the levels, or 256 steps of the range."""
        if self.codes is not None:
            return self.codes + 1
        assert self.values is not None
        low, high = self.range
        step = self.values - np.float32(low)
        step *= np.float32(STEPS / (high - low))
        step += 1
        missing = np.isnan(step)
        np.clip(step, 1, STEPS, out=step)
        step[missing] = 0
        return step.astype(np.int32)

    def histogram(self, codes: NDArray[np.int32], bins: int = 64) -> NDArray[np.intp]:
        """Return how many points lie in each part of the range, from the codes of :meth:`point_codes`; values beyond are in the end parts."""
        counts = np.bincount(codes, minlength=STEPS + 1)[1:]
        return counts.reshape(bins, -1).sum(axis=1)

    def colours(self, theme: ThemeName, chosen: Mapping[str, str] | None = None) -> NDArray[np.uint8]:
        """Return the colour of each code, of shape ``(n_codes, 3)``.

        Parameters
        ----------
        theme
            What is behind the points.
        chosen
            Colours that a person gave to levels, as ``#RRGGBB``.
        """
        missing = np.array([hex_to_rgb(look(theme)["missing"])], np.uint8)
        if not self.is_categorical:
            return np.concatenate([missing, colour_table("coolwarm" if self.diverging else "viridis")])
        if not self.levels:
            return missing
        names = [(chosen or {}).get(level, own) for level, own in zip(self.levels, category_colours(len(self.levels), theme), strict=True)]
        return np.concatenate([missing, np.array([hex_to_rgb(name) for name in names], np.uint8)])

    def text_of(self, index: int) -> str:
        """Return the value of a point in words."""
        if self.codes is not None:
            return self.levels[self.codes[index]] if self.codes[index] >= 0 else "missing"
        assert self.values is not None
        value = float(self.values[index])
        return "missing" if np.isnan(value) else f"{value:.4g} {self.unit}".strip()
