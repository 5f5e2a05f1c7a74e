"""Figures: what is drawn where, nothing cut off, and the origin inside the file."""

from __future__ import annotations

import json
import re
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy import sparse
from synthetic_runs import example_evaluation, make_run

from cellweave.core.analysis import scmib
from cellweave.core.analysis.imputation_scores import save
from cellweave.core.errors import CellweaveError, RunFolderError, SpecError
from cellweave.core.export import palette
from cellweave.core.export.canvas import MM_PER_INCH, styled
from cellweave.core.export.embedding_figure import embedding_figure
from cellweave.core.export.figures import FIGURES, FigureOptions, save_figure
from cellweave.core.export.loss_figure import loss_figure
from cellweave.core.export.metrics_figure import metrics_figure
from cellweave.core.export.modalities_figure import modalities_figure
from cellweave.core.export.provenance import spec_hash
from cellweave.core.export.run_data import ColumnValues, RunData
from cellweave.core.export.score_figure import scores_figure

N = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"donor": pd.Categorical(rng.choice(["d1", "d2"], N)), "age": rng.integers(0, 4, N), "score": rng.normal(size=N)},
        index=[f"c{i}" for i in range(N)],
    )
    counts = sparse.csr_matrix(rng.poisson(2, size=(N, 6)).astype(np.float32))
    ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)])).write_h5ad(folder / "input.h5ad")
    types = np.where(np.arange(N) % 7 == 0, "", np.array(["T cell", "B cell", "NK"])[np.arange(N) % 3])
    columns = {"batch": np.array(["10", "2"])[np.arange(N) % 2], "cell_type": types}
    made = make_run(
        folder / "run", [folder / "input.h5ad"], [N], no_latent=(3, 5), columns=columns,
        **{"covariates.batch": "batch", "covariates.labels": "cell_type"},
    )  # fmt: skip
    keep_modalities(made.results)
    save(made.results, example_evaluation())
    return RunData(made.path)


def keep_modalities(results):
    """Write what a mosaic leaves: latents and a picture of two modalities, the second without the first ten cells, and scMIB's parts."""
    layout = np.random.default_rng(1).normal(size=(3, N, 2)).astype(np.float32)
    layout[2, :10] = np.nan
    np.save(results / "modality_umap.npy", layout)
    for number, name in enumerate(("rna", "adt"), start=1):
        np.save(results / f"c_{name}.npy", layout[number])
    measured = {"ilisi": 0.5, "graph_connectivity": 0.9, "kbet": 0.2, "nmi": 0.8, "ari": 0.7, "isolated_f1": 0.6, "clisi": 1.0}
    scmib.store(results, scmib.assemble(measured, {"foscttm": 0.9}, [], ("rna", "adt")), {"batch": "batch", "labels": "cell_type"})


def drawn_texts(canvas):
    """Return every text with its place in pixels of the figure."""
    figure = canvas.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    for axes in figure.axes:
        if axes.axison:
            for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                texts += [label for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high]
                texts.append(axis.label)
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text().strip() and text.get_visible()]


def assert_nothing_cut_off(canvas):
    width, height = canvas.figure.canvas.get_width_height()
    for text, box in drawn_texts(canvas):
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= width + 1 and box.y1 <= height + 1, text


def assert_no_overlap(canvas):
    boxes = [(text, box) for text, box in drawn_texts(canvas)]
    for at, (text, box) in enumerate(boxes):
        for other, second in boxes[at + 1 :]:
            across = min(box.x1, second.x1) - max(box.x0, second.x0)
            along = min(box.y1, second.y1) - max(box.y0, second.y0)
            # boxes hold the room of ascenders and descenders: lines may share a little of it
            assert across <= 1 or along <= 0.35 * min(box.height, second.height), (text, other)


def cloud(n=500, levels=12, name="Level", seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), ColumnValues.of_levels("some column", rng.integers(-1, levels, n), [f"{name} {i}" for i in range(levels)])


# ---------------------------------------------------------------- files and origin


