"""The figure of imputation: what it says of which values, at every size, and what it cannot draw."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import example_evaluation, make_run
from test_figures import assert_no_overlap, assert_nothing_cut_off, drawn_texts

from cellweave.core.analysis.imputation_scores import save
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import styled
from cellweave.core.export.figures import FigureOptions, save_figure
from cellweave.core.export.imputation_figure import imputation_figure
from cellweave.core.export.imputation_parts import DOTS_UP_TO
from cellweave.core.export.run_data import RunData

FOUND = example_evaluation()


def judged(folder, found=FOUND):
    """Return a run that has nothing but what was judged of it; None for nothing at all."""
    (folder / "input.h5ad").write_bytes(b"cells")
    made = make_run(folder / "run", [folder / "input.h5ad"], [60])
    if found is not None:
        save(made.results, found)
    return RunData(made.path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return judged(tmp_path_factory.mktemp("judged"))


def draw(run, **options):
    chosen = FigureOptions(**options)
    with styled(chosen):
        canvas, shown = imputation_figure(run, chosen)
        assert_nothing_cut_off(canvas)
        assert_no_overlap(canvas)
        return canvas, shown, [text for text, _ in drawn_texts(canvas)]


@pytest.mark.parametrize(
    "options",
    [{}, {"width_mm": 85}, {"width_mm": 180, "height_mm": 75}, {"font_size": 11, "title": "A title " * 5}, {"features_listed": 0},
     {"features_listed": 40, "theme": "dark"}, {"width_mm": 400, "height_mm": 90}],
)  # fmt: skip
@pytest.mark.parametrize(("modality", "feature"), [("rna", ""), ("rna", "rna20"), ("atac", ""), ("atac", "atac3")])
def test_nothing_overlaps_or_is_cut_off(run, options, modality, feature):
    canvas, _, _ = draw(run, imputation_modality=modality, imputation_feature=feature, **options)
    assert canvas.width == options.get("width_mm", canvas.width)


def test_the_heading_has_modality_and_correlation_and_the_axes_their_unit(run):
    _, shown, words = draw(run)
    assert f"RNA, all features: Pearson {FOUND.overall['rna']['pearson']:.3f}" in words
    assert {"Imputed (log CP10k)", "Measured (log CP10k)", "Mean squared error", f"{FOUND.overall['rna']['mse_baseline']:.3f}"} <= set(words)
    assert shown == {"modality": "rna", "feature": "", "hide": "modality", "n_values": 60 * 30}
    assert "Highest of 29 features" in words, "a feature that does not vary has no correlation"
    assert any("RNA: 60 cells." in text for text in words) and not any("ATAC" in text for text in words)
    own = FOUND.by_feature.set_index("feature")["pearson"]
    _, shown, words = draw(run, imputation_feature="rna20")
    assert f"RNA, rna20: Pearson {own['rna20']:.3f}" in words and "feature mean" in words
    assert shown["n_values"] == 60 and "rna20" in words, "the chosen feature is listed whatever its place"
    _, _, words = draw(run, imputation_feature="rna29")
    assert "RNA, rna29: no Pearson" in words


def test_values_of_0_and_1_have_groups_of_probability_and_auroc(run):
    canvas, shown, words = draw(run, imputation_modality="ATAC", imputation_feature="atac3")
    own = FOUND.by_feature.set_index("feature")["auroc"]
    assert f"ATAC, atac3: AUROC {own['atac3']:.3f}" in words and shown["modality"] == "atac"
    assert {"Imputed probability", "Share measured as 1", "AUROC, all values"} <= set(words)
    points = canvas.figure.axes[0].collections[0].get_offsets()
    assert len(points) == 20, "groups, not single values"


def test_features_are_listed_from_the_highest_score_down(run):
    _, _, words = draw(run, features_listed=5)
    top = FOUND.by_feature[FOUND.by_feature["modality"] == "rna"].nlargest(5, "pearson")["feature"].tolist()
    assert [text for text in words if re.fullmatch(r"rna\d+", text)] == top


def test_values_as_they_are_have_no_unit(tmp_path, run):
    found = replace(FOUND, comparisons={name: replace(one, unit="none") for name, one in FOUND.comparisons.items()})
    _, _, words = draw(judged(tmp_path, found))
    assert {"Imputed", "Measured"} <= set(words) and not any("CP10k" in text for text in words)


def test_many_values_are_shades_and_few_are_dots(tmp_path, run):
    canvas, _, _ = draw(run)
    axes = canvas.figure.axes[0]
    assert not axes.images and len(axes.collections[0].get_offsets()) == 1800
    many = example_evaluation(n_cells=DOTS_UP_TO // 30 + 50)
    made = judged(tmp_path, many)
    canvas, _, words = draw(made)
    axes = canvas.figure.axes[0]
    assert len(axes.images) == 1 and not axes.collections
    assert any("darker where there are more" in text for text in words)
    shades = axes.images[0].get_array()
    one = many.comparisons["rna"]
    known = one.truth.ravel(), one.imputed.ravel()
    assert np.count_nonzero(shades[..., 3]) <= len(known[0]) and shades[..., 3].max() == pytest.approx(1.0)
    save_figure(made.folder.path, "imputation", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "Imputed (log CP10k)</text>" in text and text.count("<image") == 1, "text is text, values are one picture"


def test_what_cannot_be_drawn_is_said(tmp_path, run):
    for options, sentence in (
        ({"imputation_modality": "adt"}, "'adt' was not judged. Choose RNA or ATAC"),
        ({"imputation_feature": "rna2O"}, r"no feature 'rna2O' in what was judged of RNA\. Did you mean"),
        ({"width_mm": 85, "height_mm": 60}, "too small"),
        ({"features_listed": 60, "height_mm": 60}, "list fewer features"),
    ):
        with pytest.raises(SpecError, match=sentence):
            save_figure(run.folder.path, "imputation", tmp_path / "a.png", FigureOptions(**options))
    with pytest.raises(RunFolderError, match="Press Judge"):
        save_figure(judged(tmp_path, None).folder.path, "imputation", tmp_path / "a.png")
