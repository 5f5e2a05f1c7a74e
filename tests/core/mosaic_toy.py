"""A small family of many modalities, and mosaic studies, for tests of the engine."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from cellweave.core.models import registry
from cellweave.core.models.base import BuildContext, Minibatch, Model, StepContext
from cellweave.core.models.declare import Family, LossTerm, Metric, Result, RoleUse
from cellweave.core.spec.options import ModelOptions
from cellweave.core.study.study import Modality, Study


class MosaicOptions(ModelOptions):
    kind: Literal["toy_mosaic"] = "toy_mosaic"
    n_max: int = 10_000


class MosaicModel(Model):
    """A Poisson rate per feature of each modality; measured entries only. Looks at how its minibatches are made."""

    family: Family

    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        self.family = FAMILY
        self.infos = context.modalities
        self.rates = torch.nn.ParameterDict({info.name: torch.zeros(info.n_features) for info in context.modalities})
        self.seen: list[tuple[np.ndarray, bool]] = []
        for info in context.modalities:
            mask = np.ones((1, info.n_features), bool) if info.feature_mask is None else info.feature_mask
            self.register_buffer(f"mask_{info.name}", torch.from_numpy(mask).float(), persistent=False)

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        self.seen.append((batch.index.cpu().numpy(), context.training))
        total = torch.zeros(batch.n_cells)
        for info in self.infos:
            eta = self.rates[info.name] + 0.01 * torch.randn(batch.n_cells, info.n_features)
            loss = eta.exp() - batch.counts[info.name].dense * eta
            if info.feature_mask is not None:
                assert batch.mask_group is not None
                loss = loss * getattr(self, f"mask_{info.name}")[batch.mask_group]
            known = batch.measured[info.name]
            total = total + (loss.sum(1) if known is None else loss.sum(1) * known)
        return {"reconstruction": total}

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        joint = torch.cat([batch.counts[info.name].log1p()[:, :2] for info in self.infos], dim=1)
        found = {"latent": joint, "u": batch.index[:, None].float()}
        for info in self.infos:
            own, known = batch.counts[info.name].log1p()[:, :2], batch.measured[info.name]
            found[f"latent_{info.name}"] = own if known is None else own.masked_fill(~known[:, None], float("nan"))
        return found

    def impute(self, batch: Minibatch, *, given: object = None) -> dict[str, Tensor]:
        return {name: rate.exp() + batch.index[:, None] for name, rate in self.rates.items()}  # the row is told, so that order can be tested

    def epoch_metrics(self) -> dict[str, float]:
        return {"steps": float(sum(training for _, training in self.seen))}


def build(context: BuildContext) -> MosaicModel:
    return MosaicModel(context)


FAMILY = Family(
    kind="toy_mosaic",
    title="Toy mosaic",
    help="For tests.",
    options=MosaicOptions,
    terms=lambda spec: (LossTerm("reconstruction", "Reconstruction", "Fit."),),
    network="mosaic_toy:build",
    roles=(RoleUse("batch", "Streams of the sampler."),),
    results=(Result("latent", "latent", "Latent", "Joint latent."), Result("imputed", "imputation", "Imputed", "Expected counts.")),
    modalities="many",
    sampler="pattern",
    blocks=True,
    metrics=lambda spec: (Metric("steps", "Steps", "Steps so far.", "steps"),),
)


def register(monkeypatch) -> None:
    """Make the family known for one test."""
    known = {**registry.families(), FAMILY.kind: FAMILY}
    for module in ("cellweave.core.models.registry", "cellweave.core.spec.run"):
        monkeypatch.setattr(f"{module}.families", lambda: known)


def mosaic_study(sizes: dict[tuple[str, tuple[str, ...]], int], seed: int = 0, n_features: dict[str, int] | None = None) -> Study:
    """Return cells of given batches and modalities: ``{("a", ("rna",)): 40, ("b", ("rna", "adt")): 25}``."""
    rng = np.random.default_rng(seed)
    widths = n_features or {"rna": 30, "adt": 8}
    batch = np.concatenate([np.full(n, name, dtype=object) for (name, _), n in sizes.items()])
    modalities = {}
    for modality, width in widths.items():
        measured = np.concatenate([np.full(n, modality in having) for (_, having), n in sizes.items()])
        counts = rng.poisson(0.7, (len(batch), width)) * measured[:, None]
        var = pd.DataFrame(index=[f"{modality}{k}" for k in range(width)])
        modalities[modality] = Modality(modality, sparse.csr_matrix(counts.astype(np.float32)), var, measured)
    obs = pd.DataFrame({"batch": batch}, index=[f"cell{k}" for k in range(len(batch))])
    return Study(obs, modalities, (), np.zeros(len(batch), dtype=int), np.arange(len(batch)))
