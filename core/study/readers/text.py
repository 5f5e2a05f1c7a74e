"""CSV and TSV tables of counts, plain or gzipped, with cells or features in rows."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.study.counts import BLOCK_VALUES, CountsReport, Scanner
from cellweave.core.study.readers.base import Source, StoredMatrix, Watch, tidy
from cellweave.core.study.readers.orientation import looks_like_proteins, rows_are_features
from cellweave.core.study.readers.tenx import table_source
from cellweave.core.wording import counted

if TYPE_CHECKING:
    import pandas as pd

SAMPLED_LINES = 200
SAMPLED_BYTES = 8_000_000
MISSING = frozenset({"", "NA", "NaN", "nan", "N/A", "null", "NULL", "-", "inf", "Inf"})
MOST_TEXT_COLUMNS = 5  # a table of counts has at most so many columns of names before its numbers


@dataclass(frozen=True)
class Layout:
    """How a text table is laid out.

    Attributes
    ----------
    separator
        Between fields.
    skipped
        Lines before the first row of numbers.
    columns
        Names of the number columns.
    n_names
        Columns of names before the numbers; 0 where rows have no names.
    title
        Title over the names.
    first_rows
        Names of the first rows.
    density
        Share of numbers that are not zero in the first rows.
    trailing
        Whether lines end with a separator and nothing after it.
    """

    separator: str
    skipped: int
    columns: tuple[str, ...]
    n_names: int
    title: str
    first_rows: tuple[str, ...]
    density: float
    trailing: bool


def open_text(path: Path) -> Source:
    """Return the source of a table of counts.

    Raises
    ------
    DataError
        Where it is not a table, or a table of something else than numbers.
    """
    layout = find_layout(path)
    notes: list[str] = []
    turned = rows_are_features(layout.first_rows, layout.columns[:SAMPLED_LINES], layout.title)
    if turned is None:
        turned = False
        notes.append("The names do not tell which side holds the cells; rows were taken for cells and columns for features.")
    else:
        notes.append(f"The rows were taken for {'features and the columns for cells' if turned else 'cells and the columns for features'}.")
    names = row_names(path, layout)
    if not names:
        raise DataError(f"'{path.name}' has no rows of numbers.", "Choose the file with the counts.")
    matrix = StoredText(path, layout, len(names), rows_are_features=turned)
    columns = np.array(layout.columns, dtype=object)
    rows = np.array(names, dtype=object)
    cells, features = (columns, rows) if turned else (rows, columns)
    types = None
    if looks_like_proteins([str(name) for name in features]):
        types = np.full(len(features), "Antibody Capture", dtype=object)
        notes.append("The features are named like surface proteins, so they are taken for ADT.")

    def read_var() -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(index=pd.Index(features, dtype=object))

    return table_source(path, "text", cells, matrix, types, read_var, notes)


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if _is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def _first_lines(path: Path) -> list[str]:
    with _opened(path) as file:
        text = file.read(SAMPLED_BYTES).decode("utf-8-sig", "replace")
        ended = not file.read(1)
    lines = text.splitlines()
    return lines if ended or len(lines) < 2 else lines[:-1]


def find_layout(path: Path) -> Layout:
    """Find separator, titles and names of a table from its first lines."""
    lines = _first_lines(path)
    skipped = 0
    while skipped < len(lines) and (not lines[skipped].strip() or lines[skipped].startswith("#")):
        skipped += 1
    if len(lines) - skipped < 2:
        raise DataError(f"'{path.name}' is not a table of counts: it has fewer than two lines.", "Choose the file with the counts.")
    separator = _separator(lines[skipped + 1])
    if not separator:
        raise DataError(
            f"'{path.name}' is not a table: its lines have no tabs, commas or semicolons.", "Choose a data file, or save the table as CSV."
        )
    body = [_fields(line, separator) for line in lines[skipped + 1 : skipped + 1 + SAMPLED_LINES] if line.strip()]
    titles = _fields(lines[skipped], separator)
    width = len(body[0])
    if len(titles) not in (width, width - 1) or width < 2:
        raise DataError(
            f"'{path.name}' is not a regular table: its first line has {len(titles):,} fields, its second {width:,}.",
            "Save it again as CSV with one name for each column.",
        )
    if all(_is_number(field) for field in titles) and all(_is_number(field) for field in body[0]):
        raise DataError(f"'{path.name}' names neither cells nor features.", "Add a line with the names of the columns and a column with those of the rows.")
    n_names = _n_names(titles, body, width, path)
    columns = titles[n_names - (width - len(titles)) :]
    title = titles[0] if len(titles) == width and n_names else ""
    rows = tuple(row[0] if n_names else "" for row in body)
    sample = [_number(field) for row in body[:20] for field in row[n_names:]]
    density = float(np.mean([value != 0 for value in sample])) if sample else 0.0
    trailing = len(next(csv.reader([lines[skipped + 1]], delimiter=separator))) > width
    return Layout(separator, skipped + 1, tuple(columns), n_names, title, rows, density, trailing)


def _separator(line: str) -> str:
    counts = {mark: line.count(mark) for mark in ("\t", ",", ";")}
    best = max(counts, key=lambda mark: counts[mark])
    if counts[best]:
        return best
    return " " if line.strip().count(" ") else ""


def _fields(line: str, separator: str) -> list[str]:
    fields = next(csv.reader(io.StringIO(line), delimiter=separator))
    return fields[:-1] if len(fields) > 2 and not fields[-1].strip() else fields


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return field.strip() in MISSING and field.strip() != ""
    return True


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return float("nan")


def _n_names(titles: list[str], body: list[list[str]], width: int, path: Path) -> int:
    """Return how many columns of names come before the numbers."""
    texts = [column for column in range(width) if not all(_is_number(row[column]) for row in body if column < len(row))]
    leading = 0
    while leading in texts:
        leading += 1
    later = [column for column in texts if column >= leading]
    _refuse_single_words(body, later, path)
    if later or leading > MOST_TEXT_COLUMNS or leading == width:
        shift = width - len(titles)
        column = later[0] if later else 0
        name = titles[column - shift] if 0 <= column - shift < len(titles) else str(column + 1)
        raise DataError(
            f"'{path.name}' is a table of annotations, not of counts: its column '{name}' holds text.", "Open the file with the counts instead."
        )
    if leading == 0 and (len(titles) == width - 1 or not titles[0].strip() or titles[0].startswith("Unnamed") or titles[0].lower() in ("index", "id")):
        return 1
    return leading


def _refuse_single_words(body: list[list[str]], columns: list[int], path: Path) -> None:
    """Name the one field that is no number in a column where most are: that is a damaged table, not an annotation."""
    if columns:
        words = [row[columns[0]] for row in body if columns[0] < len(row) and not _is_number(row[columns[0]])]
        if 2 * len(words) < len(body):
            raise DataError(f"'{path.name}' holds '{words[0][:40]}' where a number is expected.", "Correct it, or write the table again.")


def row_names(path: Path, layout: Layout) -> list[str]:
    """Return the names of all rows; numbered where the table has none."""
    names: list[str] = []
    with _opened(path) as file:
        for _ in range(layout.skipped):
            file.readline()
        mark = layout.separator.encode()
        for line in file:
            if not line.strip():
                continue
            first = line.split(mark, 1)[0] if not line.startswith(b'"') else line[1:].split(b'"', 1)[0]
            names.append(first.decode("utf-8", "replace").strip().strip('"'))
    return names if layout.n_names else [f"row_{number + 1}" for number in range(len(names))]


class StoredText(StoredMatrix):
    """The numbers of a text table."""

    def __init__(self, path: Path, layout: Layout, n_rows: int, *, rows_are_features: bool) -> None:
        self._path, self._layout, self._n_rows, self._turned = path, layout, n_rows, rows_are_features
        width = len(layout.columns)
        super().__init__("X", (width, n_rows) if rows_are_features else (n_rows, width), "dense", "text", None)

    def density(self) -> float:
        """Return the density of the first rows."""
        return self._layout.density

    def _blocks(self) -> Iterator[np.ndarray]:
        """Iterate over the numbers in blocks of rows; a line with too many or too few fields is an error."""
        layout, width = self._layout, len(self._layout.columns)
        step = max(1, BLOCK_VALUES // max(1, width))
        rows: list[list[float]] = []
        with io.TextIOWrapper(_opened(self._path), encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if number <= layout.skipped or not line.strip():
                    continue
                fields = _fields(line, layout.separator) if '"' in line else line.rstrip("\r\n").split(layout.separator)
                if layout.trailing and len(fields) == layout.n_names + width + 1:
                    fields.pop()
                if len(fields) != layout.n_names + width:
                    raise DataError(
                        f"Line {number:,} of '{self._path.name}' has {len(fields):,} fields, but the first rows have {layout.n_names + width:,}.",
                        "The table was cut short or has a separator within a field: save it again as CSV.",
                    )
                rows.append(self._numbers(fields[layout.n_names :], number))
                if len(rows) == step:
                    yield np.array(rows)
                    rows = []
        if rows:
            yield np.array(rows)

    def _numbers(self, fields: list[str], line: int) -> list[float]:
        try:
            return list(map(float, fields))
        except ValueError:
            wrong = next((field for field in fields if not _is_number(field) and field.strip()), None)
            if wrong is not None:
                raise DataError(
                    f"Line {line:,} of '{self._path.name}' holds '{wrong[:40]}' where a number is expected.", "Open the file with the counts."
                ) from None
            return [_number(field) for field in fields]

    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Parse in blocks of rows."""
        scanner = Scanner("X")
        kept: list[sparse.csr_matrix] | None = []
        done, width = 0, len(self._layout.columns)
        watch.at(0.0, f"reading {self._path.name}")
        for block in self._blocks():
            scanner.add(block)
            done += len(block)
            watch.at(done / max(1, self._n_rows), f"reading {self._path.name}")
            if kept is not None and (keep or scanner.looks_raw):
                kept.append(sparse.csr_matrix(block.astype(np.float32) if np.nanmax(np.abs(block), initial=0) < 2**24 else block))
            else:
                kept = None
        if done != self._n_rows:
            raise DataError(f"'{self._path.name}' has {counted(self._n_rows, 'line')}, but only {counted(done, 'row')} of numbers.", "Save it again as CSV.")
        places = {}
        for kind, (position, _) in scanner.positions().items():
            row, column = divmod(position, width)
            places[kind] = (column, row) if self._turned else (row, column)
        report = scanner.report(places)
        if kept is None:
            return report, None
        whole = sparse.vstack(kept, format="csr")
        return report, tidy(whole.T if self._turned else whole)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
