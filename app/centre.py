"""The middle of the window: the declared views as tabs that can be torn off, one selection in all of them, and notices above."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from cellweave.app.panels.notice import NoticeBar
from cellweave.app.panels.parts import ElidedLabel, row
from cellweave.app.panels.welcome import WelcomePage
from cellweave.app.state.results import ORIGIN
from cellweave.app.state.settings import column_key
from cellweave.app.views.columns import EXPRESSION
from cellweave.app.views.context import ViewContext
from cellweave.app.views.declared import VIEW_NAMES, VIEWS, view_info
from cellweave.app.views.history import ELBO
from cellweave.app.views.runview import RunView
from cellweave.app.viewtabs import MODEL, TornOff, ViewTabs

if TYPE_CHECKING:
    from cellweave.app.state.results import Cells, RunResults
    from cellweave.app.views import ColumnData, EmbeddingView, LossView
    from cellweave.app.window import MainWindow


FADED = "#a0a0a0"  # cells of a reference, in either theme


def column_data(cells: Cells) -> dict[str, ColumnData]:
    """Return the columns of cells as the view takes them."""
    from cellweave.app.views import ColumnData

    found = {}
    for name, column in cells.columns.items():
        unit = "log(1 + scaled counts)" if name.startswith("gene:") else ""
        found[name] = ColumnData.continuous(column.numbers, unit=unit) if column.levels is None else ColumnData.categorical(column.codes, column.levels)
    return found


class Centre(QWidget):
    """Tabs and notices.

    Parameters
    ----------
    window
        The main window.

    Attributes
    ----------
    chosen
        Whether the person chose the present tab; then nothing else comes to the front by itself.
    selection
        The selected cells, rows of the study, int64 ``(n,)``.
    context
        What the views are given.
    """

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self._views: dict[str, QWidget] = {}
        self._torn: dict[str, TornOff] = {}
        self._brought: set[str] = set()
        self._cells: Cells | None = None
        self._key = ""
        self._results: RunResults | None = None
        self._message = ""
        self._preview: tuple[Path, int] | None = None
        self._stale: set[str] = set()
        self._linking = False
        self.selection: np.ndarray = np.zeros(0, np.int64)
        self.chosen = False
        self.context = ViewContext(window)
        self.notice = NoticeBar()
        self.run = ElidedLabel(secondary=True)
        self._run = QWidget()
        line = row(self.run)
        line.setContentsMargins(12, 4, 12, 4)
        self._run.setLayout(line)
        self._run.hide()
        self.welcome = WelcomePage()
        self.tabs = ViewTabs(self.welcome, self.detach)
        self.tear = self.tabs.tear
        self.tabs.picked.connect(self.pick)
        self.tabs.currentChanged.connect(lambda _index: self._freshen(self.current()))
        self._hint = QLabel("Drop data, a run folder or a spec to open it", self)
        self._hint.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._hint.setProperty("drop", "true")
        self._hint.hide()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.notice)
        layout.addWidget(self._run)
        layout.addWidget(self.tabs, 1)

    # ------------------------------------------------------------------ the views

    def build_views(self) -> None:
        """Make the views that a run fills while it trains; called once the window is on the screen. The others wait until they are asked for."""
        _ = self.losses
        _ = self.embedding
        self._window.status.refresh()

    def say_run(self, label: str) -> None:
        """Say above the views which run they show; nothing where they show none."""
        self.run.setText(f"Run shown: {label}" if label else "")
        self._run.setVisible(bool(label))

    @property
    def built(self) -> bool:
        """Whether the views that a run fills while it trains were made."""
        return {"losses", "embedding"} <= set(self._views)

    @property
    def losses(self) -> LossView:
        """The Losses view, made when it is first asked for."""
        return self.view("losses")  # type: ignore[return-value]

    @property
    def embedding(self) -> EmbeddingView:
        """The Embedding view, made when it is first asked for."""
        return self.view("embedding")  # type: ignore[return-value]

    def view(self, name: str) -> QWidget:
        """Return a view, made when it is first asked for.

        Raises
        ------
        KeyError
            Where no view of that name is declared.
        """
        if name not in self._views:
            kind = view_info(name).load()
            if issubclass(kind, RunView):
                view: QWidget = kind(self.context)
                view.selectionChanged.connect(lambda rows, name=name: self.select(rows, source=name))  # type: ignore[attr-defined]
                view.epochChosen.connect(self.go_to_epoch)  # type: ignore[attr-defined]
                self._stale.add(name)
            else:
                view = self._live_view(name, kind())
            view.setAccessibleName(view_info(name).title)
            self._views[name] = view
            self.tabs.put(name, view)
        return self._views[name]

    def _live_view(self, name: str, view: Any) -> QWidget:
        """Connect one of the two views that are fed with events and points as they come."""
        view.exportRequested.connect(lambda: self._window.exporting.figure(name))
        if name == "losses":
            view.csvRequested.connect(self._window.exporting.ask_losses)
            return view
        view.selectionChanged.connect(self._selected_on_embedding)
        view.epochChosen.connect(self.go_to_epoch)
        view.set_colours({ORIGIN: {"reference": FADED}, **self._window.session.settings.colours})
        view.coloursChanged.connect(self._keep_colours)
        view.columnsChanged.connect(self._keep_columns)
        view.genesWanted.connect(self._window.expression.show)
        view.bar.referenceToggled.connect(self._window.watching.show_reference)
        return view

    # ------------------------------------------------------------------ the run they show

    def set_run(self, results: RunResults | None, message: str = "") -> None:
        """Give the views another run; those that are not in sight take it up when they are.

        Parameters
        ----------
        results
            The run as it was read, or None.
        message
            Said in place of the views where there is no run to show yet: it trains.
        """
        if results is None or self._results is None or results.folder != self._results.folder:
            self.select(np.zeros(0, np.int64))
        self._results, self._message, self._preview = results, message, None
        self._stale = {name for name, view in self._views.items() if isinstance(view, RunView)}
        self.tabs.offer({info.name: self.why_not(info.name) for info in VIEWS})
        for name in self._views:
            if name in self._torn or name == self.current():
                self._freshen(name)

    def why_not(self, name: str) -> str:
        """Return why the shown run has nothing for a view, or an empty text."""
        spec = self._window.watching.spec
        folder = self._results.folder if self._results is not None else None
        info = view_info(name)
        if self._results is None and spec is not None:  # it trains: files come later
            return "" if info.suits(spec) else info.why_not
        return "" if info.offered(spec, folder) else info.why_not

    def _freshen(self, name: str) -> None:
        """Have a view that comes into sight show the present run."""
        view = self._views.get(name)
        if name not in self._stale or not isinstance(view, RunView):
            return
        self._stale.discard(name)
        view.set_run(self._results, self.why_not(name) or self._message)
        if self._preview is not None:
            view.take_preview(*self._preview)
        view.select(self.selection)

    def renew_empty(self) -> None:
        """Data were opened or closed, or a run came or went: an empty view offers what can be done now."""
        for name, view in self._views.items():
            if isinstance(view, RunView) and name not in self._stale:
                view.renew_step()

    def take_preview(self, path: Path, epoch: int) -> None:
        """Tell the views that the run that trains has written a preview; those that are not in sight take it up when they are.

        Parameters
        ----------
        path
            The latent of the preview cells.
        epoch
            Its epoch.
        """
        self._preview = (path, epoch)
        for name, view in self._views.items():
            if isinstance(view, RunView) and name not in self._stale:
                view.take_preview(path, epoch)

    def go_to_epoch(self, epoch: int) -> None:
        """Go to an epoch in every view that keeps earlier ones; a view that is there already says nothing more."""
        self.embedding.epochs.go_to(epoch)
        for name, view in self._views.items():
            if isinstance(view, RunView) and name not in self._stale:
                view.take_epoch(epoch)

    # ------------------------------------------------------------------ one selection

    def select(self, rows: np.ndarray, *, source: str = "") -> None:
        """Select cells in every view and in the selection panel.

        Parameters
        ----------
        rows
            Rows of the study.
        source
            The view where they were selected, which shows them already.
        """
        if self._linking:
            return
        self._linking = True
        try:
            self.selection = np.unique(np.asarray(rows, np.int64))
            if source != "embedding" and "embedding" in self._views and self._cells is not None:
                self.embedding.select(self._positions(self.selection))
            for name, view in self._views.items():
                if isinstance(view, RunView) and name != source and name not in self._stale:
                    view.select(self.selection)
        finally:
            self._linking = False

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        assert self._cells is not None
        return np.flatnonzero(np.isin(self._cells.rows, rows))

    def _selected_on_embedding(self, positions: np.ndarray) -> None:
        rows = np.zeros(0, np.int64) if self._cells is None else self._cells.rows[positions]
        rows = rows[rows >= 0]  # cells of a reference are in no other view
        self._window.selection_changed(positions)
        self.select(rows, source="embedding")

    # ------------------------------------------------------------------ the embedding

    def fill_embedding(self, xy: np.ndarray, cells: Cells, prefer: tuple[str, ...]) -> None:
        """Show cells, coloured by the preferred columns; cells that are shown already wander to their new places."""
        before, self._cells = self._cells, cells
        same = before is not None and np.array_equal(before.rows, cells.rows) and self.embedding.points().size == len(xy)
        columns = column_data(cells)
        self._key = column_key([name for name in columns if not name.startswith(("latent:", *EXPRESSION)) and name not in ("leiden", "split")])
        remembered = self._window.session.settings.colour_by.get(self._key, [])
        prefer = tuple(name for name in remembered if name in columns) or prefer
        ordered = {name: columns[name] for name in (*prefer, *columns) if name in columns}
        if not same:
            self.embedding.set_points(xy, cells.names)
        self.embedding.set_columns(ordered)
        if same:
            self.embedding.move_points(xy)
        elif prefer:
            self.embedding.show_columns(prefer)

    def _keep_colours(self, colours: dict[str, dict[str, str]]) -> None:
        self._window.session.settings.colours = {name: dict(levels) for name, levels in colours.items()}
        self._window.arrangement.save_soon()

    def _keep_columns(self, names: list[str]) -> None:
        """Remember what the person colours by, for data with the same columns."""
        settings = self._window.session.settings
        kept = [name for name in names if not name.startswith(tuple(EXPRESSION))]
        settings.colour_by = {**settings.colour_by, self._key: kept}
        self._window.arrangement.save_soon()

    def add_column(self, name: str, cells: Cells) -> None:
        """Offer a further column, and colour the first panel by it."""
        self.embedding.offer_column(name, column_data(cells)[name])

    def colour_by(self, name: str, values: np.ndarray, rows: np.ndarray, *, unit: str = "", diverging: bool = False) -> None:
        """Colour the first panel by numbers of some cells (see :meth:`ViewContext.colour_by`)."""
        from cellweave.app.views import ColumnData

        if self._cells is None:
            return
        place = np.searchsorted(rows, self._cells.rows)
        place[place == len(rows)] = 0
        known = rows[place] == self._cells.rows if len(rows) else np.zeros(len(self._cells.rows), bool)
        shown = np.where(known, values[place] if len(rows) else np.nan, np.nan)
        self.embedding.offer_column(name, ColumnData.continuous(shown, unit=unit, diverging=diverging))

    def clear_selection(self) -> None:
        """Select no cells."""
        self.select(np.zeros(0, np.int64))

    def close_views(self) -> None:
        """Close windows that were torn off."""
        for torn in list(self._torn.values()):
            torn.close()

    # ------------------------------------------------------------------ tabs

    def current(self) -> str:
        """Return the name of the view in front."""
        return self.tabs.current()

    def pick(self, name: str) -> None:
        """The person chose a view: it stays in front, and comes back with the next run."""
        if name in VIEW_NAMES:
            self.show_view(name)
            self._window.session.settings.last_view = name
            self._window.arrangement.save_soon()
        else:
            self.tabs.setCurrentWidget(self.tabs.place_of(name))
        self.chosen = True

    def show_view(self, name: str, *, only_from: str = "", once: bool = False) -> None:
        """Bring a view to the front.

        Parameters
        ----------
        name
            ``welcome``, or a declared view.
        only_from
            Only where this view is in front, and the person did not choose it.
        once
            Only the first time in this session.
        """
        if only_from and (self.current() != only_from or self.chosen):
            return
        if once and name in self._brought:
            return
        if once:
            self._brought.add(name)
        if not only_from:
            self.chosen = False
        if name in VIEW_NAMES:
            view = self.view(name)
            if name not in self._torn:
                self.tabs.put(name, view)
            self._freshen(name)
        if name in self._torn:
            self._torn[name].raise_()
            self._torn[name].activateWindow()
            return
        self.tabs.setCurrentWidget(self.tabs.place_of(name))

    def figure(self) -> tuple[dict[str, Any] | None, str]:
        """Return which figure the view in front is with options to begin with, or None and why it has none."""
        name = self.current()
        view = self._views.get(name)
        if isinstance(view, RunView):
            found = view.figure()
            return found, "" if found else view.why_no_figure()
        if name == "embedding":
            return {"what": "embedding", **self.embedding_options()}, ""
        if name == MODEL:
            return None, "This page only leads to the views of single models. Open one of them first."
        return {"what": "losses", **self.loss_options()}, ""

    def loss_options(self) -> dict[str, Any]:
        """Return what a figure of the losses begins with: the axis, the smoothing and the terms of the view."""
        if not self.built or not self.losses.history().epochs:
            return {}
        style, history = self.losses.style_now(), self.losses.history()
        last = history.at(history.epochs[-1])
        known = [series.name for series in self.losses.series() if last is not None and series.name in last.train]
        terms = [name for name in known if name not in set(self.losses.state()["hidden"])]
        return {
            "log_scale": style.log, "smoothing": style.smoothing, "clip_outliers": style.clip,
            "terms": tuple(terms) if terms != [name for name in known if name != ELBO] else (),  # as they are at first: all that the figure knows
        }  # fmt: skip

    def embedding_options(self) -> dict[str, Any]:
        """Return what a figure of the embedding begins with: what the panels show, where the run folder has it."""
        if self._cells is None or not self.built:
            return {}
        known = [name for name in self.embedding.shown_columns() if name in self._cells.columns or name.startswith(tuple(EXPRESSION))]
        joint = self._window.watching.joined() is not None
        return {"layout": "joint" if joint else "umap", **({"columns": tuple(known)} if known else {})}

    def detach(self) -> None:
        """Show the view in front in a window of its own."""
        name = self.current()
        if name not in self._views or name in self._torn:
            return
        torn = TornOff(self, view_info(name), self._views[name])
        self._torn[name] = torn
        self.tabs.take(name)
        torn.resize(self.size())
        torn.show()

    def take_back(self, name: str) -> None:
        """Put a view that was torn off back under its tab."""
        if self._torn.pop(name, None) is not None:
            self.tabs.give_back(name, self._views[name])

    def show_drop_hint(self, *, on: bool) -> None:
        """Say that what is being dragged can be dropped."""
        self._hint.setGeometry(self.rect())
        self._hint.setVisible(on)
        self._hint.raise_()
