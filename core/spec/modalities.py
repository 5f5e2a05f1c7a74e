"""What is known of modalities by name: RNA, ADT and ATAC, and those that plug-ins declare.

Models of several modalities take their defaults from here (what values are drawn from, what the encoder sees, whether features come in
blocks), so that a new modality appears in forms, losses and exports with no other change. A plug-in names a :class:`ModalityKind` under the entry
point group ``cellweave.modalities``; in a spec file the same is said by the options of the model and by ``data.blocks``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from cellweave.core.plugins import RESERVED, check_name, load_plugins


@dataclass(frozen=True)
class ModalityKind:
    """A modality as models and views know it.

    Attributes
    ----------
    name
        Its name in files and specs.
    label
        How it is written in forms, curves and tables.
    distribution
        What its values are drawn from (:mod:`cellweave.core.nn.distributions`).
    transform
        What is done to its values before anything else; the model explains the transformed values.
    encoder_transform
        What is done to them on their way into the encoder only.
    blocks
        How its features are divided where ``data.blocks`` says nothing: ``"by chromosome"``, or ``"one block"``.
    term_label
        Label of its reconstruction term; empty for "Reconstruction of LABEL".
    help
        One sentence on what it is.
    """

    name: str
    label: str
    distribution: str = "poisson"
    transform: str = "none"
    encoder_transform: str = "log1p"
    blocks: Literal["one block", "by chromosome"] = "one block"
    term_label: str = ""
    help: str = ""

    @property
    def reconstruction_label(self) -> str:
        """Label of the reconstruction term."""
        return self.term_label or f"Reconstruction of {self.label}"

    @property
    def is_real_valued(self) -> bool:
        """Whether its values are drawn from real numbers, so that they are no counts."""
        from cellweave.core.nn.distributions import distribution

        return distribution(self.distribution).support == "real"


_KINDS: dict[str, ModalityKind] = {}


def register_modality(made: ModalityKind) -> ModalityKind:
    """Make a modality known; the names of its distribution and transforms are checked too.

    Raises
    ------
    SpecError
        Where a name is no plain word, is taken, or names nothing.
    """
    from cellweave.core.nn.distributions import distribution, transform

    if _KINDS.get(made.name) == made:
        return made
    check_name(made.name, "modality", _KINDS, reserved=RESERVED)
    distribution(made.distribution)
    for name in (made.transform, made.encoder_transform):
        transform(name)
    _KINDS[made.name] = made
    return made


def modality_places(names: Iterable[str]) -> dict[str, int]:
    """Return a place for each modality, known ones first, so that the hue of a loss term does not depend on which modalities a study happens to have."""
    return {name: place for place, name in enumerate(dict.fromkeys((*modality_kinds(), *names)))}


def modality_kinds() -> dict[str, ModalityKind]:
    """Return every known modality by name: ours first, then those of plug-ins."""
    _load()
    return dict(_KINDS)


@cache
def _load() -> None:
    load_plugins("cellweave.modalities", ModalityKind, register_modality)


def names_meant(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return modalities as they are named, whether their names or their labels were written, and however; what is neither stays."""
    meant = {spelling.casefold(): name for name in known for spelling in (modality_kind(name).label, name)}
    return tuple(meant.get(name.casefold(), name) for name in names)


def modality_kind(name: str) -> ModalityKind:
    """Return what is known of a modality; one that nobody declared is read as counts in one block, written as it is called."""
    return modality_kinds().get(name) or ModalityKind(name, name)


for _made in (
    ModalityKind("rna", "RNA", help="Gene expression, in counts of transcripts."),
    ModalityKind("adt", "ADT", help="Surface proteins, in counts of antibody tags."),
    ModalityKind("atac", "ATAC", "bernoulli", "binarize", "none", "by chromosome", help="Open chromatin, by peak."),
):
    _KINDS[_made.name] = _made
