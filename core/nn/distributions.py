"""What the values of a modality are drawn from, and what is done to them first: two registries that users can extend.

A distribution says how likely a value is given what the decoder puts out, its expected value, and how to draw. A transform comes with
its inverse, which is the one that brings results back. Ours are registered below; a plug-in adds its own with :func:`register_distribution` and
:func:`register_transform` (entry point groups ``cellweave.distributions`` and ``cellweave.transforms``), and forms, losses and exports know
them by name. Nothing here imports torch before the first tensor exists, so that forms can list the names.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

from cellweave.core.errors import SpecError
from cellweave.core.plugins import check_name, load_plugins

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cellweave.core.nn.counts import CountBatch

Support = Literal["counts", "binary", "real"]
Extra = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Distribution:
    """A distribution of the values of a modality.

    Attributes
    ----------
    name
        Identifier in specs.
    title, help
        Texts for forms.
    loss
        ``loss(x, eta, extra)``: negative log-likelihood of each element; ``x`` and ``eta`` (the decoder's output, any real number) have one shape or
        broadcast, ``extra`` holds tensors ``(n_features,)`` or of that shape.
    mean
        ``mean(eta, extra)``: expected values.
    sample
        ``sample(eta, extra, generator)``: draws.
    extra
        Parameters of each feature that are learned beside the decoder, with the number they start from; each is any real number.
    support
        ``"counts"``: whole numbers from 0; ``"binary"``: 0 and 1; ``"real"``: any finite number.
    """

    name: str
    title: str
    help: str
    loss: Callable[[Tensor, Tensor, Extra], Tensor]
    mean: Callable[[Tensor, Extra], Tensor]
    sample: Callable[[Tensor, Extra, torch.Generator | None], Tensor]
    extra: Mapping[str, float] = field(default_factory=dict)
    support: Support = "counts"

    def nll(
        self,
        counts: CountBatch,
        eta: Tensor,
        *,
        values: Tensor | None = None,
        extra: Extra | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the negative log-likelihood of each cell: that of zero everywhere, and the difference at the stored entries.

        Parameters
        ----------
        counts
            The minibatch.
        eta
            Output of the decoder ``(n_cells, n_features)``.
        values
            What stands at the stored entries in place of the counts, ``(nnz,)`` (transformed values); None for the counts.
        extra
            The distribution's own parameters, each ``(n_features,)``.
        mask
            1 where a feature was measured, ``(n_cells, n_features)`` or broadcast against it; None where all were.

        Returns
        -------
        Tensor
            Sum over the measured features, ``(n_cells,)``.
        """
        extra, x = extra or {}, counts.values if values is None else values
        at_zero = self.loss(eta.new_zeros(()), eta, extra)
        own = {name: parameter.expand_as(eta).reshape(-1)[counts.flat] for name, parameter in extra.items()}
        stored = counts.gather(eta)
        more = self.loss(x, stored, own) - self.loss(x.new_zeros(()), stored, own)
        if mask is not None:
            at_zero = at_zero * mask
            more = more * counts.gather(mask.expand(counts.shape).to(more.dtype))
        return at_zero.sum(1) + counts.row_sum(more)


@dataclass(frozen=True)
class Transform:
    """What is done to the values of a modality, and what undoes it.

    Attributes
    ----------
    name
        Identifier in specs.
    title, help
        Texts for forms.
    apply
        Elementwise; 0 must stay 0, so that sparse counts stay sparse.
    inverse
        Elementwise inverse, applied to expected values; None where nothing can undo it (results then stay as they are).
    """

    name: str
    title: str
    help: str
    apply: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor] | None = None

    def undo(self, values: Tensor) -> Tensor:
        """Return the values on the original scale, by the registered inverse."""
        return values if self.inverse is None else self.inverse(values)


_DISTRIBUTIONS: dict[str, Distribution] = {}
_TRANSFORMS: dict[str, Transform] = {}


def register_distribution(made: Distribution) -> Distribution:
    """Make a distribution known.

    Raises
    ------
    SpecError
        Where its name is no plain word, or is taken.
    """
    if _DISTRIBUTIONS.get(made.name) == made:
        return made
    check_name(made.name, "distribution", _DISTRIBUTIONS)
    for name in made.extra:
        check_name(name, f"parameter of the distribution '{made.name}'", ())
    _DISTRIBUTIONS[made.name] = made
    return made


def register_transform(made: Transform) -> Transform:
    """Make a transform known.

    Raises
    ------
    SpecError
        Where its name is no plain word or is taken.
    """
    if _TRANSFORMS.get(made.name) == made:
        return made
    check_name(made.name, "transform", _TRANSFORMS)
    _TRANSFORMS[made.name] = made
    return made


def distributions() -> dict[str, Distribution]:
    """Return every known distribution by name, plug-ins included."""
    _load_distributions()
    return dict(_DISTRIBUTIONS)


def transforms() -> dict[str, Transform]:
    """Return every known transform by name, plug-ins included."""
    _load_transforms()
    return dict(_TRANSFORMS)


@cache
def _load_distributions() -> None:
    load_plugins("cellweave.distributions", Distribution, register_distribution)


@cache
def _load_transforms() -> None:
    load_plugins("cellweave.transforms", Transform, register_transform)


def distribution(name: str) -> Distribution:
    """Return the distribution of a name.

    Raises
    ------
    SpecError
        Where there is none; the sentence proposes the nearest.
    """
    known = distributions()
    if name not in known:
        raise _unknown(name, "distribution", known)
    return known[name]


