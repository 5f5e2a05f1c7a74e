"""Points to pixels: colours exact, order fair, lasso and hover against plain references."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from qtpy.QtCore import QPointF
from qtpy.QtGui import QPolygonF

from cellweave.app.views.columns import ColumnData
from cellweave.app.views.pointcloud import CloudBox, PointCloudItem
from cellweave.app.views.points import PointSet, Window, inside_polygon
from cellweave.app.views.raster import Look, density_image, dot_reach, dot_size, dots_image, stencil
from cellweave.app.views.scatterpanel import CloudCanvas

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 200, 200)


def window_of(points: PointSet, width: int = 200, height: int = 150) -> Window:
    low, high = points.low, points.high
    scale = min(width / max(1e-9, high[0] - low[0]), height / max(1e-9, high[1] - low[1])) * 0.9
    middle = (low + high) / 2
    return Window(middle[0] - width / scale / 2, middle[1] + height / scale / 2, scale, scale, width, height)


def look(points: PointSet, codes, colours, layers=None) -> Look:
    colours = np.array(colours, np.uint8)
    layers = np.ones(len(colours), np.int8) if layers is None else np.array(layers, np.int8)
    return Look(np.asarray(codes, np.int32)[points.order], colours, layers)


def channels(image):
    return [(image >> shift) & 255 for shift in (24, 16, 8, 0)]  # alpha, red, green, blue


@pytest.mark.parametrize("n", [0, 1, 2, 300, 20_000])
def test_every_finite_point_is_in_the_set_once(n):
    rng = np.random.default_rng(n)
    xy = rng.normal(size=(n, 2))
    xy[rng.random(n) < 0.1] = np.nan
    points = PointSet(xy)
    assert sorted(points.order) == sorted(np.flatnonzero(np.isfinite(xy).all(axis=1)))
    np.testing.assert_array_equal(points.xy[points.order], np.column_stack([points.x, points.y]))
    if len(points.order):
        placed = points.place(window_of(points))
        assert len(placed.ids) == len(points.order)


def test_a_window_finds_the_points_that_a_plain_comparison_finds():
    rng = np.random.default_rng(3)
    points = PointSet(rng.normal(size=(50_000, 2)))
    for _ in range(20):
        scale = float(rng.uniform(30, 2000))
        window = Window(float(rng.normal()), float(rng.normal()), scale, scale, 120, 90)
        xy = points.xy.astype(np.float32)
        column = np.floor((xy[:, 0] - np.float32(window.left)) * np.float32(scale))
        row = np.floor((np.float32(window.top) - xy[:, 1]) * np.float32(scale))
        inside = (column >= 0) & (column < 120) & (row >= 0) & (row < 90)
        placed = points.place(window)
        assert sorted(points.order[placed.ids]) == list(np.flatnonzero(inside))
        np.testing.assert_array_equal(placed.flat, (row * 120 + column)[points.order[placed.ids]].astype(int))


def test_a_single_dot_has_exactly_its_colour_where_it_belongs():
    points = PointSet(np.array([[0.0, 0.0], [10.0, 10.0]]))
    window = Window(-2.0, 12.0, 10.0, 10.0, 140, 140)
    image = dots_image(points.place(window, reach=6), points.rank, look(points, [0, 1], [RED, (18, 52, 86)]), 7.0)
    assert image.shape == (140, 140)
    assert image[120, 20] == 0xFFFF0000  # x = 0 is 2 units from the left, y = 0 is 12 units below the top
    assert image[20, 120] == 0xFF123456
    assert image[70, 70] == 0
    alpha = channels(image)[0]
    assert 30 <= np.count_nonzero(alpha) / 2 <= 50  # the area of a circle of diameter 7 is 38


def test_dots_at_the_edge_are_cut_not_wrapped():
    points = PointSet(np.array([[0.0, 0.0], [10.0, 5.0]]))
    window = Window(0.0, 10.0, 10.0, 10.0, 100, 100)
    image = dots_image(points.place(window, reach=6), points.rank, look(points, [0, 0], [RED]), 9.0)
    alpha = channels(image)[0]
    assert alpha[99, 0] == 255 and not alpha[0, 0] and not alpha[95, 99]
    assert alpha[50, 99] > 0 and alpha[50, 0] == 0 and alpha[49, 0] == 0 and alpha[51, 0] == 0


@pytest.mark.parametrize("diameter", [1.0, 2.0, 3.3, 9.0, 24.0])
def test_dots_all_around_the_edge_stay_in_the_picture(diameter):
    """Dots on a ring just outside and inside the window: each pixel's colour comes from a dot that is near it."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(-3, 13, size=(4000, 2))
    points = PointSet(xy)
    codes = (xy[:, 0] > 5).astype(int)
    window = Window(0.0, 10.0, 10.0, 10.0, 100, 100)
    reach = dot_reach(diameter)
    image = dots_image(points.place(window, reach=reach), points.rank, look(points, codes, [RED, BLUE]), diameter)
    columns = np.arange(100)[None, :] + np.zeros((100, 1))
    red = (image & 0xFF0000) > 0
    blue = (image & 0xFF) > 0
    assert columns[red].max() <= 50 + reach and columns[blue].min() >= 49 - reach
    with pytest.raises(ValueError, match="reach out"):
        dots_image(points.place(window, reach=0), points.rank, look(points, codes, [RED, BLUE]), diameter)


