"""scVAEIT: masked mosaic imputation. Options, loss terms and what it gives (Du, Cai, Roeder 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast, get_args

from pydantic import field_validator

from cellweave.core.errors import SpecError
from cellweave.core.models.declare import Family, LossTerm, Metric, Result, RoleUse
from cellweave.core.models.latent_mmd import LatentMmdOptions
from cellweave.core.models.per_modality import strange_names
from cellweave.core.nn.distributions import distribution
from cellweave.core.spec import words
from cellweave.core.spec.fields import option
from cellweave.core.spec.modalities import modality_kind, modality_kinds, modality_places

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec
    from cellweave.core.study.study import Study

NETWORK, LIKELIHOOD, LATENT, MASKING, BALANCE = "Network", "Likelihood", "Latent space", "Hiding", "Balance of the modalities"
MMD = "Discrepancy between batches (MMD)"
Distribution = Literal["nb", "zinb", "bernoulli", "gaussian", "poisson"]
Normalisation = Literal["log1p", "binary", "none"]
#: Options that are given by modality.
TABLES = ("block_units", "mask_units", "distribution", "normalisation", "highest", "lowest", "modality_shares")
USUAL = ("rna", "adt", "atac")
#: Units by modality where nothing is said: those of the authors' three-modality tutorial; others are taken as proteins.
UNITS = {"rna": 256, "adt": 128, "atac": 16}
MASK_UNITS = {"rna": 32, "adt": 16, "atac": 2}
DISTRIBUTIONS: dict[str, Distribution] = {"atac": "bernoulli"}
_OF_SUPPORT: dict[str, Distribution] = {"counts": "nb", "binary": "bernoulli", "real": "gaussian"}


class VaeitOptions(LatentMmdOptions):
    """Options of scVAEIT; names in words, defaults those of scVAEIT 1.1.1, or of its tutorials where it has none."""

    kind: Literal["vaeit"] = "vaeit"
    n_latent: int = option(32, "Latent dimensions", "Size of the latent space.", group=LATENT, ge=1, le=1024)
    hidden: tuple[str, ...] = option(
        ("256",), "Hidden layers", "Width of each hidden layer behind the blocks of the encoder; the decoder has them in reverse order.", group=NETWORK,
        min_length=1,
    )
    block_units: dict[str, str] = option(
        dict,
        "Units of a block",
        "Width of the first layer of each block of features, by modality; auto is 256 for rna, 128 for adt and 16 for each chromosome of atac.",
        group=NETWORK,
    )
    mask_units: dict[str, str] = option(
        dict, "Units of the mask", "Numbers that tell the network which features of a block it sees, by modality; auto is 32 for rna, 16 for adt, 2 for a "
        "chromosome of atac.", group=NETWORK, advanced=True,
    )  # fmt: skip
    skip_connections: bool = option(
        False, "Skip connections", "Add each block of the encoder to that of the decoder: better imputation, a poorer latent space.", group=NETWORK
    )
    distribution: dict[str, str] = option(
        dict,
        "Likelihood",
        "Of each modality: nb, zinb, bernoulli, gaussian or poisson. Auto is bernoulli for atac, what a plug-in declares for its own, and nb for all others.",
        group=LIKELIHOOD, words={name: words.LIKELIHOODS[name] for name in get_args(Distribution)},
    )
    normalisation: dict[str, str] = option(
        dict,
        "Values",
        "What becomes of the counts of each modality: log1p (of counts per 10,000 of the cell), binary, or none for values that are normalised already. "
        "Auto is binary with the Bernoulli likelihood, none for real numbers that a plug-in declares, and log1p with all others.",
        group=LIKELIHOOD, advanced=True, words=words.NORMALISED,
    )  # fmt: skip
    highest: dict[str, str] = option(
        dict, "Highest value", "Upper end of the range that is predicted, by modality; auto is taken from the training cells.", group=LIKELIHOOD, advanced=True
    )
    lowest: dict[str, str] = option(
        dict, "Lowest value", "Lower end of the range that is predicted, by modality; auto is 0, and from the training cells where the likelihood is gaussian.",
        group=LIKELIHOOD, advanced=True,
    )  # fmt: skip
    max_dispersion: float = option(
        6.0, "Largest dispersion", "The dispersion of a feature is not let above this.", group=LIKELIHOOD, gt=0, le=1e4,
        advanced=True,
    )  # fmt: skip
    mask_features: float = option(
        0.2, "Features hidden", "Share of the features hidden in a step, in half of the cells. The tutorials take 0.5.", group=MASKING, ge=0, lt=1
    )
    mask_modality: Literal["proportional", "uniform"] = option(
        "proportional",
        "Modality hidden",
        "Which modality is hidden in a cell: drawn in proportion to the numbers of features, or each equally often. With proportional shares a "
        "small panel of proteins is seldom predicted.",
        group=MASKING, words=words.HIDDEN_BY,
    )
    modality_shares: dict[str, str] = option(
        dict, "Shares of the modalities", "How often each modality is hidden, by modality; must sum to 1. Empty leaves it to the choice "
        "above.", group=MASKING, advanced=True
    )
    balance: bool = option(
        False,
        "Balance automatically",
        "Weigh the modalities by one over their losses after the first epochs, so that all are of one order, as the authors advise to do by hand. What was "
        "chosen is shown among the losses.",
        group=BALANCE,
    )
    balance_epochs: int = option(5, "Balance after", "Epochs after which the balance is struck.", unit="epochs", group=BALANCE, ge=1, le=1000, advanced=True)
    mmd_kernel: Literal["unit", "dimension", "median", "multiscale", "widths"] = option(
        "widths",
        "MMD kernel",
        "A mean of 19 fixed widths from 1e-6 to 1e6, as published; or width 1, scaled by the number of dimensions, by the median distance, "
        "or a mixture around it.",
        group=MMD, advanced=True, words=words.MMD_KERNELS,
    )  # fmt: skip
    mmd_pairs: Literal["sequential", "all", "one_vs_rest"] = option(
        "all", "MMD pairs", "Compare each batch with the next, all batches with each other, or each with the rest.", group=MMD, advanced=True,
        words=words.MMD_PAIRS,
    )
    mmd_decay: float = option(
        1.0, "MMD decay", "Factor by which the discrepancy counts less every 50 epochs; 0.8 in the authors' tutorial, 1 leaves it.",
        group=MMD, gt=0, le=1, advanced=True
    )

    @field_validator("hidden", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        """Allow a single width, and numbers where text is meant."""
        return (str(value),) if isinstance(value, int | str) else value

    @field_validator("hidden")
    @classmethod
    def _widths(cls, widths: tuple[str, ...]) -> tuple[str, ...]:
        for text in widths:
            if not text.strip().isdigit() or not 1 <= int(text) <= 8192:
                message = f"'{text}' is not the width of a layer; write whole numbers from 1 to 8192, for instance 256, 64"
                raise ValueError(message)
        return widths

    @field_validator("distribution")
    @classmethod
    def _known_distributions(cls, found: dict[str, str]) -> dict[str, str]:
        return _one_of(found, get_args(Distribution), "likelihoods")

    @field_validator("normalisation")
    @classmethod
    def _known_normalisations(cls, found: dict[str, str]) -> dict[str, str]:
        return _one_of(found, get_args(Normalisation), "values")

    @field_validator("block_units", "mask_units")
    @classmethod
    def _whole(cls, found: dict[str, str]) -> dict[str, str]:
        for name, text in found.items():
            if not text.strip().isdigit() or not 1 <= int(text) <= 8192:
                message = f"'{text}' for {name} is not a number of units; write a whole number from 1 to 8192"
                raise ValueError(message)
        return found

    @field_validator("highest", "lowest", "modality_shares")
    @classmethod
    def _numbers(cls, found: dict[str, str]) -> dict[str, str]:
        for name, text in found.items():
            _number(text, name)
        return found

    @field_validator("modality_shares")
    @classmethod
    def _sum_to_one(cls, found: dict[str, str]) -> dict[str, str]:
        shares = {name: float(text) for name, text in found.items()}
        if any(share < 0 for share in shares.values()):
            message = "a share below 0 was given; shares are 0 or more and sum to 1"
            raise ValueError(message)
        total = sum(shares.values())
        if shares and abs(total - 1) > 1e-6:
            message = f"the shares of the modalities sum to {total:g}, not to 1" + (f"; divide each by {total:g}" if total else "")
            raise ValueError(message)
        return found

    def units_of(self, modality: str) -> int:
        """Return the width of each block of a modality."""
        return int(self.block_units.get(modality, UNITS.get(modality, UNITS["adt"])))

    def mask_units_of(self, modality: str) -> int:
        """Return how many numbers tell of the mask of each block of a modality."""
        return int(self.mask_units.get(modality, MASK_UNITS.get(modality, MASK_UNITS["adt"])))

    def distribution_of(self, modality: str) -> Distribution:
        """Return the likelihood of a modality: as chosen, as its plug-in declares it, or as usual."""
        return self.distribution.get(modality) or _declared(modality) or DISTRIBUTIONS.get(modality, "nb")  # type: ignore[return-value]

    def normalisation_of(self, modality: str) -> Normalisation:
        """Return what becomes of the counts of a modality."""
        auto: Normalisation = "binary" if self.distribution_of(modality) == "bernoulli" else "log1p"
        if self.distribution_of(modality) == _declared(modality) == "gaussian":
            auto = "none"  # a plug-in's real numbers, which may be below 0
        return self.normalisation.get(modality, auto)  # type: ignore[return-value]

    def shares_of(self, n_features: Mapping[str, int]) -> dict[str, float]:
        """Return how often each modality is hidden, given the numbers of their features; the shares sum to 1.

        Raises
        ------
        SpecError
            Where a share is given of a modality that is not among them.
        """
        if self.modality_shares:
            strange = [name for name in self.modality_shares if name not in n_features]
            if strange:
                raise SpecError(f"model.modality_shares names '{strange[0]}', which the data do not have.", f"They have {', '.join(n_features)}.")
            found = {name: float(self.modality_shares.get(name, 0.0)) for name in n_features}
        else:
            found = {name: 1.0 if self.mask_modality == "uniform" else float(n) for name, n in n_features.items()}
        total = sum(found.values())
        return {name: share / total for name, share in found.items()}


def _declared(modality: str) -> Distribution | None:
    """Return the likelihood that a plug-in declares for its modality, or the one for such values where it is none of ours; None for all others."""
    kind = modality_kinds().get(modality)
    if kind is None or modality in USUAL:
        return None
    if kind.distribution in get_args(Distribution):
        return cast(Distribution, kind.distribution)
    return _OF_SUPPORT[distribution(kind.distribution).support]


def _number(text: str, name: str) -> float:
    try:
        found = float(text)
    except ValueError:
        message = f"'{text}' for {name} is not a number"
        raise ValueError(message) from None
    if not math.isfinite(found):
        message = f"'{text}' for {name} is not a finite number"
        raise ValueError(message)
    return found


def _one_of(found: dict[str, str], known: tuple[str, ...], what: str) -> dict[str, str]:
    for name, value in found.items():
        if value not in known:
            message = f"'{value}' for {name} is none of the {what} {', '.join(known)}"
            raise ValueError(message)
    return found


def modality_names(spec: RunSpec) -> tuple[str, ...]:
    """Return the modalities whose loss terms a spec has.

    A spec does not know its study. Once a run has begun it names the place of the counts of every modality, and those are they; before,
    they are the usual ones, those of plug-ins, and what loss weights or options mention.
    """
    named = dict.fromkeys(spec.data.layers) if spec.data.sha256 and spec.data.layers else dict.fromkeys((*modality_kinds(), *spec.data.layers))
    if isinstance(spec.model, VaeitOptions):
        for table in (spec.model.block_units, spec.model.distribution, spec.model.normalisation, spec.model.modality_shares):
            named |= dict.fromkeys(table)
    prefixes = ("observed_", "hidden_", "reverse_")
    mentioned = (name.removeprefix(prefix) for name in spec.losses.weights for prefix in prefixes if name.startswith(prefix))
    # New data may lack modalities of the reference that they are mapped onto.
    named |= dict.fromkeys(name for name in mentioned if name in modality_kinds() or spec.reference is not None)
    return tuple(named)


def shown(modality: str) -> str:
    """Return a modality's name as it is written in labels."""
    return modality_kind(modality).label


