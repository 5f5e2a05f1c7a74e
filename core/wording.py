"""Numbers in sentences: one cell, two cells."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with what is counted, in the singular or the plural.

    Parameters
    ----------
    number
        How many.
    one
        What follows the number 1, also with a verb: ``"cell"``, ``"cell has"``.
    many
        What follows any other number; ``one`` with an s where it is not given.

    Returns
    -------
    str
        ``"1 cell"``, ``"1,204 cells"``.
    """
    return f"{number:,} {agree(number, one, many or f'{one}s')}"


def agree(number: int, one: str, many: str) -> str:
    """Return the word that goes with a number: ``agree(n, "has", "have")``."""
    return one if number == 1 else many
