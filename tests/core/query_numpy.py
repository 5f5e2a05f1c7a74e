"""scVI with one hidden layer written in numpy from the mathematics, in float64; shares no code with the network."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

EPS = 1e-8


class NumpyVae:
    """The forward pass of a trained run with scVI's default options (zero-inflated or not, dispersion per feature)."""

    def __init__(self, run) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in run.model.state_dict().items()}

    def _layer(self, prefix: str, x: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        s, name = self.state, f"{prefix}.layers.0"
        out = x @ s[f"{name}.linear.weight"].T + s[f"{name}.linear.bias"]
        if codes is not None:
            out = out + s[f"{name}.linear.level_weight"][codes]
        centred = (out - s[f"{name}.batch_norm.running_mean"]) / np.sqrt(s[f"{name}.batch_norm.running_var"] + 1e-3)
        return np.maximum(centred * s[f"{name}.batch_norm.weight"] + s[f"{name}.batch_norm.bias"], 0)

    def _head(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def encode(self, counts: np.ndarray, which: str = "encoder") -> tuple[np.ndarray, np.ndarray]:
        hidden = self._layer(f"{which}.hidden", np.log1p(counts), None)
        return self._head(f"{which}.mean", hidden), np.exp(self._head(f"{which}.var", hidden)) + 1e-4

    def decode(self, z: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return shares and logits of extra zeros."""
        hidden = self._layer("decoder.hidden", z, codes)
        logits = self._head("decoder.scale", hidden)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        zero = self._head("decoder.zero", hidden) if "decoder.zero.weight" in self.state else None
        return shares / shares.sum(1, keepdims=True), zero

    @property
    def theta(self) -> np.ndarray:
        return np.exp(self.state["log_theta"])

    def log_likelihood(self, counts: np.ndarray, mu: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
        """Return the log-likelihood of each cell under the (zero-inflated) negative binomial, with scvi-tools' eps."""
        theta = self.theta
        at_zero = theta * (np.log(theta + EPS) - np.log(theta + mu + EPS))
        rest = counts * (np.log(mu + EPS) - np.log(theta + mu + EPS)) + gammaln(counts + theta) - gammaln(theta) - gammaln(counts + 1)
        if zero is None:
            return (at_zero + rest).sum(1)
        p = 1 / (1 + np.exp(-zero))
        present = np.log1p(-p) + at_zero + rest
        return np.where(counts > 0, present, np.log(p + (1 - p) * np.exp(at_zero))).sum(1)
