"""The middle of the window: Welcome, Losses and Embedding as tabs that can be torn off, with notices above."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QLabel, QTabWidget, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.notice import NoticeBar
from cellweave.app.panels.parts import ElidedLabel, row, tool
from cellweave.app.panels.welcome import WelcomePage
from cellweave.app.state.settings import column_key

if TYPE_CHECKING:
    from cellweave.app.state.results import Cells
    from cellweave.app.views import ColumnData, EmbeddingView, LossView
    from cellweave.app.window import MainWindow

TITLES = {"welcome": ("Welcome", "home"), "losses": ("Losses", "curves"), "embedding": ("Embedding", "scatter")}


def column_data(cells: Cells) -> dict[str, ColumnData]:
    """Return the columns of cells as the view takes them."""
    from cellweave.app.views import ColumnData

    found = {}
    for name, column in cells.columns.items():
        unit = "log(1 + scaled counts)" if name.startswith("gene:") else ""
        found[name] = ColumnData.continuous(column.numbers, unit=unit) if column.levels is None else ColumnData.categorical(column.codes, column.levels)
    return found


class TornOff(QWidget):
    """A window that holds one view; closed, it gives the view back."""

    def __init__(self, centre: Centre, name: str, view: QWidget) -> None:
        super().__init__(centre.window(), Qt.WindowType.Window)
        self._centre, self._name = centre, name
        self.setWindowTitle(f"{TITLES[name][0]} – Cellweave")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(view)
        view.show()

    def closeEvent(self, event: QCloseEvent | None) -> None:  # noqa: N802
        """Give the view back to the tabs."""
        self._centre.take_back(self._name)
        super().closeEvent(event)


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
    """

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self._views: dict[str, QWidget] = {}
        self._torn: dict[str, TornOff] = {}
        self._brought: set[str] = set()
        self._rows: np.ndarray | None = None
        self._key = ""
        self.chosen = False
        self.notice = NoticeBar()
        self.run = ElidedLabel(secondary=True)
        self._run = QWidget()
        line = row(self.run)
        line.setContentsMargins(12, 4, 12, 4)
        self._run.setLayout(line)
        self._run.hide()
        self.welcome = WelcomePage()
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.tabBar().setAccessibleName("Views")
        self._places: dict[str, QWidget] = {}
        for name, (title, icon) in TITLES.items():
            place = self.welcome if name == "welcome" else QWidget()
            if name != "welcome":
                layout = QVBoxLayout(place)
                layout.setContentsMargins(0, 0, 0, 0)
            self._places[name] = place
            self.tabs.addTab(place, theme.icon(icon, "secondary"), title)
        self.tear = tool("detach", "Show this view in a window of its own", self.detach)
        self.tabs.setCornerWidget(self.tear)
        self.tabs.tabBarClicked.connect(lambda _index: setattr(self, "chosen", True))
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
        """Make both views; called once the window is on the screen."""
        _ = self.losses
        _ = self.embedding
        self._window.status.refresh()

    def say_run(self, label: str) -> None:
        """Say above the views which run they show; nothing where they show none."""
        self.run.setText(f"Run shown: {label}" if label else "")
        self._run.setVisible(bool(label))

    @property
    def built(self) -> bool:
        """Whether both views were made."""
        return len(self._views) == 2

    @property
    def losses(self) -> LossView:
        """The Losses view, made when it is first asked for."""
        if "losses" not in self._views:
            from cellweave.app.views import LossView

            view = LossView()
            view.exportRequested.connect(lambda: self._window.exporting.figure("losses"))
            view.csvRequested.connect(self._window.exporting.ask_losses)
            self._keep("losses", view)
        return self._views["losses"]  # type: ignore[return-value]

    @property
    def embedding(self) -> EmbeddingView:
        """The Embedding view, made when it is first asked for."""
        if "embedding" not in self._views:
            from cellweave.app.views import EmbeddingView

            view = EmbeddingView()
            view.selectionChanged.connect(self._window.selection_changed)
            view.exportRequested.connect(lambda: self._window.exporting.figure("embedding"))
            view.set_colours(self._window.session.settings.colours)
            view.coloursChanged.connect(self._keep_colours)
            view.columnsChanged.connect(self._keep_columns)
            self._keep("embedding", view)
        return self._views["embedding"]  # type: ignore[return-value]

    def _keep(self, name: str, view: QWidget) -> None:
        self._views[name] = view
        layout = self._places[name].layout()
        assert layout is not None
        layout.addWidget(view)

    def fill_embedding(self, xy: np.ndarray, cells: Cells, prefer: tuple[str, ...]) -> None:
        """Show cells, coloured by the preferred columns; cells that are shown already wander to their new places."""
        same = self._rows is not None and np.array_equal(self._rows, cells.rows) and self.embedding.points().size == len(xy)
        self._rows = cells.rows
        columns = column_data(cells)
        self._key = column_key([name for name in columns if not name.startswith(("latent:", "gene:")) and name not in ("leiden", "split")])
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
        kept = [name for name in names if not name.startswith("gene:")]
        settings.colour_by = {**settings.colour_by, self._key: kept}
        self._window.arrangement.save_soon()

    def add_column(self, name: str, cells: Cells) -> None:
        """Offer a further column, and colour the first panel by it."""
        self.embedding.set_columns(column_data(cells))
        shown = self.embedding.shown_columns()
        self.embedding.show_columns([name, *shown[1:]])

    def clear_selection(self) -> None:
        """Select no cells."""
        if "embedding" in self._views:
            self.embedding.select(None)

    def close_views(self) -> None:
        """Close windows that were torn off."""
        for torn in list(self._torn.values()):
            torn.close()

    # ------------------------------------------------------------------ tabs

    def current(self) -> str:
        """Return the name of the tab in front."""
        place = self.tabs.currentWidget()
        return next((name for name, widget in self._places.items() if widget is place), "")

    def show_view(self, name: str, *, only_from: str = "", once: bool = False) -> None:
        """Bring a view to the front.

        Parameters
        ----------
        name
            ``welcome``, ``losses`` or ``embedding``.
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
        if name in self._torn:
            self._torn[name].raise_()
            self._torn[name].activateWindow()
            return
        self.tabs.setCurrentWidget(self._places[name])

    def detach(self) -> None:
        """Show the view in front in a window of its own."""
        name = self.current()
        if name not in self._views or name in self._torn:
            return
        torn = TornOff(self, name, self._views[name])
        self._torn[name] = torn
        self.tabs.setTabVisible(self.tabs.indexOf(self._places[name]), False)  # noqa: FBT003  (Qt's own signature)
        torn.resize(self.size())
        torn.show()

    def take_back(self, name: str) -> None:
        """Put a view that was torn off back under its tab."""
        if self._torn.pop(name, None) is None:
            return
        layout = self._places[name].layout()
        assert layout is not None
        layout.addWidget(self._views[name])
        self.tabs.setTabVisible(self.tabs.indexOf(self._places[name]), True)  # noqa: FBT003
        self.tabs.setCurrentWidget(self._places[name])

    def show_drop_hint(self, *, on: bool) -> None:
        """Say that what is being dragged can be dropped."""
        self._hint.setGeometry(self.rect())
        self._hint.setVisible(on)
        self._hint.raise_()
