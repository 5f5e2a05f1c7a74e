"""The loss-weight part of the spec."""

from __future__ import annotations

from pydantic import field_validator

from cellweave.core.spec.fields import Frozen, option


class LossSpec(Frozen):
    """Weights of the loss terms; a term that is not named has the default that its model declares."""

    weights: dict[str, float] = option(dict, "Loss weights", "Weight of each term of the objective, by the term's name; 0 switches it off.")

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if weight < 0:
                message = f"the weight of '{name}' is {weight:g}; weights are 0 or more"
                raise ValueError(message)
        return weights
