"""The protocol between a model's network and the training engine.

The engine knows nothing of likelihoods, and a model knows nothing of optimisers, devices or files. A model
turns a :class:`Minibatch` into the values of its declared loss terms; the engine weighs and sums them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np

    from cellweave.core.models.declare import Family
    from cellweave.core.nn.counts import CountBatch
    from cellweave.core.spec.run import RunSpec


@dataclass(slots=True)
class Minibatch:
    """Cells of one step, on the model's device.

    Attributes
    ----------
    index
        Rows of the study, shape ``(n_cells,)``.
    counts
        Raw counts by modality, each ``(n_cells, n_features)``.
    measured
        By modality, which cells were measured, shape ``(n_cells,)``; None where all were.
    categorical
        Codes by role, shape ``(n_cells,)`` for single roles and ``(n_cells, n_columns)`` for list roles.
    continuous
        Standardised continuous covariates ``(n_cells, n_columns)``, or None.
    size_factor
        Shape ``(n_cells,)``, or None.
    mask_group
        Row of each modality's ``feature_mask`` that holds for a cell, int64 ``(n_cells,)``; None where no feature is masked.
    feature_masks
        By modality with masked features, the masks that ``mask_group`` points into, bool ``(n_groups, n_features)``: those of the study that the cells
        come from, which need not be the one that was trained on.
    hidden
        By modality, entries that may not be looked at although they were measured, bool ``(n_cells, n_features)``; only an evaluation hides any.
    """

    index: Tensor
    counts: dict[str, CountBatch]
    categorical: dict[str, Tensor] = field(default_factory=dict)
    continuous: Tensor | None = None
    size_factor: Tensor | None = None
    measured: dict[str, Tensor | None] = field(default_factory=dict)
    mask_group: Tensor | None = None
    feature_masks: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Number of cells in the minibatch."""
        return int(self.index.shape[0])


@dataclass(frozen=True)
class ModalityInfo:
    """What a network must know of a modality before the first minibatch.

    Attributes
    ----------
    name
        ``rna``, ``adt``, ``atac`` or the user's own.
    n_features
        Number of features after selection.
    blocks
        Sizes of the consecutive blocks of features (chromosomes of peaks); one block otherwise.
    feature_mask
        Which features were measured in which mask group of the study, ``(n_groups, n_features)`` bool, or None where all were in all.
    block_names
        Name of each block (``chr1`` ...); the modality's own where there is one.
    """

    name: str
    n_features: int
    blocks: tuple[int, ...]
    feature_mask: np.ndarray | None = None
    block_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildContext:
    """Everything a family's ``build`` may use.

    Attributes
    ----------
    spec
        The run's spec.
    modalities
        In the order in which they are concatenated.
    n_levels
        Number of levels by role: an int for single roles, a tuple for list roles.
    n_continuous
        Number of continuous covariates.
    n_cells
        Number of training cells.
    library_log_mean, library_log_var
        Per modality, mean and population variance of log total counts in each batch, ``(n_batches,)``.
    extras
        Data summaries that a family asked for (mean expression by group, ...), by name.
    """

    spec: RunSpec
    modalities: tuple[ModalityInfo, ...]
    n_levels: Mapping[str, int | tuple[int, ...]]
    n_continuous: int
    n_cells: int
    library_log_mean: Mapping[str, np.ndarray]
    library_log_var: Mapping[str, np.ndarray]
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class StepContext:
    """What a model may depend on beside the minibatch.

    Attributes
    ----------
    training
        Whether this is a training step (draws are made) or a look at held-out cells.
    weights
        Weight of each term as the person set it, before annealing. A term whose weight is 0 may be left out in training
        instead of computed; one that is only annealed to 0 may not, because its value is shown.
    epoch, step
        Counted from 0.
    generator
        Source of the model's own draws beyond those of torch's global generator, or None.
    """

    training: bool
    weights: Mapping[str, float]
    epoch: int = 0
    step: int = 0
    generator: torch.Generator | None = None


