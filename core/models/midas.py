"""MIDAS: mosaic integration of modalities that were measured in some batches only (specs: MIDAS, sections 2-5)."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationInfo, field_validator

from cellweave.core.errors import SpecError
from cellweave.core.models.declare import Family, LossTerm, Metric, Result, RoleUse
from cellweave.core.models.per_modality import strange_names
from cellweave.core.nn.distributions import distribution, distributions, transforms
from cellweave.core.plugins import RESERVED, check_name
from cellweave.core.spec import words
from cellweave.core.spec.fields import option
from cellweave.core.spec.modalities import ModalityKind, modality_kind, modality_kinds, modality_places
from cellweave.core.spec.optimisers import OptimiserName, optimiser_name
from cellweave.core.spec.options import ModelOptions

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec
    from cellweave.core.study.study import Study

#: Options that are given by modality.
TABLES = ("distribution", "transform", "encoder_transform", "block_encoder", "block_decoder")
#: Name of the loss of the discriminators themselves (lam_dsc; that of the adversarial term is lam_adv).
OWN_LOSS = "discriminators"
LATENT, NETWORK, MODALITIES, DISCRIMINATORS = "Latent space", "Network", "Modalities", "Discriminators"
SIZES = ("shared_encoder", "shared_decoder", "batch_encoder", "batch_decoder", "discriminator")
#: Hidden sizes of a block of features where a modality in blocks names none.
BLOCK_ENCODER, BLOCK_DECODER = "128, 32", "32, 128"


def sizes_of(text: str) -> tuple[int, ...]:
    """Return layer sizes from text, ``"1024, 128"``."""
    return tuple(int(part) for part in text.split(",") if part.strip())


def _sizes_text(value: object) -> str:
    """Return layer sizes as text; refuse what is none."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and 0 < int(part) <= 65536 for part in parts):
        message = f"'{text}' names no layer sizes: write whole numbers with commas between them, such as '1024, 128'"
        raise ValueError(message)
    return ", ".join(parts)


def _in_words(check: Callable[..., object], *arguments: Any, **named: Any) -> None:
    """Call a check, and turn its refusal into one that pydantic understands."""
    try:
        check(*arguments, **named)
    except SpecError as error:
        message = f"{error.cause} {error.mend}".strip()
        raise ValueError(message) from None


