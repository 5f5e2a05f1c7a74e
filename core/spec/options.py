"""Base of the options of a model family."""

from __future__ import annotations

from cellweave.core.spec.fields import Frozen


class ModelOptions(Frozen):
    """Options of a model family; a subclass fixes ``kind`` to a literal and adds its own fields.

    The subclass lives beside the family's declaration, so that adding a family touches one place.
    """

    kind: str
