"""What a form needs to know of a pydantic field, read from its declaration; no Qt here."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cellweave.core.spec.fields import field_extra, words_of

Kind = Literal["bool", "choice", "int", "float", "text", "list", "mapping", "by_modality"]


@dataclass(frozen=True)
class FormField:
    """One field of a form.

    Attributes
    ----------
    name, path
        Name of the field in its class, and its dotted path in the spec.
    kind
        Which sort of widget edits it.
    title, help, unit, group, advanced, auto, log
        As declared with :func:`cellweave.core.spec.fields.option`.
    default
        Value of a spec that says nothing about the field.
    nullable
        Whether the field may be None.
    choices
        Allowed values of a ``choice``, or of each value of a ``by_modality``.
    words
        What values are called, by value; one that is not there is called by itself.
    each
        Of a ``by_modality``, which takes one value or a table of values by modality: the kind of a value.
    low, high
        Limits of a number, None where it has none.
    low_open, high_open
        Whether the limit itself is excluded.
    """

    name: str
    path: str
    kind: Kind
    title: str
    help: str
    default: Any
    unit: str = ""
    group: str = ""
    advanced: bool = False
    auto: str = ""
    log: bool = False
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    each: Kind | None = None
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    @property
    def label(self) -> str:
        """The title, or the name in words where the declaration has none."""
        return self.title or self.name.replace("_", " ").capitalize()

    def word(self, value: Any) -> str:
        """Return what a value is called."""
        return self.words.get(str(value), str(value))

    def value_of(self, text: str) -> str:
        """Return the value that a typed text means: one of the values, or what it is called in words; else the text itself."""
        known = [*self.words, *map(str, self.choices)]
        if text in known:
            return text
        said = text.casefold()
        return next((value for value in known if said in (value.casefold(), self.word(value).casefold())), text)

    def problem(self, value: Any) -> str:
        """Return the sentence that says why a number is outside the limits, or an empty text."""
        if isinstance(value, dict):
            return next((text for one in value.values() if (text := self.problem(one))), "")
        if value is None or (self.each or self.kind) not in {"int", "float"}:
            return ""
        below = self.low is not None and (value <= self.low if self.low_open else value < self.low)
        above = self.high is not None and (value >= self.high if self.high_open else value > self.high)
        return f"{self.label} must be {self.range_text()}." if below or above else ""

    def range_text(self) -> str:
        """Return the limits in words, as ``at least 1`` or ``from 0 to 0.9``; empty where there are none."""
        low = "" if self.low is None else f"{'above' if self.low_open else 'at least'} {self.low:.15g}"
        high = "" if self.high is None else f"{'below' if self.high_open else 'at most'} {self.high:.15g}"
        if low and high and not self.low_open and not self.high_open:
            return f"from {self.low:.15g} to {self.high:.15g}"
        return " and ".join(part for part in (low, high) if part)

    def matches(self, needle: str) -> bool:
        """Return whether every word of ``needle`` occurs in the title, name, help or group, or among the values and what they are called."""
        values = " ".join([*map(str, self.choices), *self.words, *self.words.values()])
        text = f"{self.label} {self.name} {self.help} {self.group} {values}".casefold()
        return all(word in text for word in needle.casefold().split())


def form_fields(cls: type[BaseModel], prefix: str = "") -> list[FormField]:
    """Return the fields of a class that one widget can edit, in the order of their declaration.

    Nested tables and lists of tables are left out, because they need a view of their own (the mosaic grid, the
    feature selection of each modality), and so are discriminators: a literal with a single value.

    Parameters
    ----------
    cls
        A part of the spec, or any pydantic class whose fields were declared with ``option``.
    prefix
        Dotted path of the class in the spec, empty for a class that stands alone.
    """
    found = []
    for name, info in cls.model_fields.items():
        field = _read(name, f"{prefix}.{name}" if prefix else name, info)
        if field is not None:
            found.append(field)
    return found


def _read(name: str, path: str, info: FieldInfo) -> FormField | None:
    annotation, nullable = _without_none(info.annotation)
    kind, choices = _kind(annotation)
    each, metadata = None, list(info.metadata)
    one = _each_modality(annotation)
    if one is not None:
        inner, nullable = _without_none(one[0])
        each, choices = _kind(inner)
        kind, metadata = "by_modality", list(one[1])
    if kind is None or (kind == "choice" and len(choices) < 2 and not nullable):
        return None
    extra = field_extra(info)
    limits = {key: getattr(item, key) for item in metadata for key in ("ge", "gt", "le", "lt") if hasattr(item, key)}
    low_open, high_open = "gt" in limits, "lt" in limits
    return FormField(
        name, path, kind, info.title or "", info.description or "", info.get_default(call_default_factory=True),
        unit=extra.get("unit", ""), group=extra.get("group", ""), advanced=bool(extra.get("advanced", False)),
        auto=extra.get("auto", ""), log=bool(extra.get("log", False)), nullable=nullable, choices=choices, words=words_of(info), each=each,
        low=limits.get("gt", limits.get("ge")), high=limits.get("lt", limits.get("le")),
        low_open=low_open, high_open=high_open,
    )  # fmt: skip


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """Split ``X | None`` into ``X`` and whether None is allowed."""
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        rest = [item for item in typing.get_args(annotation) if item is not type(None)]
        nullable = len(rest) < len(typing.get_args(annotation))
        return (rest[0] if len(rest) == 1 else annotation), nullable
    return annotation, False


def _each_modality(annotation: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """Return type and limits of one value, where a field takes that or a table of such values by modality; else None."""
    if typing.get_origin(annotation) not in {typing.Union, types.UnionType}:
        return None
    single = [item for item in typing.get_args(annotation) if typing.get_origin(item) is not dict]
    tables = [item for item in typing.get_args(annotation) if typing.get_origin(item) is dict]
    if len(tables) != 1 or not single:
        return None
    value = typing.get_args(tables[0])[1]
    if typing.get_origin(value) is typing.Annotated:
        inner, *limits = typing.get_args(value)
        return inner, tuple(limits)
    return value, ()


def _kind(annotation: Any) -> tuple[Kind | None, tuple[Any, ...]]:
    simple: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "text"}
    try:
        if annotation in simple:
            return simple[annotation], ()
    except TypeError:  # an annotation that cannot be hashed is none of the simple ones
        return None, ()
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "choice", arguments
    if origin is tuple and arguments == (str, Ellipsis):
        return "list", ()
    if origin is tuple and arguments[1:] == (Ellipsis,) and typing.get_origin(arguments[0]) is Literal:
        return "list", typing.get_args(arguments[0])
    if origin is dict and arguments == (str, str):
        return "mapping", ()
    return None, ()
