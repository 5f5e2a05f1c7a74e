"""The figure dialog: the preview follows the options, files are written, settings come back."""

from __future__ import annotations

import json
import threading

import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QGuiApplication, QPixmap
from synthetic_runs import make_run

from cellweave.app.state.figure_memory import load_options, save_options
from cellweave.app.views import FigureDialog
from cellweave.app.views.figuredialog import USED_BY
from cellweave.core.analysis.inprocess import InProcess
from cellweave.core.analysis.jobs import JobUpdate, UpdateKind
from cellweave.core.export.figure_options import FigureOptions


class Painter:
    """Draws nothing but a coloured picture, in another thread, when it is told to."""

    def __init__(self):
        self.jobs = []
        self.at_once = True

    def submit(self, task, *, listener=None, **arguments):
        assert task == "figure"
        self.jobs.append((arguments, listener))
        if self.at_once:
            self.finish(len(self.jobs) - 1)
        return len(self.jobs)

    def finish(self, index, update=None):
        arguments, listener = self.jobs[index]

        def work():
            if update is None:
                picture = QPixmap(60, 40).toImage()
                picture.fill(QColor("#336699"))
                picture.save(arguments["out"])
            listener(JobUpdate(UpdateKind.PROGRESS))
            listener(update or JobUpdate(UpdateKind.DONE, result={"path": arguments["out"], "width": 600, "height": 400}))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def options(self, index=-1):
        return self.jobs[index][0]["options"]


@pytest.fixture
def painter():
    return Painter()


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "memory" / "figure.json"


@pytest.fixture
def dialog(qtbot, painter, memory, tmp_path):
    made = FigureDialog(tmp_path / "run-7", None, painter, columns=("batch", "cell_type"), memory=memory)
    qtbot.addWidget(made)
    made.show()
    qtbot.waitExposed(made)
    qtbot.waitUntil(lambda: not made.preview.picture().isNull(), timeout=3000)
    yield made
    made.reject()


def type_number(qtbot, dialog, path, text):
    editor = dialog.form.row(path).editor
    line = getattr(editor, "box", editor).lineEdit()
    line.setFocus()
    line.selectAll()
    qtbot.keyClicks(line, text)
    qtbot.keyClick(line, Qt.Key.Key_Return)


def test_it_opens_with_a_preview(dialog, painter):
    job, _ = painter.jobs[0]
    assert job["what"] == "embedding" and job["preview"] is True and job["run"].endswith("run-7")
    assert dialog.preview.picture().width() == 60
    assert dialog.preview.grab().toImage().pixelColor(dialog.preview.rect().center()) == QColor("#336699")


def test_a_changed_option_is_drawn(dialog, painter, qtbot):
    type_number(qtbot, dialog, "width_mm", "85")
    qtbot.waitUntil(lambda: len(painter.jobs) == 2, timeout=3000)
    assert painter.options()["width_mm"] == 85 and dialog.options().width_mm == 85
    type_number(qtbot, dialog, "height_mm", "60")
    qtbot.waitUntil(lambda: "85 × 60 mm, 1,004 × 709 pixels at 300 dpi" in dialog._size.text(), timeout=3000)


def test_changes_while_it_draws_are_drawn_once_and_late_pictures_are_not_lost(dialog, painter, qtbot):
    painter.at_once = False
    type_number(qtbot, dialog, "dpi", "100")
    qtbot.waitUntil(lambda: len(painter.jobs) == 2, timeout=3000)
    type_number(qtbot, dialog, "dpi", "150")
    type_number(qtbot, dialog, "dpi", "200")
    qtbot.wait(400)
    assert len(painter.jobs) == 2  # never two at a time
    painter.finish(1)
    qtbot.waitUntil(lambda: len(painter.jobs) == 3, timeout=3000)
    assert painter.options()["dpi"] == 200
    painter.finish(2)
    qtbot.waitUntil(lambda: "200 dpi" in dialog._size.text(), timeout=3000)