def terms(spec: RunSpec) -> tuple[LossTerm, ...]:
    """Loss terms of scVAEIT.

    The published objective weighs the likelihood of modality k by ``beta_modal[k]``, times ``1 - beta_unobs`` for what is seen and ``beta_unobs`` for what is
    hidden; here each product is one weight. With ``beta_reverse`` r, the hidden terms and the KL take ``1 - r`` of theirs, and the reverse ones r.
    """
    names, found = modality_names(spec), []
    places = modality_places(names)
    for name in names:
        found += [
            LossTerm(
                f"observed_{name}", f"{shown(name)} seen",
                f"Negative log-likelihood of all measured {shown(name)} values, decoded from everything that was measured.",
                default=0.5, colour=2 * places[name], maximum=10.0, modality=name,
            ),
            LossTerm(
                f"hidden_{name}", f"{shown(name)} hidden",
                f"Negative log-likelihood of the {shown(name)} values that were hidden in this step, predicted from the rest. Raise it where "
                f"{shown(name)} is to be "
                "imputed well.",
                default=0.5, colour=2 * places[name] + 1, maximum=10.0, modality=name,
            ),
        ]  # fmt: skip
    found.append(
        LossTerm(
            "kl", "KL of the hidden view",
            "Divergence of the latent found without the hidden values from that found with all. Higher values make a cell's latent depend less "
            "on what was measured "
            "in it. There is no pull to a standard normal.",
            default=2.0, colour=2 * len(places), maximum=20.0,
        )
    )  # fmt: skip
    found += [
        LossTerm(
            f"reverse_{name}", f"{shown(name)} reversed",
            f"Negative log-likelihood of the {shown(name)} values that were left visible, predicted from the hidden ones. 0 for all modalities "
            f"leaves the third pass "
            "out.",
            default=0.0, colour=2 * len(places) + 2 + places[name], maximum=10.0, in_elbo=False, modality=name,
        )
        for name in names
    ]  # fmt: skip
    found.append(
        LossTerm(
            "kl_reverse", "KL of the reversed view",
            "Divergence of the latent found from the hidden values alone from that found with all.",
            default=0.0, colour=2 * len(places) + 1, maximum=20.0, in_elbo=False,
        )
    )  # fmt: skip
    if conditions(spec):
        found.append(
            LossTerm(
                "mmd", "Discrepancy between conditions (MMD)",
                "Pulls the latents of the batches together (of the data sets, where a column has that role). 0 switches it off; 1 to 10 act.",
                default=0.0, scope="minibatch", maximum=100.0, colour=3 * len(places) + 2, in_elbo=False, unit="MMD²/minibatch",
            )
        )  # fmt: skip
    return tuple(found)


