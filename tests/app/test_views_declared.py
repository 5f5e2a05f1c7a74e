"""Views are declared once; tabs, actions, reasons, tear-off and the linked selection follow."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from window_support import show_run

from cellweave.app.views.declared import VIEWS, view_info
from cellweave.app.views.runview import RunView
from cellweave.core.spec import RunSpec

LEFT = Qt.MouseButton.LeftButton


def test_every_view_is_declared_whole(window):
    assert len({info.name for info in VIEWS}) == len(VIEWS)
    for info in VIEWS:
        assert info.tip.endswith("."), info.name
        assert info.why_not.endswith(".") or not (info.kinds or info.families or info.files), info.name
        assert f"view.{info.name}" in window.actions_by_id.infos


@pytest.mark.parametrize("info", VIEWS, ids=lambda info: info.name)
def test_every_view_opens_empty_and_says_what_it_will_show(qtbot, window, info):
    window.actions_by_id[f"view.{info.name}"].trigger()
    view = window.centre.view(info.name)
    assert window.centre.current() == info.name
    assert view.accessibleName()
    if isinstance(view, RunView):
        assert len(view.message()) > 30
        assert view.message().endswith(".")


def test_the_tabs_fit_into_a_small_window(qtbot, window):
    bar = window.centre.tabs.tabBar()
    last = bar.tabRect(bar.count() - 1)
    assert last.right() <= bar.width(), "no tab is cut off at 1280 x 720"


def test_a_model_view_takes_the_shared_tab_and_can_be_torn_off(qtbot, window, trained):
    show_run(qtbot, window, trained["ldvae"])
    window.show_view("loadings")
    assert window.centre.current() == "loadings"
    tabs = window.centre.tabs
    assert tabs.tabText(tabs.indexOf(tabs.place_of("loadings"))) == "Loadings"
    qtbot.mouseClick(window.centre.tear, LEFT)
    view = window.centre.view("loadings")
    assert view.window() is window.centre._torn["loadings"]
    assert window.centre.current() == "model"
    assert tabs.page.isVisible()
    window.centre._torn["loadings"].close()
    assert view.window() is window
    assert window.centre.current() == "loadings"


def test_what_a_run_cannot_give_is_greyed_with_the_reason(qtbot, window, trained):
    show_run(qtbot, window, trained["vae"])
    action = window.actions_by_id["view.loadings"]
    assert not action.isEnabled()
    assert not window.centre.tabs.page.links["loadings"].isEnabled()
    assert "LDVAE" in window.actions_by_id.why_not(window.actions_by_id.infos["view.loadings"], window.status.conditions())
    show_run(qtbot, window, trained["ldvae"])
    assert action.isEnabled()
    window.show_view("loadings")
    show_run(qtbot, window, trained["vae"])
    tabs = window.centre.tabs
    assert window.centre.current() == "model"
    assert tabs.tabText(tabs.indexOf(tabs.place_of("loadings"))) == "Model"
    assert not tabs.isTabEnabled(tabs.indexOf(tabs.place_of("attribution")))
    assert tabs.tabToolTip(tabs.indexOf(tabs.place_of("attribution"))) == view_info("attribution").why_not
    assert tabs.isTabEnabled(tabs.indexOf(tabs.place_of("differential")))
    window.show_view("loadings")
    assert window.centre.view("loadings").message() == view_info("loadings").why_not


@pytest.mark.parametrize(("kind", "offered"), [("vae", {"neighbourhood", "differential"}), ("midas", {"masks", "modalities", "imputation"})])
def test_while_a_run_trains_only_the_views_of_its_family_are_offered(window, tmp_path, kind, offered):
    window.watching.begin(tmp_path, RunSpec().with_changes({"model.kind": kind}))
    other = {"masks", "modalities", "imputation", "loadings", "ambient", "attribution"} - offered
    for name in offered:
        assert window.centre.why_not(name) == "", "files come later"
    for name in other:
        assert window.centre.why_not(name) == view_info(name).why_not


def test_an_empty_view_offers_what_can_be_done_now(window, monkeypatch):
    window.show_view("metrics")
    view = window.centre.view("metrics")
    assert view.empty.action.text() == "Open data…"
    with monkeypatch.context() as patch:
        patch.setattr(window.session, "headers", ("a file",))
        window.centre.renew_empty()
        assert view.empty.action.text() == "Go to training"


def test_a_selection_is_the_same_cells_in_every_view(qtbot, window, trained):
    show_run(qtbot, window, trained["ldvae"])
    window.show_view("loadings")
    view = window.centre.view("loadings")
    marked = []
    view.show_selection = lambda rows: marked.append(rows.tolist())
    window.embedding.select([3, 5])
    rows = window.watching.cells.rows[[3, 5]].tolist()
    assert marked == [rows]
    assert window.centre.selection.tolist() == rows
    view.selectionChanged.emit(np.array([7, 2]))
    assert window.embedding.selection().tolist() == [2, 7]
    assert window.inspector.selected().tolist() == [2, 7]
    assert marked == [rows], "the view that selected is not told again"
    window.clear_selection()
    assert window.embedding.selection().tolist() == []
    assert marked[-1] == []


def test_the_view_that_was_chosen_last_comes_back(qtbot, make_window, trained):
    first = make_window()
    show_run(qtbot, first, trained["ldvae"])
    first.actions_by_id["view.loadings"].trigger()
    first.close()
    second = make_window()
    assert second.centre.current() == "welcome"
    show_run(qtbot, second, trained["ldvae"])
    assert second.centre.current() == "loadings"


CASES = (
    ("losses", "losses", ""), ("embedding", "embedding", ""), ("loadings", "loadings", ""), ("metrics", "", "Compute its metrics first"),
    ("differential", "", "Compare two groups of cells first"), ("compare", "", "Export it as CSV"), ("neighbourhood", "", ""),
    ("model", "", "Open one of them first"),
    ("masks", "", "scVAEIT and MIDAS do"), ("imputation", "", "scVAEIT and MIDAS do"), ("modalities", "", "MIDAS has"),
    ("attribution", "", "Multimodal VI does"), ("ambient", "", "Multimodal VI do"),
)  # fmt: skip


@pytest.mark.parametrize(("view", "figure", "why"), CASES)
def test_export_figure_gives_the_figure_of_the_view_in_front_or_says_why_not(qtbot, window, trained, view, figure, why):
    assert {info.name for info in VIEWS} == {case[0] for case in CASES} - {"model"}, "every view is in the list above"
    show_run(qtbot, window, trained["ldvae"])
    if view == "model":
        window.centre.tabs.setCurrentWidget(window.centre.tabs.place_of("masks"))
        assert window.centre.current() == "model"
    else:
        window.show_view(view)
    qtbot.waitUntil(lambda: not window.tasks.busy(), timeout=20_000)
    window.centre.notice.hide()
    window.actions_by_id["file.figure"].trigger()
    if figure:
        assert window.figure_dialog.what() == figure
        window.figure_dialog.close()
        return
    said = window.centre.notice.words.text()
    assert window.figure_dialog is None, "no other figure opens in its place"
    assert window.centre.notice.isVisible() and why in said and said.endswith(".")


def test_the_figure_of_the_losses_begins_as_the_view_shows_them(qtbot, window, trained):
    show_run(qtbot, window, trained["ldvae"])
    window.show_view("losses")
    assert window.centre.loss_options()["terms"] == (), "all that the figure knows"
    view = window.losses
    view.restore({"log": True, "smoothing": 60, "hidden": ["elbo", "total"]})
    window.actions_by_id["file.figure"].trigger()
    options = window.figure_dialog.options()
    assert options.log_scale and options.smoothing == pytest.approx(0.6)
    assert "total" not in options.terms and "kl_z" in options.terms
    qtbot.waitUntil(lambda: not window.figure_dialog.preview.picture().isNull(), timeout=60_000)
    window.figure_dialog.close()


def test_without_a_umap_export_figure_says_so(qtbot, window, trained):
    (trained["ldvae"] / "results" / "umap.npy").unlink()
    show_run(qtbot, window, trained["ldvae"])
    window.show_view("embedding")
    window.actions_by_id["file.figure"].trigger()
    assert window.figure_dialog is None and "no UMAP" in window.centre.notice.words.text()