@pytest.mark.parametrize("what", FIGURES)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_every_figure_in_every_format_carries_its_origin(tmp_path, run, what, suffix):
    out = tmp_path / f"figure{suffix}"
    save_figure(run.folder.path, what, out, FigureOptions(title="A <title> & more", dpi=100))
    if suffix == ".png":
        with Image.open(out) as image:
            told, title = image.info["Description"], image.info["Title"]
    elif suffix == ".svg":
        text = out.read_text(encoding="utf-8")
        unescape = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
        told = re.sub("&(quot|amp|lt|gt);", lambda found: unescape[found[0]], re.search("<dc:description>(.*?)</dc:description>", text, re.S)[1])
        title = re.sub("&(quot|amp|lt|gt);", lambda found: unescape[found[0]], re.search("<dc:title>(.*?)</dc:title>", text, re.S)[1])
    else:
        content = out.read_bytes()
        told, title = (pdf_string(content, name) for name in ("Subject", "Title"))
    origin = json.loads(told)
    assert title == "A <title> & more"
    assert origin["program"].startswith("Cellweave ")
    assert origin["data"] == ["input.h5ad"], "no path of this machine"
    assert origin["data_sha256"] == list(run.spec.data.sha256)
    assert origin["spec_sha256"] == spec_hash(run.spec)
    assert origin["epoch"] == 26
    assert origin["figure"] == what
    if what == "embedding":
        assert origin["columns"] == ["batch", "cell_type"]


def pdf_string(content, name):
    found = re.search(rb"/" + name.encode() + rb" \((.*?)(?<!\\)\)\s*(/|>>|\n)", content, re.S)
    return re.sub(rb"\\([()\\])", rb"\1", found[1]).decode("utf-8")


def test_the_same_figure_gives_the_same_file(tmp_path, run):
    for suffix in ("png", "svg", "pdf"):
        for name in ("a", "b"):
            save_figure(run.folder.path, "embedding", tmp_path / f"{name}.{suffix}", FigureOptions(dpi=80))
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes(), suffix


def test_points_are_pixels_and_text_is_text_inside_vector_files(tmp_path, run):
    save_figure(run.folder.path, "embedding", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count("<image") == 2, "one picture of points a panel"
    assert "T cell</text>" in text
    assert text.count("<use") < 60, "no mark for each cell"


def test_size_and_resolution_are_what_was_asked_for(tmp_path, run):
    size = save_figure(run.folder.path, "losses", tmp_path / "a.png", FigureOptions(width_mm=127, height_mm=50.8, dpi=200))
    assert size == (1000, 400)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1000, 400)
        assert image.info["dpi"][0] == pytest.approx(200, rel=1e-3)
    small = save_figure(run.folder.path, "losses", tmp_path / "b.png", FigureOptions(width_mm=508, height_mm=100, dpi=600), preview=True)
    assert max(small) <= 1400


def test_what_cannot_be_drawn_is_said(tmp_path, run):
    with pytest.raises(SpecError, match="no figure 'loss'"):
        save_figure(run.folder.path, "loss", tmp_path / "a.png")
    with pytest.raises(CellweaveError, match=r"cannot be written as 'a\.gif'"):
        save_figure(run.folder.path, "losses", tmp_path / "a.gif")
    with pytest.raises(SpecError, match="Did you mean 'donor'"):
        save_figure(run.folder.path, "embedding", tmp_path / "a.png", FigureOptions(columns=("doner",)))
    with pytest.raises(SpecError, match="no loss term 'kl'"):
        save_figure(run.folder.path, "losses", tmp_path / "a.png", FigureOptions(terms=("kl",)))
    with pytest.raises(RunFolderError, match=r"no 'baseline_umap\.npy'"):
        save_figure(run.folder.path, "embedding", tmp_path / "a.png", FigureOptions(layout="baseline"))
    with pytest.raises(CellweaveError, match="cannot be written"):
        save_figure(run.folder.path, "losses", tmp_path / "nowhere" / "a.png")
    for what in FIGURES:
        with pytest.raises(SpecError, match="too small"):
            save_figure(run.folder.path, what, tmp_path / "a.png", FigureOptions(width_mm=30, height_mm=30, font_size=20))
    with pytest.raises(ValidationError, match="#RRGGBB"):
        FigureOptions(colours={"T cell": "red"})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- columns