def conditions(spec: RunSpec) -> tuple[str, ...]:
    """Return the roles whose levels the MMD pulls together: the data set where it is named, otherwise the batch."""
    roles = spec.covariates
    return ("dataset",) if roles.dataset is not None else ("batch",) if roles.batch is not None else ()


def metrics(spec: RunSpec) -> tuple[Metric, ...]:
    """Return the balance of the modalities, where it is found automatically, and how much is hidden."""
    found = [Metric("hidden_share", "Share hidden", "Share of the measured values that were hidden in the steps of this epoch.", unit="share")]
    if getattr(spec.model, "balance", False):
        found += [
            Metric(f"beta_{name}", f"Weight of {shown(name)}", "Weight of the modality's likelihoods that the balance has chosen; it "
            "multiplies the loss weights.", unit="weight")
            for name in modality_names(spec)
        ]
    return tuple(found)


def check(spec: RunSpec) -> list[str]:
    """Return what scVAEIT cannot honour in this spec."""
    model = spec.model
    assert isinstance(model, VaeitOptions)
    found = []
    for name in {*model.distribution, *model.normalisation}:
        if model.normalisation_of(name) == "binary" and model.distribution_of(name) in {"nb", "zinb", "poisson"}:
            found.append(f"model.normalisation of {name} is binary, which suits the bernoulli and gaussian likelihoods only")
        if model.distribution_of(name) == "bernoulli" and model.normalisation_of(name) != "binary":
            found.append(f"the likelihood of {name} is bernoulli, so model.normalisation of {name} must be binary")
    found += _bounds(model)
    weights: Mapping[str, float] = spec.loss_weights() if not _unknown(spec) else {}
    pairs = [weights.get(f"{kind}_{name}", 1.0) for kind in ("observed", "hidden") for name in modality_names(spec)]
    if weights and not any(pairs):
        found.append("all weights of the likelihoods are 0, so nothing would be learned")
    return found


