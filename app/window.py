"""The main window: puts panels, views and flows together. What it does is in ``flows``, what it shows in ``panels`` and ``views``."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from qtpy.QtCore import QByteArray, Qt, QTimer
from qtpy.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QGuiApplication, QShowEvent
from qtpy.QtWidgets import QDockWidget, QLabel, QMainWindow, QMenu, QToolBar, QToolButton, QWidget

from cellweave.app import theme
from cellweave.app.actions import ActionRegistry
from cellweave.app.centre import Centre
from cellweave.app.flows import dialogs
from cellweave.app.flows.analysing import Analysing
from cellweave.app.flows.exporting import Exporting
from cellweave.app.flows.opening import Opening
from cellweave.app.flows.runs import RunsFlow
from cellweave.app.flows.shell import Shell
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
from cellweave.app.workers.analysis import Analysis
from cellweave.app.workers.tasks import TaskRunner
from cellweave.core.runs.events import FinishReason, RunState

if TYPE_CHECKING:
    from cellweave.app.views import EmbeddingView, LossView

LOG = logging.getLogger("cellweave")
LAYOUT = 1  # version of the docks' layout; another one is not restored
SAVE_AFTER = 3000  # milliseconds after a change until the settings are written
MEMORY_EVERY = 3000
RUN_MENU = ("run.overlay", "run.duplicate", "run.rename", "run.resume", "file.figure", "file.h5ad", "file.tables", "run.folder", "run.trash")
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
        self._warm, self._closing, self._resting = warm, False, "Ready"
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
        self._make_corner()
        self._make_run_tools()
        self._connect()
        self._save = QTimer(self)
        self._save.setSingleShot(True)
        self._save.setInterval(SAVE_AFTER)
        self._save.timeout.connect(self.save_now)
        self._first_show = True
        self._standard_layout = QByteArray()
        self.mark_theme()
        self._refresh()

    # ------------------------------------------------------------------ building

    def _make_flows(self) -> None:
        self.tasks = TaskRunner(self)
        self.analysis = Analysis(self)
        self.opening = Opening(self, self.session, self.tasks)
        self.training = TrainFlow(self, self.session)
        self.watching = Watching(self, self.session, self.analysis, self.tasks)
        self.runs = RunsFlow(self, self.session)
        self.exporting = Exporting(self, self.session, self.analysis, self.tasks)
        self.analysing = Analysing(self, self.session, self.analysis, self.tasks)
        self.shell = Shell(self, self.session)

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
        self._log_shown = False
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
        self.runs.followed.connect(self._refresh)
        self.activity.cancelClicked.connect(self._cancel)
        self.activity.logClicked.connect(lambda: self.toggle_dock("log"))
        training.began.connect(self.watching.begin)
        training.began.connect(lambda *_: self.runs.refresh())
        training.happened.connect(self._training_happened)
        training.ended.connect(self._training_ended)
        training.changed.connect(self._refresh)
        self.runs_panel.selected.connect(self.runs.select)
        self.runs_panel.opened.connect(self.runs.open)
        self.runs_panel.menuAsked.connect(self._run_menu)
        self.inspector.clearClicked.connect(self.clear_selection)
        self.inspector.copyClicked.connect(self._copy_names)
        session.headers_changed.connect(self._headers_changed)
        session.study_changed.connect(lambda _study: self._refresh())
        session.checks_changed.connect(lambda _checks: self._refresh())
        session.editor.changed.connect(self._spec_changed)
        for name, dock in self.docks.items():
            dock.visibilityChanged.connect(lambda _on, name=name: self._dock_changed(name))

    @property
    def losses(self) -> LossView:
        """The Losses view."""
        return self.centre.losses

    @property
    def embedding(self) -> EmbeddingView:
        """The Embedding view."""
        return self.centre.embedding

    # ------------------------------------------------------------------ what is possible, and what is said

    def conditions(self) -> dict[str, bool]:
        """Return what holds now, for the actions (see ``actions.declared``)."""
        session, training, shown = self.session, self.training, self.watching.results
        target = self.runs.target
        summary = session.library.get(target)
        finished = shown is not None and (shown.folder / "results" / "latent.npy").is_file()
        return {
            "study": session.study is not None,
            "ready": not session.why_not_ready(),
            "file": bool(session.spec.data.paths),
            "training": training.active or self.runs.following is not None,
            "run": target is not None,
            "finished": finished,
            "embedding": self.watching.cells is not None,
            "resumable": summary is not None and summary.resumable,
            "trash": session.trash.filled,
            "selection": len(self.inspector.selected()) > 0,
        }

    def update_actions(self) -> None:
        """Enable what is possible now."""
        self.actions_by_id.update(self.conditions())

    def _refresh(self) -> None:
        """Show again what depends on the study, the checks, the spec or the run."""
        session, training = self.session, self.training
        summaries = (
            self.data_panel.summary(), self.covariates_panel.summary(), self._model_summary(), self._weights_summary(), self._training_summary(),
        )  # fmt: skip
        for header, (mark, words) in zip(self.workflow.headers, summaries, strict=True):
            header.set_state(mark, words)  # type: ignore[arg-type]
        why = session.why_not_ready()
        label = "Queue a further run" if training.active else "Train"
        waits = f"{len(training.queue)} waiting in the queue." if training.queue else ""
        self.workflow.set_train(possible=not why, why=why or waits, label=label, tone="bad" if session.failures else "")
        name = training.progress.name if training.active else ""
        self.losses_panel.set_running(name)
        self.training_panel.set_running(name)
        if training.active:
            self._show_run()
        elif self.runs.following is not None:
            progress = self.runs.progress
            paused = progress.state is RunState.PAUSED
            self.activity.show_run(progress.sentence(), progress.fraction, paused=paused, can_pause=progress.can_pause, can_stop=progress.can_stop)
        self.update_actions()

    def _model_summary(self) -> tuple[str, str]:
        spec = self.session.spec
        latent = getattr(spec.model, "n_latent", None)
        words = spec.family.title + (f" · {latent} latent dimensions" if latent else "")
        return "check" if self.session.study is not None else "", words

    def _weights_summary(self) -> tuple[str, str]:
        spec = self.session.spec
        defaults = {term.name: term for term in spec.terms()}
        changed = [f"{defaults[name].label} {weight:g}" for name, weight in spec.loss_weights().items() if weight != defaults[name].default]
        return "check" if self.session.study is not None else "", " · ".join(changed) or f"{len(defaults)} terms, all as declared"

    def _training_summary(self) -> tuple[str, str]:
        training = self.session.spec.training
        epochs = f"{training.max_epochs:,} epochs" if training.max_epochs else "automatic epochs"
        return "check" if self.session.study is not None else "", f"{epochs} · minibatch {training.batch_size:,}"

    def _show_run(self) -> None:
        training = self.training
        progress = training.progress
        if training.cancelling:
            self.activity.show_cancelling(f"{progress.name}: Cancelling…")
            return
        paused = progress.state is RunState.PAUSED or (training.current is not None and training.current.control.paused)
        sentence = progress.sentence()
        self.activity.show_run(sentence, progress.fraction, paused=paused, can_pause=progress.can_pause, can_stop=progress.can_stop)

    def say_busy(self, sentence: str, fraction: float | None = None, *, cancellable: bool = False) -> None:
        """Say in the activity bar what is being done; a run that trains keeps the bar."""
        if not self.training.active:
            self.activity.show_busy(sentence, fraction, cancellable=cancellable)

    def say_idle(self, sentence: str = "") -> None:
        """Say that nothing goes on, unless a run trains; how the last run ended stays there to be read."""
        self._resting = sentence or self._resting
        if not self.training.active:
            self.activity.show_idle(self._resting)

    def notify(self, sentence: str, label: str = "", call: Callable[[], object] | None = None, *, stays: bool = False) -> None:
        """Show a sentence above the views."""
        LOG.info("%s", sentence)
        self.centre.notice.say(sentence, label, call, stays=stays)

    def show_error(self, error: Exception, details: str = "") -> None:
        """Show an error: sentence, mend, details to copy; the window goes on."""
        LOG.error("%s", error)
        self.error_dialog = dialogs.show_error(self, error, details)

    def _cancel(self) -> None:
        """Cancel what the bar shows: the run, or what is being read or written."""
        if self.training.active or self.runs.following is not None:
            self.training.cancel()
        elif not (self.exporting.cancel() or self.analysing.cancel()):
            self.opening.cancel_loading()

    # ------------------------------------------------------------------ what happens

    def _headers_changed(self, headers: tuple[Any, ...]) -> None:
        names = " + ".join(header.path.name for header in headers)
        self.setWindowTitle(f"{names} – Cellweave" if names else "Cellweave")
        if headers:
            self.go_to_step(0)
            self._fill_welcome()
            if self._warm:
                QTimer.singleShot(500, self.analysis.warm_up)
            if self.centre.current() == "welcome" and self.watching.shown is None:
                self.centre.losses.set_message("Press Train: every loss term is drawn here, for the training cells and those held out.")
                self.centre.embedding.set_message("The embedding appears here while the model trains.")
                self.show_view("losses")
        self._refresh()

    def _spec_changed(self, spec: Any) -> None:
        stack = self.session.editor.stack
        self.actions_by_id["edit.undo"].setText(f"&Undo {stack.undoText()}".rstrip())
        self.actions_by_id["edit.redo"].setText(f"&Redo {stack.redoText()}".rstrip())
        self.save_soon()
        self._refresh()

    def _training_happened(self, events: list[Any]) -> None:
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
        self.save_soon()
        if self._closing:
            self.close()

    def _throw_away(self, folder: Path) -> None:
        self.runs.select(folder)
        self.runs.trash()

    def run_shown(self, results: RunResults) -> None:
        """A run was opened or has ended: show its embedding where it has one."""
        if self.centre.current() == "welcome" or (results.xy is not None and self.centre.current() == "losses" and not self.centre.chosen):
            self.show_view("embedding" if results.xy is not None else "losses")
        self.update_actions()

    def fill_embedding(self, xy: Any, cells: Cells, prefer: tuple[str, ...]) -> None:
        """Show cells in the Embedding view and in the selection panel."""
        self.centre.fill_embedding(xy, cells, prefer)
        groups = {name: (column.codes, column.levels) for name, column in cells.columns.items() if column.levels is not None}
        self.inspector.set_columns(groups, len(cells.rows), tuple(reversed(prefer)))
        self.update_actions()

    def selection_changed(self, rows: Any) -> None:
        """Other cells are selected on the embedding."""
        self.inspector.set_selection(rows)
        self.update_actions()

    def clear_selection(self) -> None:
        """Select no cells."""
        self.centre.clear_selection()

    def _copy_names(self) -> None:
        if self.watching.cells is not None:
            names = self.watching.cells.names[self.inspector.selected()]
            QGuiApplication.clipboard().setText("\n".join(str(name) for name in names))
            self.notify(f"The names of {len(names):,} cells are on the clipboard.")

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

    def toggle_dock(self, name: str) -> None:
        """Show or hide a dock."""
        dock = self.docks[name]
        dock.setVisible(not dock.isVisible())
        if name == "log" and not self._log_shown and dock.isVisible():
            self._log_shown = True
            self.resizeDocks([dock], [self.fontMetrics().height() * 11], Qt.Orientation.Vertical)

    def _dock_changed(self, name: str) -> None:
        self.actions_by_id[f"window.{name}"].setChecked(not self.docks[name].isHidden())

    def mark_theme(self) -> None:
        """Put the mark beside the theme that was chosen."""
        for name in theme.MODES:
            self.actions_by_id[f"view.theme_{name}"].setChecked(name == theme.mode())

    def reset_layout(self) -> None:
        """Put every dock back in its place."""
        self.restoreState(self._standard_layout, LAYOUT)

    def _fill_welcome(self) -> None:
        settings = self.session.settings
        self.centre.welcome.set_recent(settings.recent_data, settings.recent_runs)

    def restore(self) -> None:
        """Take up what the last start left: place, docks, step, recent files, an interrupted run."""
        settings = self.session.settings
        self._fill_welcome()
        em = self.fontMetrics().horizontalAdvance("m")
        screen = QGuiApplication.primaryScreen().availableGeometry()
        self.resize(min(em * 115, screen.width()), min(em * 72, screen.height()))
        self.resizeDocks([self.docks["workflow"], self.docks["runs"]], [em * 27, em * 19], Qt.Orientation.Horizontal)
        self._standard_layout = self.saveState(LAYOUT)
        if settings.geometry:
            self.restoreGeometry(QByteArray(base64.b64decode(settings.geometry)))
        if settings.layout:
            self.restoreState(QByteArray(base64.b64decode(settings.layout)), LAYOUT)
        self.workflow.open_step(settings.step if self.session.headers else 0)
        self.runs.start()
        self._memory.start()
        self.centre.welcome.set_notice(" ".join(self.session.notices))
        self._offer_last()
        self._offer_interrupted()

    def _offer_last(self) -> None:
        """Offer to go on with the files and settings of the last session."""
        from cellweave.core.errors import SpecError
        from cellweave.core.spec import from_toml

        try:
            spec = from_toml(self.session.settings.last_spec) if self.session.settings.last_spec else None
        except SpecError as error:
            LOG.info("the spec of the last session cannot be used: %s", error)
            return
        if spec is not None and spec.data.paths and all(Path(path).exists() for path in spec.data.paths):
            names = " + ".join(Path(path).name for path in spec.data.paths)
            self.centre.welcome.offer(f"Go on with {names}", lambda: self.opening.open_spec(spec, names))

    def _offer_interrupted(self) -> None:
        path = self.session.settings.active_run
        run = next((item for item in self.session.library.runs if str(item.path) == path), None)
        if run is not None and run.status.lost:
            self.notify(f"The run '{run.name}' was interrupted at epoch {run.status.epoch}.", "Continue it", lambda: self.training.resume(run.path), stays=True)

    def save_soon(self) -> None:
        """Write the settings in a few seconds."""
        self._save.start()

    def save_now(self) -> None:
        """Write the settings."""
        from cellweave.core.spec import to_toml

        settings = self.session.settings
        settings.geometry = base64.b64encode(self.saveGeometry().data()).decode()
        settings.layout = base64.b64encode(self.saveState(LAYOUT).data()).decode()
        settings.last_spec = to_toml(self.session.spec)
        problem = self.session.save()
        if problem:
            LOG.warning("%s", problem)

    # ------------------------------------------------------------------ events of the window

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        """Build the views once the window is there."""
        super().showEvent(event)
        if self._first_show:
            self._first_show = False
            QTimer.singleShot(0, self.centre.build_views)

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
        self._save.stop()
        self.save_now()
        self._memory.stop()
        self.runs.stop()
        self.centre.close_views()
        self.tasks.shutdown()
        self.analysis.close()
        LOG.removeHandler(self.log_handler)
        event.accept()
