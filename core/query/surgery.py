"""Mapping new data onto a trained model: its new levels are learned, everything else stays (scArches)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellweave.core.errors import DataError, SpecError
from cellweave.core.models.base import BuildContext
from cellweave.core.models.mapped import MappedModel, extend
from cellweave.core.models.registry import families
from cellweave.core.models.vae_network import VaeNetwork
from cellweave.core.query.encode import align_to, encode, unknown_levels
from cellweave.core.query.opened import open_model
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Study
from cellweave.core.training.data import CONTINUOUS, SIZE_FACTOR, Encoding, TrainingData
from cellweave.core.training.model_files import TrainedModel

if TYPE_CHECKING:
    from cellweave.core.query.midas_surgery import MidasReference

#: Epochs where none are named: few weights are learned.
EPOCHS = 100


def mapping_spec(reference: str | Path, paths: Sequence[str | Path], changes: Mapping[str, Any] | None = None) -> RunSpec:
    """Return the spec of a run that maps data onto a trained run.

    Parameters
    ----------
    reference
        Folder of the trained run.
    paths
        Files of the new data.
    changes
        Further changes by dotted path; the model and its covariates are those of the reference.

    Returns
    -------
    RunSpec
        For :func:`cellweave.core.runs.execute.execute`, as any other.

    Raises
    ------
    RunFolderError
        Where the reference holds no trained model.
    SpecError
        Where the model cannot be mapped onto.
    """
    run, trained, _ = open_model(reference)
    spec = run.spec
    if spec.model.kind in {"midas", "vaeit"}:
        return _mosaic_spec(run.path, spec, paths, changes or {})
    _network_of(trained, spec)
    base: dict[str, Any] = {
        "name": "", "note": "", "reference": str(run.path), "data.paths": tuple(str(Path(path).expanduser().resolve()) for path in paths), "data.sha256": (),
        "data.new_columns": {}, "data.layers": {}, "data.features": {}, "data.switched_off": (), "data.drop_empty_features": False,
        "data.modality": next(iter(trained.features)),
        "training.max_epochs": EPOCHS, "training.kl_warmup_epochs": None, "training.threads": None,
    }  # fmt: skip
    return spec.with_changes({**base, **(changes or {})})


def _mosaic_spec(reference: Path, spec: RunSpec, paths: Sequence[str | Path], changes: Mapping[str, Any]) -> RunSpec:
    """Return the spec of a run that maps data onto a trained model of many modalities."""
    base: dict[str, Any] = {
        "name": "", "note": "", "reference": str(reference), "data.paths": tuple(str(Path(path).expanduser().resolve()) for path in paths), "data.sha256": (),
        "data.new_columns": {}, "data.layers": {}, "data.features": {}, "data.masks": {}, "data.switched_off": (), "data.drop_empty_features": False,
        "training.kl_warmup_epochs": None, "training.threads": None, **_of_kind(spec),
    }  # fmt: skip
    plain = spec.model_copy(update={"losses": spec.losses.model_copy(update={"weights": {}})})
    made = plain.with_changes({**base, **changes})
    known = {term.name for term in made.terms()}
    kept = {f"losses.weights.{name}": weight for name, weight in spec.losses.weights.items() if name in known and name not in made.losses.weights}
    return made.with_changes(kept)


def _of_kind(spec: RunSpec) -> dict[str, Any]:
    """Return what mapping changes in a spec of this kind of model."""
    if spec.model.kind == "midas":
        from cellweave.core.query.midas_surgery import EPOCHS as MIDAS_EPOCHS

        # What was right for the machine of the reference need not be for this one.
        return {"covariates.labels": None, "training.max_epochs": MIDAS_EPOCHS, "training.precision": "auto"}
    from cellweave.core.query.vaeit_surgery import LEARNING_RATE

    # Minibatches hold new cells only, so that there is no discrepancy to the reference's to be lowered.
    mmd = {"losses.weights.mmd": 0.0} if any(term.name == "mmd" for term in spec.terms()) else {}
    return {"training.max_epochs": EPOCHS, "training.learning_rate": LEARNING_RATE, "training.early_stopping": False, **mmd}


def _network_of(trained: TrainedModel, spec: RunSpec) -> VaeNetwork:
    if not isinstance(trained.model, VaeNetwork):
        able = ", ".join(family.title for family in families().values() if family.maps)
        raise SpecError(f"Data cannot be mapped onto a model of kind '{spec.model.kind}'.", f"Models that take new data: {able}; or train anew with all data.")
    if spec.covariates.batch is None:
        raise SpecError(
            "The reference was trained without a batch, so there is nothing to learn of new data.",
            "Ask it about the new cells directly: cellweave query REFERENCE latent --data FILE.",
        )
    return trained.model


def require_batch(spec: RunSpec, study: Study) -> None:
    """Raise where new data lack the column of the batches, saying how to give one.

    Raises
    ------
    DataError
        Naming the columns that there are.
    """
    column = spec.covariates.batch
    if column is not None and column not in study.obs:
        known = ", ".join(map(str, study.obs.columns[:12])) or "none"
        raise DataError(
            f"These data have no column '{column}', which tells the batches apart; their columns are: {known}.",
            f"Say that all cells are one batch, --set data.new_columns.{column}=NAME, or take another column: --set data.combine.{column}='[\"COLUMN\"]'.",
        )


def require_same(spec: RunSpec, reference: RunSpec) -> None:
    """Raise where a mapping run has other options or covariates than its reference.

    Raises
    ------
    SpecError
        Naming the first that differs.
    """
    for part in ("model", "covariates"):
        ours, theirs = getattr(spec, part).model_dump(), getattr(reference, part).model_dump()
        for name, value in theirs.items():
            labels_only = part == "covariates" and name == "labels" and getattr(spec.model, "dispersion", "") != "gene-label"
            if ours.get(name) != value and not labels_only and not name.startswith("mmd_"):
                raise SpecError(
                    f"{part}.{name} is {ours.get(name)!r}, but the reference was trained with {value!r}.", "Data are mapped with the reference's own model."
                )


def extended_encoding(known: Encoding, study: Study, spec: RunSpec, learned: Collection[str]) -> tuple[Encoding, dict[str, list[str]]]:
    """Return the codes of a reference with the further levels of new data after its own.

    Parameters
    ----------
    known
        Of the reference.
    study
        The new data.
    spec
        Of the mapping run, whose roles are taken.
    learned
        Roles whose new levels can be learned.

    Returns
    -------
    encoding
        Codes and levels.
    new
        The further levels by column, where there are some.
    """
    columns = {role: names for role, names in known.columns.items() if role in spec.covariates.assigned()}
    levels, new = dict(known.levels), {}
    for role, names in columns.items():
        for name in names:
            if role in {CONTINUOUS, SIZE_FACTOR} or role not in learned or name not in study.obs:
                continue
            further = unknown_levels(study.obs[name], known.levels[name])
            if further:
                levels[name], new[name] = (*known.levels[name], *further), further
    return Encoding(columns, levels, known.means, known.scales), new


@dataclass
class Reference:
    """The trained run onto which data are mapped.

    Attributes
    ----------
    spec
        Of the reference.
    trained
        Its model.
    notes
        Sentences on how the new data differ, filled in by the steps below.
    """

    spec: RunSpec
    trained: TrainedModel
    notes: list[str]

    @classmethod
    def open(cls, spec: RunSpec) -> Reference | MidasReference:
        """Open the reference of a mapping run, and make sure that the run means the same model.

        Raises
        ------
        RunFolderError
            Where the reference holds no trained model.
        SpecError
            Where the spec has other options or covariates than the reference.
        """
        assert spec.reference is not None
        if spec.model.kind == "midas":
            from cellweave.core.query.midas_surgery import MidasReference

            return MidasReference.open(spec)
        if spec.model.kind == "vaeit":
            from cellweave.core.query.vaeit_surgery import VaeitReference

            return VaeitReference.of(spec)
        run, trained, _ = open_model(spec.reference)
        _network_of(trained, run.spec)
        require_same(spec, run.spec)
        return cls(run.spec, trained, [])

    def study(self, study: Study) -> Study:
        """Return the new data with the features of the reference, matched by name."""
        aligned, notes = align_to(study, self.trained.features)
        self.notes += notes
        return aligned

    def data(self, spec: RunSpec, study: Study) -> TrainingData:
        """Return the new data in the codes of the reference, new levels after the known ones.

        Raises
        ------
        DataError
            Where a column is missing, or nothing is new.
        """
        require_batch(spec, study)
        encoding, new = extended_encoding(
            self.trained.encoding, study, spec, {"batch", "decoder", *(["labels"] if getattr(spec.model, "dispersion", "") == "gene-label" else [])}
        )
        if not new:
            raise DataError(
                f"The reference knows every batch of these data ({', '.join(self._present(study))}), so there is nothing to learn.",
                f"Ask it about the new cells directly: cellweave query {spec.reference} latent --data FILE.",
            )
        self.notes += [f"New in '{column}', and learned: {', '.join(levels)}." for column, levels in new.items()]
        if not getattr(spec.model, "encode_covariates", False):
            self.notes.append(
                "The encoder of the reference is not told of the batch, so the latents of the new cells are those it gives at once; what is learned is how "
                "their batches are decoded."
            )
        return encode(spec, encoding, study, self.trained.features, trained_on=True)

    def _present(self, study: Study) -> list[str]:
        column = self.spec.covariates.batch
        return sorted({str(value) for value in study.obs[column].dropna().unique()})[:5] if column in study.obs else []

    def context(self, spec: RunSpec, data: TrainingData) -> BuildContext:
        """Return what the extended network is built from; batches without new cells keep the library-size prior of the reference."""
        found, known = data.context(spec), self.trained.context
        present = np.unique(data.categorical["batch"][data.train])
        return replace(
            found,
            library_log_mean={name: _keep(known.library_log_mean[name], values, present) for name, values in found.library_log_mean.items()},
            library_log_var={name: _keep(known.library_log_var[name], values, present) for name, values in found.library_log_var.items()},
            modalities=known.modalities,
        )

    def model(self, context: BuildContext) -> MappedModel:
        """Return the network that is trained, with the weights of the reference."""
        assert isinstance(self.trained.model, VaeNetwork)
        return MappedModel(*extend(self.trained.model, context))


def _keep(known: np.ndarray, found: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the prior of every batch: the reference's where it knows the batch, otherwise the new data's."""
    result = np.array(found, dtype=np.float64)
    result[: len(known)] = known
    new = np.setdiff1d(np.arange(len(known), len(found)), present)
    result[new] = known.mean()  # a new batch without training cells
    return result
