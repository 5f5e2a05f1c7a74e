"""A model small enough that the engine's own behaviour can be tested in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from cellweave.core.models.base import Minibatch, Model, StepContext
from cellweave.core.models.vae import FAMILY
from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec
from cellweave.core.study.study import Modality, Study
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.loop import Trainer
from cellweave.core.training.sources import Loader

CPU = torch.device("cpu")


class ToyModel(Model):
    """A Poisson rate per batch and feature; draws in every step, so that the random state matters."""

    family = FAMILY

    def __init__(self, n_features: int, n_batches: int) -> None:
        super().__init__()
        self.log_rate = torch.nn.Parameter(torch.zeros(n_batches, n_features))
        self.norm = torch.nn.BatchNorm1d(n_features)
        self.poison: tuple[int, str] | None = None  # step and term that become NaN

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        counts = batch.counts["rna"].dense
        rate = torch.exp(self.log_rate[batch.categorical["batch"]] + 0.01 * torch.randn(counts.shape) + 0 * self.norm(counts))
        terms = {
            "reconstruction": (rate - counts * torch.log(rate)).sum(1),
            "kl_z": (self.log_rate**2).sum().expand(batch.n_cells),
        }
        if self.poison is not None and context.training and context.step >= self.poison[0]:
            terms[self.poison[1]] = terms[self.poison[1]] * float("nan")
        return terms

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        return {"latent": batch.counts["rna"].log1p()[:, :3]}


def toy_study(n_cells: int = 301, n_features: int = 40, seed: int = 0) -> Study:
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(rng.poisson(0.5, (n_cells, n_features)).astype(np.int32))
    obs = pd.DataFrame({"batch": rng.choice(["a", "b"], n_cells)}, index=[f"cell{i}" for i in range(n_cells)])
    modality = Modality("rna", counts, pd.DataFrame(index=[f"gene{i}" for i in range(n_features)]), np.ones(n_cells, bool))
    return Study(obs, {"rna": modality}, (), np.zeros(n_cells, dtype=int), np.arange(n_cells))


def toy_spec(**changes: object) -> RunSpec:
    base = {
        "covariates.batch": "batch",
        "training.max_epochs": 6,
        "training.kl_warmup_epochs": 3,
        "training.batch_size": 30,
        "training.checkpoint_every": 2,
        "training.threads": 1,
        "training.preview_every": 0,
    }
    return RunSpec().with_changes({**base, **{key.replace("__", "."): value for key, value in changes.items()}})


def toy_trainer(
    folder: Path, spec: RunSpec | None = None, control: RunControl | None = None, *, study: Study | None = None, events: list | None = None
) -> Trainer:
    spec = spec or toy_spec()
    data = prepare(spec, study or toy_study())
    run = RunFolder.open(folder) if (folder / "spec.toml").exists() else RunFolder.create(folder, spec)
    torch.manual_seed(0)
    model = ToyModel(data.modalities[0].n_features, 2)
    journal = Journal(run, None if events is None else events.append)
    return Trainer(spec, model, Loader(data, CPU, resident=False), journal, control or RunControl())