class MidasOptions(ModelOptions):
    """Options of MIDAS; the defaults are those of scmidas 0.3.0."""

    kind: Literal["midas"] = "midas"
    n_latent: int = option(32, "Biological dimensions", "Size of c, the part of the latent space that carries the biology.", group=LATENT, ge=1, le=1024)
    n_technical: int = option(
        2, "Technical dimensions", "Size of u, the part that carries the batch, so that c need not.", group=LATENT, ge=1, le=256
    )
    batch_expert: bool = option(
        True, "Tell the encoder of the batch", "Let the batch itself speak in the product of experts, and u be asked for it. Switched off, only the "
        "discriminators know the batch, so that cells of batches that were never seen are encoded as those that were.",
        group=LATENT, advanced=True,
    )
    batch_drop: float = option(
        0.1, "Steps without the batch", "Share of the steps in which the encoder is not told of the batch.", unit="of steps", group=LATENT,
        ge=0, le=1, advanced=True,
    )
    dropout_rate: float = option(0.2, "Dropout", "Share of hidden units left out in each step, everywhere.", group=NETWORK, ge=0, lt=1)
    shared_encoder: str = option("1024, 128", "Encoder layers", "Sizes of the layers that all modalities share.", group=NETWORK)
    shared_decoder: str = option("128, 1024", "Decoder layers", "Sizes of the layers from the latent space to all modalities.", group=NETWORK)
    batch_encoder: str = option("16, 16", "Batch encoder", "Sizes of the layers from the batch to the latent space.", group=NETWORK, advanced=True)
    batch_decoder: str = option("16, 16", "Batch decoder", "Sizes of the layers from u to the batch.", group=NETWORK, advanced=True)
    norm: Literal["ln", "bn", "none"] = option(
        "ln", "Norm", "Layer norm, batch norm, or none, after every linear map.", group=NETWORK, advanced=True, words=words.NORMS
    )
    activation: Literal["mish", "relu", "silu", "tanh", "sigmoid"] = option(
        "mish", "Activation", "Function after every norm.", group=NETWORK, advanced=True,
        words=words.ACTIVATIONS,
    )
    n_max: int = option(
        10_000, "Cells of a batch in an epoch", "An epoch takes as many rounds as the largest batch needs, but of at most this many of its cells.",
        unit="cells", group=MODALITIES, ge=1, advanced=True,
    )
    distribution: dict[str, str] = option(
        dict,
        "Distribution",
        "By modality, what its values are drawn from: poisson, bernoulli, gaussian, nb, zinb or a plug-in's. Auto is poisson for rna and adt, bernoulli for "
        "atac, and what a plug-in says of its own. A modality of your own is declared by naming it here.",
        group=MODALITIES, words=words.distribution_words,
    )
    transform: dict[str, str] = option(
        dict,
        "Transformed data",
        "By modality, what is done to its values before anything else; the model then explains the transformed values. Auto is binarize where the "
        "distribution is "
        "bernoulli, otherwise none.",
        group=MODALITIES, advanced=True, words=words.transform_words,
    )  # fmt: skip
    encoder_transform: dict[str, str] = option(
        dict,
        "Encoder sees",
        "By modality, what is done to its values on their way into the encoder only. Auto is log1p for counts, otherwise none.",
        group=MODALITIES, advanced=True, words=words.transform_words,
    )  # fmt: skip
    block_encoder: dict[str, str] = option(
        dict, "Block encoder layers",
        "By modality that comes in blocks (chromosomes of peaks), the layer sizes of each block's encoder; auto is 128, 32.", group=MODALITIES, advanced=True,
    )
    block_decoder: dict[str, str] = option(
        dict, "Block decoder layers",
        "By modality that comes in blocks, the layer sizes of each block's decoder, which begin with the encoder's last; auto is 32, 128.",
        group=MODALITIES, advanced=True,
    )
    discriminator: str = option("128, 64", "Discriminator layers", "Sizes of the layers of each discriminator.", group=DISCRIMINATORS, advanced=True)
    discriminator_steps: int = option(
        3, "Discriminator steps", "Steps that the discriminators learn for each step of the network.", unit="steps", group=DISCRIMINATORS, ge=1, le=50
    )
    discriminator_rate: float = option(
        1.0, "Their learning rate", "Learning rate of the discriminators as a multiple of the network's.", unit="× network's", group=DISCRIMINATORS,
        gt=0, log=True, advanced=True,
    )

    discriminator_optimizer: OptimiserName | None = option(
        None, "Their optimiser", "Optimiser of the discriminators, with epsilon, weight decay and momentum of the network's where it has them.",
        group=DISCRIMINATORS, auto="as the network's", advanced=True, words=words.OPTIMISER_WORDS,
    )

    reciprocal: bool = option(
        True, "Pull to the reference", "In a run that maps data onto a reference: the discriminators also tell stored latents of the reference, so "
        "that new cells come "
        "to lie among them. Switched off, the reference only lends its weights.",
        group=DISCRIMINATORS, advanced=True,
    )  # fmt: skip

    @field_validator(*SIZES, mode="before")
    @classmethod
    def _sizes(cls, value: object) -> str:
        return _sizes_text(value)

    @field_validator("discriminator_optimizer", mode="before")
    @classmethod
    def _as_torch_spells_it(cls, value: object) -> object:
        return optimiser_name(value)

    @field_validator("block_encoder", "block_decoder", mode="before")
    @classmethod
    def _block_sizes(cls, value: object) -> object:
        return {key: _sizes_text(item) for key, item in value.items()} if isinstance(value, dict) else value

    @field_validator("distribution", "transform", "encoder_transform")
    @classmethod
    def _known(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for modality, name in value.items():
            if modality not in modality_kinds():
                _in_words(check_name, modality, "modality", (), reserved=RESERVED)
            known = distributions() if info.field_name == "distribution" else transforms()
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                message = f"there is no {'distribution' if info.field_name == 'distribution' else 'transform'} '{name}' for {modality}"
                raise ValueError(message + (f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"))
        return value

    def distribution_of(self, modality: str) -> str:
        """Return the name of a modality's distribution."""
        return self.distribution.get(modality, modality_kind(modality).distribution)

    def transform_of(self, modality: str) -> str:
        """Return the name of what is done to a modality's values first."""
        return self.transform.get(modality) or self._auto(modality).transform

    def encoder_transform_of(self, modality: str) -> str:
        """Return the name of what is done to a modality's values on their way into the encoder."""
        return self.encoder_transform.get(modality) or self._auto(modality).encoder_transform

    def _auto(self, modality: str) -> ModalityKind:
        """Return what holds for a modality where nothing is said: its own, or what suits another distribution that was chosen for it."""
        kind, chosen = modality_kind(modality), self.distribution_of(modality)
        if chosen == kind.distribution:
            return kind
        support = distribution(chosen).support
        return replace(kind, transform="binarize" if support == "binary" else "none", encoder_transform="log1p" if support == "counts" else "none")

    def knows(self, modality: str) -> bool:
        """Return whether a modality was declared: by us, by a plug-in, or in :attr:`distribution`."""
        return modality in modality_kinds() or modality in self.distribution

    def block_sizes(self, modality: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the layer sizes of a block's encoder and decoder."""
        return sizes_of(self.block_encoder.get(modality, BLOCK_ENCODER)), sizes_of(self.block_decoder.get(modality, BLOCK_DECODER))


def reconstruction(modality: str) -> str:
    """Return the name of a modality's reconstruction term."""
    return f"reconstruction_{modality}"


def modality_names(spec: RunSpec) -> tuple[str, ...]:
    """Return the modalities whose loss terms a spec has.

    A spec does not know its study. Once a run has begun it names the place of the counts of every modality, and those are they; before, they are the usual
    ones, those of plug-ins, and what options and loss weights mention.
    """
    model = spec.model
    assert isinstance(model, MidasOptions)
    if spec.data.sha256 and spec.data.layers:
        mentioned = (name.removeprefix("reconstruction_") for name in spec.losses.weights if name.startswith("reconstruction_"))
        return tuple(dict.fromkeys((*spec.data.layers, *(name for name in mentioned if name != "batch" and model.knows(name)))))
    tables = (model.distribution, model.transform, model.encoder_transform, model.block_encoder, model.block_decoder)
    return tuple(dict.fromkeys((*modality_kinds(), *(name for table in tables for name in table))))


def terms(spec: RunSpec) -> tuple[LossTerm, ...]:
    """Loss terms (spec section 4); the weights are the products of scmidas' lambdas that multiply each term."""
    model = spec.model
    assert isinstance(model, MidasOptions)
    names = modality_names(spec)
    places = modality_places(names)
    found = [
        LossTerm(
            reconstruction(name), modality_kind(name).reconstruction_label,
            f"Negative log-likelihood of {modality_kind(name).label}, in the cells that have it. Raise it where this modality is lost beside the "
            f"others; lower it where "
            "it drowns them, as raw protein counts can.",
            colour=places[name], modality=name,
        )
        for name in names
    ]  # fmt: skip
    after = len(places)
    if spec.covariates.batch is not None and model.batch_expert:  # in a step without the batch there is nothing to reconstruct
        found.append(
            LossTerm(
                "reconstruction_batch", "Reconstruction of the batch",
                "How badly the batch is guessed from u. High values make u take up all that tells the batches apart, so that c need not carry it.",
                default=1000.0, maximum=10_000.0, colour=after,
            )
        )
    found += [
        LossTerm("kl_c", "KL of c", "Pull of c to the standard normal prior. Higher values give a smoother, less detailed latent "
        "space.", annealed=True, colour=after + 1),
        LossTerm("kl_u", "KL of u", "Pull of u to the standard normal prior. Higher values leave less room for technical "
        "effects.", default=5.0, annealed=True, colour=after + 2),
        LossTerm(
            "alignment", "Alignment of modalities",
            "Squared distance between what the modalities of one cell say of it. Raise it where modalities lie apart; very high values leave only "
            "what all of them know.",
            default=50.0, maximum=1000.0, colour=after + 3, in_elbo=False, unit="squared distance per cell",
        ),
    ]  # fmt: skip
    if spec.covariates.batch is not None:
        found.append(
            LossTerm(
                "adversarial", "Discriminators, fooled",
                "How badly the discriminators, once they have learnt in a step, guess the batch from c, which the encoder tries to raise. Its weight "
                "multiplies that of their own loss: higher values mix the batches more, and in the end cell types too; at 0 they only watch.",
                sign=-1, times=OWN_LOSS, colour=after + 4, in_elbo=False,
            )
        )
        found.append(
            LossTerm(
                OWN_LOSS, "Discriminators, own loss",
                "How badly the discriminators guess the batch from c while they learn, which they try to lower. Its weight multiplies their loss, which "
                "Adam hardly minds and other optimisers or clipped gradients do, and what the encoder raises; at 0 there are no discriminators.",
                default=30.0, sign=0, maximum=1000.0, colour=after + 5, in_elbo=False,
            )
        )
    return tuple(found)


def metrics(spec: RunSpec) -> tuple[Metric, ...]:
    """Accuracy of each discriminator, where there is a batch to be told."""
    if spec.covariates.batch is None:
        return ()
    what = (
        "Share of the training cells whose batch the discriminator tells from {}. Mixed batches leave it at chance, one over the number of batches "
        "that it tells apart; near 1 they lie apart."
    )
    found = [Metric("discriminator_joint", "Discriminator, all modalities", what.format("c of all modalities"), unit="share of cells")]
    found += [
        Metric(f"discriminator_{name}", f"Discriminator, {modality_kind(name).label}", what.format(f"c of {modality_kind(name).label} alone"),
        unit="share of cells")
        for name in modality_names(spec)
    ]
    return tuple(found)


def check(spec: RunSpec) -> list[str]:
    """Return what MIDAS cannot honour in this spec."""
    model = spec.model
    assert isinstance(model, MidasOptions)
    found = []
    for name in modality_names(spec):
        first, second = model.block_sizes(name)
        if first[-1] != second[0]:
            found.append(f"the blocks of {name} leave the encoder with {first[-1]} units, so model.block_decoder.{name} must begin with {first[-1]}, "
            f"not {second[0]}")
    return found


def check_study(spec: RunSpec, study: Study) -> list[str]:
    """Return what cannot be honoured with these data: options of modalities that they do not have."""
    if spec.reference is not None:  # what is mapped need not have every modality of its reference, whose options it takes over
        return []
    model = spec.model
    assert isinstance(model, MidasOptions)
    unknown = [name for name in study.modalities if not model.knows(name)]
    found = [
        f"MIDAS does not know the modality '{name}' (it knows {', '.join(modality_kinds())}): say what its values are drawn from, "
        f"model.distribution.{name} = 'poisson' for counts, or rename it"
        for name in unknown
    ]
    return [*found, *strange_names(model, TABLES, list(study.modalities))]


FAMILY = Family(
    kind="midas",
    maps=True,
    title="MIDAS",
    help="Mosaic integration: batches with different modalities in one latent space, and every modality imputed in every cell.",
    options=MidasOptions,
    terms=terms,
    metrics=metrics,
    network="cellweave.core.models.midas_network:build",
    summaries="cellweave.core.models.midas_summaries:summaries",
    check=check,
    check_study=check_study,
    modalities="many",
    sampler="pattern",
    blocks=True,
    hidden_units=lambda spec: max(sizes_of(spec.model.shared_encoder)),
    training={
        "max_epochs": 1500, "batch_size": 256, "learning_rate": 1e-4, "optimizer": "adamw", "adam_eps": 1e-8, "weight_decay": 0.01,
        "kl_warmup_epochs": 0, "patience": 100, "precision": "auto",
    },
    roles=(
        RoleUse("batch", "Told to the encoder as an expert of its own and kept out of the biological dimensions by the discriminators."),
        RoleUse("labels", "Colours and scores only."),
    ),
    unused_reason={
        "size_factor": "MIDAS decodes counts without a library size: depth is part of the latent space.",
        "*": "MIDAS knows one technical column, the batch: combine columns into one (data.combine) to use several.",
    },
    results=(
        Result("latent", "latent", "Biological latent space", "Posterior mean of c of every cell, from all modalities it has."),
        Result("imputed", "imputation", "Imputed modalities", "Expected values of every modality in every cell, measured or not."),
        Result("corrected", "imputation", "Batch-corrected values", "Expected values as if all cells were of one batch."),
        Result("translated", "imputation", "Translated modalities", "Expected values of each modality from any set of others."),
    ),
    paper="He et al., Nature Biotechnology 42 (2024) 1594-1605",
)
