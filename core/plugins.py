"""Names that plug-ins and users give, and the loading of what plug-ins declare."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Collection
from importlib.metadata import entry_points
from typing import TypeVar

from cellweave.core.errors import CellweaveError, SpecError

Declared = TypeVar("Declared")
#: Words that results, files and loss terms use beside the names of modalities.
RESERVED = frozenset({"joint", "latent", "batch", "all", "total", "elbo", "u", "c", "library", "umap", "cells"})


def check_name(name: str, what: str, taken: Collection[str], *, reserved: Collection[str] = ()) -> None:
    """Refuse a name that could not be a key of a spec, a column of a table and a part of a file name.

    Parameters
    ----------
    name
        The name.
    what
        What it names, for the error text.
    taken
        Names that are known already.
    reserved
        Words that mean something else.

    Raises
    ------
    SpecError
        Where it is no plain word of letters, digits and single underscores, or is taken.
    """
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and "__" not in name and not name.startswith("_") and not name.endswith("_")
    if not plain:
        raise SpecError(f"'{name}' cannot be the name of a {what}.", "Use letters, digits and single underscores, beginning with a letter.")
    if name in reserved:
        raise SpecError(f"'{name}' cannot be the name of a {what}, because it means something else here.", "Choose another name.")
    if name in taken:
        raise SpecError(f"There is a {what} '{name}' already.", "Choose another name.")


def load_plugins(group: str, kind: type[Declared], register: Callable[[Declared], object]) -> None:
    """Register what installed packages declare under an entry point group.

    An entry names a ``kind``, a sequence of them, or a function without arguments that returns either.

    Raises
    ------
    SpecError
        Where a plug-in cannot be loaded or declares something else; the sentence names it.
    """
    for entry in entry_points(group=group):
        try:
            found = entry.load()
            if callable(found) and not isinstance(found, kind):
                found = found()
            for made in found if isinstance(found, list | tuple) else [found]:
                if not isinstance(made, kind):
                    raise SpecError(f"it declares no {kind.__name__}.", "Mend or uninstall it.")
                register(made)
        except CellweaveError as error:
            raise SpecError(f"The plug-in '{entry.value}' was refused: {error.cause[:1].lower()}{error.cause[1:]}", error.mend) from None
        except Exception as error:
            raise SpecError(f"The plug-in '{entry.value}' cannot be loaded ({type(error).__name__}: {error}).", "Mend or uninstall it.") from error