def test_columns_are_levels_or_quantities(run):
    assert run.column("batch").levels == ("2", "10"), "levels by their number, a batch is never a quantity"
    assert run.column("cell_type").missing.sum() == sum(i % 7 == 0 for i in range(N))
    assert run.column("donor").levels == ("d1", "d2")
    assert run.column("age").levels == ("0", "1", "2", "3")
    assert run.column("score").levels is None
    assert run.column("leiden").levels == ("0", "1", "2")
    np.testing.assert_array_equal(run.column("latent:2").numbers, run.latent[:, 1])
    gene = run.column("gene:g3")
    assert gene.title == "g3"
    assert gene.numbers.max() > 0
    with pytest.raises(SpecError, match=r"no feature 'g33'\. Did you mean 'g3'"):
        run.column("gene:g33")
    with pytest.raises(SpecError, match="has 4 dimensions"):
        run.column("latent:5")


# ---------------------------------------------------------------- embedding


@pytest.mark.parametrize("options", [{}, {"width_mm": 85}, {"width_mm": 180, "height_mm": 60}, {"font_size": 12}, {"title": "A title " * 6, "theme": "dark"}])
@pytest.mark.parametrize("levels", [2, 9, 46, 130])
def test_legends_are_never_cut_off(levels, options):
    layout, column = cloud(levels=levels, name="A rather long name of level")
    number = ColumnValues.of_numbers("quantity with a long name as well", np.where(np.arange(500) % 9, np.arange(500) * 1000.0, np.nan))
    options = FigureOptions(panels_per_row=1 if "width_mm" in options else 2, **options)
    with styled(options):
        canvas = embedding_figure(layout, [column, number], options)
        assert_nothing_cut_off(canvas)
        assert_no_overlap(canvas)
        words = " ".join(text for text, _ in drawn_texts(canvas))
    assert f"{(column.codes < 0).sum():,}" in words
    assert "some column" in words, "a title is shortened only where it is wider than its panel"
    if options.width_mm:
        assert canvas.width == options.width_mm


def test_counts_in_the_legend_are_of_the_cells_that_are_drawn(run):
    options = FigureOptions()
    with styled(options):
        canvas = embedding_figure(run.array("umap"), [run.column("batch")], options)
        words = [text for text, _ in drawn_texts(canvas)]
    assert "118 cells" in words
    assert sorted(words[words.index("2") :][:4]) == sorted(["2", "58", "10", "60"])


def test_many_levels_are_summed_up_and_none_is_dropped_silently():
    layout, column = cloud(n=3000, levels=400)
    options = FigureOptions()
    with styled(options):
        canvas = embedding_figure(layout, [column], options)
        words = [text for text, _ in drawn_texts(canvas)]
    more = next(text for text in words if text.endswith("more levels"))
    counted = sum(int(text.replace(",", "")) for text in words if re.fullmatch(r"[\d,]+", text))
    assert counted == 3000
    assert int(more.split()[0]) + sum(text.startswith("Level") for text in words) + 1 == len(np.unique(column.codes))


def test_no_level_is_drawn_last_and_missing_first():
    _, column = cloud(n=4000, levels=3)
    order = palette.draw_order(column.missing, seed=1)
    n_missing = int(column.missing.sum())
    assert column.missing[order[:n_missing]].all()
    assert sorted(order) == list(range(4000))
    last = column.codes[order[-900:]]
    assert np.bincount(last).min() > 230, "the last that are drawn are of all levels alike"
    np.testing.assert_array_equal(order, palette.draw_order(column.missing, seed=1))


