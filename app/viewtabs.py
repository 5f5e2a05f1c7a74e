"""The tabs of the views: Welcome, the views of every run, and one that the views of single models share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QFrame, QMenu, QScrollArea, QTabBar, QTabWidget, QToolButton, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import button, text, tool
from cellweave.app.views.declared import VIEWS, ViewInfo, view_info

if TYPE_CHECKING:
    from cellweave.app.centre import Centre

WELCOME, MODEL = "welcome", "model"
MODEL_VIEWS = tuple(info for info in VIEWS if info.place == "model")


class ModelPage(QScrollArea):
    """What the Model tab shows before a view of it is chosen: each of them with what it shows, or why this run has none."""

    chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setWidgetResizable(True)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(24, 24, 24, 24)
        layout.setSpacing(4)
        layout.addWidget(text("What single models give. The views that the shown run has something for can be opened.", secondary=True))
        self.links: dict[str, QWidget] = {}
        self._tips: dict[str, QWidget] = {}
        for info in MODEL_VIEWS:
            link = button(info.title, info.icon, lambda _=False, name=info.name: self.chosen.emit(name), link=True)
            self.links[info.name] = link
            self._tips[info.name] = text(info.tip, secondary=True)
            layout.addSpacing(8)
            layout.addWidget(link, 0, Qt.AlignmentFlag.AlignLeft)
            layout.addWidget(self._tips[info.name])
        layout.addStretch(1)
        self.setWidget(page)

    def offer(self, why_not: Mapping[str, str]) -> None:
        """Grey what the run lacks, and say why."""
        for info in MODEL_VIEWS:
            why = why_not.get(info.name, "")
            self.links[info.name].setEnabled(not why)
            self._tips[info.name].setText(why or info.tip)  # type: ignore[attr-defined]


class TornOff(QWidget):
    """A window that holds one view; closed, it gives the view back."""

    def __init__(self, centre: Centre, info: ViewInfo, view: QWidget) -> None:
        super().__init__(centre.window(), Qt.WindowType.Window)
        self._centre, self._name = centre, info.name
        self.setWindowTitle(f"{info.title} – Cellweave")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(view)
        view.show()

    def closeEvent(self, event: QCloseEvent | None) -> None:  # noqa: N802
        """Give the view back to the tabs."""
        self._centre.take_back(self._name)
        super().closeEvent(event)


class ViewTabs(QTabWidget):
    """Tabs by the names of views; the views of single models share the last one.

    Parameters
    ----------
    welcome
        The first page.
    detach
        What the button at the right does.

    Attributes
    ----------
    picked
        The person chose a view here: its name.
    """

    picked = Signal(str)

    def __init__(self, welcome: QWidget, detach: Callable[[], object]) -> None:
        super().__init__()
        self.setDocumentMode(True)
        self.setUsesScrollButtons(True)
        bar = self.tabBar()
        assert bar is not None
        bar.setAccessibleName("Views")
        bar.setExpanding(False)
        self.places: dict[str, QWidget] = {}
        self._model = ""
        self._add(WELCOME, welcome, "", "home", "Welcome")
        for info in VIEWS:
            if info.place == "tab":
                self._add(info.name, _place(), info.title, "", info.tip)
        self.page = ModelPage()
        self.page.chosen.connect(self.picked)
        slot = _place()
        slot.layout().addWidget(self.page)
        if MODEL_VIEWS:
            self._add(MODEL, slot, "Model", "", "Views of what single models give")
            bar.setTabButton(self.indexOf(slot), QTabBar.ButtonPosition.RightSide, self._menu_button())
        self.tear = tool("detach", "Show this view in a window of its own", detach)
        self.setCornerWidget(self.tear)
        bar.tabBarClicked.connect(lambda index: self.picked.emit(self.name_of(self.widget(index))) if index >= 0 and self.isTabEnabled(index) else None)
        self._why_not: dict[str, str] = {}
        self.currentChanged.connect(lambda _index: self._grey())

    def _add(self, name: str, place: QWidget, title: str, icon: str, tip: str) -> None:
        index = self.addTab(place, title)
        if icon:  # words alone are narrower: all tabs fit into a small window
            self.setTabIcon(index, theme.icon(icon, "secondary"))
        self.setTabToolTip(index, tip)
        bar = self.tabBar()
        assert bar is not None
        bar.setAccessibleTabName(index, title or tip)
        self.places[name] = place

    def _menu_button(self) -> QToolButton:
        self.models = QToolButton()
        self.models.setIcon(theme.icon("chevron-down", "secondary"))
        self.models.setIconSize(QSize(12, 12))
        self.models.setAutoRaise(True)
        self.models.setToolTip("Choose a view of what this model gives")
        self.models.setAccessibleName("Views of the model")
        self.models.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.models.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.models.setProperty("bare", "true")
        menu = QMenu(self.models)
        menu.setToolTipsVisible(True)
        self._choices = {}
        for info in MODEL_VIEWS:
            action = menu.addAction(theme.icon(info.icon), info.title)
            action.setToolTip(info.tip)
            action.triggered.connect(lambda _=False, name=info.name: self.picked.emit(name))
            self._choices[info.name] = action
        self.models.setMenu(menu)
        return self.models

    # ------------------------------------------------------------------ which view is in front

    def name_of(self, place: QWidget | None) -> str:
        """Return the name of the view in a place; of the shared one, that of the view in it."""
        name = next((name for name, widget in self.places.items() if widget is place), "")
        return self._model or MODEL if name == MODEL else name

    def current(self) -> str:
        """Return the name of the view in front."""
        return self.name_of(self.currentWidget())

    def place_of(self, name: str) -> QWidget:
        """Return where a view is, or would be."""
        return self.places[name if name in self.places else MODEL]

    def put(self, name: str, view: QWidget) -> None:
        """Put a view into its place; in the shared one it takes the place of another."""
        place = self.place_of(name)
        layout = place.layout()
        assert layout is not None
        if place is self.places.get(MODEL):
            self._show_model(name, view)
        elif layout.indexOf(view) < 0:
            layout.addWidget(view)

    def take(self, name: str) -> None:
        """A view left its place: its tab is hidden, or the shared one offers the others."""
        if name == self._model:
            self._show_model("", self.page)
        elif name in self.places:
            self.setTabVisible(self.indexOf(self.places[name]), False)  # noqa: FBT003  (Qt's own signature)

    def give_back(self, name: str, view: QWidget) -> None:
        """A view came back."""
        self.place_of(name).layout().addWidget(view)  # type: ignore[union-attr]
        self.setTabVisible(self.indexOf(self.place_of(name)), True)  # noqa: FBT003
        self.put(name, view)
        self.setCurrentWidget(self.place_of(name))

    def _show_model(self, name: str, view: QWidget) -> None:
        slot = self.places[MODEL]
        layout = slot.layout()
        assert layout is not None
        for child in [layout.itemAt(number).widget() for number in range(layout.count())]:
            child.setVisible(child is view)
        if layout.indexOf(view) < 0:
            layout.addWidget(view)
        view.show()
        self._model = name
        index = self.indexOf(slot)
        info = view_info(name) if name else None
        self.setTabText(index, info.title if info else "Model")

    def offer(self, why_not: Mapping[str, str]) -> None:
        """Grey the views that the shown run has nothing for; the one in front stays, and says why."""
        self._why_not = dict(why_not)
        self._grey()
        if self._model and why_not.get(self._model):
            self._show_model("", self.page)
        self.page.offer(why_not)
        for info in MODEL_VIEWS:
            self._choices[info.name].setEnabled(not why_not.get(info.name))
            self._choices[info.name].setToolTip(why_not.get(info.name) or info.tip)


    def _grey(self) -> None:
        """Grey the tabs of views that the shown run has nothing for, with the reason as their tooltip."""
        for info in VIEWS:
            if info.name in self.places:
                why, place = self._why_not.get(info.name, ""), self.places[info.name]
                self.setTabEnabled(self.indexOf(place), not why or place is self.currentWidget())
                self.setTabToolTip(self.indexOf(place), why or info.tip)


def _place() -> QWidget:
    place = QWidget()
    layout = QVBoxLayout(place)
    layout.setContentsMargins(0, 0, 0, 0)
    return place