def _bounds(model: VaeitOptions) -> list[str]:
    """Return ranges of predicted values that are empty, or that a likelihood of counts has no mean for."""
    found = []
    for name in sorted({*model.highest, *model.lowest}):
        kind = model.distribution_of(name)
        counts = kind in {"nb", "zinb", "poisson"}
        if counts and float(model.lowest.get(name, 0)) < 0:
            found.append(f"model.lowest of {name} is below 0, and the mean of the {kind} likelihood is not: give 0 or more")
        elif name in model.highest and (counts or name in model.lowest) and float(model.lowest.get(name, 0)) >= float(model.highest[name]):
            found.append(f"model.lowest of {name} is not below model.highest" + ("" if name in model.lowest else ", because it is 0 where none is given"))
    return found


def check_study(spec: RunSpec, study: Study) -> list[str]:
    """Return what cannot be honoured with these data: options of modalities that they do not have."""
    model, names = spec.model, list(study.modalities)
    assert isinstance(model, VaeitOptions)
    absent = [name for name in model.modality_shares if name not in names and name in modality_kinds()]  # their share would be nobody's
    found = [f"model.modality_shares names '{name}', which is no modality of these data ({', '.join(names)}): leave it out" for name in absent]
    return found + strange_names(model, TABLES, names)


