"""Questions and errors, each through one function, so that tests can answer them."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import (
    QCompleter,
    QDialog,
    QDialogButtonBox,
    QInputDialog,
    QLineEdit,
    QMessageBox,
    QPlainTextEdit,
    QVBoxLayout,
    QWidget,
)

from cellweave.app import theme
from cellweave.app.panels.parts import button, heading, row, text
from cellweave.core.errors import CellweaveError


def ask(parent: QWidget, title: str, sentence: str, choices: Sequence[str]) -> str:
    """Ask a question.

    Parameters
    ----------
    parent
        The window.
    title
        A few words.
    sentence
        What follows from the choices.
    choices
        Texts of the buttons; the last one changes nothing and is what Escape means.

    Returns
    -------
    str
        The text of the button that was pressed.
    """
    box = QMessageBox(parent)
    box.setWindowTitle(title)
    box.setText(title)
    box.setInformativeText(sentence)
    buttons = {}
    for position, choice in enumerate(choices):
        last = position == len(choices) - 1
        role = QMessageBox.ButtonRole.RejectRole if last else QMessageBox.ButtonRole.AcceptRole
        buttons[choice] = box.addButton(choice, role)
    box.setDefaultButton(buttons[choices[-1]])
    box.setEscapeButton(buttons[choices[-1]])
    box.exec()
    clicked = box.clickedButton()
    answer = next((choice for choice, item in buttons.items() if item is clicked), choices[-1])
    box.deleteLater()
    return answer


def ask_text(parent: QWidget, title: str, label: str, value: str) -> str | None:
    """Ask for a line of text; None where the person thought better of it."""
    answer, accepted = QInputDialog.getText(parent, title, label, text=value)
    return answer.strip() if accepted else None


def ask_number(parent: QWidget, title: str, label: str, value: int, largest: int = 1_000_000) -> int | None:
    """Ask for a whole number from 1 on; None where the person thought better of it."""
    answer, accepted = QInputDialog.getInt(parent, title, label, value, 1, largest)
    return answer if accepted else None


def ask_name(parent: QWidget, title: str, label: str, names: Sequence[str]) -> str | None:
    """Ask for one of many names, completing what is typed; None where the person thought better of it."""
    dialog = QInputDialog(parent)
    dialog.setWindowTitle(title)
    dialog.setLabelText(label)
    dialog.setInputMode(QInputDialog.InputMode.TextInput)
    dialog.setTextValue("")
    field = dialog.findChild(QLineEdit)
    if field is not None and names:
        completer = QCompleter(list(names), dialog)
        completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        completer.setFilterMode(Qt.MatchFlag.MatchContains)
        field.setCompleter(completer)
    accepted = dialog.exec()
    answer = dialog.textValue().strip()
    dialog.deleteLater()
    return answer if accepted and answer else None


class ErrorDialog(QDialog):
    """An error: a sentence, what to do about it, and the details to copy.

    Parameters
    ----------
    cause, mend, details
        What is shown.
    parent
        The window.
    """

    def __init__(self, cause: str, mend: str, details: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Something is not right")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.cause = text(cause, selectable=True)
        self.cause.setAccessibleName("What went wrong")
        font = theme.heading_font()
        font.setPointSizeF(font.pointSizeF() - 1)
        self.cause.setFont(font)
        self.mend = text(mend, selectable=True)
        self.mend.setAccessibleName("What to do")
        self.mend.setVisible(bool(mend))
        self.details = QPlainTextEdit(details)
        self.details.setReadOnly(True)
        self.details.setAccessibleName("Details")
        self.details.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.details.setVisible(False)
        self._all = f"{cause}\n{mend}\n\n{details}".strip()
        self.more = button("Show details", "chevron-down", self._toggle, link=True)
        self.more.setVisible(bool(details))
        self.copy = button("Copy", "copy", self._copy)
        close = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        close.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 16)
        layout.setSpacing(12)
        for part in (self.cause, self.mend):
            layout.addWidget(part)
        layout.addWidget(self.more, 0, Qt.AlignmentFlag.AlignLeft)
        layout.addWidget(self.details, 1)
        layout.addLayout(row(self.copy, None, close))
        width = self.fontMetrics().horizontalAdvance("m") * 36
        self.setMinimumWidth(width)
        self.resize(width, layout.heightForWidth(width))
        close.button(QDialogButtonBox.StandardButton.Close).setFocus()

    def _toggle(self) -> None:
        shown = not self.details.isVisible()
        self.details.setVisible(shown)
        self.more.setText("Hide details" if shown else "Show details")
        self.more.setIcon(theme.icon("chevron-up" if shown else "chevron-down", "accent"))
        height = self.layout().heightForWidth(self.width()) if not shown else self.height() + 12 * self.fontMetrics().height()
        self.resize(self.width(), height)

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self._all)


def show_error(parent: QWidget, error: Exception, details: str) -> ErrorDialog:
    """Show an error without stopping anything; return the dialog."""
    if isinstance(error, CellweaveError):
        cause, mend = error.cause, error.mend
    elif isinstance(error, MemoryError):
        cause, mend = "There is not enough memory.", "Close other programs, keep fewer features, or use the disk source."
    else:
        cause = "Something happened that should not have: it is a fault in Cellweave, not in your data."
        mend = "Nothing that was trained is lost. 'Help, Report a problem' gathers what is needed to mend it."
        details = details or f"{type(error).__name__}: {error}"
    dialog = ErrorDialog(cause, mend, details, parent)
    dialog.show()
    return dialog


class TextDialog(QDialog):
    """A text to read and to copy.

    Parameters
    ----------
    title, intro, content
        What is shown.
    parent
        The window.
    """

    def __init__(self, title: str, intro: str, content: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.view = QPlainTextEdit(content)
        self.view.setReadOnly(True)
        self.view.setAccessibleName(title)
        self.view.setFont(theme.tabular_font())
        self.copy = button("Copy all", "copy", lambda: QGuiApplication.clipboard().setText(content), primary=True)
        close = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        close.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 16)
        layout.setSpacing(12)
        layout.addWidget(heading(title))
        layout.addWidget(text(intro, secondary=True))
        layout.addWidget(self.view, 1)
        layout.addLayout(row(self.copy, None, close))
        em = self.fontMetrics().horizontalAdvance("m")
        self.resize(em * 50, em * 36)
