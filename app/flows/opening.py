"""Opening data, specs and run folders: header first, then the data in a thread, with progress and cancel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, QUrl, Signal
from qtpy.QtWidgets import QFileDialog

from cellweave.app.state import paths
from cellweave.app.state.session import Session
from cellweave.app.workers.tasks import Task, TaskRunner, forward
from cellweave.core.errors import Cancelled, CellweaveError, DataError
from cellweave.core.spec import RunSpec, load_spec
from cellweave.core.spec.data import DataSpec

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow

LOG = logging.getLogger("cellweave.window")
FILTERS = (
    "Single-cell data (*.h5ad *.h5mu *.h5 *.hdf5 *.loom *.csv *.tsv *.txt *.csv.gz *.tsv.gz *.txt.gz *.mtx *.mtx.gz *.zarr);;"
    "All files (*)"
)
SETTLE = 350  # milliseconds after the last edit before data are read or checked again


@dataclass(frozen=True)
class Loaded:
    """What the thread gives back: the study, a description of its columns, and roles that suggest themselves."""

    study: Any
    columns: tuple[Any, ...]
    suggested: dict[str, Any]


def data_key(data: DataSpec) -> DataSpec:
    """Return the part of a data spec that decides what is read; check sums do not."""
    return data.model_copy(update={"sha256": ()})


class Opening(QObject):
    """Everything that ends with another study, spec or run in the window.

    Attributes
    ----------
    failed
        A file could not be opened: the error and its details.
    """

    failed = Signal(object, str)

    def __init__(self, window: MainWindow, session: Session, tasks: TaskRunner) -> None:
        super().__init__(window)
        self._window, self._session, self._tasks = window, session, tasks
        self._generation = 0
        self._checks = 0
        self._load: Task | None = None
        self._loaded: DataSpec | None = None
        self._wanted: DataSpec | None = None
        self._suggest = False  # whether roles are still to be suggested, once the data can be loaded
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE)
        self._settle.timeout.connect(self._follow_spec)
        session.editor.changed.connect(self._spec_changed)

    # ------------------------------------------------------------------ asking

    def ask_files(self) -> None:
        """Ask for data files and open them."""
        files, _ = QFileDialog.getOpenFileNames(self._window, "Open data", self._session.settings.last_folder, FILTERS)
        if files:
            self.open_data(files)

    def ask_folder(self) -> None:
        """Ask for a folder and open it: a 10x folder, a zarr store or a run folder."""
        folder = QFileDialog.getExistingDirectory(self._window, "Open folder", self._session.settings.last_folder)
        if folder:
            self.open_path(folder)

    def ask_spec(self) -> None:
        """Ask for a spec file and open it."""
        file, _ = QFileDialog.getOpenFileName(self._window, "Open spec", self._session.settings.last_folder, "Run spec (*.toml)")
        if file:
            self.open_path(file)

    def open_example(self) -> None:
        """Open the data that come with the program, with batch and labels named."""
        from cellweave.core.example import example_changes

        changes = example_changes()
        self.open_spec(RunSpec().with_changes(changes), "the example")

    # ------------------------------------------------------------------ opening

    def open_path(self, path: str) -> None:
        """Open whatever a path is: data (several, one a line), a spec or a run folder."""
        places = [Path(item).expanduser() for item in path.split("\n") if item]
        first = places[0]
        if len(places) == 1 and first.is_dir() and (first / "spec.toml").is_file():
            self._window.runs.open(first.absolute())
        elif len(places) == 1 and first.suffix.lower() == ".toml":
            try:
                spec = load_spec(first)
            except CellweaveError as error:
                self._fail(error, "")
                return
            self.open_spec(spec, first.name)
        else:
            self.open_data([str(place) for place in places])

    def open_urls(self, urls: Sequence[QUrl]) -> None:
        """Open what was dropped on the window."""
        paths = [url.toLocalFile() for url in urls if url.isLocalFile()]
        if paths:
            self.open_path("\n".join(paths))

    def open_data(self, paths: Sequence[str]) -> None:
        """Open data files as one study; what was chosen for the model and training stays."""
        absolute = tuple(str(Path(path).expanduser().absolute()) for path in paths)
        missing = [path for path in absolute if not Path(path).exists()]
        if missing:
            self._fail(DataError(f"There is no file '{missing[0]}'.", "Check the path; it may have been moved."), "")
            return
        kept = self._session.spec
        spec = RunSpec().with_changes({"data.paths": absolute, "model.kind": kept.model.kind})
        spec = spec.model_copy(update={"model": kept.model, "losses": kept.losses, "training": kept.training, "analysis": kept.analysis})
        try:
            spec = spec.with_changes({})  # a copy is not validated by itself
        except CellweaveError:  # options that only make sense with roles of the file before
            spec = RunSpec().with_changes({"data.paths": absolute})
        self.open_spec(spec, Path(absolute[0]).name, remembered=True)

    def open_spec(self, spec: RunSpec, name: str, *, remembered: bool = False) -> None:
        """Take a spec over and read its data: the header at once, the rest in a thread."""
        self._generation += 1
        generation = self._generation
        if self._load is not None:
            self._load.cancel()
        LOG.info("opening %s", name)
        self._window.status.say_busy(f"Looking at {name}")

        def look(report: Any) -> tuple[Any, ...]:
            from cellweave.core.study import read_header

            return tuple(read_header(path) for path in spec.data.paths)

        def done(headers: tuple[Any, ...]) -> None:
            if generation == self._generation:
                self._take_over(spec, headers, remembered=remembered)

        def failed(error: Exception, details: str) -> None:
            if generation == self._generation:
                self._window.status.say_idle()
                self._fail(error, details)

        self._tasks.run(look, done, failed)

    def _take_over(self, spec: RunSpec, headers: tuple[Any, ...], *, remembered: bool) -> None:
        settings = self._session.settings
        if spec.data.paths:
            settings.last_folder = str(Path(spec.data.paths[0]).parent)
            settings.remember("data", "\n".join(spec.data.paths))
        self._loaded = self._wanted = None
        self._session.editor.start(spec)
        self._session.set_headers(headers)
        self._window.arrangement.save_soon()
        if spec.data.paths:
            self._read(spec.data, suggest=remembered)
        else:
            self._window.status.say_idle()

    # ------------------------------------------------------------------ the data

    def _spec_changed(self, _spec: RunSpec) -> None:
        self._settle.start()

    def _follow_spec(self) -> None:
        """Read or check again what the last edits asked for."""
        spec = self._session.spec
        if not self._session.headers or not spec.data.paths:
            return
        if data_key(spec.data) != self._wanted:
            self._read(spec.data, suggest=self._suggest)
        elif self._session.study is not None and self._session.checked_spec != spec:
            self.check()

    def _read(self, data: DataSpec, *, suggest: bool) -> None:
        self._generation += 1
        generation, key = self._generation, data_key(data)
        self._wanted, self._suggest = key, suggest
        self._session.set_load_error(None)
        if self._load is not None:
            self._load.cancel()
        kind = self._session.spec.model.kind

        def work(report: Any) -> Loaded:
            from cellweave.core.models.registry import family
            from cellweave.core.study import describe_columns, load_study, suggest_roles

            study = load_study(data, progress=forward(report), cancelled=lambda: report.cancelled)
            columns = tuple(describe_columns(study.obs))
            return Loaded(study, columns, dict(suggest_roles(columns, family(kind))))

        def progressed(text: str, fraction: float | None) -> None:
            if generation == self._generation:
                self._window.status.say_busy(_sentence("Loading", text), fraction, cancellable=True)

        def done(loaded: Loaded) -> None:
            if generation == self._generation:
                self._load, self._loaded = None, key
                self._window.status.say_idle()
                self._got(loaded, suggest=suggest)

        def failed(error: Exception, details: str) -> None:
            if generation != self._generation:
                return
            self._load = None
            self._window.status.say_idle()
            if isinstance(error, Cancelled):
                self._window.notify("Loading was cancelled. Open the file again to go on.")
                self._session.set_headers(())
            else:
                self._session.set_load_error(error if isinstance(error, CellweaveError) else unforeseen(error))
                self._fail(error, details)

        self._window.status.say_busy("Loading data", None, cancellable=True)
        self._load = self._tasks.run(work, done, failed, progressed)

    def cancel_loading(self) -> bool:
        """Stop reading the data; return whether there was anything to stop."""
        if self._load is None or not self._load.running():
            return False
        self._load.cancel()
        self._window.status.say_busy("Cancelling…", None)
        return True

    def _got(self, loaded: Loaded, *, suggest: bool) -> None:
        session = self._session
        session.set_study(loaded.study, loaded.columns)
        self._suggest = False
        names = [str(name) for name in loaded.study.obs.columns]
        if suggest and not session.spec.covariates.assigned():
            roles = session.remembered_roles(names) or loaded.suggested
            self._give_roles({role: value for role, value in roles.items() if _known(value, names)})
        LOG.info("loaded %d cells; %s", loaded.study.n_cells, "; ".join(loaded.study.notes) or "nothing to note")
        self.check()

    def _give_roles(self, roles: dict[str, Any]) -> None:
        """Assign remembered or suggested roles, leaving out those the model does not use."""
        session = self._session
        single = {"batch", "library", "dataset", "dispersion", "library_size", "labels", "size_factor"}
        changes: dict[str, Any] = {}
        for role, value in roles.items():
            if session.spec.family.uses(role) is None or not value:
                continue
            columns = (value,) if isinstance(value, str) else tuple(value)
            changes[f"covariates.{role}"] = columns[0] if role in single else columns
        if changes:
            session.editor.edit(changes, "roles of the columns")

    def check(self) -> None:
        """Do the pre-flight checks of the present spec."""
        session = self._session
        spec, study = session.spec, session.study
        if study is None:
            return
        self._checks += 1
        number = self._checks

        def work(report: Any) -> tuple[Any, ...]:
            from cellweave.core.study.preflight import preflight

            return tuple(preflight(spec, study, paths.runs_folder()))

        def done(checks: tuple[Any, ...]) -> None:
            if number == self._checks and session.study is study:
                session.set_checks(checks, spec)

        def failed(error: Exception, details: str) -> None:
            if number == self._checks:
                self._fail(error, details)

        self._tasks.run(work, done, failed)

    def _fail(self, error: Exception, details: str) -> None:
        self.failed.emit(error, details)

    @property
    def loaded(self) -> DataSpec | None:
        """The data spec of the loaded study."""
        return self._loaded

    def study_of(self, data: DataSpec) -> Any:
        """Return the loaded study where it is what a data spec names, else None; a run writes out the layers that were left to the program."""
        study, loaded = self._session.study, self._loaded
        if study is None or loaded is None:
            return None
        found = {name: modality.location for name, modality in study.modalities.items() if loaded.layers.get(name) is None}

        def whole(spec: DataSpec) -> DataSpec:
            layers = {name: layer for name, layer in {**found, **spec.layers}.items() if layer is not None}
            return spec.model_copy(update={"sha256": (), "layers": layers})

        return study if whole(loaded) == whole(data) else None


def unforeseen(error: Exception) -> DataError:
    """Return an error nobody foresaw in words; its own text is in the details."""
    return DataError("The data could not be loaded.", f"The details of the error say more ({type(error).__name__}); Help has 'Report a problem'.")


def _known(value: Any, names: Sequence[str]) -> bool:
    columns = [value] if isinstance(value, str) else list(value or [])
    return all(column in names for column in columns)


def _sentence(first: str, text: str) -> str:
    return text[:1].upper() + text[1:] if text else f"{first} data"
