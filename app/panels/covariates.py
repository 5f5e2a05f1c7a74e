"""Step 2: which column of the cells means what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QGridLayout,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.panels.checks import ChecksList, of_step
from cellweave.app.panels.crosstab import CrossTable
from cellweave.app.panels.parts import button, clear, row, subheading, text
from cellweave.app.panels.roles import TITLES, ColumnsView, RolePopup
from cellweave.app.panels.workflow import Mark
from cellweave.app.state.session import Session
from cellweave.app.workers.tasks import TaskRunner
from cellweave.core.spec import RunSpec
from cellweave.core.spec.covariates import SINGLE_ROLES
from cellweave.core.spec.roles import EffectiveRoles, effective_roles, role_conflicts, role_words

SEARCH_FROM = 9
MOST_LEVELS = 60


class CovariatesPanel(QWidget):
    """The body of step 2."""

    def __init__(self, session: Session, tasks: TaskRunner, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session, self._tasks = session, tasks
        self._cross_key: tuple[Any, ...] = ()
        self._popup: RolePopup | None = None
        self.empty = text("The columns of the cells appear here once data are open.", secondary=True)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Find a column")
        self.search.setAccessibleName("Find a column")
        self.search.setClearButtonEnabled(True)
        self.view = ColumnsView()
        self.search.textChanged.connect(self.view.columns.set_needle)
        self.view.rolesAsked.connect(self.ask_roles)
        self.combine = button("Combine columns…", "link", self._ask_combine, tip="Make a new column from the values of two or more.")
        self.follows_title = subheading("What follows")
        self._follows = QVBoxLayout()
        self._follows.setSpacing(4)
        self.checks = ChecksList()
        self.checks.fixAsked.connect(lambda fix: session.editor.edit(fix.changes, fix.label))
        self._cross = self._make_cross()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 16)
        layout.setSpacing(8)
        for part in (self.empty, self.search, self.view):
            layout.addWidget(part)
        layout.addLayout(row(self.combine, None))
        layout.addWidget(self.checks)
        layout.addWidget(self.follows_title)
        layout.addLayout(self._follows)
        layout.addWidget(self._cross)
        layout.addStretch(1)
        session.study_changed.connect(self._study)
        session.editor.changed.connect(self._spec)
        session.checks_changed.connect(self._show_checks)
        self._study(None)

    def _make_cross(self) -> QWidget:
        body = QWidget()
        self.first, self.second = QComboBox(), QComboBox()
        for combo, name in ((self.first, "Rows of the cross table"), (self.second, "Columns of the cross table")):
            combo.setAccessibleName(name)
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(6)
            combo.activated.connect(self._show_cross)
        self.cross_words = text("")
        self.table = CrossTable()
        grid = QGridLayout(body)
        grid.setContentsMargins(0, 8, 0, 0)
        grid.addWidget(subheading("Cross table"), 0, 0, 1, 3)
        grid.addWidget(self.first, 1, 0)
        grid.addWidget(text("by", secondary=True, wrap=False), 1, 1)
        grid.addWidget(self.second, 1, 2)
        grid.addWidget(self.cross_words, 2, 0, 1, 3)
        grid.addWidget(self.table, 3, 0, 1, 3)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(2, 1)
        return body

    # ------------------------------------------------------------------ showing

    def _study(self, study: Any) -> None:
        infos = self._session.columns
        self.empty.setVisible(study is None)
        for part in (self.view, self.combine, self.follows_title, self._cross):
            part.setVisible(study is not None)
        self.search.setVisible(len(infos) >= SEARCH_FROM)
        self.view.columns.set_columns(infos)
        self.view.updateGeometry()
        groups = [info.name for info in infos if 1 < info.n_levels <= MOST_LEVELS and info.levels]
        for combo in (self.first, self.second):
            combo.clear()
            combo.addItems(groups)
        self._cross.setVisible(len(groups) > 1)
        roles = self._session.spec.covariates
        self._choose_cross(roles)
        self._spec(self._session.spec)

    def _choose_cross(self, roles: Any) -> None:
        wanted = [name for name in (roles.batch, roles.library, roles.dataset, roles.labels) if name]
        groups = [self.first.itemText(position) for position in range(self.first.count())]
        order = [*dict.fromkeys(name for name in wanted if name in groups), *groups]
        order = list(dict.fromkeys(order))
        if len(order) > 1:
            levels = {info.name: info.n_levels for info in self._session.columns}
            down, across = sorted(order[:2], key=lambda name: -levels.get(name, 0))  # the longer one goes down the page
            self.first.setCurrentText(down)
            self.second.setCurrentText(across)

    def _spec(self, spec: RunSpec) -> None:
        assigned = spec.covariates.assigned()
        effective = effective_roles(spec.covariates, spec.family)
        self._show_rows(spec)
        clear(self._follows)
        if not assigned:
            self._follows.addWidget(text("No column has a role yet: the model will be told of no batch, and nothing is corrected.", secondary=True))
        for role, names in assigned.items():
            use = spec.family.uses(role)
            columns = ", ".join(f"'{name}'" for name in names)
            words = use.help if use is not None else spec.family.why_unused(role)
            filled = [role_words(part) for part in effective.fanned_from(role)]
            arrow = f" → {', '.join(filled)}" if filled else ""
            self._follows.addWidget(text(f"{TITLES[role]} {columns}{arrow}: {words}", secondary=True))
        self._choose_cross(spec.covariates)
        self._show_cross()

    def _show_rows(self, spec: RunSpec) -> None:
        """Show roles, what follows from them, and, at the row that causes it, what contradicts them: by itself, or as the data are."""
        assigned = spec.covariates.assigned()
        problems: dict[str, list[str]] = {}
        for conflict in role_conflicts(spec.covariates, spec.family):
            for column in conflict.columns:
                problems.setdefault(column, []).append(conflict.text)
        for check in self._session.checks:
            section, _, role = check.where.partition(".")
            if section == "covariates" and check.level.value == "fail" and check.id != "roles-conflict":
                for column in assigned.get(role, ()):
                    problems.setdefault(column, []).append(check.text)
        sentences = {column: " ".join(texts) for column, texts in problems.items()}
        self.view.columns.set_roles(assigned, _fills(assigned, effective_roles(spec.covariates, spec.family)), sentences)
        self.view.updateGeometry()

    def _show_checks(self, checks: tuple[Any, ...]) -> None:
        self._show_rows(self._session.spec)
        own = [check for check in of_step(checks, "covariates") if check.level.value != "ok"]
        self.checks.set_checks(own)
        self.checks.setVisible(bool(own))

    def _show_cross(self) -> None:
        study = self._session.study
        first, second = self.first.currentText(), self.second.currentText()
        if study is None or not first or not second or first == second or first not in study.obs or second not in study.obs:
            self._cross_key = ()
            self.table.clear_table()
            self.cross_words.setText("")
            return
        key = (id(study), first, second)
        if key == self._cross_key:
            return
        self._cross_key = key

        def count(report: Any) -> tuple[str, Any]:
            from cellweave.core.study import confounded, crosstab

            return confounded(study.obs, first, second), crosstab(study.obs, first, second)

        def done(found: tuple[str, Any]) -> None:
            if key == self._cross_key:
                self.cross_words.setText(found[0] or "The two cross: levels of one occur in several levels of the other.")
                self.table.show_counts(found[1])

        def failed(error: Exception, _details: str) -> None:
            if key == self._cross_key:
                self.table.clear_table()
                self.cross_words.setText(f"The cross table could not be made: {error}")

        self._tasks.run(count, done, failed)

    # ------------------------------------------------------------------ roles

    def ask_roles(self, name: str, corner: QPoint) -> None:
        """Open the pop-up for a column."""
        info = next((item for item in self._session.columns if item.name == name), None)
        if info is None:
            return
        spec = self._session.spec
        popup = RolePopup(info, spec.family, spec.covariates, self)
        popup.toggled.connect(lambda role, on: self.assign(name, role, on=on))
        screen = QGuiApplication.screenAt(corner) or QGuiApplication.primaryScreen()
        room = screen.availableGeometry()
        x = min(corner.x(), room.right() - popup.width())
        y = min(corner.y(), room.bottom() - popup.height())
        popup.move(max(room.left(), x), max(room.top(), y))
        self._popup = popup
        popup.show()

    def assign(self, column: str, role: str, *, on: bool) -> None:
        """Give a role to a column, or take it away."""
        roles = self._session.spec.covariates
        if role in SINGLE_ROLES:
            value: Any = column if on else None
        else:
            names = [name for name in getattr(roles, role) if name != column]
            value = (*names, column) if on else tuple(names)
        self._session.editor.edit({f"covariates.{role}": value}, f"{TITLES[role]}: {column if on else 'none'}")

    def _ask_combine(self) -> None:
        dialog = CombineDialog([info.name for info in self._session.columns if info.n_levels], self)
        if dialog.exec() == QDialog.DialogCode.Accepted:
            names = dialog.chosen()
            combined = {**self._session.spec.data.combine, "_".join(names): tuple(names)}
            self._session.editor.edit({"data.combine": combined}, f"combine {', '.join(names)}")
        dialog.deleteLater()

    # ------------------------------------------------------------------ for the header of the step

    def summary(self) -> tuple[Mark, str]:
        """Return the mark and the words of the step's header."""
        session = self._session
        roles = session.spec.covariates.assigned()
        words = " · ".join(f"{TITLES[role]}: {', '.join(names)}" for role, names in roles.items()) or "No column has a role yet"
        if session.study is None:
            return "", words if roles else "Which column means what"
        levels = {check.level.value for check in of_step(session.checks, "covariates")}
        done: Mark = "check" if roles and session.checked_spec is not None else ""
        return "fail" if "fail" in levels else "warn" if "warn" in levels or (not roles and session.checked_spec is not None) else done, words


