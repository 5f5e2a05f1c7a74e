"""The scores of modality attribution, from the arrays of a run: totals, norms, shares and ratios of each cell.

Files, in ``results/`` of a run: ``attribution_MODALITY.npy`` (mean absolute derivative, ``(n_cells, n_latent)``), ``attribution_frobenius.npy`` (``(n_cells,
n_decoders, n_blocks)``) and ``attribution.json``. Cells without attribution are NaN.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.arrays import load_array

INFO, FROBENIUS = "attribution.json", "attribution_frobenius.npy"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ScoreKind:
    """One score of a cell and decoder.

    Attributes
    ----------
    name
        Identifier.
    title, unit, help
        Texts of axes and tooltips.
    """

    name: str
    title: str
    unit: str
    help: str


SCORE_KINDS: dict[str, ScoreKind] = {
    kind.name: kind
    for kind in (
        ScoreKind(
            "total", "Total attribution", "counts per unit of the latent",
            "Mean absolute derivative of the modality's expected counts, summed over all latent dimensions.",
        ),
        ScoreKind("own", "Own attribution", "counts per unit of the latent", "The same, summed over the latent dimensions of the modality itself."),
        ScoreKind("other", "Attribution to others", "counts per unit of the latent", "The same, summed over the latent dimensions of the other modalities."),
        ScoreKind(
            "frobenius", "Norm of the Jacobian", "counts per unit of the latent, per √feature",
            "Frobenius norm of the Jacobian over the root of the number of features, all latent dimensions.",
        ),
        ScoreKind("own_share", "Share of own latents", "share", "Share of the squared norm of the Jacobian that the modality's own latent dimensions have."),
    )
}  # fmt: skip


@dataclass(frozen=True)
class AttributionScores:
    """Attribution of all cells of a study, or of a sample while a run trains.

    Attributes
    ----------
    modalities
        Decoders, in alphabetical order.
    blocks
        First and last (exclusive) latent dimension of each modality's own part; one block where they have none.
    mean_abs
        By modality ``(n_cells, n_latent)``.
    frobenius
        ``(n_cells, n_decoders, n_blocks)``.
    n_features
        By modality, features that the scores are taken over.
    info
        What ``attribution.json`` says: library, covariates, method, epoch.
    """

    modalities: tuple[str, ...]
    blocks: dict[str, tuple[int, int]]
    mean_abs: dict[str, Floats]
    frobenius: Floats
    n_features: dict[str, int]
    info: dict[str, Any]

    @classmethod
    def load(cls, results: Path) -> AttributionScores | None:
        """Read what a run has; None where it has none, or it cannot be read."""
        try:
            info = json.loads((results / INFO).read_text(encoding="utf-8"))
            modalities = tuple(info["modalities"])
            arrays = {name: np.asarray(load_array(results / f"attribution_{name}.npy"), dtype=np.float32) for name in modalities}
            frobenius = np.asarray(load_array(results / FROBENIUS), dtype=np.float32)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(modalities, _blocks(info), arrays, frobenius, {name: int(n) for name, n in info["n_features"].items()}, info)

    @classmethod
    def load_preview(cls, path: Path) -> tuple[AttributionScores, NDArray[np.int64]] | None:
        """Read the attribution of the preview cells and their rows of the study; None where it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                info = json.loads(str(stored["info"]))
                modalities = tuple(info["modalities"])
                arrays = {name: stored[f"mean_abs_{name}"] for name in modalities}
                found = cls(modalities, _blocks(info), arrays, stored["frobenius"], {name: int(n) for name, n in info["n_features"].items()}, info)
                return found, stored["rows"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # ------------------------------------------------------------------ one value a cell

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which cells have attribution in some modality."""
        decoders = np.asarray(np.isfinite(self.frobenius).all(axis=2), dtype=np.bool_)
        return np.asarray(decoders.any(axis=1), dtype=np.bool_)

    @property
    def has_own(self) -> bool:
        """Whether each modality has latent dimensions of its own."""
        return set(self.modalities) <= set(self.blocks)

    def kinds(self) -> tuple[ScoreKind, ...]:
        """Return the scores that there are: those that speak of own latents only where there are some."""
        return tuple(kind for kind in SCORE_KINDS.values() if self.has_own or kind.name in {"total", "frobenius"})

    def score(self, kind: str, modality: str) -> Floats:
        """Return a score of every cell, ``(n_cells,)``."""
        values = self.mean_abs[modality]
        if kind == "total":
            return values.sum(axis=1)
        if kind == "own":
            return values[:, slice(*self.blocks[modality])].sum(axis=1)
        if kind == "other":
            return values.sum(axis=1) - self.score("own", modality)
        if kind == "frobenius":
            return np.sqrt(np.square(self._norms(modality)).sum(axis=1)).astype(np.float32)
        return self.share(modality, modality)

    def share(self, decoder: str, block: str) -> Floats:
        """Return the share of the squared norm of a decoder's Jacobian that a modality's latents have, ``(n_cells,)``."""
        squares = np.square(self.frobenius[:, self.modalities.index(decoder)].astype(np.float64))
        total = squares.sum(axis=1)
        part = squares[:, list(self.blocks).index(block)]
        with np.errstate(invalid="ignore"):
            return np.where(total > 0, part / np.where(total > 0, total, 1), np.nan).astype(np.float32)

    def log_ratio(self, first: str, second: str, kind: str = "total") -> Floats:
        """Return ``log2(first / second)`` of a score, ``(n_cells,)``; NaN where one of the modalities was not measured in the cell."""
        above, below = self.score(kind, first).astype(np.float64), self.score(kind, second).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.log2(above / (below + 1e-10))
        found[~np.isfinite(found)] = np.nan
        return found.astype(np.float32)

    def _norms(self, modality: str) -> NDArray[np.float64]:
        """Return the norms of the blocks over the root of the number of features, ``(n_cells, n_blocks)``."""
        return self.frobenius[:, self.modalities.index(modality)].astype(np.float64) / np.sqrt(max(1, self.n_features[modality]))

    # ------------------------------------------------------------------ one value a dimension

    def by_dimension(self, modality: str, rows: Sequence[int] | NDArray[np.integer] | None = None) -> Floats:
        """Return the mean attribution of each latent dimension over the cells that have any, ``(n_latent,)``."""
        values = self.mean_abs[modality]
        if rows is not None and len(rows):
            values = values[np.asarray(rows)]
        values = values[np.isfinite(values).all(axis=1)]
        return values.mean(axis=0) if len(values) else np.full(self.mean_abs[modality].shape[1], np.nan, dtype=np.float32)

    def owner(self, dimension: int) -> str:
        """Return whose latent a dimension is."""
        return next((name for name, (start, stop) in self.blocks.items() if start <= dimension < stop), "")

    def block_shares(self, modality: str, rows: NDArray[np.integer] | None = None) -> dict[str, float]:
        """Return, by modality, the share of a decoder's attribution that its latents have, over all cells together."""
        values = self.by_dimension(modality, rows)
        total = float(values.sum())
        return {name: float(values[slice(*bounds)].sum() / total) if total > 0 else float("nan") for name, bounds in self.blocks.items()}

    # ------------------------------------------------------------------ for exports

    def columns(self) -> dict[str, Floats]:
        """Return the columns that exports put beside the cells, by their documented names."""
        found = {}
        for name in self.modalities:
            found[f"{name}_decoder_total_attr"] = self.score("total", name)
            if self.has_own:
                found[f"{name}_decoder_own_attr"] = self.score("own", name)
                found[f"{name}_decoder_own_share"] = self.score("own_share", name)
            found[f"{name}_decoder_frobenius"] = self.score("frobenius", name)
        if len(self.modalities) == 2:
            first, second = self.modalities
            found[f"log2_{first}_vs_{second}_attr"] = self.log_ratio(first, second)
        return found

    def matrices(self) -> dict[str, Floats]:
        """Return the arrays that exports put into obsm, by their documented names."""
        return {f"X_latent_attr_{name}": self.mean_abs[name] for name in self.modalities}


def _blocks(info: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {str(name): (int(start), int(stop)) for name, (start, stop) in info["blocks"].items()}
