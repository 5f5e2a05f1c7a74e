"""Which columns drive which part of a model, after a column that stands for several parts has been fanned out.

One pure function of the spec and its family, used by the engine, the checks and the window alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellweave.core.spec.covariates import ROLES

if TYPE_CHECKING:
    from cellweave.core.models.declare import Family
    from cellweave.core.spec.covariates import CovariateSpec


@dataclass(frozen=True)
class EffectiveRoles:
    """Columns by role as the model reads them.

    Attributes
    ----------
    columns
        Columns of every role that has any, given or fanned out, in the order of the roles.
    source
        For a role that was filled from another one, that other role.
    """

    columns: Mapping[str, tuple[str, ...]]
    source: Mapping[str, str]

    def fanned_from(self, role: str) -> tuple[str, ...]:
        """Return the roles that were filled from ``role``."""
        return tuple(target for target, origin in self.source.items() if origin == role)


@dataclass(frozen=True)
class RoleConflict:
    """Roles that contradict one another.

    Attributes
    ----------
    role
        The role that is at fault.
    columns
        Its columns, at whose rows the sentence is shown.
    text
        What is wrong, and how it is mended.
    """

    role: str
    columns: tuple[str, ...]
    text: str


def effective_roles(covariates: CovariateSpec, family: Family) -> EffectiveRoles:
    """Return the columns of every role of ``family``, with those that follow from others.

    Parameters
    ----------
    covariates
        What the person said.
    family
        The family, whose ``fan_out`` says which roles a role fills, and whose ``falls_back`` which role stands in for one
        that was not given.

    Returns
    -------
    EffectiveRoles
        Roles that the family does not use are not in it.
    """
    given = {role: columns for role, columns in covariates.assigned().items() if family.uses(role) is not None}
    columns, source = dict(given), dict[str, str]()
    for origin, targets in family.fan_out.items():
        for target in targets:
            if origin in given and target not in columns:
                columns[target], source[target] = given[origin][:1], origin
    for target, origin in family.falls_back.items():
        if target not in columns and origin in columns:
            columns[target], source[target] = columns[origin], origin
    return EffectiveRoles({role: columns[role] for role in ROLES if role in columns}, source)


def role_conflicts(covariates: CovariateSpec, family: Family) -> list[RoleConflict]:
    """Return which roles contradict one another in this family, each with a sentence."""
    given = {role: columns for role, columns in covariates.assigned().items() if family.uses(role) is not None}
    origins = [role for role in family.fan_out if role in given]
    found = []
    if len(origins) > 1:
        first, second = origins[:2]
        text = (
            f"{role_words(first).capitalize()} and {role_words(second)} both fill {_listed(family.fan_out[first])}, so only one of the two can be given: "
            f"take the role away from {_quoted(given[first])} or from {_quoted(given[second])}."
        )
        found.append(RoleConflict(second, given[second], text))
    for origin in origins[:1]:
        for target in family.fan_out[origin]:
            if target in given:
                text = (
                    f"{_quoted(given[origin])} is the {role_words(origin)}, which fills {_listed(family.fan_out[origin])}, so {role_words(target)} cannot be "
                    f"given beside it: take {role_words(target)} away from {_quoted(given[target])}, or name each part by itself and no {role_words(origin)}."
                )
                found.append(RoleConflict(target, given[target], text))
    if not origins:
        found += _unfilled(given, family)
    return found


def _unfilled(given: Mapping[str, tuple[str, ...]], family: Family) -> list[RoleConflict]:
    """Some parts that belong together are named, others are not."""
    parts = tuple(dict.fromkeys(part for targets in family.fan_out.values() for part in targets))
    named = [part for part in parts if part in given]
    missing = [part for part in parts if part not in given]
    if not family.parts_together or not named or not missing:
        return []
    text = (
        f"{_quoted(given[named[0]])} is named for {role_words(named[0])}, but no column for {_listed(missing)}: name one for each, or make one column "
        "the batch, which fills them all."
    )
    return [RoleConflict(named[0], given[named[0]], text)]


def role_words(role: str) -> str:
    """Return the name of a role as it stands in a sentence."""
    return {"library_size": "library size", "feature_scaling": "feature scaling"}.get(role, role)


def _listed(roles: tuple[str, ...] | list[str]) -> str:
    names = [role_words(role) for role in roles]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _quoted(columns: tuple[str, ...]) -> str:
    return ", ".join(f"'{column}'" for column in columns)
