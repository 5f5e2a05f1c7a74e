"""The analysis part of the spec: what is computed once training is over."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import field_validator

from cellweave.core.spec import words
from cellweave.core.spec.fields import Frozen, option

#: Names of the integration metrics (:data:`cellweave.core.analysis.integration.METRICS` says what they are).
MetricName = Literal[
    "ilisi", "kbet", "silhouette_batch", "graph_connectivity", "pcr", "bras", "clisi", "silhouette_label", "isolated_labels", "isolated_f1", "nmi", "ari"
]
METRICS: tuple[str, ...] = get_args(MetricName)


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
    integration: bool = option(
        True, "Integration metrics",
        "iLISI, kBET, silhouettes, Leiden NMI and others, beside the baseline; computed with the scores, on a sample of large data.", group="Comparison",
    )
    integration_metrics: tuple[MetricName, ...] = option(
        tuple, "Which metrics", f"Only these of {', '.join(METRICS)}; none named means all.", group="Comparison", advanced=True, words=words.METRIC_WORDS
    )
    integration_cells: int = option(
        50_000, "Cells measured", "More cells than this are measured on a sample, drawn within each batch and label.", unit="cells",
        group="Comparison", ge=100, advanced=True,
    )
    integration_batch: str | None = option(
        None, "Batch of the metrics", "Column whose levels are to be mixed.", group="Comparison", auto="the batch", advanced=True
    )
    integration_labels: str | None = option(
        None, "Labels of the metrics", "Column whose levels are to stay apart.", group="Comparison", auto="the labels", advanced=True
    )
    denoised: bool = option(False, "Denoised expression", "Write the model's expected expression as a layer of the exported h5ad.", group="Expression")
    imputed: bool = option(
        False, "Imputed values", "Write what the model expects of every modality in every cell, measured or not; of models of several modalities.",
        group="Expression",
    )
    corrected: bool = option(
        False, "Batch-corrected values", "Write the same with the technical part of the latent replaced by one for all cells; of MIDAS.", group="Expression"
    )
    translated: bool = option(
        False, "Translated values", "Write every modality as it is told from each set of others alone; large, and of models of several modalities.",
        group="Expression", advanced=True,
    )
    alignment: bool = option(
        True, "Alignment of modalities", "How near the modalities of a cell lie together, and a UMAP of each beside the joint one. Only of models "
        "that give it.",
        group="Comparison",
    )
    colour_by: tuple[str, ...] = option(tuple, "Colour by", "Columns shown on the embedding: one panel each.", group="Embedding")

    @field_validator("integration_metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value
    neighbourhood: bool = option(
        False, "Neighbourhood diagnostics", "Correlate the marker genes of every cell with those of its neighbours by library, data set and technical column.",
        group="Diagnostics",
    )
    neighbourhood_neighbors: int = option(
        50, "Neighbours looked at", "Neighbours per cell in the diagnostics.", unit="cells", group="Diagnostics", ge=3, le=500, advanced=True
    )
    marker_file: str | None = option(
        None, "Marker genes", "CSV with a column 'gene' and, where known, 'cell_type', 'lineage' and 'category'; used with the markers found in the data.",
        group="Diagnostics", advanced=True, auto="the published list that comes with the program",
    )
    attribution: bool = option(
        True, "Modality attribution", "After training, how much each latent dimension drives each modality in every cell. Only of models that give it.",
        group="Attribution",
    )
    attribution_cells: int | None = option(
        None, "Cells attributed", "A sample, stratified by batch, where there are more; the others have no attribution.", unit="cells", group="Attribution",
        ge=100, advanced=True, auto="at most 20,000, fewer where it would take long",
    )
    attribution_live: bool = option(
        False, "Attribution while training", "Refresh the attribution of a sample of cells with the live embedding.", group="Attribution"
    )
    attribution_covariates: Literal["kept", "categories", "scaling", "all"] = option(
        "kept", "Covariates in the attribution", "Whether cells are decoded with their own covariates, or without categories, feature scaling, or both.",
        group="Attribution", advanced=True, words=words.COVARIATES_KEPT,
    )
    attribution_reference: Literal["zero", "mean", "reference"] = option(
        "zero", "In place of a covariate", "What stands for a removed covariate: nothing, the mean over its levels, or its most frequent level.",
        group="Attribution", advanced=True, words=words.REFERENCE_LEVELS,
    )
