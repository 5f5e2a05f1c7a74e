"""A trained network with further levels, of which only the weights of those levels are learned (scArches; Lotfollahi et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from cellweave.core.models.base import BuildContext, Minibatch, Model, ParameterGroup, StepContext
from cellweave.core.models.vae_network import VaeNetwork
from cellweave.core.nn.layers import CategoricalLinear


class MappedModel(Model):
    """Trains new rows of a network whose other weights stay as they are, to the bit.

    The network is in evaluation mode throughout: batch norm uses the statistics of the reference, so that a cell is decoded in training
    as it will be afterwards, and nothing is dropped out.

    Parameters
    ----------
    network
        With the weights of the reference.
    learned
        By parameter name, which of its rows are learned, bool ``(n_rows,)``; all other parameters are fixed.
    """

    def __init__(self, network: Model, learned: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network = network
        self.family = network.family  # type: ignore[misc]  # the family of an instance, where a class has its own
        for name, parameter in network.named_parameters():
            rows = learned.get(name)
            parameter.requires_grad_(rows is not None)
            if rows is not None:
                parameter.register_hook(_only(rows))
        self.network.eval()

    def train(self, mode: bool = True) -> MappedModel:
        """Stay in evaluation mode whatever the engine asks for."""
        super().train(mode)
        self.network.eval()
        return self

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        """As the network's."""
        return self.network.loss_terms(batch, context)

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        """As the network's."""
        return self.network.latent(batch)

    def expression(self, batch: Minibatch, *, transform_batch: int | None = None, scaled_to: float | None = 1.0) -> dict[str, Tensor]:
        """As the network's."""
        return self.network.expression(batch, transform_batch=transform_batch, scaled_to=scaled_to)

    def library(self, batch: Minibatch) -> dict[str, Tensor]:
        """As the network's."""
        return self.network.library(batch)

    def loadings(self) -> dict[str, Tensor]:
        """As the network's."""
        return self.network.loadings()

    def impute(self, batch: Minibatch, *, given: Sequence[str] | None = None) -> dict[str, Tensor]:
        """As the network's."""
        return self.network.impute(batch, given=given)

    def term_factors(self) -> dict[str, float]:
        """As the network's."""
        return self.network.term_factors()

    def epoch_metrics(self) -> dict[str, float]:
        """As the network's."""
        return self.network.epoch_metrics()

    def epoch_state(self) -> dict[str, Tensor]:
        """As the network's."""
        return self.network.epoch_state()

    def load_epoch_state(self, state: Mapping[str, Tensor]) -> None:
        """As the network's."""
        self.network.load_epoch_state(state)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the learned parameters, without weight decay, which would move their fixed rows."""
        return [ParameterGroup("model", [p for p in self.network.parameters() if p.requires_grad], weight_decay=0.0)]

    def uses_batch_norm(self) -> bool:
        """Return False: the statistics are those of the reference, so that a minibatch may hold one cell."""
        return False

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the network's tensors under its own names, so that the run is read back as any other."""
        yield from self.network.state_dict().items()


class _only:  # noqa: N801  (used as a function; a class, so that a model can be copied)
    """Lets a gradient reach some rows only."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self._rows.to(gradient.device, gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))


@torch.no_grad()
def extend(reference: VaeNetwork, context: BuildContext) -> tuple[VaeNetwork, dict[str, Tensor]]:
    """Return a network with further levels that agrees with the reference on the levels it knows.

    A new level starts as the mean of the known ones.

    Parameters
    ----------
    reference
        The trained network.
    context
        As the reference's, with the further levels after the known ones in every column, and library-size priors of all batches.

    Returns
    -------
    network
        In evaluation mode.
    new
        By parameter name, which of its rows are new, bool ``(n_rows,)``.
    """
    with torch.random.fork_rng(devices=[]):
        network = reference.family.build(context)
    assert isinstance(network, VaeNetwork)
    old, new = dict(reference.named_modules()), dict[str, Tensor]()
    tables = {
        f"{name}.level_weight": _columns(old[name], module) for name, module in network.named_modules() if isinstance(module, CategoricalLinear)
    }
    known = reference.state_dict()
    for name, target in network.state_dict().items():
        source = known.get(name)
        if name in tables:
            # A column of one level has no row: it adds nothing, as a row of zeros does.
            places, source = tables[name], source if source is not None else target.new_zeros(0, target.shape[1])
            new[name] = _take_rows(target, source, places)
        elif source is not None and source.shape == target.shape:
            target.copy_(source)
        elif name in {"library_log_mean", "library_log_var"}:
            continue  # the context has the priors of all batches
        elif name == "log_theta" or name == "batch_embedding.weight":
            assert source is not None
            new[name] = _take_rows(target, source, [(range(len(source)), range(len(target)))])
        else:
            message = f"{name} has shape {tuple(target.shape)}, the reference's {None if source is None else tuple(source.shape)}"
            raise ValueError(message)
    return network.eval(), {name: rows for name, rows in new.items() if bool(rows.any())}


def _columns(old: nn.Module, new: CategoricalLinear) -> list[tuple[range, range]]:
    """Return, for each column, its rows in the reference's table and in the new one."""
    assert isinstance(old, CategoricalLinear)
    found, start_old, start_new = [], 0, 0
    for n_old, n_new in zip(old.levels, new.levels, strict=True):
        size_old, size_new = (n if n > 1 else 0 for n in (n_old, n_new))
        found.append((range(start_old, start_old + size_old), range(start_new, start_new + size_new)))
        start_old, start_new = start_old + size_old, start_new + size_new
    return found


def _take_rows(target: Tensor, source: Tensor, columns: Sequence[tuple[range, range]]) -> Tensor:
    """Copy known rows, start new rows at the mean of their column's; return which rows are new."""
    new = torch.zeros(target.shape[0], dtype=torch.bool)
    for rows_old, rows_new in columns:
        if not rows_new:
            continue
        n_known = max(len(rows_old), 1)
        known = source[rows_old.start : rows_old.stop] if rows_old else target.new_zeros(1, *target.shape[1:])
        target[rows_new.start : rows_new.start + n_known] = known
        target[rows_new.start + n_known : rows_new.stop] = known.mean(0)
        new[rows_new.start + n_known : rows_new.stop] = True
    return new
