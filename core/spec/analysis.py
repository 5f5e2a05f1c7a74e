"""The analysis part of the spec: what is computed once training is over."""

from __future__ import annotations

from cellweave.core.spec.fields import Frozen, option


class AnalysisSpec(Frozen):
    """Results that are computed after training and stored in the run folder."""

    umap: bool = option(True, "UMAP", "Compute a UMAP of all cells from the latent space.", group="Embedding")
    n_neighbors: int = option(15, "Neighbours", "Neighbours per cell in the graph for UMAP and clusters.", unit="cells", group="Embedding", ge=2, le=500)
    min_dist: float = option(0.3, "Smallest distance", "How tightly UMAP packs points.", group="Embedding", ge=0, le=3)
    umap_epochs: int | None = option(
        None, "UMAP epochs", "Rounds of the layout.", unit="epochs", group="Embedding", ge=10,
        auto="500 up to 10,000 cells, else 200", advanced=True,
    )
    clusters: bool = option(True, "Clusters", "Leiden clusters on the same graph.", group="Clusters")
    resolution: float = option(1.0, "Resolution", "Higher values give more clusters.", group="Clusters", gt=0, le=20)
    baseline: bool = option(
        True, "Baseline", "PCA of the log-normalised counts, so that the integration can be compared with no integration.", group="Comparison"
    )
    baseline_umap: bool = option(
        False, "UMAP of the baseline", "Also lay out the baseline, to see what was there before the integration.", group="Comparison", advanced=True
    )
    scores: bool = option(True, "Neighbour scores", "How well batches mix and labels stay, before and after.", group="Comparison")
    score_neighbors: int = option(30, "Neighbours scored", "Neighbours per cell in the scores.", unit="cells", group="Comparison", ge=2, le=500, advanced=True)
    denoised: bool = option(False, "Denoised expression", "Write the model's expected expression as a layer of the exported h5ad.", group="Expression")
    colour_by: tuple[str, ...] = option(tuple, "Colour by", "Columns shown on the embedding: one panel each.", group="Embedding")
