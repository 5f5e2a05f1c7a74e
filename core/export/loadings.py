"""Loadings of a linear decoder: which genes a latent dimension stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellweave.core.errors import RunFolderError

FILE = "loadings.csv"


@dataclass(frozen=True, eq=False)
class Loadings:
    """Weight of every gene in every latent dimension.

    Attributes
    ----------
    features
        Names, ``(n_features,)``.
    values
        float64 ``(n_features, n_latent)``.
    """

    features: NDArray[np.object_]
    values: NDArray[np.float64]

    @property
    def n_latent(self) -> int:
        """Number of latent dimensions."""
        return int(self.values.shape[1])

    def top(self, dimension: int, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the features with the largest and with the smallest weight in a dimension.

        Parameters
        ----------
        dimension
            From 0 on.
        n
            At most so many of each.

        Returns
        -------
        positive
            Rows with a weight above 0, the largest first.
        negative
            Rows with a weight below 0, the smallest first.
        """
        weights = np.nan_to_num(self.values[:, dimension])
        order = np.argsort(weights, kind="stable")
        positive = order[::-1][:n]
        return positive[weights[positive] > 0], order[:n][weights[order[:n]] < 0]

    def strongest(self, n: int) -> NDArray[np.intp]:
        """Return the ``n`` features of each dimension with the largest absolute weight, by dimension, each once."""
        weights = np.abs(np.nan_to_num(self.values))
        found = [row for dimension in range(self.n_latent) for row in np.argsort(-weights[:, dimension], kind="stable")[:n]]
        return np.array(list(dict.fromkeys(int(row) for row in found)), dtype=np.intp)


def read_loadings(folder: Path) -> Loadings:
    """Read the loadings of a run.

    Parameters
    ----------
    folder
        The run folder.

    Raises
    ------
    RunFolderError
        Where the run has none, or the file cannot be read.
    """
    import pandas as pd

    path = folder / "results" / FILE
    if not path.is_file():
        raise RunFolderError(f"The run '{folder.name}' has no loadings.", "A linear decoder has them: train LDVAE, and let the run come to its end.")
    try:
        table = pd.read_csv(path, index_col="feature", dtype={"feature": str, "modality": str}, keep_default_na=False, na_values={"modality": []})
        columns = [name for name in table.columns if name.startswith("Z_")]
        values = table[columns].to_numpy(dtype=np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"The loadings of '{folder.name}' cannot be read: {error}.", "Compute the results of the run again.") from None
    return Loadings(table.index.to_numpy(dtype=object), values)
