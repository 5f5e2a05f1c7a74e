"""The pattern of what was measured, as a picture needs it: groups of cells by blocks of features, and what training hides of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellweave.core.nn.hiding_shares import UNTOUCHED

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec
    from cellweave.core.study.study import Modality, Study
    from cellweave.core.training.data import TrainingData

MOST_ROWS = 200


@dataclass(frozen=True)
class MaskPattern:
    """Groups of cells that share what was measured in them, by blocks of features.

    Attributes
    ----------
    rows
        Name of each group: its batch, and a number where the cells of a batch differ.
    n_cells
        Cells of each group, int ``(n_rows,)``.
    columns
        Name of each block: the modality, or the modality and the block.
    modality
        Modality of each block ``(n_columns,)``.
    n_features
        Features of each block, int ``(n_columns,)``.
    measured
        Share of the features of a block that were measured, ``(n_rows, n_columns)``.
    hidden
        Expected share of the measured features that a training step hides, ``(n_rows, n_columns)``; None where training hides nothing.
    left_out
        Groups beyond the largest 200, which are not listed.
    """

    rows: tuple[str, ...]
    n_cells: np.ndarray
    columns: tuple[str, ...]
    modality: tuple[str, ...]
    n_features: np.ndarray
    measured: np.ndarray
    hidden: np.ndarray | None
    left_out: int = 0

    def share_measured(self) -> float:
        """Return the share of all entries that were measured."""
        entries = self.n_cells[:, None] * self.n_features[None, :]
        return float((self.measured * entries).sum() / max(entries.sum(), 1))

    def share_hidden(self) -> float | None:
        """Return the expected share of the measured entries that a step hides."""
        if self.hidden is None:
            return None
        entries = self.n_cells[:, None] * self.n_features[None, :] * self.measured
        return float((self.hidden * entries).sum() / max(entries.sum(), 1))

    def as_csv(self) -> str:
        """Return one line a group and block."""
        lines = ["group,cells,modality,block,features,share_measured,share_hidden"]
        for row, name in enumerate(self.rows):
            for column, block in enumerate(self.columns):
                hidden = "" if self.hidden is None else f"{self.hidden[row, column]:.6g}"
                text = [_quoted(name), str(int(self.n_cells[row])), _quoted(self.modality[column]), _quoted(block), str(int(self.n_features[column]))]
                lines.append(",".join([*text, f"{self.measured[row, column]:.6g}", hidden]))
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(letter in text for letter in ',"\n') else text


def mask_pattern(spec: RunSpec, study: Study) -> MaskPattern:
    """Return the pattern of a study as the model of a spec reads it.

    Parameters
    ----------
    spec
        Of a run of a family of many modalities.
    study
        Its data.
    """
    from cellweave.core.training.data import prepare

    data = prepare(spec, study)
    key, names = _groups(spec, study, data)
    columns, modalities, sizes, blocks = _blocks(data)
    first, n_cells = _unique(key)
    order = np.lexsort((-n_cells, key[first, 0]))
    left_out = max(0, len(order) - MOST_ROWS)
    if left_out:
        order = np.sort(order[np.argsort(-n_cells[order], kind="stable")[:MOST_ROWS]])
    measured = np.zeros((len(order), len(columns)))
    for row, group in enumerate(order):
        cell = first[group]
        for column, (modality, where) in enumerate(blocks):
            if not modality.measured[cell]:
                continue
            mask = None if modality.feature_mask is None or data.mask_group is None else modality.feature_mask[data.mask_group[cell]]
            measured[row, column] = 1.0 if mask is None else mask[where].mean()
    labels = _labels([names[int(key[first[group], 0])] for group in order])
    found = MaskPattern(tuple(labels), n_cells[order], tuple(columns), tuple(modalities), np.array(sizes), measured, None, left_out)
    return MaskPattern(**{**found.__dict__, "hidden": _hidden(spec, data, found)})


def _groups(spec: RunSpec, study: Study, data: TrainingData) -> tuple[np.ndarray, list[str]]:
    """Return batch, pattern of modalities and mask group of each cell ``(n_cells, 3)``, and the names of the batches."""
    batch, names = np.zeros(data.n_cells, dtype=np.int64), ["all cells"]
    if "batch" in data.categorical:
        batch, names = data.categorical["batch"], list(data.encoding.levels[data.encoding.columns["batch"][0]])
    group = np.zeros(data.n_cells, dtype=np.int64) if data.mask_group is None else data.mask_group
    return np.stack([batch, data.patterns[0], group], axis=1), names


def _unique(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first cell and the number of cells of each group."""
    _, first, counts = np.unique(key, axis=0, return_index=True, return_counts=True)
    return first, counts


def _blocks(data: TrainingData) -> tuple[list[str], list[str], list[int], list[tuple[Modality, slice]]]:
    """Return name, modality, size and place of each block."""
    columns, modalities, sizes, places = [], [], [], []
    for modality in data.modalities:
        known = data.blocks.get(modality.name)
        own, names = ((modality.n_features,), (modality.name,)) if known is None else (known.sizes, known.names)
        start = 0
        for size, name in zip(own, names, strict=True):
            columns.append(modality.name if len(own) == 1 else f"{modality.name} {name}")
            modalities.append(modality.name)
            sizes.append(size)
            places.append((modality, slice(start, start + size)))
            start += size
    return columns, modalities, sizes, places


def _labels(names: list[str]) -> list[str]:
    """Number the groups of a batch that has several."""
    found, seen = [], dict.fromkeys(names, 0)
    several = {name for name in names if names.count(name) > 1}
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if name in several else name)
    return found


def _hidden(spec: RunSpec, data: TrainingData, found: MaskPattern) -> np.ndarray | None:
    """Return the expected share that a step of scVAEIT hides: a modality by its share where there is another, and features by chance in half of the cells."""
    from cellweave.core.models.vaeit import VaeitOptions

    if not isinstance(spec.model, VaeitOptions):
        return None
    shares = spec.model.shares_of({modality.name: modality.n_features for modality in data.modalities})
    chance = (1 - UNTOUCHED) * spec.model.mask_features
    hidden = np.zeros_like(found.measured)
    for row in range(len(found.rows)):
        there = {name for column, name in enumerate(found.modality) if found.measured[row, column] > 0}
        for column, name in enumerate(found.modality):
            whole = shares[name] if len(there) > 1 else 0.0
            hidden[row, column] = (whole + (1 - whole) * chance) * (found.measured[row, column] > 0)
    return hidden
