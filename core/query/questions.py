# ruff: noqa: FBT003  (a default that is a truth value is meant)
"""What one may ask of a trained model, declared as data; the window's dialog is built from this list. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pydantic import field_validator

from cellweave.core.spec import RunSpec, words
from cellweave.core.spec.fields import Frozen, option

GENES, BATCHES, DRAWS, MODALITIES, CELLS = "Genes", "Batches", "Draws", "Modalities", "Cells"
SEED = 2**31 - 1


class _Listing(Frozen):
    """Base of options with lists of names."""

    @field_validator("genes", "as_batch", "given", "modalities", "batches", "features", mode="before", check_fields=False)
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class LatentOptions(Frozen):
    """Of the latent space."""

    what: Literal["mean", "sample", "distribution"] = option(
        "mean", "Of the posterior", "Its mean, one draw from it, or mean and variance (before any transformation).", group=DRAWS, words=words.POSTERIORS
    )
    seed: int = option(0, "Seed", "Determines the draw.", group=DRAWS, ge=0, le=SEED)


class LibraryOptions(Frozen):
    """Of the library size."""

    sample: bool = option(False, "Draw", "Draw from the posterior instead of taking its mean.", group=DRAWS)
    seed: int = option(0, "Seed", "Determines the draw.", group=DRAWS, ge=0, le=SEED)


class ExpressionOptions(_Listing):
    """Of normalised expression."""

    genes: tuple[str, ...] = option(tuple, "Genes", "Only these; empty takes all.", group=GENES)
    as_batch: tuple[str, ...] = option(
        tuple, "Decode as", "Decode every cell as these batches and take the mean. Empty keeps each cell's own, which corrects nothing.", group=BATCHES
    )
    all_batches: bool = option(False, "Decode as every batch", "Decode every cell as each batch and take the mean: corrected expression.", group=BATCHES)
    library_size: float | None = option(10_000.0, "Library size", "What the shares of each cell sum to.", gt=0, le=1e9, auto="each cell's own")
    draws: int | None = option(None, "Draws", "Draws of the latent that are averaged.", group=DRAWS, ge=1, le=1000, auto="posterior mean")
    seed: int = option(0, "Seed", "Determines the draws.", group=DRAWS, ge=0, le=SEED)


class PredictiveOptions(_Listing):
    """Of posterior predictive samples."""

    genes: tuple[str, ...] = option(tuple, "Genes", "Only these; empty takes all.", group=GENES)
    as_batch: tuple[str, ...] = option(tuple, "Decode as", "Decode every cell as these batches; empty keeps its own.", group=BATCHES)
    draws: int = option(1, "Draws", "Counts drawn for each cell.", group=DRAWS, ge=1, le=100)
    seed: int = option(0, "Seed", "Determines the draws.", group=DRAWS, ge=0, le=SEED)


class ParameterOptions(_Listing):
    """Of the parameters of the likelihood."""

    genes: tuple[str, ...] = option(tuple, "Genes", "Only these; empty takes all.", group=GENES)
    draws: int | None = option(None, "Draws", "Draws of the latent that are averaged.", group=DRAWS, ge=1, le=1000, auto="posterior mean")
    seed: int = option(0, "Seed", "Determines the draws.", group=DRAWS, ge=0, le=SEED)


class CorrelationOptions(_Listing):
    """Of the correlation of genes."""

    genes: tuple[str, ...] = option(tuple, "Genes", "Only these; empty takes all, which needs the square of their number.", group=GENES)
    correlation: Literal["spearman", "pearson"] = option("spearman", "Correlation", "Of ranks, or of values.", words=words.CORRELATIONS)
    as_batch: tuple[str, ...] = option(tuple, "Decode as", "Decode every cell as these batches; empty keeps its own.", group=BATCHES)
    draws: int = option(10, "Draws", "Draws a cell.", group=DRAWS, ge=1, le=1000)
    library_size: float = option(1000.0, "Library size", "Size of every cell.", gt=0, le=1e9)
    seed: int = option(0, "Seed", "Determines the draws.", group=DRAWS, ge=0, le=SEED)


class EvaluationOptions(Frozen):
    """Of the evidence lower bound and the marginal likelihood."""

    draws: int = option(1, "Draws", "Draws of the latent over which the terms of the bound are averaged.", group=DRAWS, ge=1, le=1000)
    marginal: bool = option(True, "Marginal likelihood", "Estimate it by importance sampling; it takes the time of its draws.", group=DRAWS)
    marginal_draws: int = option(100, "Its draws", "The estimate rises with them towards the truth.", group=DRAWS, ge=1, le=100_000)
    seed: int = option(0, "Seed", "Determines the draws.", group=DRAWS, ge=0, le=SEED)


class FeatureOptions(Frozen):
    """Of the reconstruction loss of features."""

    draws: int = option(1, "Draws", "Draws of the latent over which the losses are averaged.", group=DRAWS, ge=1, le=1000)
    seed: int = option(0, "Seed", "Determines the draws.", group=DRAWS, ge=0, le=SEED)


class DimensionOptions(Frozen):
    """Of the divergence of latent dimensions: nothing is drawn, so there is nothing to choose."""


class DiscrepancyOptions(Frozen):
    """Of the maximum mean discrepancy between batches."""

    batch_size: int = option(128, "Minibatch", "Cells that are compared at a time.", unit="cells", ge=4, le=100_000)
    sample: bool = option(False, "Draw", "Compare draws from the posteriors, as training does, instead of posterior means.", group=DRAWS)
    seed: int = option(0, "Seed", "Determines the order of the cells and the draws.", group=DRAWS, ge=0, le=SEED)


_GIVEN = "Modalities that the model may look at; empty lets it look at all that were measured."
_WRITTEN = "Modalities that are written; empty writes all. h5ad and CSV hold one."


class SpreadOptions(_Listing):
    """Of imputed values on the scale of counts, with their spread over the posterior."""

    given: tuple[str, ...] = option(tuple, "Look at", _GIVEN, group=MODALITIES, auto="all measured")
    modalities: tuple[str, ...] = option(tuple, "Write", _WRITTEN, group=MODALITIES, auto="all")
    blended: bool = option(False, "Keep measured values", "Write what was measured as it is, and fill in only what was not.")
    draws: int | None = option(
        None, "Draws", "Draws of the latent; their mean is written, and their standard deviation beside it.", group=DRAWS, ge=2, le=1000, auto="posterior mean"
    )
    seed: int = option(0, "Seed", "Determines the draws.", group=DRAWS, ge=0, le=SEED)


class ImputedOptions(SpreadOptions):
    """Of imputed values, also on the scale of training."""

    scale: Literal["counts", "training"] = option(
        "counts", "Scale", "Counts, at the depth of each cell where it is known and that of a typical cell elsewhere; or the scale of training.",
        words=words.SCALES,
    )


_HOW = "Expected values, or counts drawn from them."


class DrawnOptions(SpreadOptions):
    """Of imputed values that may also be counts drawn from the model."""

    values: Literal["expected", "drawn"] = option("expected", "Values", _HOW, group=DRAWS, words=words.VALUES)


class CorrectedOptions(_Listing):
    """Of values freed of the batch."""

    modalities: tuple[str, ...] = option(tuple, "Write", "Modalities that are written; empty writes all. h5ad holds one.", group=MODALITIES)
    values: Literal["expected", "drawn"] = option("expected", "Values", _HOW, group=DRAWS, words=words.VALUES)
    seed: int = option(0, "Seed", "Determines the counts that are drawn.", group=DRAWS, ge=0, le=SEED)


class TranslatedOptions(_Listing):
    """Of values translated from some modalities to others."""

    given: tuple[str, ...] = option(tuple, "From", "Modalities that the translation starts from; nothing else is looked at.", group=MODALITIES)
    modalities: tuple[str, ...] = option(tuple, "To", "Modalities that are told; empty tells all others. h5ad holds one.", group=MODALITIES, auto="all others")
    values: Literal["expected", "drawn"] = option("expected", "Values", _HOW, group=DRAWS, words=words.VALUES)
    seed: int = option(0, "Seed", "Determines the counts that are drawn.", group=DRAWS, ge=0, le=SEED)


class LatentGivenOptions(_Listing):
    """Of the latent space given some modalities."""

    given: tuple[str, ...] = option(tuple, "Look at", _GIVEN, group=MODALITIES, auto="all measured")


class JudgeOptions(_Listing):
    """Of how well values are imputed: what is judged, of which cells, and what the model may look at."""

    modality: str | None = option(None, "Judge", "The modality that is hidden and judged.", group=MODALITIES, auto="every modality")
    given: tuple[str, ...] = option(
        tuple, "Look at", "Modalities that the model may look at; empty lets it look at all that are left.", group=MODALITIES
    )
    features: tuple[str, ...] = option(
        tuple, "Features", "Genes, proteins or peaks whose values are compared; empty compares all. What is hidden stays the same.", group=MODALITIES
    )
    batches: tuple[str, ...] = option(tuple, "Batches", "Only cells of these batches; empty takes all.", group=CELLS)
    held_out_cells: bool = option(
        True, "Unseen cells only", "Judge cells that training has not seen, where there are any. What was switched off is unseen in any case.", group=CELLS
    )
    most_cells: int = option(2000, "At most", "A random sample of so many cells is judged.", unit="cells", group=CELLS, ge=20, le=1_000_000)
    seed: int = option(0, "Seed", "Determines the sample, and which single values are hidden.", group=CELLS, ge=0, le=SEED)


@dataclass(frozen=True)
class Question:
    """One thing to ask.

    Attributes
    ----------
    name, title, help
        Identifier, and texts for the dialog.
    options
        What can be set.
    formats
        Suffixes that the answer can be written with, the usual one first.
    module
        Where in :mod:`cellweave.core.query` the function ``answer_NAME`` is.
    """

    name: str
    title: str
    help: str
    options: type[Frozen]
    formats: tuple[str, ...] = (".csv", ".h5ad")
    module: str = "answering"

    def load(self) -> Any:
        """Import the function that answers; it imports torch."""
        return getattr(import_module(f"cellweave.core.query.{self.module}"), f"answer_{self.name}")


Q = Question
QUESTIONS: tuple[Question, ...] = (
    Q("latent", "Latent space", "Where each cell lies in the latent space.", LatentOptions),
    Q("library", "Library size", "The library size that the model infers for each cell.", LibraryOptions),
    Q("expression", "Normalised expression", "Expression without sampling noise, of each cell as its own batch or as others. Written a few cells at a time, so "
      "that a million cells do not fill the memory.", ExpressionOptions, (".h5ad", ".csv")),
    Q("predictive", "Posterior predictive samples", "Counts drawn from the model for every cell.", PredictiveOptions, (".h5ad",)),
    Q("parameters", "Likelihood parameters",
      "Mean, inverse dispersion and probability of an extra zero, of every cell and gene.", ParameterOptions, (".h5ad",)),
    Q("correlation", "Correlation of genes", "How genes go together, without the noise of counting.", CorrelationOptions),
    Q("evaluation", "How well cells are described", "ELBO, reconstruction error and marginal likelihood of every cell, in nats; their means are shown.",
      EvaluationOptions),
    Q("features", "Reconstruction of each feature",
      "Which genes, peaks or proteins the model describes well and which it does not: the reconstruction loss of each, in nats per cell. Over all features "
      "they add up to the reconstruction of the curves.", FeatureOptions, (".csv",)),
    Q("dimensions", "Use of each latent dimension",
      "How much each dimension of the latent space says of the cells: its divergence (KL) from the prior in nats, 0 where the model does not use it, and in "
      "which share of the cells it is active.", DimensionOptions, (".csv",)),
    Q("discrepancy", "Discrepancy between batches", "Maximum mean discrepancy of every pair of batches, as the model's own term measures it.",
      DiscrepancyOptions, (".csv",)),
)  # fmt: skip
_VALUES = "mosaic_answers"
#: What only a model of several modalities can be asked.
IMPUTED = Q(
    "imputed", "Imputed values", "What every feature of every modality would be in each cell, measured or not, given the modalities of your choice.",
    ImputedOptions, (".h5mu", ".h5ad", ".h5", ".csv"), _VALUES,
)  # fmt: skip
IMPUTED_COUNTS = Q(IMPUTED.name, IMPUTED.title, IMPUTED.help, DrawnOptions, IMPUTED.formats, _VALUES)
CORRECTED = Q(
    "corrected", "Batch-corrected values", "What every feature of every modality would be if all cells had come from one batch, the one nearest the middle of "
    "all.", CorrectedOptions, (".h5mu", ".h5ad", ".h5"), _VALUES,
)  # fmt: skip
TRANSLATED = Q(
    "translated", "Translated values", "What some modalities alone say of the others; cells that have none of them have no values.", TranslatedOptions,
    (".h5mu", ".h5ad", ".h5"), _VALUES,
)  # fmt: skip
LATENT_GIVEN = Q(
    "latent_given", "Latent space given some modalities", "Where each cell lies when the model looks at some of its modalities only, RNA alone for instance; "
    "cells that have none of them are left out.", LatentGivenOptions, module=_VALUES,
)  # fmt: skip


def questions_of(spec: RunSpec) -> tuple[Question, ...]:
    """Return what may be asked of the model of a run; those of several modalities have values, and no likelihoods or libraries of a single one."""
    if spec.model.kind == "midas":
        return (IMPUTED_COUNTS, CORRECTED, TRANSLATED, LATENT_GIVEN)
    if spec.model.kind == "vaeit":
        return (IMPUTED, LATENT_GIVEN, *(question for question in QUESTIONS if question.name == "expression"))
    return QUESTIONS