def test_enter_in_a_field_saves_nothing(dialog, qtbot):
    dialog._ask_path = lambda start: pytest.fail("Enter opened the save dialog")
    type_number(qtbot, dialog, "dpi", "120")


@pytest.mark.parametrize("what", list(USED_BY))
def test_only_options_that_the_figure_heeds_are_shown(dialog, painter, qtbot, what):
    dialog.form.set_advanced(True)
    dialog._what.setCurrentIndex(dialog._what.findData(what))
    dialog._what.activated.emit(dialog._what.currentIndex())
    qtbot.waitUntil(lambda: painter.jobs[-1][0]["what"] == what, timeout=3000)
    shown = {path for path in dialog.form.paths() if dialog.form.row(path).is_shown()}
    assert "dpi" in shown and "title" in shown
    assert ("smoothing" in shown) == (what == "losses")
    assert ("columns" in shown) == (what in {"embedding", "attribution", "modalities"})
    assert ("point_size" in shown) == (what in {"embedding", "attribution", "modalities", "volcano"})
    assert ("genes_each" in shown) == (what in {"loadings", "ambient"})
    assert ("attribution_score" in shown) == (what == "attribution")
    assert ("comparison" in shown) == (what == "volcano")


def test_a_failed_drawing_is_told_with_its_mend(dialog, painter, qtbot):
    painter.at_once = False
    type_number(qtbot, dialog, "width_mm", "31")
    qtbot.waitUntil(lambda: len(painter.jobs) == 2, timeout=3000)
    painter.finish(1, JobUpdate(UpdateKind.FAILED, text="The figure is too small for its content.", mend="Make it wider.", details="..."))
    qtbot.waitUntil(dialog._problem.isVisible, timeout=3000)
    assert dialog._problem.text() == "The figure is too small for its content. Make it wider."
    assert not dialog.preview.picture().isNull()  # the last good one stays
    painter.at_once = True
    type_number(qtbot, dialog, "width_mm", "85")
    qtbot.waitUntil(lambda: not dialog._problem.isVisible(), timeout=3000)


@pytest.mark.parametrize(
    ("chosen", "written"),
    [("fig.pdf", "fig.pdf"), ("fig.svg", "fig.svg"), ("FIG.PNG", "FIG.PNG"), ("fig", "fig.pdf"), ("fig.v2", "fig.v2.pdf")],
)
def test_a_figure_is_written_where_one_says(dialog, painter, qtbot, tmp_path, memory, chosen, written):
    asked = []
    dialog._ask_path = lambda start: (asked.append(start), str(tmp_path / chosen))[1]
    type_number(qtbot, dialog, "dpi", "150")
    with qtbot.waitSignal(dialog.saved, timeout=3000) as caught:
        qtbot.mouseClick(dialog._save, Qt.MouseButton.LeftButton)
    assert caught.args == [str(tmp_path / written)] and asked[0].endswith("run-7-embedding.pdf")
    job = next(job for job, _ in painter.jobs if not job["preview"])
    assert job["out"] == str(tmp_path / written) and job["options"]["dpi"] == 150
    assert dialog._save.isEnabled() and "Saved as" in dialog._size.text()
    assert load_options(memory).dpi == 150


def test_not_choosing_a_file_writes_none(dialog, painter, qtbot):
    dialog._ask_path = lambda start: ""
    count = len(painter.jobs)
    qtbot.mouseClick(dialog._save, Qt.MouseButton.LeftButton)
    assert len(painter.jobs) == count and dialog._save.isEnabled()


def test_a_file_that_cannot_be_written_is_told(dialog, painter, qtbot, tmp_path):
    painter.at_once = False
    dialog._ask_path = lambda start: str(tmp_path / "fig.png")
    qtbot.mouseClick(dialog._save, Qt.MouseButton.LeftButton)
    assert not dialog._save.isEnabled()
    painter.finish(len(painter.jobs) - 1, JobUpdate(UpdateKind.FAILED, text="The disk is full.", mend="Free some space."))
    qtbot.waitUntil(dialog._problem.isVisible, timeout=3000)
    assert dialog._problem.text() == "The disk is full. Free some space." and dialog._save.isEnabled()