def test_the_picture_shows_the_colours_it_should():
    layout = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [np.nan, 5.0]])
    column = ColumnValues.of_levels("c", [0, 1, -1, 0], ["a", "b"])
    options = FigureOptions(point_size=12, legend=False, colours={"b": "#12AB34"}, dpi=100)
    with styled(options):
        canvas = embedding_figure(layout, [column], options)
        canvas.figure.canvas.draw()
        picture = np.asarray(canvas.figure.canvas.buffer_rgba())[..., :3]
    for colour in (palette.category_colours(2)[0], "#12AB34", palette.look("light")["missing"]):
        assert (picture == palette.hex_to_rgb(colour)).all(axis=-1).sum() > 20, colour


def test_the_axes_are_equal_and_named():
    layout, column = cloud()
    options = FigureOptions(width_mm=150, height_mm=70)
    with styled(options):
        canvas = embedding_figure(layout * [10, 1], [column], options, axis_name="PCA")
    axes = canvas.figure.axes[0]
    box = axes.get_position()
    assert box.width * canvas.width == pytest.approx(box.height * canvas.height)
    assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("PCA 1", "PCA 2")
    assert not len(axes.get_xticks())


def test_odd_embeddings_can_be_drawn(tmp_path):
    options = FigureOptions()
    with styled(options):
        for layout in (np.full((5, 2), np.nan), np.zeros((5, 2)), np.zeros((1, 2))):
            codes = np.zeros(len(layout), int)
            columns = [ColumnValues.of_levels("π $x_1$ 細胞", codes, ["α"]), ColumnValues.of_numbers("n", np.full(len(layout), np.nan))]
            canvas = embedding_figure(layout, columns, options)
            assert_nothing_cut_off(canvas)


# ---------------------------------------------------------------- losses and scores


@pytest.mark.parametrize("options", [{}, {"width_mm": 180}, {"panels_per_row": 1, "theme": "dark"}, {"log_scale": True, "smoothing": 0.8, "title": "Losses"}])
def test_losses_are_drawn_as_they_were(run, options):
    options = FigureOptions(**options)
    with styled(options):
        canvas = loss_figure(run, options)
        assert_nothing_cut_off(canvas)
        assert_no_overlap(canvas)
        words = [text for text, _ in drawn_texts(canvas)]
    assert {"Total loss", "Reconstruction", "KL of the latent", "training", "validation", "best epoch (26)", "weight 1 → 3"} <= set(words)
    assert "nats per cell" in words
    if not options.smoothing:
        train, held_out = canvas.figure.axes[0].lines[:2]
        rows = run.folder.losses()
        np.testing.assert_array_equal(train.get_ydata(), [row["total_train"] for row in rows])
        np.testing.assert_array_equal(held_out.get_xdata(), [row["epoch"] for row in rows if "total_validation" in row])


def test_smoothing_never_hides_where_it_ends(run):
    with styled(FigureOptions()):
        canvas = loss_figure(run, FigureOptions(smoothing=0.9, terms=("kl_z",)))
    raw, smooth = (line.get_ydata() for line in canvas.figure.axes[0].lines[:2])
    assert smooth[0] == pytest.approx(raw[0])
    assert np.abs(np.diff(smooth)).max() < np.abs(np.diff(raw)).max()
    assert raw.min() <= smooth.min() <= smooth.max() <= raw.max()


@pytest.mark.parametrize("options", [{}, {"width_mm": 100, "title": "Scores"}, {"theme": "dark", "font_size": 10}])
def test_scores_stand_beside_baseline_and_chance(run, options):
    options = FigureOptions(**options)
    with styled(options):
        canvas = scores_figure(run, options)
        assert_nothing_cut_off(canvas)
        assert_no_overlap(canvas)
        words = [text for text, _ in drawn_texts(canvas)]
    assert {"Batch mixing", "Neighbours with the same label", "0.12 → 0.81", "without integration", "by chance"} <= set(words)