@dataclass(slots=True)
class ParameterGroup:
    """Parameters that share an optimiser and its settings.

    Attributes
    ----------
    name
        Identifier of the optimiser in checkpoints.
    parameters
        The parameters.
    lr_factor
        Multiplies the learning rate of the spec.
    weight_decay
        Replaces the weight decay of the spec where not None.
    auxiliary
        Whether the group has an optimiser of its own that the model steps itself, in ``before_step``.
    optimizer
        Of an auxiliary group, its optimiser where it is not that of the spec.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    lr_factor: float = 1.0
    weight_decay: float | None = None
    auxiliary: bool = False
    optimizer: str | None = None


class Model(nn.Module, ABC):
    """A network that the engine can train.

    A subclass implements :meth:`loss_terms` and the result methods its family declares.
    """

    family: ClassVar[Family]
    #: Whether the optimiser's step shall be the compiled one where it can: for networks of many small tensors.
    compiled_optimizer: ClassVar[bool] = False
    #: Modules of :mod:`cellweave.core.nn` with the compiled loops that its training on a CPU begins with.
    loops: tuple[str, ...] = ("compiled",)

    @abstractmethod
    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        """Return the value of every declared term.

        Parameters
        ----------
        batch
            The minibatch.
        context
            Epoch, weights, training or evaluation.

        Returns
        -------
        dict
            For terms of scope ``"cell"`` a tensor ``(n_cells,)``, otherwise a scalar. A term whose weight is 0 may be left out.
        """

    @abstractmethod
    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the latents of the cells by name; ``"latent"`` is the main one, ``(n_cells, n_latent)``.

        Posterior means unless the name says otherwise; two calls give the same values.
        """

    def expression(self, batch: Minibatch, *, transform_batch: int | None = None, scaled_to: float | None = 1.0) -> dict[str, Tensor]:
        """Return denoised expression by modality, ``(n_cells, n_features)``, at the posterior means.

        Parameters
        ----------
        batch
            The minibatch.
        transform_batch
            Code of the batch that every cell is decoded as; None keeps each cell's own.
        scaled_to
            Library size of the result; None gives the expected counts at the cell's own library size.
        """
        raise NotImplementedError(f"{self.family.title} gives no denoised expression")

    def library(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the library size of each cell by modality, ``(n_cells,)``."""
        raise NotImplementedError(f"{self.family.title} gives no library size")

    def loadings(self) -> dict[str, Tensor]:
        """Return the weight of each feature in each latent dimension by modality, ``(n_features, n_latent)``."""
        raise NotImplementedError(f"the decoder of {self.family.title} is not linear, so it has no loadings; LDVAE has them")

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the optimiser's groups; one group of all parameters unless a family says otherwise."""
        return [ParameterGroup("model", [p for p in self.parameters() if p.requires_grad])]

    def whole_step(
        self, batch: Minibatch, context: StepContext, weights: Mapping[str, float], optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> dict[str, float] | None:
        """Do all of a training step but the optimiser's: set the gradients of the objective and return the mean of each term over the cells.

        A model whose step is written out for some devices overrides this; what it returns and sets must be what :meth:`before_step`,
        :meth:`loss_terms` and tracing give.

        Parameters
        ----------
        batch, context
            As in :meth:`loss_terms`.
        weights
            Factor of each term in the objective: weight, sign and annealing.
        optimizers
            Those of the auxiliary groups, by name.

        Returns
        -------
        dict or None
            Means by term; None, with nothing drawn or changed, where the step must be traced.
        """
        return None

    def release(self) -> None:
        """Let go of what only training needs, such as buffers that are kept from step to step; called when training is over."""

    def before_step(self, batch: Minibatch, context: StepContext, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
        """Do inner steps of auxiliary optimisers (discriminators); return values of declared metrics, averaged over the epoch."""
        return {}

    def impute(self, batch: Minibatch, *, given: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the expected value of every feature of every modality, ``(n_cells, n_features)``, measured or not.

        Parameters
        ----------
        batch
            The minibatch.
        given
            Modalities that may be looked at; None looks at all that were measured in a cell.
        """
        raise NotImplementedError(f"{self.family.title} imputes nothing")

    def epoch_metrics(self) -> dict[str, float]:
        """Return the values of the declared metrics over the epoch that ends, and begin anew; called before the look at held-out cells."""
        return {}

    def epoch_state(self) -> dict[str, Tensor]:
        """Return what :meth:`epoch_metrics` is made of so far and no buffer holds, for a checkpoint in the middle of an epoch."""
        return {}

    def load_epoch_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`epoch_state` returned."""

    def term_factors(self) -> dict[str, float]:
        """Return what the weights of some terms are multiplied by, beyond what the person set; asked when an epoch begins."""
        return {}

    def on_epoch_start(self, epoch: int, max_epochs: int) -> None:
        """Called before the first step of an epoch."""

    def uses_batch_norm(self) -> bool:
        """Return whether any layer normalises over the minibatch, so that one cell alone cannot be trained on."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over everything a checkpoint of the weights must hold."""
        yield from self.state_dict().items()