def test_the_order_of_drawing_favours_no_group():
    n = 40_000
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1, size=(n, 2))
    codes = np.repeat([0, 1, 2, 3], n // 4)  # sorted by batch, as concatenated files are
    points = PointSet(xy)
    window = Window(0.0, 1.0, 60.0, 60.0, 60, 60)  # some eleven points on each pixel
    image = dots_image(points.place(window, reach=2), points.rank, look(points, codes, [RED, GREEN, BLUE, GREY]), 1.0)
    shares = [np.mean(image == value) for value in (0xFFFF0000, 0xFF00FF00, 0xFF0000FF, 0xFFC8C8C8)]
    assert sum(shares) == pytest.approx(1.0, abs=0.01)
    assert max(abs(share - 0.25) for share in shares) < 4 * np.sqrt(0.25 * 0.75 / 3600)


def test_the_order_is_fixed():
    xy = np.random.default_rng(1).normal(size=(1000, 2))
    np.testing.assert_array_equal(PointSet(xy).order, PointSet(xy).order)


def test_missing_cells_lie_below_all_others():
    n = 5000
    codes = np.zeros(n, int)
    codes[:250] = 1
    xy = np.zeros((n, 2)) + np.random.default_rng(0).normal(scale=0.01, size=(n, 2))
    points = PointSet(xy)
    window = Window(-1.0, 1.0, 20.0, 20.0, 40, 40)  # all on a pixel or four
    placed = points.place(window, reach=3)
    image = dots_image(placed, points.rank, look(points, codes, [GREY, RED], layers=[0, 1]), 3.0)
    assert image[20, 20] == 0xFFFF0000
    density = density_image(points.place(window), look(points, codes, [GREY, RED], layers=[0, 1]))
    alpha, red, green, blue = (int(part[20, 20]) for part in channels(density))
    assert alpha > 0 and red == alpha and green == blue == 0


def test_hidden_levels_leave_no_trace():
    points = PointSet(np.random.default_rng(0).normal(size=(2000, 2)))
    codes = np.arange(2000) % 2
    window = window_of(points)
    hidden = look(points, codes, [RED, GREEN], layers=[-1, 1])
    for image in (dots_image(points.place(window, reach=3), points.rank, hidden, 3.0), density_image(points.place(window), hidden)):
        alpha, red, green, _ = channels(image)
        assert alpha.any() and green.any() and not red.any()
    nothing = look(points, codes, [RED, GREEN], layers=[-1, -1])
    assert not dots_image(points.place(window, reach=3), points.rank, nothing, 3.0).any()
    assert not density_image(points.place(window), nothing).any()


@pytest.mark.parametrize("n", [900, 40_000])
def test_density_shows_the_mean_colour(n):
    """900 points on a pixel are summed in one pass, 40,000 in three; both must give the mean."""
    points = PointSet(np.full((n, 2), 0.5))
    codes = np.where(np.arange(n) % 4 == 0, 0, 1)
    image = density_image(points.place(Window(0.0, 1.0, 10.0, 10.0, 10, 10)), look(points, codes, [(255, 0, 40), (0, 128, 40)]))
    alpha, red, green, blue = (int(part[5, 5]) for part in channels(image))
    assert alpha == 255
    assert (red, green, blue) == (pytest.approx(64, abs=1), pytest.approx(96, abs=1), pytest.approx(40, abs=1))
    assert np.count_nonzero(image) == 1


def test_density_equals_a_plain_loop():
    rng = np.random.default_rng(5)
    points = PointSet(rng.normal(size=(3000, 2)))
    colours = rng.integers(0, 256, (5, 3))
    codes = rng.integers(0, 5, 3000)
    window = window_of(points, 40, 30)
    placed = points.place(window)
    image = density_image(placed, look(points, codes, colours))
    sums = np.zeros((40 * 30, 3))
    counts = np.zeros(40 * 30)
    for point, pixel in zip(points.order[placed.ids], placed.flat, strict=True):
        sums[pixel] += colours[codes[point]]
        counts[pixel] += 1
    alpha, red, green, blue = (part.ravel().astype(float) for part in channels(image))
    filled = counts > 0
    np.testing.assert_array_equal(alpha > 0, filled)
    for part, values in enumerate((red, green, blue)):
        np.testing.assert_allclose(values[filled], (sums[filled, part] / counts[filled]) * alpha[filled] / 255, atol=1.5)
    assert np.all(np.diff(alpha[filled][np.argsort(counts[filled], kind="stable")]) >= 0)  # more cells, more opaque


def test_the_subset_for_dragging_keeps_every_tile():
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.normal(size=(600_000, 2)), [[30.0, 30.0]] * 3])
    points = PointSet(xy)
    assert 190_000 < len(points.coarse) < 280_000
    kept = set(points.order[points.coarse])
    assert {600_000, 600_001, 600_002} <= kept
    assert len(kept) == len(points.coarse)


