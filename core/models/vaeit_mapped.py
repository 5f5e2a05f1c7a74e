"""A trained scVAEIT with further levels: what it knows stays to the bit, the new levels have weights of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from cellweave.core.models.base import BuildContext
from cellweave.core.models.vaeit_network import VaeitNetwork
from cellweave.core.nn.masked_blocks import CovariateTable


@torch.no_grad()
def extend(reference: VaeitNetwork, context: BuildContext) -> tuple[VaeitNetwork, dict[str, Tensor]]:
    """Return a network with further levels that agrees with the reference on the levels it knows.

    A new level starts as the mean of the known ones; its dispersions of a modality as the mean over the batches in which the modality was measured, since
    those of other batches were never learned. Ranges of the values, typical depths and averages of the norms are the reference's.

    Parameters
    ----------
    reference
        The trained network.
    context
        As the reference's, with the further levels after the known ones in every column.

    Returns
    -------
    network
        In evaluation mode.
    new
        By parameter name, which of its rows are new, bool ``(n_rows,)``; without those that have none.
    """
    with torch.random.fork_rng(devices=[]):
        network = reference.family.build(context)
    assert isinstance(network, VaeitNetwork)
    modules, known = dict(reference.named_modules()), reference.state_dict()
    tables = {f"{name}.level_weight": (name, module) for name, module in network.named_modules() if isinstance(module, CovariateTable)}
    new = dict[str, Tensor]()
    for name, target in network.state_dict().items():
        source = known[name]
        if name in tables:
            path, table = tables[name]
            old = modules[path]
            assert isinstance(old, CovariateTable)
            new[name] = _take_levels(target, source, old, table, _shares(reference, path))
        elif name.endswith(".batches"):
            target.zero_()[: len(source)] = source  # a new batch has no share in the averages over batches
        else:
            target.copy_(source)
    return network.eval(), {name: rows for name, rows in new.items() if bool(rows.any())}


def _shares(reference: VaeitNetwork, path: str) -> Tensor | None:
    """Return how much each known batch counts for the start of a new one, ``(n_batches,)``; None where all count alike."""
    pieces = path.split(".")
    if pieces[0] != "parts" or not reference.has_batch:
        return None
    shares = reference.parts[pieces[1]].batches
    return shares if bool(shares.sum() > 0) else None


def _take_levels(target: Tensor, source: Tensor, old: CovariateTable, new: CovariateTable, shares: Tensor | None) -> Tensor:
    """Copy known rows and start new ones; return which rows are new, bool ``(n_rows,)``."""
    is_new = torch.zeros(len(target), dtype=torch.bool)
    start_old, start_new = 0, 0
    for column, (n_old, n_new) in enumerate(zip(old.levels, new.levels, strict=True)):
        rows = source[start_old : start_old + n_old]
        target[start_new : start_new + n_old] = rows
        if n_new > n_old:
            weighed = shares if column == 0 and shares is not None else torch.full((n_old,), 1.0 / n_old)
            target[start_new + n_old : start_new + n_new] = weighed.to(rows) @ rows
            is_new[start_new + n_old : start_new + n_new] = True
        start_old, start_new = start_old + n_old, start_new + n_new
    return is_new
