"""Hues of loss terms: told apart from each other and from the grounds, also by those who lack one kind of cone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from cellweave.core.export.palette import LOSS_COLOURS, OKABE_ITO, hex_to_rgb, look, loss_colour, oklab
from cellweave.core.models.registry import families
from cellweave.core.spec import RunSpec

#: What is left of linear RGB without the red, the green or the blue cones (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "full": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def linear(colours: list[str]) -> np.ndarray:
    value = np.array([hex_to_rgb(colour) for colour in colours]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def seen(colours: list[str], sight: str) -> np.ndarray:
    """Return OKLab of colours as they are seen."""
    light = np.clip(linear(colours) @ SIGHT[sight].T, 0, 1)
    return oklab(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def nearest(lab: np.ndarray) -> float:
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(lab, 2))


def contrast(colours: list[str], ground: str) -> np.ndarray:
    light, behind = (linear(each) @ [0.2126, 0.7152, 0.0722] + 0.05 for each in (colours, [ground]))
    return np.maximum(light, behind) / np.minimum(light, behind)


@pytest.mark.parametrize("sight", list(SIGHT))
def test_hues_are_told_apart_by_everybody(sight: str):
    lab = seen(list(LOSS_COLOURS), sight)
    assert nearest(lab[:9]) > 0.07  # the terms of MIDAS
    assert nearest(lab) > (0.095 if sight == "full" else 0.045)
    # The eight of Okabe and Ito with their grey would not do: pink and grey are one without the green cones.
    assert sight != "deuteranopia" or nearest(seen(list(OKABE_ITO), sight)) < 0.03


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_further_hues_stand_out_from_the_ground_and_are_not_the_total(theme: str):
    colours = look(theme)  # type: ignore[arg-type]
    more = list(LOSS_COLOURS[7:])
    assert contrast(more, colours["background"]).min() > 2.85
    for sight in SIGHT:
        neutral = seen([colours["text"], colours["secondary"], colours["background"]], sight)
        apart = np.linalg.norm(seen(list(LOSS_COLOURS), sight)[7:, None] - neutral[None], axis=2)
        assert apart.min() > 0.045


def test_the_order_of_the_curves_begins_with_okabe_and_ito():
    assert LOSS_COLOURS[:7] == OKABE_ITO[:7]
    assert len(set(LOSS_COLOURS)) == len(LOSS_COLOURS)
    assert loss_colour(-1) == look("light")["text"]


@pytest.mark.parametrize("kind", list(families()))
def test_no_two_terms_of_a_family_share_a_hue(kind: str):
    spec = RunSpec().with_changes({"model.kind": kind, "covariates.batch": "batch", "data.layers": {"rna": "X", "adt": "X", "atac": "X"}})
    hues = [loss_colour(term.colour) for term in spec.terms()]
    assert len(hues) == len(set(hues))
    if kind == "midas":
        assert len(hues) == 9


def test_the_window_and_the_figures_have_the_same_hues():
    pytest.importorskip("qtpy")
    from cellweave.app.theme import series_color

    for number in range(20):
        assert series_color(number).name().upper() == loss_colour(number)
