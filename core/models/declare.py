"""What a model family says of itself: options, loss terms, roles and results.

Nothing here imports torch, so the window, the command line help and the documentation can be built from the
declarations before the first tensor exists. A family is declared once, in its own file in this package (or
in a plug-in), as a :class:`Family`; forms, loss-weight sliders, curves, result views and exports follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cellweave.core.models.base import BuildContext, Model
    from cellweave.core.spec.options import ModelOptions

TermScope = Literal["cell", "minibatch", "global"]
ResultKind = Literal["latent", "library", "expression", "loadings", "attribution", "ambient", "imputation", "covariate_effects"]


@dataclass(frozen=True)
class LossTerm:
    """One term of the objective, as the forms and the curves need it.

    The objective that is minimised is ``sum(weight * weight of the term it names in times * anneal * sign * term)`` over the terms.

    Attributes
    ----------
    name
        Identifier, used in the spec (``losses.weights``), in ``losses.csv`` and in checkpoints.
    label
        What is written beside the slider and in the legend.
    help
        One or two sentences: what the term does, and what turning its weight up or down does.
    default
        Default weight.
    scope
        ``"cell"``: the model returns one value per cell of the minibatch, the objective takes the mean;
        ``"minibatch"``: one scalar per minibatch, taken as it is;
        ``"global"``: one scalar (a prior on genes, batches, covariates), divided by the number of training
        cells, never by the size of the minibatch.
    annealed
        Whether the KL warm-up multiplies the weight.
    sign
        ``-1`` for an adversarial term, which the network tries to make large; ``0`` for a loss that others than the network lower
        (discriminators), with a weight and a curve like every other.
    times
        Name of another term whose weight multiplies this one's; empty for none.
    maximum
        Upper end of the slider.
    colour
        Index into the colour cycle of the curves, the same in every run and figure.
    in_elbo
        Whether the unweighted term is part of the reported negative ELBO.
    unit
        Unit of the reported value.
    modality
        The modality that the term is about, so that a form leaves it out where the data have none; empty for terms of all.
    also_summed
        For a term of scope ``"minibatch"``: tell beside its mean over minibatches also its sum over them divided by the number of
        cells, under the names ``NAME_loss_train`` and ``NAME_loss_validation`` (a published definition that others are compared by).
    """

    name: str
    label: str
    help: str
    default: float = 1.0
    scope: TermScope = "cell"
    annealed: bool = False
    sign: int = 1
    times: str = ""
    maximum: float = 100.0
    colour: int = 0
    in_elbo: bool = True
    unit: str = "nats per cell"
    modality: str = ""
    also_summed: bool = False


@dataclass(frozen=True)
class Metric:
    """A value that a model tells once an epoch beside its loss terms: an accuracy, a mean of parameters, active dimensions.

    Attributes
    ----------
    name
        Identifier, a key of ``EpochDone.metrics`` and a column of ``epoch_metrics.csv``.
    label
        Text in the legend.
    help
        One sentence on what it says and which values are good.
    unit
        Unit of the axis; metrics of one unit share a plot.
    """

    name: str
    label: str
    help: str
    unit: str = ""


@dataclass(frozen=True)
class RoleUse:
    """How a family uses one covariate role of the spec.

    Attributes
    ----------
    role
        Field name in :class:`cellweave.core.spec.covariates.CovariateSpec`.
    help
        What the column drives in this family.
    required
        Whether training is refused without it.
    """

    role: str
    help: str
    required: bool = False


@dataclass(frozen=True)
class Result:
    """Something a trained model of this family can give.

    Attributes
    ----------
    name
        Identifier (and file name in ``results/``).
    kind
        What sort of result it is; views and exports choose by it.
    label
        Text in menus.
    help
        One sentence on what it is.
    """

    name: str
    kind: ResultKind
    label: str
    help: str


@dataclass(frozen=True)
class Family:
    """The declaration of a model family.

    Attributes
    ----------
    kind
        Value of ``model.kind`` in the spec.
    title, help
        Texts for the model chooser.
    options
        The pydantic class of the family's options (a subclass of ``ModelOptions`` with its ``kind`` fixed).
    terms
        Function from the whole spec to the loss terms that this model has with these options (a library
        term exists only where the library is learned, one reconstruction term a modality, ...).
    roles
        Covariate roles the family uses; the others are greyed in the window with ``unused_reason``.
    results
        What a trained model gives.
    network
        ``"package.module:function"``; the function takes a ``BuildContext`` and returns the ``Model``. A string, so
        that declaring a family does not import torch.
    check
        Function from the spec to a list of sentences, one for each combination of options that the
        family cannot honour. They are refused when the spec is made, never ignored.
    modalities
        ``"one"``: trained on one modality chosen in the spec; ``"many"``: on all modalities of the study.
    sampler
        ``"shuffled"``: minibatches over all cells; ``"pattern"``: each minibatch from one batch and one pattern of measured
        modalities, small batches oversampled (an option ``n_max`` of the family bounds the length of an epoch), and minibatches
        that never mix patterns where cells are looked at.
    hidden_units
        Function from the spec to the hidden units that each feature is connected to, for estimates of memory and time; None reads ``n_hidden`` of the options.
    blocks
        Whether the features of a modality are read in blocks (``data.blocks``: peaks by chromosome); its features then come in
        the order of the blocks, and ``ModalityInfo.blocks`` holds their sizes.
    metrics
        Function from the spec to what the model tells once an epoch beside its loss terms.
    summaries
        ``"package.module:function"`` of a function from ``(spec, TrainingData)`` to arrays by name that the network's start depends
        on (mean expression, moments of the counts); they come to ``build`` as ``BuildContext.extras`` and are kept with the model.
    training
        Training settings of this family that differ from the defaults of the spec (learning rate, optimiser, minibatch ...), by field. A spec
        that does not say otherwise takes them; they follow when the family is changed. Those of fields that a spec may leave to the program
        (epochs, warm-up) are what the program then takes.
    fan_out
        Roles that a role fills where they are not given: ``{"batch": ("ambient", "dispersion")}``; giving both is a conflict
        (:mod:`cellweave.core.spec.roles`).
    falls_back
        Role that stands in for one that is not given, ``{"feature_scaling": "decoder"}``.
    parts_together
        Whether the roles that a fan-out fills must be given all or none.
    check_study
        Function from the spec and the study to sentences on what the family cannot honour with these data; they block training.
    maps
        Whether new data with new batches can be mapped onto a trained model of this family.
    absent_without_counts
        Whether a cell without a single count of a modality is taken as one that the modality was not measured in.
    knows_masks
        Whether a family of one modality takes features that a mask hides from a cell for unknown, not for zeros; those of several always do.
    unused_reason
        Why a role that is not in ``roles`` cannot be chosen, per role or under ``"*"``.
    paper
        Citation shown in the model chooser.
    """

    kind: str
    title: str
    help: str
    options: type[ModelOptions]
    terms: Callable[[Any], Sequence[LossTerm]]
    network: str
    roles: tuple[RoleUse, ...] = ()
    results: tuple[Result, ...] = ()
    check: Callable[[Any], list[str]] = lambda spec: []
    modalities: Literal["one", "many"] = "one"
    sampler: Literal["shuffled", "pattern"] = "shuffled"
    blocks: bool = False
    hidden_units: Callable[[Any], int] | None = None
    metrics: Callable[[Any], Sequence[Metric]] = lambda spec: ()
    summaries: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    fan_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    falls_back: Mapping[str, str] = field(default_factory=dict)
    parts_together: bool = False
    check_study: Callable[[Any, Any], list[str]] = lambda spec, study: []
    maps: bool = False
    absent_without_counts: bool = False
    knows_masks: bool = False
    unused_reason: Mapping[str, str] = field(default_factory=dict)
    paper: str = ""

    def uses(self, role: str) -> RoleUse | None:
        """Return how the family uses ``role``, or None."""
        return next((use for use in self.roles if use.role == role), None)

    def why_unused(self, role: str) -> str:
        """Return the sentence that the window shows beside a greyed role."""
        return self.unused_reason.get(role) or self.unused_reason.get("*") or f"{self.title} does not use this role."

    def build(self, context: BuildContext) -> Model:
        """Import the network and build the model.

        Parameters
        ----------
        context
            Sizes, categories, spec and data summaries.

        Returns
        -------
        Model
            A module on the CPU, initialised from torch's global generator.
        """
        module, _, function = self.network.partition(":")
        return getattr(import_module(module), function)(context)
