"""Mapping new data onto a trained MIDAS: its weights go on learning on the new batches, which are pulled into the reference (He et al. 2024).

*Model transfer*: all weights are the reference's but those that know batches (batch encoder and decoder, discriminators), which begin anew.
*Reciprocal mapping*: every discriminator also learns to tell the reference's cells, by their stored latents, so that the encoder must bring
new cells to where these lie. The reference itself is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from cellweave.core.errors import DataError, RunFolderError, SpecError
from cellweave.core.models.base import BuildContext
from cellweave.core.models.midas import MidasOptions
from cellweave.core.models.midas_network import JOINT, REFERENCE, MidasNetwork
from cellweave.core.query.encode import align_partly, blocks_of, encode
from cellweave.core.query.opened import open_model
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Study
from cellweave.core.training.data import Encoding, TrainingData, encode_column
from cellweave.core.training.model_files import TrainedModel

#: Epochs where none are named; held-out cells end a run earlier.
EPOCHS = 400
#: Stored latents of the reference that the discriminators draw from.
MOST_STORED = 20_000
#: Parts of the network that know the batches of the reference, and begin anew.
OF_BATCHES = ("batch_encoder.", "batch_decoder.", "discriminators.")
#: Options that may differ from the reference's, because they shape nothing that is taken over.
MAY_DIFFER = ("reciprocal", "batch_drop", "discriminator", "discriminator_steps", "discriminator_optimizer", "discriminator_rate", "n_max", "dropout_rate")


@dataclass
class MidasReference:
    """The trained MIDAS onto which data are mapped; see :class:`cellweave.core.query.surgery.Reference`, whose steps it has.

    Attributes
    ----------
    spec
        Of the reference.
    trained
        Its model.
    stored
        Latents c of the reference's cells by discriminator, each ``(n_cells, n_c)``; empty for plain model transfer.
    notes
        Sentences on how the new data differ.
    """

    spec: RunSpec
    trained: TrainedModel
    stored: dict[str, np.ndarray]
    notes: list[str]

    @classmethod
    def open(cls, spec: RunSpec) -> MidasReference:
        """Open the reference of a mapping run, and make sure that the run means the same model.

        Raises
        ------
        RunFolderError
            Where the reference holds no trained model, or none of its latents.
        SpecError
            Where the spec has another network than the reference.
        """
        assert spec.reference is not None
        run, trained, _ = open_model(spec.reference)
        ours, theirs = spec.model, run.spec.model
        if not isinstance(ours, MidasOptions) or not isinstance(trained.model, MidasNetwork):
            raise SpecError(f"The reference is a model of kind '{theirs.kind}', not '{ours.kind}'.", "Data are mapped with the reference's own model.")
        for name, value in theirs.model_dump().items():
            if name not in MAY_DIFFER and getattr(ours, name) != value:
                raise SpecError(
                    f"model.{name} is {getattr(ours, name)!r}, but the reference was trained with {value!r}.", "Data are mapped with the reference's own model."
                )
        if spec.covariates.batch is None:
            raise SpecError("Without a batch nothing can be mapped.", "Name the batch column of the new data: covariates.batch.")
        stored = {}
        if ours.reciprocal:
            for key in (JOINT, *trained.features):
                path = run.results / ("latent.npy" if key == JOINT else f"c_{key}.npy")
                if path.is_file():
                    values = np.load(path, allow_pickle=False)
                    stored[key] = values[np.isfinite(values).all(1)].astype(np.float32)
            if not len(stored.get(JOINT, ())):
                raise RunFolderError(f"The reference '{run.path.name}' holds no latents of its cells.", "Compute them: resume the reference, or set "
                "model.reciprocal = false.")
        return cls(run.spec, trained, {key: values for key, values in stored.items() if len(values)}, [])

    def study(self, study: Study) -> Study:
        """Return the new data with the features of the reference, matched by name; modalities may be missing."""
        aligned, notes = align_partly(study, self.trained.features)
        self.notes += notes
        return aligned

    def data(self, spec: RunSpec, study: Study) -> TrainingData:
        """Return the new data with codes of their own batches.

        Raises
        ------
        DataError
            Where the batch column is missing.
        """
        from cellweave.core.query.surgery import require_batch

        require_batch(spec, study)
        columns = {role: names for role, names in spec.covariates.assigned().items() if spec.family.uses(role)}
        levels = {}
        for names in columns.values():
            for name in names:
                if name not in study.obs:
                    known = ", ".join(map(str, study.obs.columns[:12])) or "none"
                    raise DataError(f"The cells have no column '{name}'.", f"Their columns are: {known}.")
                levels[name] = encode_column(study.obs[name])[1]
        batches = levels[str(spec.covariates.batch)]
        how = "pulled to where the reference's cells lie" if self.stored else "learned on from the reference's weights"
        self.notes.append(f"New batches: {', '.join(batches[:8])}{' ...' if len(batches) > 8 else ''}; {how}.")
        return encode(spec, Encoding(columns, levels), study, self.trained.features, trained_on=True, blocks=blocks_of(self.trained.context))

    def context(self, spec: RunSpec, data: TrainingData) -> BuildContext:
        """Return what the network is built from: features of the reference, batches and masks of the new data, and the stored latents."""
        found, known = data.context(spec), {info.name: info for info in self.trained.context.modalities}
        infos = tuple(replace(known[info.name], feature_mask=info.feature_mask) for info in found.modalities)
        rng = np.random.default_rng([spec.training.seed, 31])
        extras = dict(found.extras)
        for key, values in self.stored.items():
            rows = slice(None) if len(values) <= MOST_STORED else np.sort(rng.choice(len(values), MOST_STORED, replace=False))
            extras[REFERENCE + key] = values[rows]
        return replace(found, modalities=infos, extras=extras)

    @torch.no_grad()
    def model(self, context: BuildContext) -> MidasNetwork:
        """Return the network that is trained: the reference's weights, but for what knows its batches."""
        assert isinstance(self.trained.model, MidasNetwork)
        network = MidasNetwork(context)
        target = network.state_dict()
        for name, tensor in self.trained.model.state_dict().items():
            if not name.startswith(OF_BATCHES):
                target[name].copy_(tensor)
        return network
