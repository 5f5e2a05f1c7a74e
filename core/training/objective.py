"""The objective: the weighted sum of the terms, with weights in one buffer that may change at any step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cellweave.core.models.declare import LossTerm


class Objective:
    """Weighs and sums the terms of a model.

    Parameters
    ----------
    terms
        The declared terms.
    weights
        Weight by term.
    n_train
        Number of training cells, by which global terms are divided.
    device
        Where the buffer lies.
    """

    def __init__(self, terms: Sequence[LossTerm], weights: Mapping[str, float], n_train: int, device: torch.device) -> None:
        self.terms = tuple(terms)
        self.n_train = n_train
        self.weights = {term.name: float(weights[term.name]) for term in terms}
        self.kl_factor = 1.0
        self.factors: dict[str, float] = {}
        self._slot = {term.name: slot for slot, term in enumerate(self.terms)}
        self._buffer = torch.zeros(len(self.terms), device=device)
        self._refresh()

    def set_weight(self, name: str, value: float) -> float:
        """Give a term another weight from now on; return the old one."""
        old = self.weights[name]
        self.weights[name] = value
        self._refresh()
        return old

    def set_kl_factor(self, factor: float) -> None:
        """Set the factor of the annealed terms."""
        if factor != self.kl_factor:
            self.kl_factor = factor
            self._refresh()

    def set_factors(self, factors: Mapping[str, float]) -> None:
        """Set what the model multiplies the weights of some terms by; the values of the terms stay what they are."""
        if factors != self.factors:
            self.factors = dict(factors)
            self._refresh()

    def _refresh(self) -> None:
        #: Factor of each term in the objective: its weight, that of the term it is multiplied by, what the model says of it, sign and annealing.
        self.effective = {
            term.name: self.weights[term.name] * self.weights.get(term.times, 1.0) * self.factors.get(term.name, 1.0) * term.sign
            * (self.kl_factor if term.annealed else 1.0)
            for term in self.terms
        }  # fmt: skip
        self._buffer.copy_(torch.tensor(list(self.effective.values())))

    def reduced(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each term as the scalar that enters the objective: mean per cell, as it is, or per training cell."""
        result = {}
        for term in self.terms:
            value = values.get(term.name)
            if value is None:
                continue
            value = value.float()
            if term.scope == "cell":
                result[term.name] = value.mean()
            else:
                result[term.name] = value / self.n_train if term.scope == "global" else value
        return result

    def total(self, reduced: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar that is minimised."""
        names = list(reduced)
        stacked = torch.stack([reduced[name] for name in names])
        if len(names) == len(self.terms):
            return stacked @ self._buffer
        return stacked @ self._buffer[[self._slot[name] for name in names]]


class EpochSums:
    """Adds up the terms of an epoch on the device; they are read once, when the epoch is over.

    Parameters
    ----------
    terms
        The declared terms.
    device
        Where the sums lie.
    """

    def __init__(self, terms: Sequence[LossTerm], device: torch.device) -> None:
        self.terms = tuple(terms)
        self.device = device
        # float64 where the device has it: the mean over a million cells must not drift.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self.values = torch.zeros(len(self.terms) + 1, dtype=self._dtype, device=self.device)
        self.cells = torch.zeros(len(self.terms) + 1, dtype=self._dtype)
        self.plain = torch.zeros(len(self.terms), dtype=self._dtype, device=self.device)

    def add(self, reduced: Mapping[str, Tensor], total: Tensor, n_cells: int) -> None:
        """Add a minibatch of ``n_cells`` cells; the values are means per cell."""
        zero = torch.zeros((), device=self.device)
        present = [reduced[term.name].detach() if term.name in reduced else zero for term in self.terms]
        found = torch.stack([*present, total.detach()]).to(self._dtype)
        self.values += found * n_cells
        self.plain += found[:-1]
        self.cells += torch.tensor([float(n_cells if term.name in reduced else 0) for term in self.terms] + [float(n_cells)], dtype=self._dtype)

    def add_numbers(self, means: Mapping[str, float], total: float, n_cells: int) -> None:
        """Add a minibatch whose terms are numbers already, on the CPU."""
        found = np.array([*(means.get(term.name, 0.0) for term in self.terms), total])
        self.values.numpy()[:] += found * n_cells
        self.plain.numpy()[:] += found[:-1]
        self.cells.numpy()[:] += np.array([*(n_cells * (term.name in means) for term in self.terms), n_cells])

    def means(self) -> dict[str, float]:
        """Return the mean per cell of every term seen, of ``total``, and ``elbo`` (the negative ELBO, unweighted)."""
        sums, cells = self.values.cpu().tolist(), self.cells.tolist()
        result = {term.name: sums[slot] / cells[slot] for slot, term in enumerate(self.terms) if cells[slot]}
        result["elbo"] = sum(result[term.name] * term.sign for term in self.terms if term.in_elbo and term.name in result)
        if cells[-1]:
            result["total"] = sums[-1] / cells[-1]
        return result

    def summed(self, side: str) -> dict[str, float]:
        """Return, for the terms that ask for it, the sum over minibatches by the number of cells; ``side`` ends the name.

        The divisor is all cells of the epoch, also those of minibatches before the term was switched on.
        """
        sums, cells = self.plain.cpu().tolist(), float(self.cells[-1])
        return {
            f"{term.name}_loss_{side}": sums[slot] / cells for slot, term in enumerate(self.terms) if term.also_summed and float(self.cells[slot])
        }

    def state(self) -> dict[str, Tensor]:
        """Return the sums, for a checkpoint in the middle of an epoch."""
        return {"values": self.values.cpu(), "cells": self.cells, "plain": self.plain.cpu()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up sums from a checkpoint."""
        self.values = state["values"].to(self.device, self._dtype)
        self.cells = state["cells"].to(self._dtype)
        if "plain" in state:  # checkpoints of earlier versions have none
            self.plain = state["plain"].to(self.device, self._dtype)


class StepMeans:
    """Means over an epoch of what the inner steps of a model tell (accuracies of discriminators)."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of one step."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._steps += 1

    def means(self) -> dict[str, float]:
        """Return the means since the last call, and begin anew."""
        result = {name: total / self._steps for name, total in self._sums.items()}
        self._sums, self._steps = {}, 0
        return result

    def state(self) -> dict[str, float]:
        """Return the sums and the number of steps, for a checkpoint in the middle of an epoch."""
        return {"": float(self._steps), **self._sums}

    def load(self, state: Mapping[str, float]) -> None:
        """Take up sums from a checkpoint."""
        self._sums = {name: float(total) for name, total in state.items() if name}
        self._steps = int(state.get("", 0))