@pytest.mark.parametrize("diameter", [1.0, 2.0, 3.5, 9.0])
def test_a_stencil_is_round_and_covers_its_area(diameter):
    offsets, cover = stencil(diameter, 1000)
    assert cover.max() == 1 and list(cover) == sorted(cover) and 0 in offsets
    if diameter > 2:
        assert cover.sum() == pytest.approx(np.pi * diameter**2 / 4, rel=0.12)
    assert sorted(-offsets) == sorted(offsets)


def test_dots_shrink_with_their_number():
    sizes = [dot_size(n, 500_000) for n in (100, 1000, 10_000, 100_000, 1_000_000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 9 and sizes[-1] == 1.5


# -- lasso and hover -----------------------------------------------------------------------------------------


def wobbly(rng, corners: int, middle, radius: float) -> np.ndarray:
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    reach = radius * rng.uniform(0.3, 1.0, corners)
    return np.column_stack([middle[0] + reach * np.cos(angle), middle[1] + reach * np.sin(angle)])


@pytest.mark.parametrize("corners", [3, 7, 60, 400])
def test_inside_a_polygon_is_what_matplotlib_says(corners):
    rng = np.random.default_rng(corners)
    points = rng.uniform(-1, 1, size=(20_000, 2))
    polygon = wobbly(rng, corners, (0.1, -0.05), 0.8)
    np.testing.assert_array_equal(inside_polygon(points, polygon), Polygon(polygon).contains_points(points))


def test_a_loop_that_crosses_itself_holds_all_it_went_around():
    twice = np.array([(0, 0), (4, 0), (4, 4), (0, 4), (0, 0.5), (3, 0.5), (3, 3), (0.5, 3), (0.5, 0)], float)
    assert inside_polygon(np.array([[2.0, 2.0]]), twice)[0]


@pytest.fixture
def item(qtbot):
    box = CloudBox()
    canvas = CloudCanvas(box)
    qtbot.addWidget(canvas)
    cloud = PointCloudItem(box)
    box.addItem(cloud, ignoreBounds=True)
    canvas.resize(500, 400)
    canvas.show()
    qtbot.waitExposed(canvas)
    yield cloud
    del canvas  # held until here: qtbot keeps no hold on it


def _fill(item, n=30_000, seed=0, layers=(1, 1)):
    rng = np.random.default_rng(seed)
    points = PointSet(rng.normal(size=(n, 2)))
    item.set_points(points, look(points, np.arange(n) % 2, [RED, BLUE], layers))
    item._box.setRange(item.boundingRect(), padding=0)
    return points


@pytest.mark.parametrize("corners", [3, 12, 300])
def test_the_lasso_is_exact(item, corners):
    points = _fill(item)
    rng = np.random.default_rng(corners)
    window = item.window()
    polygon = wobbly(rng, corners, (window.width / 2, window.height / 2), 150)
    found = item.inside(QPolygonF([QPointF(x, y) for x, y in polygon]))
    pixels = window.to_pixels(points.xy.astype(np.float64))
    expected = np.flatnonzero(Polygon(polygon).contains_points(pixels))
    assert len(expected) > 100
    np.testing.assert_array_equal(found, expected)


def test_the_lasso_leaves_hidden_levels_out(item):
    _fill(item, layers=(1, -1))
    window = item.window()
    corners = [(0, 0), (window.width, 0), (window.width, window.height), (0, window.height)]
    found = item.inside(QPolygonF([QPointF(x, y) for x, y in corners]))
    assert len(found) > 14_000 and not (found % 2).any()


def test_hover_picks_the_nearest_drawn_point(item):
    points = _fill(item, n=2000)
    window = item.window()
    pixels = window.to_pixels(points.xy.astype(np.float64))
    rng = np.random.default_rng(0)
    hits = 0
    for x, y in rng.uniform([0, 0], [window.width, window.height], size=(300, 2)):
        distance = np.hypot(pixels[:, 0] - x, pixels[:, 1] - y)
        picked = item.pick(QPointF(x, y))
        if picked is None:
            assert distance.min() > 8 - 1e-3
        else:
            hits += 1
            assert distance[picked] == pytest.approx(distance.min(), abs=1e-3)
    assert 50 < hits < 300


def test_hover_passes_hidden_levels_over(item):
    points = _fill(item, n=2000, layers=(1, -1))
    place = item.window().to_pixels(points.xy[1:2].astype(np.float64))[0]
    picked = item.pick(QPointF(*place))
    assert picked is None or picked % 2 == 0


def test_what_is_painted_is_what_was_computed(item):
    """The picture on the screen, pixel for pixel, at the place of a lonely point."""
    points = PointSet(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.5]]))
    item.set_points(points, look(points, [0, 1, 0], [(230, 159, 0), (0, 114, 178)]))
    item._box.setRange(item.boundingRect(), padding=0.1)
    canvas = item.getViewWidget()
    picture = canvas.grab().toImage()
    for index, colour in ((0, "#e69f00"), (1, "#0072b2"), (2, "#e69f00")):
        scene = item._box.mapViewToScene(QPointF(*(float(part) for part in points.xy[index])))
        place = canvas.mapFromScene(scene)
        assert picture.pixelColor(place).name() == colour