@pytest.mark.parametrize("options", [{}, {"width_mm": 170, "title": "Metrics"}, {"theme": "dark", "font_size": 10, "legend": False}])
def test_metrics_stand_beside_the_baseline(run, options, tmp_path):
    other = shutil.copytree(run.folder.path, tmp_path / "other run")
    options = FigureOptions(**options, runs=(str(other), str(tmp_path / "nothing")))
    with styled(options):
        canvas = metrics_figure(run, options)
        assert_nothing_cut_off(canvas)
        words = [text for text, _ in drawn_texts(canvas)]
    assert {"iLISI", "Leiden ARI", "0.05 → 0.62", "Batch mixing", "Biology kept"} <= set(words)
    assert any("1 synthetic; 2 synthetic" in text for text in words)
    assert any("497 cells, batches from 'batch', labels from 'cell_type'" in text for text in words)


def test_metrics_that_are_not_there_are_said(run, tmp_path):
    other = RunData(shutil.copytree(run.folder.path, tmp_path / "other"))
    (other.folder.results / "integration.json").unlink()
    with styled(FigureOptions()), pytest.raises(RunFolderError, match="has no integration metrics"):
        metrics_figure(other, FigureOptions())
    with styled(FigureOptions()), pytest.raises(SpecError, match="too small"):
        metrics_figure(run, FigureOptions(width_mm=60))


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_of_levels_are_distinct_and_stay(theme):
    colours = palette.category_colours(60, theme)
    assert colours[:7] == palette.OKABE_ITO[:7]
    assert palette.category_colours(12, theme) == colours[:12]
    lab = palette.oklab(np.array([palette.hex_to_rgb(colour) for colour in (*colours, *(palette.look(theme)[name] for name in ("background", "missing")))]))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    np.fill_diagonal(apart, 1)
    assert apart.min() > 0.03
    assert apart[:20, :20].min() > 0.08
    assert len(palette.category_colours(1000, theme)) == 1000


def test_oklab_is_ottossons():
    found = palette.oklab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255]]))
    np.testing.assert_allclose(found, [[1, 0, 0], [0.62796, 0.22486, 0.12585], [0.45201, -0.03246, -0.31153]], atol=2e-4)


def test_values_are_clipped_to_where_most_are():
    values = np.concatenate([np.linspace(0, 1, 1000), [1000.0, np.nan]])
    low, high = palette.value_range(values)
    assert 0 <= low < 0.05
    assert 0.9 < high < 1.1
    assert palette.value_range(np.array([0.0] * 999 + [5.0])) == (0.0, 5.0)
    assert palette.value_range(np.array([2.0, 2.0])) == (2.0, 3.0)
    assert palette.value_range(np.array([np.nan])) == (0.0, 1.0)
    np.testing.assert_array_equal(palette.colour_table("viridis")[[0, 255]], [[68, 1, 84], [253, 231, 37]])


def test_every_option_says_what_it_is():
    for name, info in FigureOptions.model_fields.items():
        assert info.title, name
        assert info.description.endswith("."), name
    assert MM_PER_INCH == 25.4


def test_long_names_of_groups_are_shortened_in_a_volcano_plot(tmp_path):
    from synthetic_runs import example_comparison

    from cellweave.core.export.differential_files import keep_comparison
    from cellweave.core.export.volcano_figure import volcano_figure

    made = make_run(tmp_path / "run", [], [N])
    table = example_comparison().assign(group1="a group with a name that nobody would read to its end", group2="another one of that kind")
    keep_comparison(made.path, table, {}, method="model")
    canvas, shown = volcano_figure(RunData(made.path), FigureOptions(comparison="A-vs-B-2"))
    assert shown["comparison"] == "A-vs-B-2"
    assert_nothing_cut_off(canvas)
    assert any(text.endswith("…") for text, _ in drawn_texts(canvas))


@pytest.mark.parametrize("options", [{}, {"width_mm": 110}, {"font_size": 9}])
def test_no_legend_of_scores_of_the_mosaic_is_cut_off(run, options):
    options = FigureOptions(**options)
    with styled(options):
        canvas, _ = modalities_figure(run, options, None)
        assert_nothing_cut_off(canvas)
        assert_no_overlap(canvas)
        assert any(text.startswith("biology kept, mean") for text, _ in drawn_texts(canvas))
