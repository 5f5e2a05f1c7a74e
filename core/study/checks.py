"""What a pre-flight check says, and how it can be mended. The checks themselves are in ``preflight.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Level(Enum):
    """How grave a finding is: ``FAIL`` blocks training."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Fix:
    """A change of the spec that mends a finding, for ``RunSpec.with_changes``.

    Attributes
    ----------
    label
        Text of the button.
    changes
        New values by dotted path.
    """

    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes
    ----------
    id
        Stable identifier (``raw-counts``, ``batch-levels`` ...).
    level
        OK, WARN or FAIL.
    title
        A few words.
    text
        One or two sentences in plain words: what was found and what follows.
    fixes
        Changes that mend it, the best first.
    where
        Dotted path of the field it concerns, so that the window can show it there.
    """

    id: str
    level: Level
    title: str
    text: str
    fixes: tuple[Fix, ...] = field(default=())
    where: str = ""