def test_dragging_draws_less_and_refines_soon(item, qtbot, monkeypatch):
    monkeypatch.setattr("cellweave.app.views.pointcloud.COARSE_ABOVE", 10_000)
    monkeypatch.setattr("cellweave.app.views.points.COARSE_POINTS", 5_000)
    _fill(item, n=200_000)
    drawn = []
    original = PointSet.place

    def spy(self, window, *, coarse=False, reach=0):
        placed = original(self, window, coarse=coarse, reach=reach)
        drawn.append(len(placed.ids))
        return placed

    monkeypatch.setattr(PointSet, "place", spy)
    item._box.translateBy(x=0.01)
    item._box.sigRangeChangedManually.emit([True, True])
    item.getViewWidget().grab()
    assert drawn and max(drawn) < 60_000
    drawn.clear()
    qtbot.waitUntil(lambda: any(number > 150_000 for number in drawn), timeout=3000)


# -- columns -------------------------------------------------------------------------------------------------


def test_levels_missing_values_and_their_colours():
    column = ColumnData.categorical([0, 1, -1, 1, -5], ["a", "b"])
    assert column.point_codes().tolist() == [1, 2, 0, 2, 0]
    assert column.counts().tolist() == [2, 1, 2]
    assert [column.text_of(index) for index in range(3)] == ["a", "b", "missing"]
    assert column.colours("light").shape == (3, 3)
    assert column.colours("light", {"b": "#010203"})[2].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="2 levels"):
        ColumnData.categorical([2], ["a", "b"])


def test_numbers_are_clipped_to_their_bulk():
    values = np.concatenate([np.linspace(0, 1, 1000), [1e9, np.nan, -1e9]])
    column = ColumnData.continuous(values, unit="counts")
    codes = column.point_codes()
    assert codes[1000] == 256 and codes[1001] == 0 and codes[1002] == 1
    assert np.all(np.diff(codes[:1000]) >= 0)
    low, high = column.range
    assert -0.05 < low < 0.05 and 0.95 < high < 1.05
    assert column.text_of(1001) == "missing" and column.text_of(999) == "1 counts"


def test_ratios_are_centred_at_zero():
    column = ColumnData.continuous(np.linspace(-1, 3, 500), diverging=True)
    low, high = column.range
    assert low == -high
    zero = column.point_codes()[np.argmin(np.abs(column.values))]
    assert abs(zero - 128.5) < 2


@pytest.mark.parametrize("values", [np.full(5, 2.0), np.full(3, np.nan), np.empty(0)])
def test_odd_numbers_do_not_stop_the_drawing(values):
    codes = ColumnData.continuous(values).point_codes()
    assert len(codes) == len(values) and (codes >= 0).all() and (codes <= 256).all()