def _fills(assigned: Mapping[str, Sequence[str]], effective: EffectiveRoles) -> dict[str, str]:
    """Return, by column, the parts of the model that it fills beside its own roles."""
    found: dict[str, list[str]] = {}
    for role, names in assigned.items():
        for part in effective.fanned_from(role):
            for name in names:
                if name in effective.columns[part]:
                    found.setdefault(name, []).append(role_words(part))
    return {name: ", ".join(dict.fromkeys(parts)) for name, parts in found.items()}


class CombineDialog(QDialog):
    """Choose the columns that a new one is made of."""

    def __init__(self, names: list[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Combine columns")
        self.list = QListWidget()
        self.list.setAccessibleName("Columns to combine")
        for name in names:
            item = QListWidgetItem(name)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Unchecked)
            self.list.addItem(item)
        self.list.itemChanged.connect(self._changed)
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addWidget(text("The new column holds the values of the chosen ones, joined: each combination is a level."))
        layout.addWidget(self.list, 1)
        layout.addWidget(self.buttons)
        self._changed()

    def chosen(self) -> list[str]:
        """Return the names that are checked, in their order."""
        items = [self.list.item(position) for position in range(self.list.count())]
        return [item.text() for item in items if item is not None and item.checkState() == Qt.CheckState.Checked]

    def _changed(self, *_: object) -> None:
        self.buttons.button(QDialogButtonBox.StandardButton.Ok).setEnabled(len(self.chosen()) > 1)
