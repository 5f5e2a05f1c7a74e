"""What covariates do in an ambient-regularised model: background by library, its share of each gene and cell, scaling, dispersions, decoder norms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cellweave.core.errors import Cancelled
from cellweave.core.files import write_atomic, write_json_atomic
from cellweave.core.models.regularised_network import RegularisedNetwork
from cellweave.core.query.trained_run import QueryError

if TYPE_CHECKING:
    from cellweave.core.models.base import Model
    from cellweave.core.training.sources import Loader

INFO, ARRAYS = "effects.json", "effects.npz"
ALL = "all cells"
BATCH = 1024


@dataclass(frozen=True)
class LevelTable:
    """A row of numbers of all features for each level of a column.

    Attributes
    ----------
    levels
        Names of the levels.
    values
        ``(n_levels, n_features)``.
    """

    levels: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Effects:
    """What covariates do, by modality.

    Attributes
    ----------
    features
        Names of the features.
    background
        By column, the ambient background of each level, in counts of a cell of mean depth; a modality without one is not there.
    expression
        By the same columns, mean expression of the level's cells without background, in the same unit; NaN where no cell of the level was measured.
    scaling
        By column, the factors of the features.
    dispersion
        Inverse dispersions (technical variances with the burst decoder) by level of the dispersion column.
    norms
        Norms of the decoder's first layer: ``latent``, ``covariates``, ``share``, and of each column.
    library
        ``sensitivity`` and ``weight`` of the observed total.
    cell_fraction
        Share of a cell's expected expression that is background, ``(n_cells,)``, NaN for cells that were not looked at.
    """

    features: dict[str, tuple[str, ...]]
    background: dict[str, dict[str, LevelTable]] = field(default_factory=dict)
    expression: dict[str, dict[str, LevelTable]] = field(default_factory=dict)
    scaling: dict[str, dict[str, LevelTable]] = field(default_factory=dict)
    dispersion: dict[str, LevelTable] = field(default_factory=dict)
    norms: dict[str, dict[str, float]] = field(default_factory=dict)
    library: dict[str, dict[str, float]] = field(default_factory=dict)
    cell_fraction: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the model."""
        return tuple(self.features)

    def share(self, modality: str, column: str) -> LevelTable:
        """Return the share of each feature's expected counts that is background, by level; ``background / (background + expression)``.

        NaN in a level of which no cell was measured in the modality.
        """
        background, expression = self.background[modality][column], self.expression[modality][column]
        total = background.values + expression.values
        return LevelTable(background.levels, np.divide(background.values, total, out=np.full_like(total, np.nan), where=total > 0))

    def level_share(self, modality: str, column: str) -> np.ndarray:
        """Return the share of all expected counts of a level that is background, ``(n_levels,)``; NaN where no cell of it was measured."""
        background, expression = self.background[modality][column].values.sum(1), self.expression[modality][column].values.sum(1)
        return background / (background + expression)

    # ------------------------------------------------------------------ files

    def save(self, results: Path) -> list[Path]:
        """Write ``effects.npz`` and ``effects.json`` into the results of a run; return the files."""
        arrays: dict[str, np.ndarray] = {}
        columns: dict[str, Any] = {}
        for kind in ("background", "expression", "scaling"):
            for modality, tables in getattr(self, kind).items():
                for column, table in tables.items():
                    arrays[f"{kind}/{modality}/{column}"] = table.values.astype(np.float32)
                    columns.setdefault(kind, {}).setdefault(modality, {})[column] = list(table.levels)
        for modality, table in self.dispersion.items():
            arrays[f"dispersion/{modality}"] = table.values.astype(np.float32)
            columns.setdefault("dispersion", {})[modality] = list(table.levels)
        for modality, values in self.cell_fraction.items():
            arrays[f"cells/{modality}"] = values.astype(np.float32)
        for modality, names in self.features.items():
            arrays[f"features/{modality}"] = np.array(names, dtype=str)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        write_atomic(results / ARRAYS, write)
        write_json_atomic(results / INFO, {"modalities": list(self.features), "levels": columns, "norms": self.norms, "library": self.library})
        return [results / ARRAYS, results / INFO]

    @classmethod
    def load(cls, results: Path) -> Effects | None:
        """Read what :meth:`save` wrote; None where there is none, or it cannot be read."""
        try:
            info = json.loads((results / INFO).read_text(encoding="utf-8"))
            with np.load(results / ARRAYS, allow_pickle=False) as stored:
                levels = info["levels"]

                def tables(kind: str) -> dict[str, dict[str, LevelTable]]:
                    return {
                        modality: {column: LevelTable(tuple(names), stored[f"{kind}/{modality}/{column}"]) for column, names in found.items()}
                        for modality, found in levels.get(kind, {}).items()
                    }

                modalities = info["modalities"]
                return cls(
                    features={name: tuple(stored[f"features/{name}"].tolist()) for name in modalities},
                    background=tables("background"), expression=tables("expression"), scaling=tables("scaling"),
                    dispersion={name: LevelTable(tuple(found), stored[f"dispersion/{name}"]) for name, found in levels.get("dispersion", {}).items()},
                    norms=info["norms"], library=info["library"],
                    cell_fraction={name: stored[f"cells/{name}"] for name in modalities if f"cells/{name}" in stored},
                )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            return None


