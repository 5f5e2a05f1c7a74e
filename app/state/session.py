"""What the window is about: the study, the spec being edited, the checks, the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from cellweave.app.state import paths
from cellweave.app.state.editing import SpecEditor
from cellweave.app.state.runs import RunLibrary, Trash
from cellweave.app.state.settings import Settings, column_key, load_settings, save_settings
from cellweave.core.errors import CellweaveError
from cellweave.core.spec import RunSpec
from cellweave.core.study.checks import Check, Level

if TYPE_CHECKING:
    from cellweave.core.study.header import FileHeader
    from cellweave.core.study.study import Study


class Session:
    """View model of the window; panels read it and listen to its signals.

    Attributes
    ----------
    headers_changed
        Another file was opened (its header is known, its data not yet), or none is open.
    study_changed
        The data were loaded, or let go.
    checks_changed
        The pre-flight checks were done again.
    load_error
        Why the open file cannot be used; None while it is read and once it is loaded.
    notices
        Sentences about the settings at the start.
    notice_details
        What the log says of them.
    """

    headers_changed = Signal(tuple)
    study_changed = Signal(object)
    checks_changed = Signal(tuple)

    def __init__(self) -> None:
        self.notice_details: list[str] = []
        self.settings, self.notices = load_settings(paths.settings_file(), self.notice_details)
        self.editor = SpecEditor()
        self.library = RunLibrary()
        self.trash = Trash()
        self.headers: tuple[FileHeader, ...] = ()
        self.study: Study | None = None
        self.columns: tuple[Any, ...] = ()
        self.checks: tuple[Check, ...] = ()
        self.checked_spec: RunSpec | None = None
        self.load_error: CellweaveError | None = None

    @property
    def spec(self) -> RunSpec:
        """The spec being edited."""
        return self.editor.spec

    @property
    def modalities(self) -> frozenset[str] | None:
        """The modalities of the loaded data; None while they are not known."""
        return None if self.study is None else frozenset(self.study.modalities)

    # ------------------------------------------------------------------ study

    def set_headers(self, headers: Sequence[FileHeader]) -> None:
        """Another file was opened; its data are not there yet."""
        self.headers, self.load_error = tuple(headers), None
        self.set_study(None, ())
        self.headers_changed.emit(self.headers)

    def set_study(self, study: Study | None, columns: Sequence[Any]) -> None:
        """The data were loaded, with a description of each obs column."""
        self.study, self.columns = study, tuple(columns)
        if study is not None:
            self.load_error = None
        self.set_checks((), None)
        self.study_changed.emit(study)

    def set_load_error(self, error: CellweaveError | None) -> None:
        """The open file cannot be used as it is; or (None) it is read once more."""
        if error is None and self.load_error is None:
            return
        self.load_error = error
        self.set_study(None, ())

    def set_checks(self, checks: Sequence[Check], spec: RunSpec | None) -> None:
        """The checks of a spec were done."""
        self.checks, self.checked_spec = tuple(checks), spec
        self.checks_changed.emit(self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """Checks that block training."""
        return tuple(check for check in self.checks if check.level is Level.FAIL)

    def why_not_ready(self) -> str:
        """Return why one cannot train now, or an empty text."""
        if not self.headers:
            return "Open data first: step 1."
        if self.load_error is not None:
            return self.load_error.cause
        if self.study is None:
            return "The data are being loaded."
        if self.checked_spec is None:
            return "The data are being checked."
        if self.failures:
            first = self.failures[0]
            rest = len(self.failures) - 1
            return first.text + (f" And {rest} more." if rest else "")
        return ""

    # ------------------------------------------------------------------ what is remembered

    def remembered_roles(self, columns: Sequence[str]) -> dict[str, Any]:
        """Return the roles given last to a file with these obs columns."""
        return dict(self.settings.roles.get(column_key(list(columns)), {}))

    def remember_roles(self) -> None:
        """Keep the present roles for files with the same obs columns."""
        if self.study is not None:
            key = column_key([str(name) for name in self.study.obs.columns])
            assigned = {role: list(names) for role, names in self.spec.covariates.assigned().items()}
            self.settings.roles = {**self.settings.roles, key: assigned}

    def save(self) -> str:
        """Write the settings; return a sentence where that fails."""
        try:
            save_settings(self.settings, paths.settings_file())
        except OSError as error:
            return f"The settings could not be written: {error.strerror or error}."
        return ""

    def preset_folder(self) -> Path:
        """Return the folder of the user's presets."""
        return paths.presets_folder()


__all__ = ["Session", "Settings"]
