"""Small things the loop needs of torch: seeds, optimisers, memory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import torch

from cellweave.core.models.base import Model
from cellweave.core.spec import RunSpec
from cellweave.core.spec.optimisers import OPTIMISERS
from cellweave.core.spec.training import TrainingSpec
from cellweave.core.training.compiled_adam import CompiledAdam, serves

#: Those whose step can be compiled, or fused by torch.
ADAMS = ("adam", "adamw")


def seed_everything(seed: int, epoch: int, purpose: str) -> None:
    """Seed torch's generators for one epoch of one purpose, so that a resumed run draws what the whole one drew."""
    code = {"train": 1, "validation": 2, "build": 3, "preview": 4, "results": 5}[purpose]
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, code]).generate_state(1, np.uint64)[0]) >> 1)


@contextlib.contextmanager
def spared_by_collector() -> Iterator[None]:
    """Let Python's garbage collector pass over what there is now, which is a whole program and lives on anyway; it would go through it again and again.

    What is garbage now is collected first. Where something is passed over already, by a run around this one or by a host program, nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def optimizer_settings(training: TrainingSpec, name: str) -> dict[str, float]:
    """Return the settings of the spec that an optimiser has, as torch calls them."""
    has = OPTIMISERS[name]
    settings = {"lr": training.learning_rate}
    if has.eps:
        settings["eps"] = training.adam_eps
    if has.decay:
        settings["weight_decay"] = training.weight_decay
    if has.momentum:
        settings["momentum"] = training.momentum
    return settings


def make_optimizers(spec: RunSpec, model: Model, device: torch.device) -> dict[str, tuple[torch.optim.Optimizer, bool]]:
    """Return one optimiser for all ordinary parameter groups and one for each auxiliary group.

    Returns
    -------
    dict
        Optimiser and whether the model steps it itself, by name.
    """
    training = spec.training

    def build(groups: list[dict[str, Any]], name: str) -> torch.optim.Optimizer:
        parameters = [parameter for group in groups for parameter in group["params"]]
        if name in ADAMS and model.compiled_optimizer and serves(parameters):
            return CompiledAdam(groups, decoupled=name == "adamw", narrow=training.gradient_clip == 0, **optimizer_settings(training, name))
        make: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, OPTIMISERS[name].torch)
        fused = {"fused": device.type in {"cpu", "cuda"}} if name in ADAMS else {}
        return make(groups, **optimizer_settings(training, name), **fused)

    ordinary, result = [], {}
    for group in model.parameter_groups():
        settings: dict[str, Any] = {"params": list(group.parameters), "lr_factor": group.lr_factor, "name": group.name}
        if group.weight_decay is not None:
            settings["weight_decay"] = group.weight_decay
        if group.auxiliary:
            result[group.name] = (build([settings], group.optimizer or training.optimizer), True)
        else:
            ordinary.append(settings)
    # A mapped model that learns nothing has no parameters, and an optimiser needs one.
    own = {"model": (build(ordinary, training.optimizer), False)} if any(settings["params"] for settings in ordinary) else {}
    return {**own, **result}


@contextlib.contextmanager
def own_draws(device: torch.device) -> Iterator[None]:
    """Keep the draws of what is inside from touching those of training."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=True):
        yield


def memory_in_use(device: torch.device) -> int:
    """Return the bytes in use: on the device for a GPU, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