@torch.no_grad()
def covariate_effects(
    model: Model,
    loader: Loader,
    features: Mapping[str, Sequence[str]],
    levels: Mapping[str, Sequence[str]],
    *,
    progress: Callable[[float], None] = lambda share: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Effects:
    """Look at what covariates do in a trained model.

    Parameters
    ----------
    model
        An ambient-regularised model, of one or of several modalities.
    loader
        Makes minibatches of the cells over which mean expression is taken.
    features
        Names of the features by modality.
    levels
        Names of the levels by column.
    progress, cancelled
        Told the share that is done; asked between minibatches.

    Raises
    ------
    QueryError
        Where the model has no such parts.
    """
    if not isinstance(model, RegularisedNetwork):
        raise QueryError(
            f"{model.family.title} has no ambient background, feature scaling or dispersions by covariate.", "Train the model 'ambient' or 'multimodal'."
        )
    was_training = model.training
    model.eval()
    try:
        found = _tables(model, features, levels)
        _means(model, loader, found, progress, cancelled)
    finally:
        model.train(was_training)
    return found


def _tables(model: RegularisedNetwork, features: Mapping[str, Sequence[str]], levels: Mapping[str, Sequence[str]]) -> Effects:
    def named(tables: Mapping[str, torch.Tensor]) -> dict[str, LevelTable]:
        return {column or ALL: LevelTable(_levels(column, len(values), levels), values.float().cpu().numpy()) for column, values in tables.items()}

    group = model.columns["dispersion"]
    library = {}
    for name, stack in model.stacks.items():
        weight = stack.library_weight(draw=False)
        library[name] = {"sensitivity": float(np.exp(stack.log_sensitivity)), "weight": 1.0 if weight is None else float(weight)}
    return Effects(
        features={name: tuple(map(str, features[name])) for name in model.stacks},
        background={name: named(tables) for name, tables in model.ambient_profile().items()},
        scaling={name: named(tables) for name, tables in model.feature_scaling().items()},
        dispersion={
            name: LevelTable(_levels(group[0] if group and len(values) > 1 else "", len(values), levels), values.float().cpu().numpy())
            for name, values in model.dispersions().items()
        },
        norms=model.covariate_norms(),
        library=library,
    )


def _levels(column: str, n: int, levels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    known = tuple(map(str, levels.get(column, ())))
    return known if len(known) == n else (ALL,) if n == 1 else tuple(str(number) for number in range(n))


def _means(model: RegularisedNetwork, loader: Loader, found: Effects, progress: Callable[[float], None], cancelled: Callable[[], bool]) -> None:
    """Take the mean expression of every level, and the share of background in each cell, in one pass over the cells."""
    sums: dict[tuple[str, str], np.ndarray] = {}
    counts: dict[tuple[str, str], np.ndarray] = {}
    for name, tables in found.background.items():
        found.cell_fraction[name] = np.full(loader.data.n_cells, np.nan, dtype=np.float32)
        for column, table in tables.items():
            sums[name, column], counts[name, column] = np.zeros(table.values.shape), np.zeros(len(table.levels))
    rows = np.flatnonzero(loader.data.usable)
    for start in range(0, len(rows), BATCH):
        if cancelled():
            raise Cancelled
        part = rows[start : start + BATCH]
        batch = loader.minibatch(part)
        codes = model.codes_of(batch).ambient
        shares = model.expression(batch, scaled_to=1.0)
        for name, tables in found.background.items():
            stack = model.stacks[name]
            rho = shares[name].float() * stack.expression_total
            background = stack.ambient(codes)
            assert background is not None
            own = background.expand_as(rho).sum(1)
            there = _measured(batch, name, len(part))
            fraction = (own / (own + rho.sum(1)).clamp(min=1e-30)).cpu().numpy()
            found.cell_fraction[name][part] = np.where(there, fraction, np.nan)
            values = rho.cpu().numpy()
            for number, column in enumerate(tables):
                level = np.zeros(len(part), dtype=np.int64) if codes is None else codes[:, number].cpu().numpy()
                np.add.at(sums[name, column], level[there], values[there])
                counts[name, column] += np.bincount(level[there], minlength=len(counts[name, column]))
        progress(min(1.0, (start + BATCH) / max(1, len(rows))))
    for (name, column), total in sums.items():
        some = counts[name, column][:, None]
        mean = np.divide(total, some, out=np.full_like(total, np.nan), where=some > 0)
        found.expression.setdefault(name, {})[column] = LevelTable(found.background[name][column].levels, mean.astype(np.float32))


def _measured(batch: Any, name: str, n: int) -> np.ndarray:
    measured = batch.measured.get(name)
    return np.ones(n, dtype=bool) if measured is None else measured.cpu().numpy()


def gene_table(found: Effects) -> pd.DataFrame:
    """Return one row a feature, ambient column and level, the largest background first.

    Columns ``modality``, ``column``, ``level``, ``background`` and ``expression`` (counts of a cell of mean depth), ``ambient_share``; and
    ``inverse_dispersion``, the mean over the dispersion groups. A modality without a background has no rows.
    """
    parts = []
    for name, tables in found.background.items():
        dispersion = found.dispersion[name].values.mean(0)
        for column, table in tables.items():
            share, expression = found.share(name, column), found.expression[name][column]
            for number, level in enumerate(table.levels):
                parts.append(
                    pd.DataFrame(
                        {
                            "feature": found.features[name], "modality": name, "column": column, "level": level, "background": table.values[number],
                            "expression": expression.values[number], "ambient_share": share.values[number], "inverse_dispersion": dispersion,
                        }
                    )
                )  # fmt: skip
    if not parts:
        return pd.DataFrame(columns=["modality", "column", "level", "background", "expression", "ambient_share", "inverse_dispersion"]).rename_axis("feature")
    return pd.concat(parts).sort_values("background", ascending=False, kind="stable").set_index("feature")
