"""The covariate part of the spec: which obs column plays which role."""

from __future__ import annotations

from pydantic import field_validator

from cellweave.core.spec.fields import Frozen, option

SINGLE_ROLES = ("batch", "library", "dataset", "dispersion", "library_size", "labels", "size_factor")
LIST_ROLES = ("technical", "ambient", "decoder", "feature_scaling", "encoder", "continuous")
ROLES = (
    "batch", "library", "dataset", "technical", "ambient", "decoder", "feature_scaling",
    "dispersion", "library_size", "encoder", "continuous", "labels", "size_factor",
)


class CovariateSpec(Frozen):
    """Roles of obs columns. A role that the chosen model does not use must be empty."""

    batch: str | None = option(
        None, "Batch", "The column whose effect is to be removed from the latent space.", auto="none"
    )
    library: str | None = option(
        None, "Library", "The finest technical unit, one capture or lane; drives the same parts as the batch.", auto="none"
    )
    dataset: str | None = option(
        None, "Data set", "The study a library belongs to; each library lies in exactly one.", auto="none"
    )
    technical: tuple[str, ...] = option(tuple, "Technical", "Other technical columns, compared in the diagnostics.")
    ambient: tuple[str, ...] = option(tuple, "Ambient", "Columns whose levels each have their own ambient profile.")
    decoder: tuple[str, ...] = option(
        tuple,
        "Decoder",
        "Further categorical columns the decoder is told of, so that the latent need not carry them.",
    )
    feature_scaling: tuple[str, ...] = option(
        tuple, "Feature scaling", "Columns whose levels each scale every feature by their own factor."
    )
    dispersion: str | None = option(None, "Dispersion group", "Column whose levels have dispersions of their own.", auto="none")
    library_size: str | None = option(
        None, "Library-size group", "Column whose levels have library-size priors of their own.", auto="none"
    )
    encoder: tuple[str, ...] = option(tuple, "Encoder", "Categorical columns the encoder is told of.")
    continuous: tuple[str, ...] = option(tuple, "Continuous", "Numeric columns given to the decoder.")
    labels: str | None = option(
        None, "Labels", "Known cell types: coloured, scored against, and used by label-wise dispersion.", auto="none"
    )
    size_factor: str | None = option(
        None, "Size factor", "Column of size factors that replaces the observed library size.", auto="none"
    )

    @field_validator(*LIST_ROLES, mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def assigned(self) -> dict[str, tuple[str, ...]]:
        """Return the columns of every role that has any, as ``{role: (column, ...)}``."""
        found = {}
        for role in ROLES:
            value = getattr(self, role)
            columns = (value,) if isinstance(value, str) else tuple(value or ())
            if columns:
                found[role] = columns
        return found

    def scored(self) -> dict[str, str]:
        """Return the columns that results are scored by: ``batch`` (or the library or data set in its place) and ``labels``, where chosen."""
        columns = {"batch": self.batch or self.library or self.dataset, "labels": self.labels}
        return {role: column for role, column in columns.items() if column}

    def columns(self) -> tuple[str, ...]:
        """Return every obs column that has a role, each once, in the order of the roles."""
        return tuple(dict.fromkeys(column for columns in self.assigned().values() for column in columns))
