"""Computing the results of a finished run again, with other settings of the embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from cellweave.app.state.session import Session
from cellweave.app.workers.analysis import Analysis
from cellweave.app.workers.tasks import Task, TaskRunner, forward
from cellweave.core.errors import Cancelled
from cellweave.core.runs.events import Event, Progress, Warned
from cellweave.core.spec.analysis import AnalysisSpec

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow


class Analysing(QObject):
    """Runs the analysis of the shown run once more in the analysis process."""

    def __init__(self, window: MainWindow, session: Session, analysis: Analysis, tasks: TaskRunner) -> None:
        super().__init__(window)
        self._window, self._session, self._analysis, self._tasks = window, session, analysis, tasks
        self._task: Task | None = None

    def again(self) -> None:
        """Compute UMAP, clusters and scores of the shown run with the settings of step 5."""
        folder = self._window.watching.shown
        if folder is None or (self._task is not None and self._task.running()):
            return
        options, process, window = self._session.spec.analysis, self._analysis.process, self._window

        def work(report: Any) -> list[str]:
            return compute(folder, options, process, report)

        def done(warnings: list[str]) -> None:
            self._task = None
            window.status.say_idle()
            window.watching.open(folder)
            window.notify(" ".join(warnings) or "The embedding was computed again.")

        def failed(error: Exception, details: str) -> None:
            self._task = None
            window.status.say_idle()
            if not isinstance(error, Cancelled):
                window.show_error(error, details)

        def progressed(text: str, fraction: float | None) -> None:
            window.status.say_busy(f"Computing: {text}", fraction, cancellable=True)

        window.status.say_busy("Computing the embedding", None, cancellable=True)
        self._task = self._tasks.run(work, done, failed, progressed)

    def cancel(self) -> bool:
        """Stop the computation; return whether there was one."""
        if self._task is None or not self._task.running():
            return False
        self._task.cancel()
        return True


def compute(path: Path, options: AnalysisSpec, runner: Any, report: Any) -> list[str]:
    """Analyse a run with other options; return the warnings."""
    from cellweave.core.analysis.pipeline import analyse
    from cellweave.core.export.run_data import RunData
    from cellweave.core.runs.journal import Journal
    from cellweave.core.study import load_study
    from cellweave.core.training.data import prepare

    run = RunData(path)
    spec = run.spec.model_copy(update={"analysis": options})
    report("reading the data", None)
    study = load_study(spec.data, progress=forward(report), cancelled=lambda: report.cancelled)
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            report(event.phase, event.fraction)
        elif isinstance(event, Warned):
            warnings.append(event.text)

    journal = Journal(run.folder, listen, run.folder.status)
    run.folder.metrics_file.unlink(missing_ok=True)
    run.folder.write_spec(spec)
    analyse(
        spec, run.folder.results, obs=study.obs, modality=prepare(spec, study).main_modality, runner=runner,
        emit=journal.emit, cancelled=lambda: report.cancelled,
    )  # fmt: skip
    return warnings
