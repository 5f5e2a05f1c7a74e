"""What goes to the terminal: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


class ReaderGone(Exception):  # noqa: N818  (nothing failed)
    """Whoever read our output has gone, as ``| head`` does."""


def say(text: str = "") -> None:
    """Print a line of the result."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer must not be flushed into nowhere at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from None


def note(text: str) -> None:
    """Print a line about what is going on."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def complain(text: str) -> None:
    """Print one error, as one line."""
    note(" ".join(text.split()))


def say_json(value: Any) -> None:
    """Print a result for another program."""
    say(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def say_table(head: Sequence[str], rows: Sequence[Sequence[Any]], indent: str = "") -> None:
    """Print rows in aligned columns; columns of numbers are aligned to the right."""
    cells = [[str(item) for item in row] for row in rows]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    for row in [list(head), *cells]:
        parts = [item.rjust(width) if right else item.ljust(width) for item, width, right in zip(row, widths, numeric, strict=True)]
        say((indent + "  ".join(parts)).rstrip())


def bytes_in_words(n: float) -> str:
    """Return a number of bytes with a unit, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def seconds_in_words(seconds: float) -> str:
    """Return a time span, ``1:02:03`` or ``2:03``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
