"""One way to declare a field, so that every form, tooltip, help text and range comes from the spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Frozen(BaseModel):
    """Base of every part of the spec: immutable, and a name it does not know is an error."""

    # Numbers are taken where a name is meant: a column may be called 7, and TOML has no other way to write it bare.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


def option(
    default: Any,
    title: str,
    help: str,
    *,
    unit: str = "",
    group: str = "",
    advanced: bool = False,
    auto: str = "",
    log: bool = False,
    words: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
    **limits: Any,
) -> Any:
    """Declare a field of the spec.

    Parameters
    ----------
    default
        Default value, or a function without arguments for containers.
    title
        Label in forms.
    help
        Why one would change it; the tooltip and the documentation.
    unit
        Written inside the field ("epochs", "cells", "mm").
    group
        Heading under which the form shows it.
    advanced
        Whether only the form's advanced face shows it.
    auto
        For fields that may be None: what None means ("from the number of cells"), shown as the field's text.
    log
        Whether a slider or spin box should step in powers.
    words
        What forms and tables call the values (``{"ln": "layer norm"}``), or a function that tells it, where plug-ins add values.
    **limits
        ``ge``, ``gt``, ``le``, ``lt``, ``min_length`` ... as in :func:`pydantic.Field`.

    Returns
    -------
    pydantic.fields.FieldInfo
        The field, typed ``Any`` as pydantic's own function is.
    """
    extra: dict[str, Any] = {"unit": unit, "group": group, "advanced": advanced, "auto": auto, "log": log, "words": words or {}}
    how = {"default_factory": default} if callable(default) else {"default": default}
    return Field(title=title, description=help, json_schema_extra=extra, **how, **limits)


def field_extra(info: FieldInfo) -> dict[str, Any]:
    """Return what :func:`option` kept beside the pydantic field (unit, group, advanced, auto, log, words)."""
    extra = info.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def words_of(info: FieldInfo) -> Mapping[str, str]:
    """Return what the values of a field are called, by value; a value that is not there is called by itself."""
    words = field_extra(info).get("words") or {}
    return dict(words() if callable(words) else words)
