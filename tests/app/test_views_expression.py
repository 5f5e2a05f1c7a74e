"""Genes on the embedding: what is shown is what the counts and the model say, computed once, several side by side."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from qtpy.QtCore import Qt
from window_support import show_run

LONG = 60_000


@pytest.fixture
def shown(qtbot, window, trained):
    show_run(qtbot, window, trained["vae"])
    window.show_view("embedding")
    field = window.embedding.bar.genes
    qtbot.waitUntil(lambda: field._model.rowCount() == 40, timeout=LONG)
    return window


def ask(qtbot, window, text, source):
    field = window.embedding.bar.genes
    field.source.setCurrentIndex(field.source.findText(source))
    field.names.clear()
    qtbot.keyClicks(field.names, text)
    field._completer.popup().hide()
    qtbot.keyClick(field.names, Qt.Key.Key_Return)


def values(window, name):
    return window.embedding._columns[name].values


def test_counts_and_log_counts_are_those_of_the_file(qtbot, shown):
    raw = anndata.read_h5ad(shown.watching.spec.data.paths[0])
    dense = raw.X.toarray()
    ask(qtbot, shown, "gene3, gene5", "Counts")
    qtbot.waitUntil(lambda: shown.embedding.shown_columns()[:2] == ["counts:gene3", "counts:gene5"], timeout=LONG)
    np.testing.assert_array_equal(values(shown, "counts:gene3"), dense[:, 3])
    ask(qtbot, shown, "gene3", "Log counts")
    qtbot.waitUntil(lambda: shown.embedding.shown_columns()[0] == "gene:gene3", timeout=LONG)
    totals = dense.sum(1)
    np.testing.assert_allclose(values(shown, "gene:gene3"), np.log1p(dense[:, 3] / totals * np.median(totals)), rtol=1e-5)


def test_denoised_and_corrected_are_what_the_model_decodes(qtbot, shown, trained):
    from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
    from cellweave.core.query.opened import open_run

    run = open_run(trained["vae"])
    cases = {
        "Denoised": ("denoised:gene7", None),
        "Corrected": ("corrected:gene7", run.batches),
        "Corrected as b1": ("corrected:gene7@b1", ("b1",)),
    }
    seen = []
    for source, (name, batches) in cases.items():
        ask(qtbot, shown, "gene7", source)
        qtbot.waitUntil(lambda name=name: shown.embedding.shown_columns()[0] == name, timeout=LONG)
        question = ExpressionQuestion(features=("gene7",), transform_batch=batches, library_size=1e4)
        np.testing.assert_allclose(values(shown, name), np.log1p(normalised_expression(run, None, question)[:, 0]), rtol=1e-4)
        seen.append(values(shown, name))
    assert not np.allclose(seen[0], seen[1])
    assert not np.allclose(seen[1], seen[2])


def test_what_was_computed_is_not_computed_again(qtbot, shown, monkeypatch):
    from cellweave.app.flows import expression

    ask(qtbot, shown, "gene2", "Denoised")
    qtbot.waitUntil(lambda: shown.embedding.shown_columns()[0] == "denoised:gene2", timeout=LONG)
    shown.embedding.show_columns(["batch"])
    monkeypatch.setattr(expression, "decoded_values", lambda *_: pytest.fail("computed again"))
    ask(qtbot, shown, "gene2", "Denoised")
    assert shown.embedding.shown_columns()[0] == "denoised:gene2"


def test_an_unknown_gene_is_said_beside_the_field(qtbot, shown):
    field = shown.embedding.bar.genes
    ask(qtbot, shown, "Gene4", "Counts")
    qtbot.waitUntil(field.problem.isVisible, timeout=LONG)
    assert "no feature 'Gene4'. Did you mean 'gene4'?" in field.problem.text()
    assert field.names.property("error") == "true"
    ask(qtbot, shown, "gnee4", "Denoised")
    qtbot.waitUntil(lambda: "gnee4" in field.problem.text(), timeout=LONG)
    ask(qtbot, shown, "gene4", "Counts")
    qtbot.waitUntil(lambda: shown.embedding.shown_columns()[0] == "counts:gene4", timeout=LONG)
    assert not field.problem.isVisible()


def test_a_gene_that_was_not_found_does_not_stay_for_another_run(qtbot, shown, trained):
    field = shown.embedding.bar.genes
    ask(qtbot, shown, "Gene4", "Counts")
    qtbot.waitUntil(field.problem.isVisible, timeout=LONG)
    show_run(qtbot, shown, trained["ldvae"])
    qtbot.waitUntil(lambda: not field.problem.isVisible(), timeout=LONG)
    assert field.names.text() == ""
    widest = max(field.source.fontMetrics().horizontalAdvance(field.source.itemText(n)) for n in range(field.source.count()))
    assert field.source.width() - 30 >= widest, "no source is cut"


def test_names_are_proposed_and_completed_one_after_the_other(qtbot, shown):
    field = shown.embedding.bar.genes
    qtbot.keyClicks(field.names, "gene1, gene3")
    assert field._completer.completionPrefix() == "gene3"
    field._completer.popup().hide()
    field._complete("gene30")
    assert field.names.text() == "gene1, gene30"
    qtbot.waitUntil(lambda: shown.embedding.shown_columns()[:2] == ["gene:gene1", "gene:gene30"], timeout=LONG)


def test_only_what_the_run_can_say_is_offered(shown):
    field = shown.embedding.bar.genes
    texts = [field.source.itemText(number) for number in range(field.source.count())]
    assert texts == ["Log counts", "Counts", "Denoised", "Corrected", "Corrected as b0", "Corrected as b1"]
    shown.expression.offer(None)
    texts = [field.source.itemText(number) for number in range(field.source.count())]
    assert texts == ["Log counts", "Counts"]
