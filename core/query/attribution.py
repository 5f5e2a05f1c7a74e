"""Modality attribution: how far the expected counts of a modality depend on the latents of each modality, cell by cell.

For the decoder of modality m and a cell with joint latent z (its posterior mean), ``J[f, j] = d mu_f / d z_j`` is the Jacobian of the expected counts,
ambient background and feature scaling included, the learned factor of a modality left out. Two scores are taken of it:

``mean_abs[j] = mean_f |J[f, j]|``
    how strongly a latent dimension moves a feature of the modality on average;
``frobenius[a] = sqrt(sum_f sum_(j in B_a) J[f, j]^2)``
    the norm of the block of columns that modality a's latents are.

The whole Jacobian (cells x features x dimensions) is never held: blocks of it are summed up as they are made. The derivative is exact (forward mode);
central differences in double precision are there as a check on it. Where the last layer of a decoder is linear below a softplus, only the hidden layers
are differentiated by forward mode and the last one is a product of matrices, which gives the same numbers several times faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vmap

from cellweave.core.errors import Cancelled
from cellweave.core.models.regularised_network import RegularisedNetwork
from cellweave.core.query.trained_run import QueryError

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch, Model
    from cellweave.core.training.sources import Loader

Method = Literal["exact", "forward", "finite"]
Removed = Literal["none", "cat_covs", "feature_scaling", "all"]
ReferenceLevel = Literal["zero", "mean", "reference"]
LibraryAt = Literal["prior", "posterior"]
JOINT = "joint"
#: Entries of the Jacobian that are in memory at a time (a cell counts even where it alone has more).
ENTRIES = 1 << 20
#: Columns that are decoded at a time where a product of matrices gives the last layer.
FEATURES = 1024
CELLS = 512
RateFunction = Callable[[Tensor], dict[str, Tensor]]


class Attributable(Protocol):
    """What a model must offer beside :class:`Model`."""

    def rate_function(self, batch: Minibatch, *, covariates: Removed, reference: ReferenceLevel, library: LibraryAt) -> RateFunction:
        """Return expected counts by modality as a function of the joint latent."""

    def latent_blocks(self) -> dict[str, slice]:
        """Return which dimensions are of which modality; raises ValueError where they are of none."""


@dataclass(frozen=True)
class AttributionQuestion:
    """How attribution is computed.

    Attributes
    ----------
    method
        ``"exact"``: forward mode, by the fastest way the decoder allows; ``"forward"``: forward mode through the whole decoder;
        ``"finite"``: central differences in double precision.
    remove_covariates
        Decode cells without their categorical covariates, feature scaling, or both.
    covariate_reference
        What stands in their place: nothing, the mean over the levels, or the most frequent level.
    library
        ``"prior"``: every cell at the mean library size of its group, which makes cells and modalities comparable;
        ``"posterior"``: at its own.
    step
        Of the differences.
    features
        Columns that the scores are taken over, by modality; a modality that is not named is taken whole.
    """

    method: Method = "exact"
    remove_covariates: Removed = "none"
    covariate_reference: ReferenceLevel = "zero"
    library: LibraryAt = "prior"
    step: float = 1e-5
    features: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Attribution:
    """The scores of some cells.

    Attributes
    ----------
    rows
        The cells, as rows of the study, ``(n_cells,)``.
    blocks
        First and last dimension (exclusive) of each modality's part of the joint latent, in their order; one block ``joint`` where the
        modalities have no part of their own.
    mean_abs
        By decoder's modality, float32 ``(n_cells, n_latent)``, in counts per unit of the latent.
    frobenius
        By decoder's modality, float32 ``(n_cells, n_blocks)``.
    n_features
        Features that a decoder's scores are taken over.
    latent
        Posterior means ``(n_cells, n_latent)``.
    measured
        By modality, in which cells it was measured, bool ``(n_cells,)``.
    """

    rows: np.ndarray
    blocks: dict[str, tuple[int, int]]
    mean_abs: dict[str, np.ndarray]
    frobenius: dict[str, np.ndarray]
    n_features: dict[str, int]
    latent: np.ndarray
    measured: dict[str, np.ndarray]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that are decoded."""
        return tuple(self.mean_abs)

    def weighted_latent(self, modality: str) -> np.ndarray:
        """Return the latent times the attribution of each dimension, ``(n_cells, n_latent)``."""
        return self.latent * self.mean_abs[modality]


