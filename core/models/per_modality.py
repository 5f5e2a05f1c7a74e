"""Options that hold one value for all modalities, or one by modality."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic.fields import FieldInfo

from cellweave.core.errors import SpecError
from cellweave.core.spec.modalities import modality_kinds


def per_modality(info: FieldInfo) -> tuple[Any, FieldInfo]:
    """Return annotation and declaration of a field that takes a value, or a table of values by modality.

    Parameters
    ----------
    info
        The field with one value; its limits hold for each value of the table too.
    """
    limited = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    made = FieldInfo(
        default=info.default, title=info.title, json_schema_extra=info.json_schema_extra,
        description=f"{info.description} One value, or one for each modality.",
    )  # fmt: skip
    return limited | dict[str, limited], made  # type: ignore[valid-type, operator]


def value_of(value: Any, modality: str) -> Any:
    """Return the value of one modality; None where a table of an option that may be left to the program says nothing of it."""
    return value.get(modality) if isinstance(value, Mapping) else value


def table_problems(options: Any, fields: Sequence[str], modalities: Sequence[str]) -> list[str]:
    """Return a sentence for each table that leaves out a modality it must name, or names one that is not there."""
    found = []
    for name in fields:
        value = getattr(options, name)
        if not isinstance(value, Mapping):
            continue
        automatic = type(options).model_fields[name].default is None
        missing = [] if automatic else [modality for modality in modalities if modality not in value]
        strange = [modality for modality in value if modality not in modalities]
        if missing or strange:
            what = " and ".join(
                part for part in (f"says nothing of {', '.join(missing)}" if missing else "", f"names {', '.join(strange)}" if strange else "") if part
            )
            found.append(f"model.{name} {what}, and the modalities are {', '.join(modalities)}: give one value, or one for each of them")
    return found


def strange_names(options: Any, fields: Sequence[str], modalities: Sequence[str]) -> list[str]:
    """Return a sentence for each name in a table that is no modality, with the nearest name that is one; tables may leave modalities out.

    What is said of a modality that is known but not among these data is not refused, since presets speak of all that they were made for; the checks before a
    run warn of it (:func:`unused_names`).
    """
    found = []
    for field in fields:
        for name in getattr(options, field):
            if name not in modalities and name not in modality_kinds():
                near = difflib.get_close_matches(name, modalities, n=1, cutoff=0.6)
                mend = f"the nearest name is '{near[0]}'" if near else "leave it out"
                found.append(f"model.{field} names '{name}', which is no modality of these data ({', '.join(modalities)}): {mend}")
    return found


def unused_names(options: Any, modalities: Sequence[str]) -> dict[str, list[str]]:
    """Return which options are said of known modalities that are not there, by modality."""
    found: dict[str, list[str]] = {}
    for field in type(options).model_fields:
        value = getattr(options, field)
        for name in value if isinstance(value, Mapping) else ():
            if name in modality_kinds() and name not in modalities:
                found.setdefault(name, []).append(f"model.{field}")
    return found


def require_tables(options: Any, fields: Sequence[str], modalities: Sequence[str]) -> None:
    """Refuse tables that do not fit the modalities.

    Raises
    ------
    SpecError
        One sentence for each.
    """
    problems = table_problems(options, fields, modalities)
    if problems:
        raise SpecError(f"{'; '.join(problems)}.")
