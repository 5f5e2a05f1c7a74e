# ruff: noqa: FBT003  (a default that is a truth value is meant)
"""What can be set of a comparison of two groups of cells; the window's form is generated from it. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from cellweave.core.spec import words
from cellweave.core.spec.fields import Frozen, option

TEST, SAMPLING, SAMPLES = "Test", "Sampling", "Samples"
#: Fields that each method heeds; a form shows no others.
HEEDED = {
    "change": ("method", "mode", "delta", "test_mode", "pseudocount", "batch_correction", "fdr_target", "genes", "n_samples", "weights", "use_permutation",
               "filter_outlier_cells", "seed"),
    "vanilla": ("method", "mode", "batch_correction", "genes", "n_samples", "weights", "use_permutation", "filter_outlier_cells", "seed"),
    "pseudobulk": ("method", "sample", "covariates", "min_cells", "min_counts", "fdr_target", "genes"),
}  # fmt: skip


class ComparisonSettings(Frozen):
    """Settings of a comparison; see :class:`cellweave.core.query.differential.DifferentialOptions`."""

    method: Literal["model", "pseudobulk"] = option(
        "model", "Compare by", "Expression sampled from the model, or counts summed over the cells of each sample and tested with DESeq2's model.", group=TEST,
        words=words.COMPARED_BY,
    )
    mode: Literal["change", "vanilla"] = option(
        "change", "Question", "change: how probable is a fold change of at least delta; vanilla: how probable is it that one group expresses more.", group=TEST,
        words=words.COMPARISONS,
    )
    test_mode: Literal["three", "two"] = option(
        "three", "Sides", "three: up, down and unchanged are told apart; two: changed or not.", group=TEST, words=words.SIDES
    )
    delta: float | None = option(
        0.25, "Smallest fold change", "The smallest log2 fold change that counts.", group=TEST, ge=0, le=20, auto="from the data (mixture of normals)"
    )
    fdr_target: float = option(0.05, "False calls", "Expected share of false calls among the genes that are called.", group=TEST, gt=0, lt=1)
    batch_correction: bool = option(False, "Compare within batches", "Decode each cell as every batch in turn and compare within batches.", group=TEST)
    genes: tuple[str, ...] = option(tuple, "Genes", "Report these genes only; empty reports all.", group=TEST)
    pseudocount: float | None = option(
        None, "Pseudocount", "Added to the expressions before the ratio is taken.", group=TEST, gt=0, le=1, auto="from genes that are not expressed",
        advanced=True,
    )
    sample: tuple[str, ...] = option(tuple, "Sample", "Columns that say which sample, donor or animal a cell is of.", group=SAMPLES)
    covariates: tuple[str, ...] = option(tuple, "Covariates", "Further columns of the samples in the model: the donor of paired samples.", group=SAMPLES)
    min_cells: int = option(10, "Smallest sample", "Samples with fewer cells of a group are left out.", unit="cells", group=SAMPLES, ge=1, le=100_000)
    min_counts: int = option(10, "Smallest sum", "Genes with fewer counts over all samples are left out.", unit="counts", group=SAMPLES, ge=0, le=1_000_000)
    n_samples: int = option(5000, "Samples", "Drawn from the model for each group.", group=SAMPLING, ge=10, le=1_000_000, advanced=True)
    weights: Literal["uniform", "importance"] = option(
        "uniform", "Cells drawn", "uniform: all alike; importance: so that their posteriors fit the whole group.", group=SAMPLING, advanced=True,
        words=words.CELLS_DRAWN,
    )
    use_permutation: bool = option(
        False, "Random pairs", "Compare pairs drawn at random instead of each sample with its counterpart.", group=SAMPLING, advanced=True
    )
    filter_outlier_cells: bool = option(
        False, "Leave outliers out", "Leave out cells whose latent is far from their group's.", group=SAMPLING, advanced=True
    )
    seed: int = option(0, "Seed", "Determines every draw.", group=SAMPLING, ge=0, le=2**31 - 1, advanced=True)

    @field_validator("genes", "sample", "covariates", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def heeded(self) -> tuple[str, ...]:
        """Return the fields that are heeded with this method and mode."""
        return HEEDED["pseudobulk" if self.method == "pseudobulk" else self.mode]
