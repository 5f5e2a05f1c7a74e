# ruff: noqa: FBT003  (a default that is a truth value is meant)
"""What can be set of a figure; the window's dialog is generated from it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from cellweave.core.spec import words
from cellweave.core.spec.fields import Frozen, option

PAGE, CONTENT, POINTS, CURVES, GENES, RUNS, IMPUTATION = "Page", "Content", "Points", "Curves", "Genes", "Runs", "Imputation"
FIGURES = {
    "losses": "Losses", "embedding": "Embedding", "scores": "Scores", "loadings": "Loadings", "volcano": "Volcano plot",
    "metrics": "Integration metrics",
    "attribution": "Modality attribution",
    "ambient": "Ambient background",
    "modalities": "Modalities",
    "imputation": "Imputation",
}
#: The column that tells mapped cells from those of their reference, and its levels.
ORIGIN, ORIGINS = "new or reference", ("new cells", "reference")
FigureKind = Literal["losses", "embedding", "scores", "loadings", "volcano", "metrics", "attribution", "ambient", "modalities", "imputation"]


class FigureOptions(Frozen):
    """Options of an exported figure."""

    width_mm: float | None = option(
        None, "Width", "Width of the whole figure. A column of a journal is some 85 mm wide, a page 180.", unit="mm", group=PAGE,
        ge=30, le=1000, auto="as the content needs",
    )
    height_mm: float | None = option(
        None, "Height", "Height of the whole figure.", unit="mm", group=PAGE, ge=30, le=1000, auto="as the content needs"
    )
    dpi: int = option(
        300, "Resolution", "Pixels of a PNG, and of the points inside an SVG or PDF.", unit="dpi", group=PAGE, ge=50, le=1200
    )
    font: str = option(
        "Arial, Helvetica, DejaVu Sans", "Fonts", "Names of fonts, the best first; the first that is installed is taken.", group=PAGE, advanced=True
    )
    font_size: float = option(7.0, "Font size", "Size of labels; titles are one point larger.", unit="pt", group=PAGE, ge=3, le=40)
    theme: Literal["light", "dark"] = option("light", "Background", "Light for paper, dark for slides.", group=PAGE, words=words.THEMES)
    transparent: bool = option(False, "Transparent", "Leave the background out.", group=PAGE, advanced=True)

    title: str = option("", "Title", "Written above the figure.", group=CONTENT)
    legend: bool = option(True, "Legend", "Levels with their number of cells, or the range of values.", group=CONTENT)
    columns: tuple[str, ...] = option(
        tuple, "Coloured by",
        "One panel for each: a column of the cells, 'leiden', 'latent:1', a gene as 'gene:CD3E' (log counts), 'counts:CD3E', 'denoised:CD3E' or "
        "'corrected:CD3E'. Empty takes batch beside cell type.",
        group=CONTENT,
    )
    panels_per_row: int | None = option(
        None, "Panels in a row", "How many panels stand beside one another.", unit="panels", group=CONTENT, ge=1, le=20, auto="up to three"
    )
    runs: tuple[str, ...] = option(
        tuple, "Other runs", "Folders of further runs of the same data, shown as points beside this one.", group=RUNS, advanced=True
    )
    layout: Literal["umap", "baseline", "joint"] = option(
        "umap", "Embedding", "UMAP of the latent space, of the baseline without integration, or, of a mapped run, of its cells among those of the reference "
        "(joint).", group=CONTENT, words=words.LAYOUTS,
    )

    point_size: float | None = option(
        None, "Point size", "Diameter of a point.", unit="pt", group=POINTS, gt=0, le=30, auto="from the number of cells"
    )
    opacity: float = option(1.0, "Opacity", "1 covers what lies below.", group=POINTS, gt=0, le=1)
    seed: int = option(
        0, "Drawing order", "Points are drawn in random order, so that no level covers another; this number fixes it.", group=POINTS, ge=0, advanced=True
    )
    colour_map: Literal["viridis", "cividis", "magma"] = option("viridis", "Colours of values", "Map for quantities.", group=POINTS, words=words.COLOUR_MAPS)
    colours: dict[str, str] = option(
        dict, "Colours of levels", "Colour of a level, as #RRGGBB, where it shall not have the usual one.", group=POINTS, advanced=True
    )

    log_scale: bool = option(False, "Logarithmic", "Logarithmic axis of the losses.", group=CURVES)
    smoothing: float = option(0.0, "Smoothing", "0 shows every epoch as it was; higher values average over more of those before.", group=CURVES, ge=0, le=0.99)
    clip_outliers: bool = option(True, "Clip outliers", "Let the axis follow most epochs rather than the first few.", group=CURVES)
    terms: tuple[str, ...] = option(tuple, "Terms", "Loss terms to show; empty shows all.", group=CURVES)

    genes_each: int = option(3, "Genes of each dimension", "How many of the strongest genes of each latent dimension are shown.", group=GENES, ge=1, le=50)
    comparison: str = option("", "Comparison", "Name of a kept comparison; empty takes the newest.", group=GENES)
    label_genes: int = option(12, "Genes named", "How many genes are named in the plot, the surest first; names that would cover others are left out.",
        group=GENES, ge=0, le=200,
    )

    attribution_score: Literal["total", "own", "other", "frobenius", "own_share"] = option(
        "total", "Score", "Which attribution score of the decoders is plotted: over all latents, the modality's own or the others', the norm of the Jacobian, "
        "or the share of own latents in it.", group="Attribution", words=words.ATTRIBUTIONS,
    )

    imputation_modality: str = option("", "Modality", "Modality whose imputed values are drawn; empty takes the first that was judged.", group=IMPUTATION)
    imputation_feature: str = option("", "Feature", "Feature whose values are drawn; empty draws those of all features.", group=IMPUTATION)
    features_listed: int = option(
        10, "Features listed", "How many features are listed with their score, the highest first; 0 leaves the list out.", group=IMPUTATION, ge=0, le=60
    )

    @field_validator("columns", "terms", "runs", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("colours")
    @classmethod
    def _are_colours(cls, colours: dict[str, str]) -> dict[str, str]:
        for level, colour in colours.items():
            if not re.fullmatch(r"#[0-9A-Fa-f]{6}", colour):
                message = f"the colour of '{level}' is '{colour}'; write it as #RRGGBB"
                raise ValueError(message)
        return colours
