"""What a form reads from a declaration, and how numbers are read, written and stepped."""

from __future__ import annotations

from typing import Literal

import pytest

from cellweave.app.forms.editors import join_list, split_list
from cellweave.app.forms.fields import form_fields
from cellweave.app.forms.numberbox import number_text, parse_number, step_number
from cellweave.core.spec.analysis import AnalysisSpec
from cellweave.core.spec.fields import Frozen, option
from cellweave.core.spec.training import TrainingSpec


class Sample(Frozen):
    kind: Literal["only"] = "only"
    share: float = option(0.5, "Share", "A share.", unit="%", group="G", gt=0, le=1, advanced=True)
    rounds: int | None = option(None, "Rounds", "How many.", ge=1, auto="all of them", log=True)
    where: Literal["a", "b"] | None = option(None, "Where", "Which.", auto="either")
    names: tuple[str, ...] = option(tuple, "Names", "Some.")
    table: dict[str, str] = option(dict, "Table", "Pairs.")
    nested: dict[str, int] = option(dict, "Nested", "Not for one widget.")


def test_a_declaration_is_read_whole():
    fields = {field.name: field for field in form_fields(Sample, "model")}
    assert list(fields) == ["share", "rounds", "where", "names", "table"]
    share = fields["share"]
    assert (share.path, share.kind, share.unit, share.group, share.advanced) == ("model.share", "float", "%", "G", True)
    assert (share.low, share.low_open, share.high, share.high_open) == (0, True, 1, False)
    rounds = fields["rounds"]
    assert (rounds.kind, rounds.nullable, rounds.auto, rounds.low, rounds.log) == ("int", True, "all of them", 1, True)
    assert (fields["where"].kind, fields["where"].choices, fields["where"].nullable) == ("choice", ("a", "b"), True)
    assert fields["names"].kind == "list" and fields["names"].default == ()
    assert fields["table"].kind == "mapping"


def test_every_field_of_training_and_analysis_has_a_widget():
    for cls in (TrainingSpec, AnalysisSpec):
        assert [field.name for field in form_fields(cls)] == list(cls.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("share", 0.0, "Share must be above 0 and at most 1."),
        ("share", 1.0, ""),
        ("share", 1.5, "Share must be above 0 and at most 1."),
        ("rounds", 0, "Rounds must be at least 1."),
        ("rounds", None, ""),
    ],
)
def test_limits_are_named_in_words(name, value, sentence):
    field = next(field for field in form_fields(Sample) if field.name == name)
    assert field.problem(value) == sentence


@pytest.mark.parametrize(
    ("text", "whole", "value"),
    [
        ("12", True, 12), ("10,000", True, 10_000), ("1e3", True, 1000), (" 7 ", True, 7), ("", True, None),
        ("0.001", False, 0.001), ("0,001", False, 0.001), ("1e-6", False, 1e-6), ("1,5", False, 1.5), ("-2", False, -2.0),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text, whole, value):
    read = parse_number(text, whole=whole)
    assert read == value and (value is None or type(read) is (int if whole else float))


@pytest.mark.parametrize(("text", "whole"), [("abc", False), ("1.5", True), ("nan", False), ("inf", False), ("1.2.3", False)])
def test_what_is_no_number_is_named(text, whole):
    with pytest.raises(ValueError, match=r"is not a"):
        parse_number(text, whole=whole)


@pytest.mark.parametrize("value", [0.1, 1e-6, 1 / 3, 123456.789, 2**31 - 1, 0.30000000000000004, 1e-12])
def test_a_written_number_reads_back_the_same(value):
    assert parse_number(number_text(value), whole=isinstance(value, int)) == value


@pytest.mark.parametrize(
    ("start", "steps", "whole", "log", "end"),
    [
        (128, 1, True, True, 256), (128, -1, True, True, 64), (1, -1, True, True, 0), (0, 1, True, True, 1), (5, 3, True, False, 8),
        (0.001, 1, False, True, 0.002), (0.001, -1, False, True, 0.0005), (0.003, 1, False, True, 0.005), (0.0, 1, False, True, 1e-6),
        (0.0005, 2, False, True, 0.002), (0.1, 1, False, False, 0.2), (25.0, 1, False, False, 26.0),
    ],
)  # fmt: skip
def test_steps(start, steps, whole, log, end):
    assert step_number(start, steps, whole=whole, log=log) == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b c"), ("with, comma", "plain"), ('a "quoted" name', "b")])
def test_lists_read_back_the_same(names):
    assert split_list(join_list(names)) == names
