"""The data part of the spec: which files, which matrix, which features, which cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import field_validator

from cellweave.core.spec import words
from cellweave.core.spec.fields import Frozen, option
from cellweave.core.spec.modalities import modality_kind, modality_kinds

BLOCK_MODES = ("automatic", "by chromosome", "one block")


class FeatureSelection(Frozen):
    """Which features of one modality the model sees."""

    mode: Literal["all", "variable", "list"] = option(
        "all", "Features", "All features, the most variable ones, or those named in a file with one name a line.", words=words.FEATURES
    )
    n: int = option(2000, "Number of features", "How many of the most variable features to keep.", ge=2, unit="features")
    batch_column: str | None = option(
        None,
        "Rank within",
        "Rank variability within each level of this column, so that a batch effect does not choose the features.",
        auto="no column",
        advanced=True,
    )
    file: str | None = option(None, "Feature list", "Text file with one feature name a line.", auto="none", advanced=True)


class SwitchedOff(Frozen):
    """One cell of the mosaic grid that is left out: a modality in the cells of one level of a column."""

    column: str = option("", "Column", "The obs column whose levels are the rows of the mosaic grid.")
    level: str = option("", "Level", "Which level of the column.")
    modality: str = option("", "Modality", "The modality to leave out for these cells.")


def labels_off(switched_off: Sequence[SwitchedOff], column: str | None) -> frozenset[tuple[str, str]]:
    """Return what was switched off by the levels of a column, as the level and the label of the modality: ``("p3_0", "ADT")``."""
    return frozenset((one.level, modality_kind(one.modality).label) for one in switched_off if one.column == column)


class DataSpec(Frozen):
    """Which data, and how they are read."""

    paths: tuple[str, ...] = option(tuple, "Files", "One file, or several that together are one study.")
    sha256: tuple[str, ...] = option(
        tuple, "Check sums", "SHA-256 of each file, recorded when the run was made.", advanced=True
    )
    modality: str | None = option(
        None, "Modality", "The modality that a one-modality model is trained on.", auto="RNA where there is one"
    )
    layers: dict[str, str] = option(
        dict,
        "Counts in",
        "Where the raw counts of each modality are: 'X', 'raw/X' or 'layers/NAME'. A modality that is not named is "
        "looked through and the first place with raw counts is taken.",
    )
    features: dict[str, FeatureSelection] = option(dict, "Features by modality", "Feature selection of each modality.")
    join: Literal["union", "intersection"] = option(
        "intersection",
        "Features of several files",
        "Keep the features that every file has, or all of them. Models that do not know masks (scVI, LDVAE) take what a file lacks for zeros.",
        words=words.JOINS,
    )
    masks: dict[str, str] = option(
        dict,
        "Masks",
        "By modality, where it is said which features were measured: 'layers/NAME' or 'obsm/NAME' (0 or 1 by cell), 'var/NAME' or 'uns/NAME' (by "
        "feature; NAME_BATCH for one a batch), or a CSV file with feature names as titles and a row a batch or cell. A modality that is not named "
        "has the masks that uns['mask_BATCH'] holds.",
        advanced=True,
    )
    nan_is_missing: bool = option(
        False,
        "NaN means not measured",
        "Take NaN among the counts for values that were not measured, instead of refusing the file.",
        advanced=True,
    )
    blocks: dict[str, str] = option(
        dict,
        "Blocks of features",
        "How a modality is divided for models that read it in blocks: 'automatic' (peaks by chromosome, others whole), 'by chromosome', 'one block', "
        "'column NAME' for the levels of a column of var, or sizes of consecutive blocks such as '2897, 2007'.",
        advanced=True,
    )
    same_cells: Literal["automatic", "joined", "apart"] = option(
        "automatic",
        "Cells of several files",
        "Cells of the same name in files with different modalities are one cell each: always, never, or where most names agree.",
        advanced=True, words=words.SAME_CELLS,
    )
    batch_from_file: bool = option(
        True, "File is a column", "With several files, add the column 'file' that says which file a cell came from.",
        advanced=True,
    )
    make_names_unique: bool = option(
        False, "Make names unique", "Append -1, -2 ... to repeated cell and feature names."
    )
    drop_empty_cells: bool = option(False, "Leave out empty cells", "Leave out cells without a single count.")
    drop_empty_features: bool = option(
        False, "Leave out empty features", "Leave out features that no cell has a count of."
    )
    accept_non_integer: bool = option(
        False,
        "Accept non-integer values",
        "Train on values that are not whole numbers, such as corrected counts. The likelihoods are made for counts.",
        advanced=True,
    )
    real_valued: tuple[str, ...] = option(
        tuple,
        "Real-valued modalities",
        "Modalities whose values are no counts but any finite numbers, negative ones too; they need a distribution of real numbers, such as gaussian. "
        "Those that a plug-in declares with one need not be named.",
        advanced=True,
    )
    min_cells_per_batch: int = option(
        2,
        "Smallest batch",
        "Cells of a batch with fewer cells than this are left out of training; the trained encoder still gives them a latent.",
        ge=2, unit="cells", advanced=True,
    )
    fill_missing: dict[str, str] = option(
        dict, "Missing values", "Level that stands for a missing value, by obs column.", advanced=True
    )
    combine: dict[str, tuple[str, ...]] = option(
        dict, "Combined columns", "New obs columns made by joining the values of others.", advanced=True
    )
    new_columns: dict[str, str] = option(
        dict, "New columns", "New obs columns that have one value in all cells: the batch of data that are all of one.", advanced=True
    )
    switched_off: tuple[SwitchedOff, ...] = option(
        tuple, "Switched off", "Cells of the mosaic grid that are treated as not measured.", advanced=True
    )

    @field_validator("paths", "sha256", "real_valued", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        """Allow a single string where a list is meant: ``--set data.paths=file.h5ad``."""
        return (value,) if isinstance(value, str) else value

    def is_real_valued(self, modality: str) -> bool:
        """Return whether any finite numbers are values of a modality: it is named in :attr:`real_valued`, or a plug-in declares it so."""
        kind = modality_kinds().get(modality)
        return modality in self.real_valued or (kind is not None and kind.is_real_valued)

    @field_validator("blocks", mode="before")
    @classmethod
    def _sizes_are_words(cls, value: object) -> object:
        """Allow sizes as numbers: ``atac = [2897, 2007]``."""
        if not isinstance(value, Mapping):
            return value
        return {key: ", ".join(map(str, how)) if isinstance(how, list | tuple) else how for key, how in value.items()}

    @field_validator("blocks")
    @classmethod
    def _known_divisions(cls, value: dict[str, str]) -> dict[str, str]:
        for name, how in value.items():
            sizes = [part.strip() for part in how.split(",") if part.strip()]
            if how in BLOCK_MODES or (how.startswith("column ") and how[7:].strip()) or (sizes and all(part.isdigit() and int(part) > 0 for part in sizes)):
                continue
            message = f"'{how}' does not divide {name}: write 'automatic', 'by chromosome', 'one block', 'column NAME' or sizes such as '2897, 2007'"
            raise ValueError(message)
        return value
