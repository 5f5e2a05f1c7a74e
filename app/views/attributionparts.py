"""Small parts of the Attribution view: its fields, its columns, and its table."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QWidget

from cellweave.app.panels.parts import row, set_look, text
from cellweave.app.state.attributed import Attributed
from cellweave.app.views.columns import ColumnData


def scores_csv(data: Attributed) -> str:
    """Return the scores of all cells as CSV."""
    columns = data.scores.columns()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["cell", *columns])
    table = np.column_stack(list(columns.values()))
    for name, values in zip(data.names, table, strict=True):
        writer.writerow([name, *("" if np.isnan(value) else f"{value:.6g}" for value in values)])
    return out.getvalue()


def column_of(name: str, column: Any) -> ColumnData:
    """Return a column of cells as the panels colour by it."""
    if column.levels is not None:
        return ColumnData.categorical(column.codes, column.levels)
    return ColumnData.continuous(column.numbers, unit="log(1 + scaled counts)" if name.startswith("gene:") else "")


def chooser(name: str) -> QComboBox:
    """Return a list to choose from, as wide as what is chosen."""
    box = QComboBox()
    box.setAccessibleName(name)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
    return box


def refill(box: QComboBox, items: list[tuple[str, str, str]], chosen: str) -> None:
    """Offer other items ``(title, value, tooltip)``, with ``chosen`` chosen where it is among them."""
    box.clear()
    for title, value, tip in items:
        box.addItem(title, value)
        if tip:
            box.setItemData(box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
    place = box.findData(chosen)
    box.setCurrentIndex(max(0, place))


def side_by_side(like: QComboBox, *widgets: QWidget) -> QWidget:
    """Return widgets in a row as high as a field, so that they stand in one line with it."""
    holder = QWidget()
    holder.setLayout(row(*widgets))
    holder.setMinimumHeight(like.sizeHint().height())
    return holder


def labelled(name: str, box: QComboBox) -> QWidget:
    """Return a field with its name before it."""
    holder = QWidget()
    label = text(name, wrap=False)
    label.setBuddy(box)
    line = row(label, box, spacing=4)
    holder.setLayout(line)
    set_look(holder, "plain", "true")
    return holder