def attribute(
    model: Model,
    loader: Loader,
    rows: np.ndarray,
    question: AttributionQuestion = AttributionQuestion(),
    *,
    progress: Callable[[float], None] = lambda share: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Attribution:
    """Compute the attribution of cells.

    Parameters
    ----------
    model
        A trained model whose family gives attribution.
    loader
        Makes minibatches.
    rows
        Rows of the study, ``(n_cells,)``.
    question
        How.
    progress, cancelled
        Told the share that is done; asked between parts of a minibatch.

    Returns
    -------
    Attribution
        The scores, in the order of ``rows``. Two calls agree.

    Raises
    ------
    QueryError
        Where the model gives no attribution.
    Cancelled
        Where the person asked for it.
    """
    if not callable(getattr(model, "rate_function", None)):
        raise QueryError(
            f"{model.family.title} gives no modality attribution: it takes a model in which every modality is decoded from the latents of all.",
            "Train the model 'multimodal' on data with several modalities.",
        )
    was_training = model.training
    model.eval()
    try:
        return _attribute(model, loader, np.asarray(rows, dtype=np.int64), question, progress, cancelled)
    finally:
        model.train(was_training)


@torch.no_grad()
def _attribute(
    model: Any, loader: Loader, rows: np.ndarray, question: AttributionQuestion, progress: Callable[[float], None], cancelled: Callable[[], bool]
) -> Attribution:
    measured = {m.name: np.asarray(m.measured, dtype=bool)[rows] for m in loader.data.modalities}
    blocks = latent_blocks(model)
    if question.method == "finite":
        model = copy.deepcopy(model).double()
    sums: list[_Sums] = []
    latents: list[Tensor] = []
    for start in range(0, len(rows), CELLS):
        batch = loader.minibatch(rows[start : start + CELLS])
        if question.method == "finite":
            batch = _in_double(batch)
        z = model.latent(batch)["latent"]
        width = int(z.shape[1])
        own = _Sums(width, [slice(*bounds) for bounds in (blocks or {JOINT: (0, width)}).values()])

        def between(done: float, start: int = start, n: int = batch.n_cells) -> None:
            if cancelled():
                raise Cancelled
            progress(min(1.0, (start + done * n) / max(1, len(rows))))

        between(0.0)
        _differentiate(model, batch, z, question, own, between)
        sums.append(own)
        latents.append(z)
    progress(1.0)
    names = list(sums[0].absolute) if sums else []
    return Attribution(
        rows=rows,
        blocks=blocks or {JOINT: (0, int(latents[0].shape[1]) if latents else 0)},
        mean_abs={name: np.concatenate([one.mean_abs(name) for one in sums]) for name in names},
        frobenius={name: np.concatenate([one.frobenius(name) for one in sums]) for name in names},
        n_features={name: sums[0].n_features[name] for name in names},
        latent=torch.cat(latents).float().cpu().numpy() if latents else np.zeros((0, 0), np.float32),
        measured=measured,
    )


def latent_blocks(model: Attributable) -> dict[str, tuple[int, int]]:
    """Return first and last dimension (exclusive) of each modality's latents; empty where they have none of their own."""
    try:
        return {name: (part.start, part.stop) for name, part in model.latent_blocks().items()}
    except ValueError:
        return {}


def _in_double(batch: Minibatch) -> Minibatch:
    counts = {name: count.to(count.device, dtype=torch.float64) for name, count in batch.counts.items()}
    return replace(batch, counts=counts, continuous=None if batch.continuous is None else batch.continuous.double())


class _Sums:
    """Sums up the Jacobian of the cells of a minibatch, block by block."""

    def __init__(self, n_latent: int, blocks: Sequence[slice]) -> None:
        self.n_latent, self.blocks = n_latent, blocks
        self.absolute: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.n_features: dict[str, int] = {}

    def begin(self, name: str, like: Tensor, n_features: int) -> None:
        """Begin a decoder with as many cells as ``like`` has rows."""
        if name not in self.absolute:
            self.absolute[name], self.squares[name] = (like.new_zeros(like.shape[0], self.n_latent) for _ in range(2))
            self.n_features[name] = n_features

    def mean_abs(self, name: str) -> np.ndarray:
        return (self.absolute[name] / max(1, self.n_features[name])).float().cpu().numpy()

    def frobenius(self, name: str) -> np.ndarray:
        parts = [self.squares[name][:, block].sum(1) for block in self.blocks]
        return torch.stack(parts, 1).sqrt().float().cpu().numpy()


def _differentiate(
    model: Any, batch: Minibatch, z: Tensor, question: AttributionQuestion, sums: _Sums, between: Callable[[float], None]
) -> None:
    if question.method == "exact" and isinstance(model, RegularisedNetwork) and not any(stack.burst for stack in model.stacks.values()):
        _by_composition(model, batch, z, question, sums, between)
        return
    _by_columns(model, batch, z, question, sums, between)


# ---------------------------------------------------------------------- column by column


def _by_columns(model: Any, batch: Minibatch, z: Tensor, question: AttributionQuestion, sums: _Sums, between: Callable[[float], None]) -> None:
    """Make one column of the Jacobian at a time, of all cells of the minibatch."""
    rates = model.rate_function(
        batch, covariates=question.remove_covariates, reference=question.covariate_reference, library=question.library
    )
    chosen = {name: torch.as_tensor(np.asarray(columns), device=z.device) for name, columns in question.features.items()}
    for j in range(sums.n_latent):
        direction = torch.zeros_like(z)
        direction[:, j] = 1.0
        if question.method == "finite":
            above, below = rates(z + question.step * direction), rates(z - question.step * direction)
            columns = {name: (above[name] - below[name]) / (2 * question.step) for name in above}
        else:
            columns = jvp(rates, (z,), (direction,))[1]
        for name, column in columns.items():
            if name in chosen:
                column = column.index_select(1, chosen[name])
            sums.begin(name, z, column.shape[1])
            sums.absolute[name][:, j] = column.abs().sum(1)
            sums.squares[name][:, j] = column.square().sum(1)
        between((j + 1) / sums.n_latent)


# ---------------------------------------------------------------------- hidden layers, then a product of matrices


def _by_composition(
    model: RegularisedNetwork, batch: Minibatch, z: Tensor, question: AttributionQuestion, sums: _Sums, between: Callable[[float], None]
) -> None:
    """Differentiate the hidden layers by forward mode and multiply by the last layer's weights.

    With ``mu = gain * (softplus(a) + background)`` and ``a = W h(z) + b`` the Jacobian is ``gain * sigmoid(a) * (W dh/dz)``.
    """
    names = list(model.stacks)
    for number, (name, stack) in enumerate(model.stacks.items()):
        decode, gain = _decoder(model, batch, name, question)
        layer = stack.decoder.scale
        columns = question.features.get(name)
        weight: Tensor = layer.weight
        bias: Tensor = layer.bias
        if columns is not None:
            chosen = torch.as_tensor(np.asarray(columns), device=z.device)
            weight, bias = weight.index_select(0, chosen), bias.index_select(0, chosen)
            gain = gain if gain.shape[1] == 1 else gain.index_select(1, chosen)
        sums.begin(name, z, int(weight.shape[0]))

        absolute, squares = sums.absolute[name], sums.squares[name]
        n_cells, n_latent = z.shape
        tall = max(1, ENTRIES // (n_latent * max(layer.in_features, n_latent)))
        for top in range(0, n_cells, tall):
            cells = slice(top, min(top + tall, n_cells))
            hidden, tangents = _hidden_jacobian(decode, z, cells)

            def told(share: float, done: int = number, cells: slice = cells, n: int = n_cells) -> None:
                between((done + (cells.start + share * (cells.stop - cells.start)) / n) / len(names))

            _last_layer(hidden, tangents, weight, bias, gain[cells], absolute[cells], squares[cells], told)


def _decoder(model: RegularisedNetwork, batch: Minibatch, name: str, question: AttributionQuestion) -> tuple[Callable[[Tensor, slice], Tensor], Tensor]:
    """Return the last hidden layer as a function of the latent of some cells, and what multiplies the softplus, ``(n_cells, n_features or 1)``."""
    removed, stack = question.remove_covariates, model.stacks[name]
    decoder_at = question.covariate_reference if removed in ("cat_covs", "all") else "own"
    scaling_at = question.covariate_reference if removed in ("feature_scaling", "all") else "own"
    codes = model.codes_of(batch)
    if question.library == "posterior":
        library, _, _ = model.library_of(batch, model.encode(batch), name, draw=False, shared_draw=False)
    else:
        mean, var = stack.library_prior(codes.library_size, batch.n_cells)
        library = torch.exp(mean + var / 2)
    common_scaling, common_decoder = (getattr(model, f"commonest_{part}") for part in ("feature_scaling", "decoder"))
    factors = stack.scale_of_features(codes.feature_scaling, scaling_at, common_scaling if len(common_scaling) else None)
    gain = library[:, None] if factors is None else library[:, None] * factors

    def hidden(latent: Tensor, cells: slice) -> Tensor:
        joined = latent if batch.continuous is None else torch.cat([latent, batch.continuous[cells]], 1)
        return stack.decoder.hidden_of(joined, None if codes.decoder is None else codes.decoder[cells], decoder_at, common_decoder)

    return hidden, gain


def _hidden_jacobian(decode: Callable[[Tensor, slice], Tensor], z: Tensor, cells: slice) -> tuple[Tensor, Tensor]:
    """Return the hidden layer of some cells ``(n_cells, n_hidden)`` and its derivatives ``(n_cells, n_latent, n_hidden)``."""
    own = z[cells]

    def of(latent: Tensor) -> Tensor:
        return decode(latent, cells)

    def along(direction: Tensor) -> Tensor:
        tangent: Tensor = jvp(of, (own,), (direction.expand_as(own),))[1]
        return tangent

    # All directions at once: one pass over the layers, of as many rows as cells times dimensions.
    tangents = vmap(along, out_dims=1)(torch.eye(own.shape[1], dtype=own.dtype, device=own.device))
    return of(own), tangents


def _last_layer(
    hidden: Tensor, tangents: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, absolute: Tensor, squares: Tensor, told: Callable[[float], None]
) -> None:
    """Add up ``|J|`` and ``J^2`` over the features, in blocks of cells and features."""
    n_cells, n_latent, n_hidden = tangents.shape
    n_features = int(weight.shape[0])
    wide = max(1, min(n_features, FEATURES, ENTRIES // max(1, n_latent)))
    tall = max(1, ENTRIES // (n_latent * wide))
    for top in range(0, n_cells, tall):
        cells = slice(top, min(top + tall, n_cells))
        flat = tangents[cells].reshape(-1, n_hidden)
        for left in range(0, n_features, wide):
            part = slice(left, min(left + wide, n_features))
            slope = torch.sigmoid(torch.addmm(bias[part], hidden[cells], weight[part].T))
            slope *= gain[cells] if gain.shape[1] == 1 else gain[cells, part]
            block = (flat @ weight[part].T).view(slope.shape[0], n_latent, -1)
            block *= slope[:, None, :]
            squares[cells] += torch.linalg.vector_norm(block, dim=2).square()
            absolute[cells] += block.abs_().sum(2)
        told(cells.stop / n_cells)


# ---------------------------------------------------------------------- how much of it can be afforded


def multiplications(model: Any, n_features: Mapping[str, int]) -> float:
    """Return the multiplications that the attribution of one cell takes, so that one can tell beforehand how long it will last."""
    n_latent = int(getattr(model, "n_latent", 1))
    total = 0.0
    for name, stack in model.stacks.items():
        decoder = stack.decoder
        total += n_latent * decoder.scale.in_features * n_features.get(name, stack.n_features)
        total += n_latent * sum(layer.linear.weight.numel() for layer in decoder.hidden.layers)
    return total
