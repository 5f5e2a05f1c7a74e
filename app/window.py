"""The main window: puts panels, views and flows together. What it does is in ``flows``, what it shows in ``panels`` and ``views``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QGuiApplication, QShowEvent
from qtpy.QtWidgets import QDockWidget, QLabel, QMainWindow, QMenu, QToolBar, QToolButton, QWidget

from cellweave.app import theme
from cellweave.app.actions import ActionRegistry
from cellweave.app.centre import Centre
from cellweave.app.flows import dialogs
from cellweave.app.flows.analysing import Analysing
from cellweave.app.flows.arrangement import Arrangement
from cellweave.app.flows.asking import Asking
from cellweave.app.flows.exporting import Exporting
from cellweave.app.flows.expression import ExpressionFlow
from cellweave.app.flows.opening import Opening
from cellweave.app.flows.runs import RunsFlow
from cellweave.app.flows.shell import Shell
from cellweave.app.flows.status import Status
from cellweave.app.flows.training import TrainFlow
from cellweave.app.flows.watching import Watching
from cellweave.app.panels.activity import ActivityBar
from cellweave.app.panels.covariates import CovariatesPanel
from cellweave.app.panels.data import DataPanel
from cellweave.app.panels.inspector import InspectorPanel
from cellweave.app.panels.log import LogPanel, QtLogHandler
from cellweave.app.panels.losses import LossesPanel
from cellweave.app.panels.model import ModelPanel
from cellweave.app.panels.parts import row
from cellweave.app.panels.runs import RunsPanel
from cellweave.app.panels.training import TrainingPanel
from cellweave.app.panels.workflow import WorkflowPanel
from cellweave.app.state.results import Cells, RunResults
from cellweave.app.state.session import Session
from cellweave.app.views.declared import VIEW_NAMES
from cellweave.app.workers.analysis import Analysis
from cellweave.app.workers.tasks import TaskRunner
from cellweave.core.runs.events import FinishReason, Warned
from cellweave.core.wording import agree

if TYPE_CHECKING:
    from cellweave.app.views import EmbeddingView, LossView

LOG = logging.getLogger("cellweave")
MEMORY_EVERY = 3000
RUN_MENU = ("run.overlay", "run.compare", "run.duplicate", "run.rename", "run.resume", "file.figure", "file.h5ad", "file.tables", "run.folder", "run.trash")
RUN_TOOLS = ("run.overlay", "run.duplicate", "run.trash")


class MainWindow(QMainWindow):
    """The window.

    Parameters
    ----------
    session
        View model; one of its own where None.
    warm
        Whether to start the analysis process when data are opened, so that the first embedding does not wait for it.
    """

    delete_on_close = Qt.WidgetAttribute.WA_DeleteOnClose

    def __init__(self, session: Session | None = None, *, warm: bool = True) -> None:
        super().__init__()
        self.session = session or Session()
        self._warm, self._closing = warm, False
        self.palette_dialog: QWidget | None = None
        self.report_dialog: QWidget | None = None
        self.figure_dialog: QWidget | None = None
        self.setWindowTitle("Cellweave")
        self.setWindowIcon(theme.program_icon())
        self.setAcceptDrops(True)
        self.setDockNestingEnabled(True)
        self.log_handler = QtLogHandler()
        LOG.addHandler(self.log_handler)
        LOG.setLevel(logging.INFO)
        self._make_flows()
        self._make_panels()
        self.actions_by_id = ActionRegistry(self, self.session.settings.shortcuts)
        self.actions_by_id.build_menus(self.menuBar())
        self._make_recent()
        self._make_corner()
        self._make_run_tools()
        self._connect()
        self._first_show = True
        self.mark_theme()
        self.status.refresh()

    # ------------------------------------------------------------------ building

    def _make_flows(self) -> None:
        self.tasks = TaskRunner(self)
        self.analysis = Analysis(self)
        self.opening = Opening(self, self.session, self.tasks)
        self.training = TrainFlow(self, self.session)
        self.watching = Watching(self, self.session, self.analysis, self.tasks)
        self.expression, self.asking = ExpressionFlow(self), Asking(self)
        self.runs = RunsFlow(self, self.session)
        self.exporting = Exporting(self, self.session, self.analysis, self.tasks)
        self.analysing = Analysing(self, self.session, self.analysis, self.tasks)
        self.shell = Shell(self, self.session)
        self.status = Status(self, self.session)
        self.arrangement = Arrangement(self, self.session)

    def _make_panels(self) -> None:
        session = self.session
        self.data_panel, self.covariates_panel = DataPanel(session), CovariatesPanel(session, self.tasks)
        self.model_panel, self.losses_panel, self.training_panel = ModelPanel(session), LossesPanel(session), TrainingPanel(session)
        bodies = (self.data_panel, self.covariates_panel, self.model_panel, self.losses_panel, self.training_panel)
        self.workflow = WorkflowPanel(bodies)
        self.runs_panel, self.inspector, self.activity = RunsPanel(), InspectorPanel(), ActivityBar()
        self.log_panel = LogPanel(self.log_handler, self.shell.open_home)
        self.centre = Centre(self)
        self.setCentralWidget(self.centre)
        left, right, bottom = Qt.DockWidgetArea.LeftDockWidgetArea, Qt.DockWidgetArea.RightDockWidgetArea, Qt.DockWidgetArea.BottomDockWidgetArea
        self.docks = {
            "workflow": self._dock("Workflow", self.workflow, left),
            "runs": self._dock("Runs", self.runs_panel, right),
            "inspector": self._dock("Selection", self.inspector, right),
            "log": self._dock("Log", self.log_panel, bottom),
        }
        self.docks["log"].hide()
        bar = QToolBar("Activity")
        bar.setObjectName("activity")
        bar.setMovable(False)
        bar.setContextMenuPolicy(Qt.ContextMenuPolicy.PreventContextMenu)
        bar.addWidget(self.activity)
        self.addToolBar(Qt.ToolBarArea.BottomToolBarArea, bar)

    def _dock(self, title: str, widget: QWidget, area: Qt.DockWidgetArea) -> QDockWidget:
        dock = QDockWidget(title, self)
        dock.setObjectName(title.lower())
        dock.setWidget(widget)
        self.addDockWidget(area, dock)
        return dock

    def _make_recent(self) -> None:
        """Put the recent files and runs into the File menu; it is filled when it is looked at."""
        menu = QMenu("Open &recent", self)
        menu.setToolTipsVisible(True)
        menu.aboutToShow.connect(lambda: self.shell.fill_recent(menu))
        self.actions_by_id.menus["File"].insertMenu(self.actions_by_id["file.save_spec"], menu)
        self.recent_menu = menu

    def _make_corner(self) -> None:
        self.machine = QLabel()
        self.machine.setProperty("secondary", "true")
        self.machine.setAccessibleName("Device and memory")
        search = QToolButton()
        search.setDefaultAction(self.actions_by_id["view.palette"])
        search.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        # The menu bar gives its corner the room it asks for once, so the longest text is asked for.
        self.machine.setMinimumWidth(self.machine.fontMetrics().horizontalAdvance("CUDA 0 · memory 888.8/888 GB"))
        self.machine.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        corner = QWidget()
        line = row(self.machine, search)
        line.setContentsMargins(0, 0, 8, 0)
        corner.setLayout(line)
        self.menuBar().setCornerWidget(corner)
        self._memory = QTimer(self)
        self._memory.setInterval(MEMORY_EVERY)
        self._memory.timeout.connect(self._show_machine)
        self._show_machine()

    def _show_machine(self) -> None:
        memory = psutil.virtual_memory()
        run = self.session.library.get(self.training.current.folder) if self.training.current is not None else None
        device = f"{run.status.device} · " if run is not None and run.status.device else ""
        self.machine.setText(f"{device}memory {memory.used / 1e9:.1f}/{memory.total / 1e9:.0f} GB")

    def _make_run_tools(self) -> None:
        buttons = []
        for name in RUN_TOOLS:
            item = QToolButton()
            item.setDefaultAction(self.actions_by_id[name])
            item.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonIconOnly)
            item.setAccessibleName(self.actions_by_id.infos[name].label)
            item.setAutoRaise(True)
            item.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            buttons.append(item)
        self.runs_panel.add_tools(*buttons)

    def _connect(self) -> None:
        session, training = self.session, self.training
        welcome = self.centre.welcome
        for source in (welcome.openClicked, self.data_panel.openClicked):
            source.connect(self.opening.ask_files)
        for source in (welcome.exampleClicked, self.data_panel.exampleClicked):
            source.connect(self.opening.open_example)
        welcome.folderClicked.connect(self.opening.ask_folder)
        welcome.pathClicked.connect(self.opening.open_path)
        self.opening.failed.connect(self.show_error)
        self.workflow.trainClicked.connect(training.train)
        self.workflow.stepChanged.connect(self._step_changed)
        for form in (self.losses_panel.form, self.training_panel.form, self.training_panel.analysis):
            self.model_panel.baselineChanged.connect(form.set_preset_baseline)
        self.losses_panel.liveToggled.connect(lambda on: setattr(training, "live_weights", on))
        self.activity.pauseClicked.connect(training.pause)
        self.activity.stopClicked.connect(training.stop)
        self.runs.followed.connect(self.status.refresh)
        self.activity.cancelClicked.connect(self.status.cancel)
        self.activity.logClicked.connect(lambda: self.arrangement.toggle_dock("log"))
        training.began.connect(self.watching.begin)
        training.began.connect(self.runs.begun)
        training.happened.connect(self._training_happened)
        training.ended.connect(self._training_ended)
        training.changed.connect(self.status.refresh)
        self.runs_panel.selected.connect(self.runs.select)
        self.runs_panel.opened.connect(self.runs.open)
        self.runs_panel.menuAsked.connect(self._run_menu)
        self.inspector.clearClicked.connect(self.clear_selection)
        self.inspector.copyClicked.connect(self._copy_names)
        session.headers_changed.connect(self._headers_changed)
        session.headers_changed.connect(lambda _headers: self.centre.renew_empty())
        session.library.changed.connect(lambda _runs: self.centre.renew_empty())
        session.study_changed.connect(self.status.refresh)
        session.checks_changed.connect(self.status.refresh)
        session.editor.changed.connect(self._spec_changed)
        for name, dock in self.docks.items():
            dock.visibilityChanged.connect(lambda _on, name=name: self.arrangement.dock_changed(name))

    @property
    def losses(self) -> LossView:
        """The Losses view."""
        return self.centre.losses

    @property
    def embedding(self) -> EmbeddingView:
        """The Embedding view."""
        return self.centre.embedding

    # ------------------------------------------------------------------ what is said

    def notify(self, sentence: str, label: str = "", call: Callable[[], object] | None = None, *, stays: bool = False) -> None:
        """Show a sentence above the views."""
        LOG.info("%s", sentence)
        self.centre.notice.say(sentence, label, call, stays=stays)

    def warn(self, event: Warned, said: set[str]) -> None:
        """Show what a run warns of, once; what the checks say already stands under its step."""
        LOG.warning("%s %s", event.text, event.mend)
        if event.text not in said and event.text not in {check.text for check in self.session.checks}:
            self.centre.notice.say(f"{event.text} {event.mend}".strip(), stays=True, of_run=True)
        said.add(event.text)

    def show_error(self, error: Exception, details: str = "") -> None:
        """Show an error: sentence, mend, details to copy; the window goes on."""
        LOG.error("%s", error)
        self.error_dialog = dialogs.show_error(self, error, details)

    # ------------------------------------------------------------------ what happens

    def _headers_changed(self, headers: tuple[Any, ...]) -> None:
        names = " + ".join(header.path.name for header in headers)
        self.setWindowTitle(f"{names} – Cellweave" if names else "Cellweave")
        if headers:
            self.go_to_step(self.arrangement.take_step())
            self.arrangement.fill_welcome()
            if self._warm:
                QTimer.singleShot(500, self.analysis.warm_up)
            if self.centre.current() == "welcome" and self.watching.shown is None:
                self.centre.embedding.set_message("The embedding appears here while the model trains.")
                self.show_view("losses")
        self.status.refresh()

    def _spec_changed(self, spec: Any) -> None:
        stack = self.session.editor.stack
        self.actions_by_id["edit.undo"].setText(f"&Undo {stack.undoText()}".rstrip())
        self.actions_by_id["edit.redo"].setText(f"&Redo {stack.redoText()}".rstrip())
        self.arrangement.save_soon()
        self.status.refresh()

    def _training_happened(self, events: list[Any]) -> None:
        self.runs.look_for_begun()
        if self.training.current is not None and self.watching.shown == self.training.current.folder:
            self.watching.take(events)

    def _training_ended(self, folder: Path, reason: FinishReason) -> None:
        self.runs.refresh()
        if reason is FinishReason.CANCELLED:
            self._throw_away(folder)
        else:
            self.runs_panel.set_current(folder)
            if self.watching.shown == folder:
                self.watching.open(folder)
        self.session.settings.remember("runs", str(folder))
        self.arrangement.save_soon()
        if self._closing:
            self.close()

    def _throw_away(self, folder: Path) -> None:
        self.runs.select(folder)
        self.runs.trash()

    def run_shown(self, results: RunResults) -> None:
        """A run was opened or has ended: show the view that the person looked at last, else its embedding where it has one."""
        self.centre.set_run(results)
        front, last = self.centre.current(), self.session.settings.last_view
        if front == "welcome" or (results.xy is not None and front == "losses" and not self.centre.chosen):
            usual = "embedding" if results.xy is not None else "losses"
            known = front == "welcome" and last in VIEW_NAMES and not self.centre.why_not(last)
            self.show_view(last if known and (last != "embedding" or results.xy is not None) else usual)
        self.status.update_actions()

    def fill_embedding(self, xy: Any, cells: Cells, prefer: tuple[str, ...]) -> None:
        """Show cells in the Embedding view and in the selection panel."""
        self.centre.fill_embedding(xy, cells, prefer)
        groups = {name: (column.codes, column.levels) for name, column in cells.columns.items() if column.levels is not None}
        self.inspector.set_columns(groups, len(cells.rows), tuple(reversed(prefer)))
        self.status.update_actions()

    def selection_changed(self, rows: Any) -> None:
        """Other cells are selected on the embedding."""
        self.inspector.set_selection(rows)
        self.status.update_actions()

    def clear_selection(self) -> None:
        """Select no cells."""
        self.centre.clear_selection()

    def focus_runs(self) -> None:
        """Put the focus on the list of runs."""
        self.docks["runs"].show()
        self.docks["runs"].raise_()
        self.runs_panel.view.setFocus(Qt.FocusReason.ShortcutFocusReason)

    def _copy_names(self) -> None:
        if self.watching.cells is not None:
            names = (self.watching.joined() or self.watching.cells).names[self.inspector.selected()]
            QGuiApplication.clipboard().setText("\n".join(str(name) for name in names))
            self.notify(f"{agree(len(names), 'The name of 1 cell is', f'The names of {len(names):,} cells are')} on the clipboard.")

    def _run_menu(self, position: Any) -> None:
        menu = QMenu(self)
        menu.setAttribute(self.delete_on_close)
        for name in RUN_MENU:
            menu.addAction(self.actions_by_id[name])
        menu.popup(position)

    # ------------------------------------------------------------------ views, docks, settings

    def show_view(self, name: str, *, only_from: str = "", once: bool = False) -> None:
        """Bring a view to the front."""
        self.centre.show_view(name, only_from=only_from, once=once)

    def detach_view(self) -> None:
        """Show the present view in a window of its own."""
        self.centre.detach()

    def go_to_step(self, step: int) -> None:
        """Open a step of the workflow and put the focus there."""
        self.docks["workflow"].show()
        self.workflow.open_step(step)
        self.workflow.headers[step].setFocus(Qt.FocusReason.ShortcutFocusReason)

    def _step_changed(self, step: int) -> None:
        self.session.settings.step = step

    def mark_theme(self) -> None:
        """Put the mark beside the theme that was chosen."""
        for name in theme.MODES:
            self.actions_by_id[f"view.theme_{name}"].setChecked(name == theme.mode())

    def restore(self, *, reopen: bool = True) -> None:
        """Take up what the last start left; ``reopen`` says whether the run shown last is to come back too."""
        self.arrangement.restore(reopen=reopen)
        self._memory.start()

    # ------------------------------------------------------------------ events of the window

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        """Build the views once the window is there."""
        super().showEvent(event)
        if self._first_show:
            self._first_show = False
            QTimer.singleShot(0, self._filled)

    def _filled(self) -> None:
        """Build the views, and show what the last start showed."""
        self.centre.build_views()
        self.arrangement.reopen()

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:  # noqa: N802
        """Take files; say what can be dropped otherwise."""
        if event is None:
            return
        if event.mimeData().hasUrls() and any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()
            self.centre.show_drop_hint(on=True)
        else:
            self.notify("Only files and folders can be dropped here: data, a run folder or a spec.")

    def dragLeaveEvent(self, event: Any) -> None:  # noqa: N802
        """Take the hint away."""
        self.centre.show_drop_hint(on=False)

    def dropEvent(self, event: QDropEvent | None) -> None:  # noqa: N802
        """Open what was dropped."""
        self.centre.show_drop_hint(on=False)
        if event is not None:
            event.acceptProposedAction()
            self.opening.open_urls(event.mimeData().urls())

    def close_when_done(self) -> None:
        """Close as soon as the run that is being stopped has its results."""
        self._closing = True
        self.notify("The window closes when the results are written.", stays=True)

    def closeEvent(self, event: QCloseEvent | None) -> None:  # noqa: N802
        """Ask what becomes of a run, save the settings, and let every thread end."""
        if event is None:
            return
        if not self.training.may_close():
            event.ignore()
            return
        self.arrangement.save_now()
        self._memory.stop()
        self.runs.stop()
        self.centre.close_views()
        self.tasks.shutdown()
        self.analysis.close()
        LOG.removeHandler(self.log_handler)
        event.accept()