def transform(name: str) -> Transform:
    """Return the transform of a name, refused like :func:`distribution`; one that does not keep 0 is refused too.

    Raises
    ------
    SpecError
        As said.
    """
    known = transforms()
    if name not in known:
        raise _unknown(name, "transform", known)
    found = known[name]
    import torch

    if float(found.apply(torch.zeros(1))) != 0.0:
        raise SpecError(f"The transform '{name}' makes something else of 0, so that sparse counts would become dense.", "Choose one that keeps 0.")
    return found


def _unknown(name: str, what: str, known: Mapping[str, object]) -> SpecError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return SpecError(f"There is no {what} '{name}'.", f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(known)}.")


# ---------------------------------------------------------------------- ours


def _poisson_loss(x: Tensor, eta: Tensor, extra: Extra) -> Tensor:
    import torch

    return torch.exp(eta) - x * eta + torch.lgamma(x + 1)


def _poisson_mean(eta: Tensor, extra: Extra) -> Tensor:
    return eta.exp()


def _poisson_sample(eta: Tensor, extra: Extra, generator: torch.Generator | None) -> Tensor:
    from cellweave.core.nn.likelihoods import sample_poisson

    return sample_poisson(eta.exp(), generator)


def _bernoulli_loss(x: Tensor, eta: Tensor, extra: Extra) -> Tensor:
    from torch.nn.functional import softplus

    return softplus(eta) - x * eta


def _bernoulli_mean(eta: Tensor, extra: Extra) -> Tensor:
    return eta.sigmoid()


def _bernoulli_sample(eta: Tensor, extra: Extra, generator: torch.Generator | None) -> Tensor:
    import torch

    return torch.bernoulli(eta.sigmoid(), generator=generator)


def _gaussian_loss(x: Tensor, eta: Tensor, extra: Extra) -> Tensor:
    from cellweave.core.nn.likelihoods import normal_log_prob

    return -normal_log_prob(x, eta, extra["log_sd"].exp())


def _gaussian_mean(eta: Tensor, extra: Extra) -> Tensor:
    return eta


def _gaussian_sample(eta: Tensor, extra: Extra, generator: torch.Generator | None) -> Tensor:
    from cellweave.core.nn.likelihoods import sample_normal

    return sample_normal(eta, extra["log_sd"].exp(), generator)


def _nb_loss(x: Tensor, eta: Tensor, extra: Extra) -> Tensor:
    from cellweave.core.nn.likelihoods import nb_log_prob

    return -nb_log_prob(x, eta.exp(), extra["log_theta"].exp())


def _nb_sample(eta: Tensor, extra: Extra, generator: torch.Generator | None) -> Tensor:
    from cellweave.core.nn.likelihoods import sample_nb

    return sample_nb(eta.exp(), extra["log_theta"].exp(), generator)


def _zinb_loss(x: Tensor, eta: Tensor, extra: Extra) -> Tensor:
    from cellweave.core.nn.likelihoods import zinb_log_prob

    return -zinb_log_prob(x, eta.exp(), extra["log_theta"].exp(), extra["zero_logit"])


def _zinb_mean(eta: Tensor, extra: Extra) -> Tensor:
    from cellweave.core.nn.likelihoods import zinb_mean

    return zinb_mean(eta.exp(), extra["zero_logit"])


def _zinb_sample(eta: Tensor, extra: Extra, generator: torch.Generator | None) -> Tensor:
    import torch

    from cellweave.core.nn.likelihoods import sample_zinb

    mu, theta, zero = torch.broadcast_tensors(eta.exp(), extra["log_theta"].exp(), extra["zero_logit"])
    return sample_zinb(mu, theta, zero, generator)


def _log1p(values: Tensor) -> Tensor:
    return values.log1p()


def _expm1(values: Tensor) -> Tensor:
    return values.expm1()


def _binarize(values: Tensor) -> Tensor:
    return (values > 0.5).to(values.dtype)


def _same(values: Tensor) -> Tensor:
    return values


def _sqrt(values: Tensor) -> Tensor:
    return values.sqrt()


def _square(values: Tensor) -> Tensor:
    return values * values


for _made in (
    Distribution(
        "poisson", "Poisson", "Counts whose variance is their mean; the decoder gives the logarithm of the rate.",
        _poisson_loss, _poisson_mean, _poisson_sample,
    ),
    Distribution(
        "bernoulli", "Bernoulli", "Open or closed, there or not: 0 and 1 only.", _bernoulli_loss, _bernoulli_mean, _bernoulli_sample, support="binary"
    ),
    Distribution(
        "gaussian", "Gaussian", "Real values with one spread for each feature.", _gaussian_loss, _gaussian_mean, _gaussian_sample,
        {"log_sd": 0.0}, "real",
    ),
    Distribution(
        "nb", "Negative binomial", "Counts that vary more than Poisson ones, with one dispersion for each feature.",
        _nb_loss, _poisson_mean, _nb_sample, {"log_theta": 0.0},
    ),
    Distribution(
        "zinb", "Zero-inflated negative binomial", "The negative binomial with extra zeros, a share of them for each feature.",
        _zinb_loss, _zinb_mean, _zinb_sample, {"log_theta": 0.0, "zero_logit": -2.0},
    ),
):  # fmt: skip
    register_distribution(_made)
for _other in (
    Transform("none", "None", "Values as they are.", _same, _same),
    Transform("log1p", "log(1 + x)", "Logarithm of one more than the value.", _log1p, _expm1),
    Transform("binarize", "Binarise", "1 for every value above a half, else 0; nothing undoes it.", _binarize),
    Transform("sqrt", "Square root", "Square root of the value.", _sqrt, _square),
):
    register_transform(_other)