def test_the_script_draws_the_same_figure(dialog, qtbot):
    type_number(qtbot, dialog, "font_size", "9")
    qtbot.mouseClick(dialog._script, Qt.MouseButton.LeftButton)
    text = QGuiApplication.clipboard().text()
    compile(text, "script", "exec")
    assert "font_size=9.0" in text and "run-7" in text and "save_figure" in text


def test_the_picture_is_copied(dialog, qtbot):
    qtbot.mouseClick(dialog._picture, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().pixmap().width() == 60


def test_settings_come_back_but_not_those_of_the_data(qtbot, painter, memory, tmp_path):
    first = FigureDialog(tmp_path / "a", None, painter, memory=memory)
    qtbot.addWidget(first)
    first.form.changed.emit({"dpi": 77, "title": "Only mine", "columns": ("batch",)})
    assert first.options().title == "Only mine"
    first.reject()
    second = FigureDialog(tmp_path / "b", None, painter, memory=memory)
    qtbot.addWidget(second)
    assert second.options().dpi == 77 and second.options().title == "" and second.options().columns == ()
    assert second.form.row("dpi").value() == 77
    second.reject()


def test_it_begins_with_what_the_embedding_shows(qtbot, painter, memory, tmp_path):
    save_options(FigureOptions(dpi=77), memory)
    made = FigureDialog(tmp_path / "a", None, painter, start={"columns": ("n_counts",), "colours": {"T": "#112233"}}, memory=memory)
    qtbot.addWidget(made)
    assert painter.options()["columns"] == ["n_counts"] and painter.options()["dpi"] == 77
    assert made.form.row("columns").value() == ("n_counts",)
    made.reject()


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\x00\x01"])
def test_an_unreadable_memory_is_passed_over(tmp_path, content):
    file = tmp_path / "figure.json"
    file.write_text(content)
    assert load_options(file) == FigureOptions()


def test_only_the_bad_part_of_a_memory_is_lost(tmp_path):
    file = tmp_path / "figure.json"
    file.write_text(json.dumps({"dpi": 120, "font_size": "huge", "new_in_a_later_version": 1, "theme": "dark"}))
    assert load_options(file) == FigureOptions(dpi=120, theme="dark")


def test_a_memory_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    save_options(FigureOptions(), tmp_path / "file" / "figure.json")


def test_a_wrong_colour_is_named_under_its_field(dialog):
    dialog.form.set_advanced(True)
    dialog.form.changed.emit({"colours": {"T": "red"}})
    row = dialog.form.row("colours")
    assert "#RRGGBB" in row.problem.text() and row.problem.isVisible()
    assert dialog.options().colours == {}


def test_what_comes_after_closing_is_not_heard(qtbot, painter, memory, tmp_path):
    painter.at_once = False
    made = FigureDialog(tmp_path / "run", None, painter, memory=memory)
    qtbot.addWidget(made)
    made.reject()
    arguments, listener = painter.jobs[0]
    listener(JobUpdate(UpdateKind.DONE, result={}))
    assert not made._open and arguments["preview"]


def test_a_true_figure_of_a_run(qtbot, tmp_path, memory):
    source = tmp_path / "input.h5ad"
    source.write_bytes(b"the figure needs no counts")
    folder = make_run(tmp_path / "run", [source], [400]).path
    dialog = FigureDialog(folder, None, InProcess(), options=FigureOptions(columns=("leiden", "split"), dpi=80), memory=memory)
    qtbot.addWidget(dialog)
    dialog.show()
    qtbot.waitUntil(lambda: not dialog.preview.picture().isNull(), timeout=30_000)
    assert dialog.preview.picture().width() > 300 and not dialog._problem.isVisible()
    out = tmp_path / "figure.svg"
    dialog._ask_path = lambda start: str(out)
    with qtbot.waitSignal(dialog.saved, timeout=30_000):
        dialog.save_as()
    assert out.read_text(encoding="utf-8").startswith("<?xml")
    dialog.reject()