def _unknown(spec: RunSpec) -> bool:
    """Return whether a weight names a term that does not exist, which is said elsewhere."""
    return not set(spec.losses.weights) <= {term.name for term in terms(spec)}


FAMILY = Family(
    kind="vaeit",
    title="scVAEIT",
    help="Learns by hiding what is known: any modality or feature may be missing in any cell, and what is missing is imputed.",
    options=VaeitOptions,
    terms=terms,
    network="cellweave.core.models.vaeit_network:build",
    check=check,
    check_study=check_study,
    modalities="many",
    blocks=True,
    maps=True,
    hidden_units=lambda spec: max(spec.model.units_of(name) for name in USUAL),
    metrics=metrics,
    summaries="cellweave.core.models.vaeit_ranges:summaries",
    training={
        "max_epochs": 200, "batch_size": 256, "learning_rate": 3e-4, "optimizer": "adamw", "adam_eps": 1e-7, "weight_decay": 1e-4, "kl_warmup_epochs": 0,
    },
    roles=(
        RoleUse("batch", "Given to encoder, decoder and dispersions, and compared by the MMD."),
        RoleUse("decoder", "Further categorical covariates, used as the batch is, but for the MMD."),
        RoleUse("continuous", "Numeric covariates, given to encoder, decoder and dispersions."),
        RoleUse("dataset", "Compared by the MMD in place of the batch."),
        RoleUse("labels", "Colours and scores; training does not use them."),
    ),
    unused_reason={
        "encoder": "scVAEIT gives its covariates to encoder and decoder alike: use the role 'Decoder', which serves both.",
        "size_factor": "scVAEIT normalises each cell by its own total count.",
        "library_size": "scVAEIT normalises each cell by its own total count.",
        "dispersion": "the dispersions of scVAEIT follow all its covariates.",
        "*": "scVAEIT does not use this role.",
    },
    results=(
        Result("latent", "latent", "Latent space", "Posterior mean of every cell, given all that was measured in it."),
        Result("imputed", "imputation", "Imputed values", "Expected value of every feature of every modality, measured or not."),
        Result("denoised", "expression", "Denoised expression", "Expected expression without sampling noise, in the unit of the counts."),
    ),
    paper="Du, Cai & Roeder, PNAS 119 (2022) e2214414119",
)
