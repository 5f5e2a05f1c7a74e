"""The model families that this installation knows: ours, and those that plug-ins declare.

A plug-in names its :class:`~cellweave.core.models.declare.Family` under the entry point group
``cellweave.models``; it then appears in the model chooser, the command line and the exports.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from cellweave.core.errors import SpecError

if TYPE_CHECKING:
    from cellweave.core.models.declare import Family

BUILT_IN = (
    "cellweave.core.models.vae",
    "cellweave.core.models.ldvae",
    "cellweave.core.models.ambient",
    "cellweave.core.models.multimodal",
    "cellweave.core.models.midas",
    "cellweave.core.models.vaeit",
)
GROUP = "cellweave.models"


@cache
def families() -> dict[str, Family]:
    """Return every known family by kind, built-in families first."""
    known: dict[str, Family] = {}
    for module in BUILT_IN:
        family = import_module(module).FAMILY
        known[family.kind] = family
    for entry in entry_points(group=GROUP):
        family = entry.load()
        if family.kind in known:
            raise SpecError(
                f"Two installed packages both declare a model of kind '{family.kind}'.",
                f"Uninstall one of them; the second is '{entry.value}'.",
            )
        known[family.kind] = family
    return known


def family(kind: str) -> Family:
    """Return the family of ``kind``.

    Raises
    ------
    SpecError
        Where no family has that name; the sentence proposes the nearest one.
    """
    known = families()
    if kind in known:
        return known[kind]
    near = difflib.get_close_matches(kind, known, n=1, cutoff=0.4)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known kinds are {', '.join(sorted(known))}."
    raise SpecError(f"There is no model of kind '{kind}'.", hint)
