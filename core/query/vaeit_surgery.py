"""Mapping new data onto a trained scVAEIT: new batches get weights of their own, everything else stays, above all ranges and scales of the values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cellweave.core.errors import SpecError
from cellweave.core.models.base import BuildContext
from cellweave.core.models.mapped import MappedModel
from cellweave.core.models.vaeit_mapped import extend
from cellweave.core.models.vaeit_network import VaeitNetwork
from cellweave.core.models.vaeit_ranges import check_values, pattern_share
from cellweave.core.query.encode import align_partly, blocks_of, encode
from cellweave.core.query.opened import open_model
from cellweave.core.query.surgery import Reference, extended_encoding, require_batch, require_same
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Study
from cellweave.core.training.data import TrainingData

#: Learning rate, since only a few rows of the covariates are learned, from the mean of the known ones.
LEARNING_RATE = 3e-3
#: Beginnings of the note that nothing is new.
NOTHING_NEW, NO_BATCHES = "The reference knows every batch of these data", "The reference was trained without batches"


@dataclass
class VaeitReference(Reference):
    """The trained scVAEIT onto which data are mapped."""

    @classmethod
    def of(cls, spec: RunSpec) -> VaeitReference:
        """Open the reference, and make sure that the run means the same model.

        Raises
        ------
        RunFolderError
            Where the reference holds no trained model.
        SpecError
            Where the spec has other options or covariates than the reference.
        """
        assert spec.reference is not None
        run, trained, _ = open_model(spec.reference)
        if not isinstance(trained.model, VaeitNetwork):
            kinds = f"'{run.spec.model.kind}', not '{spec.model.kind}'"
            raise SpecError(f"The reference is a model of kind {kinds}.", "Data are mapped with the reference's own model.")
        require_same(spec, run.spec)
        return cls(run.spec, trained, [])

    def study(self, study: Study) -> Study:
        """Return the new data with the features of the reference, matched by name; modalities may be missing."""
        aligned, notes = align_partly(study, self.trained.features)
        self.notes += notes
        return aligned

    def data(self, spec: RunSpec, study: Study) -> TrainingData:
        """Return the new data in the codes of the reference, new levels after the known ones.

        Raises
        ------
        DataError
            Where a column is missing, or the values do not suit the model.
        """
        require_batch(spec, study)
        encoding, new = extended_encoding(self.trained.encoding, study, spec, {"batch", "decoder"})
        if new:
            self.notes += [f"New in '{column}', and learned: {', '.join(levels)}." for column, levels in new.items()]
        else:
            known = f"{NOTHING_NEW} ({', '.join(self._present(study))})" if self.spec.covariates.batch is not None else NO_BATCHES
            self.notes.append(f"{known}, so nothing is learned: the cells are placed and imputed by the reference as it is.")
        data = encode(spec, encoding, study, self.trained.features, trained_on=True, blocks=blocks_of(self.trained.context))
        check_values(spec, data)
        return data

    def context(self, spec: RunSpec, data: TrainingData) -> BuildContext:
        """Return what the extended network is built from: the reference's sizes and summaries, the levels and masks of the new data."""
        known = self.trained.context
        masks = {modality.name: modality.feature_mask for modality in data.modalities}
        n_batches = data.n_levels().get("batch", 1)
        extras = dict(known.extras)
        for modality in data.modalities:
            shares = np.asarray(known.extras[f"{modality.name}.batches"], dtype=np.float32)
            measured = np.zeros(n_batches, dtype=np.float32)
            before = np.asarray(known.extras.get(f"{modality.name}.measured_in", shares > 0), dtype=np.float32)
            measured[: len(before)] = before
            if "batch" in data.categorical:
                rows = data.train[modality.measured[data.train]]
                codes = data.categorical["batch"][rows]
                measured[codes[codes >= len(before)]] = 1.0  # of a known batch the decoding stays as it was
            extras[f"{modality.name}.measured_in"] = measured
            extras[f"{modality.name}.batches"] = np.concatenate([shares, np.zeros(len(measured) - len(shares), dtype=np.float32)])
        extras["pattern_share"] = pattern_share(data)
        infos = tuple(replace(info, feature_mask=masks[info.name]) for info in known.modalities)
        return replace(known, spec=spec, modalities=infos, n_levels=data.n_levels(), n_cells=len(data.train), extras=extras)

    def model(self, context: BuildContext) -> MappedModel:
        """Return the network that is trained, with the weights of the reference."""
        assert isinstance(self.trained.model, VaeitNetwork)
        return MappedModel(*extend(self.trained.model, context))
