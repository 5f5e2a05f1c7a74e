"""Where a run stands, to and from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.training import checkpoint as store

if TYPE_CHECKING:
    from cellweave.core.training.loop import Trainer


@dataclass
class Position:
    """Where a run stands, as a checkpoint holds it."""

    epoch: int = 0  # whole epochs done
    step_in_epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    weight_history: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False  # the person asked to stop and keep; a resume only finishes the results


def pack(trainer: Trainer) -> store.Checkpoint:
    """Return everything that is needed to go on from here as if nothing had happened."""
    tensors: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    if trainer.best is not None:
        tensors.update({f"best/{name}": tensor for name, tensor in trainer.best.items()})
    tensors.update({f"sums/{name}": tensor for name, tensor in trainer.sums.state().items()})
    tensors.update({f"epoch/{name}": tensor for name, tensor in trainer.model.epoch_state().items()})
    tensors["rng/cpu"] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(trainer.device)
    optimizers = {}
    for name, (optimizer, _) in trainer.optimizers.items():
        packed, optimizers[name] = store.pack_optimizer(name, optimizer)
        tensors.update(packed)
    state = {
        "position": asdict(trainer.at),
        "stopping": _finite(asdict(trainer.stopping)),
        "rate": _finite(asdict(trainer.rate)),
        "weights": trainer.objective.weights,
        "optimizers": optimizers,
        "terms": [term.name for term in trainer.objective.terms],
        "inner": _finite(trainer.inner.state()),
    }
    return store.Checkpoint(tensors, state)


def unpack(trainer: Trainer, checkpoint: store.Checkpoint) -> None:
    """Go on from a checkpoint; settings that the spec may change on a resume (patience, rate ...) are the spec's."""
    state = checkpoint.state
    trainer.model.load_state_dict(checkpoint.part("model"))
    best = checkpoint.part("best")
    trainer.best = best or None
    for name, (optimizer, _) in trainer.optimizers.items():
        store.unpack_optimizer(name, optimizer, checkpoint)
    trainer.at = Position(**state["position"])
    for key in ("best", "best_epoch", "waited", "patient_from"):
        setattr(trainer.stopping, key, float("inf") if state["stopping"][key] is None else state["stopping"][key])
    for key in ("scale", "best", "waited"):
        setattr(trainer.rate, key, float("inf") if state["rate"][key] is None else state["rate"][key])
    for name, weight in _weights_of(trainer, state["weights"]).items():
        trainer.objective.set_weight(name, weight)
    trainer.inner.load({name: float("nan") if total is None else total for name, total in state.get("inner", {}).items()})
    trainer.resumed_sums = _sums_of(trainer, checkpoint.part("sums"), state["terms"])
    trainer.model.load_epoch_state(checkpoint.part("epoch"))
    trainer.resumed_rng = checkpoint.part("rng")


def _weights_of(trainer: Trainer, weights: Mapping[str, float]) -> dict[str, float]:
    """Return a checkpoint's weights of the terms that there are; one from before a term was multiplied by another holds the product of both."""
    found = {name: weight for name, weight in weights.items() if name in trainer.objective.weights}
    for term in trainer.objective.terms:
        if term.times and term.name in found and term.times not in found:
            found[term.name] /= trainer.objective.weights[term.times] or 1.0
    return found


def _sums_of(trainer: Trainer, sums: dict[str, Tensor], terms: list[str]) -> dict[str, Tensor]:
    """Return the sums of an epoch in the order of today's terms, with zeros for those that its checkpoint did not know."""
    names = [term.name for term in trainer.objective.terms]
    if names == terms:
        return sums
    found = {}
    for key, old in sums.items():
        new = old.new_zeros(len(names) + len(old) - len(terms))  # the last one may be of the total
        new[len(names) :] = old[len(terms) :]
        for place, name in enumerate(names):
            if name in terms:
                new[place] = old[terms.index(name)]
        found[key] = new
    return found


def _finite(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace infinity, which JSON does not know, by None."""
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in tree.items()}
