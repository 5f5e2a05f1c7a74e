"""The optimisers of torch that a run may be fitted with, and which settings each of them has; no torch here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

OptimiserName = Literal[
    "adam", "adamw", "adadelta", "adafactor", "adagrad", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop", "sgd"
]  # fmt: skip


@dataclass(frozen=True)
class Optimiser:
    """What one optimiser takes of the settings of a training.

    Attributes
    ----------
    torch
        Name of the class in ``torch.optim``.
    eps, decay, momentum
        Whether epsilon, weight decay and momentum are among its settings.
    minds_rate
        Whether the learning rate counts in every step.
    moments
        Numbers that it keeps for each weight.
    """

    torch: str
    eps: bool = True
    decay: bool = True
    momentum: bool = False
    minds_rate: bool = True
    moments: int = 2


OPTIMISERS: dict[str, Optimiser] = {
    "adam": Optimiser("Adam"),
    "adamw": Optimiser("AdamW"),
    "adadelta": Optimiser("Adadelta"),
    "adafactor": Optimiser("Adafactor", eps=False, moments=0),  # sums of rows and columns, not a number for each weight
    "adagrad": Optimiser("Adagrad", moments=1),
    "adamax": Optimiser("Adamax"),
    "asgd": Optimiser("ASGD", eps=False, moments=1),
    "nadam": Optimiser("NAdam"),
    "radam": Optimiser("RAdam"),
    "rmsprop": Optimiser("RMSprop", momentum=True),
    "rprop": Optimiser("Rprop", eps=False, decay=False, minds_rate=False),
    "sgd": Optimiser("SGD", eps=False, momentum=True, moments=1),
}
#: Classes of ``torch.optim`` that cannot fit these networks, and why.
REFUSED = {
    "lbfgs": "LBFGS asks for the objective several times in a step, which draws in between would change; take 'adam' or another one of first order",
    "sparseadam": "SparseAdam takes sparse gradients only, and those of these networks are dense; take 'adam'",
    "muon": "Muon takes matrices only, and these networks have biases and norms too; take 'adamw'",
}


def optimiser_name(value: object) -> object:
    """Return our name of an optimiser that may be spelled as torch spells it; refuse one that does not exist or does not serve."""
    if not isinstance(value, str):
        return value
    name = value.strip().removeprefix("torch.optim.").lower()
    if name in OPTIMISERS:
        return name
    if name in REFUSED:
        raise ValueError(REFUSED[name])
    near = difflib.get_close_matches(name, OPTIMISERS, n=1, cutoff=0.5)
    message = f"there is no optimiser '{value}'; " + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(OPTIMISERS)}")
    raise ValueError(message)


def optimisers_of(training: Any, model: Any) -> dict[str, Optimiser]:
    """Return the optimisers of a run by name: the network's, and that of its discriminators where it has another one."""
    names = (training.optimizer, getattr(model, "discriminator_optimizer", None))
    return {name: OPTIMISERS[name] for name in names if name is not None}


def unused_settings(training: Any, model: Any) -> frozenset[str]:
    """Return the fields of the training that no optimiser of the run has."""
    used = optimisers_of(training, model).values()
    without = {
        "adam_eps": any(one.eps for one in used), "weight_decay": any(one.decay for one in used), "momentum": any(one.momentum for one in used),
    }  # fmt: skip
    return frozenset(name for name, taken in without.items() if not taken)


def problems(training: Any, model: Any) -> list[str]:
    """Return a sentence for each setting that the optimisers of a run would ignore."""
    named = " and ".join(OPTIMISERS[name].torch for name in optimisers_of(training, model))
    unused, found = unused_settings(training, model), []
    for name, words in (("weight_decay", "weight decay"), ("momentum", "momentum")):
        if name in unused and getattr(training, name) > 0:
            found.append(f"training.{name} is {getattr(training, name):g}, but {named} has no {words}: set it to 0, or take another optimiser")
    if not OPTIMISERS[training.optimizer].minds_rate:
        why = f"but {OPTIMISERS[training.optimizer].torch} takes the learning rate for its first step only and then sizes its steps itself"
        if training.lr_plateau:
            found.append(f"training.lr_plateau is on, {why}: switch it off, or take another optimiser")
        if training.lr_warmup_steps:
            found.append(f"training.lr_warmup_steps is {training.lr_warmup_steps}, {why}: set it to 0, or take another optimiser")
    return found


def fitting(training: dict[str, Any], model: dict[str, Any], stated: frozenset[str]) -> dict[str, Any]:
    """Return the training's values with 0 for weight decay and momentum where the optimisers have none, but for those that were stated.

    Parameters
    ----------
    training, model
        Values by field; the training's may lack some.
    stated
        Fields of the training that were given on purpose and stay as they are.
    """
    names = (training.get("optimizer", "adam"), model.get("discriminator_optimizer"))
    found = dict(training)
    try:
        used = [OPTIMISERS[str(optimiser_name(name))] for name in names if name is not None]
    except (ValueError, KeyError):  # refused where the spec is checked
        return found
    if "weight_decay" not in stated and not any(one.decay for one in used):
        found["weight_decay"] = 0.0
    if "momentum" not in stated and "momentum" in found and not any(one.momentum for one in used):
        found["momentum"] = 0.0
    return found
