"""Random numbers of single cells: seed and row of the data determine them, so that draws do not depend on which cells are asked of together."""

from __future__ import annotations

import numpy as np
import torch

#: Streams of a cell that must not overlap: noise of its latent, and seeds of the draws of its values.
NOISE, VALUES = 0, 1


def stream_of_cell(seed: int, row: int, use: int = NOISE) -> np.random.Philox:
    """Return the stream of a cell (Salmon et al. 2011) for one use, 2^192 numbers away from that of any other."""
    return np.random.Philox(key=np.array([seed % (1 << 64), row], np.uint64), counter=np.array([0, 0, 0, use], np.uint64))


def noise_of_cells(seed: int, rows: np.ndarray, n_draws: int, width: int) -> torch.Tensor:
    """Return standard normal noise of the latents, float32 ``(n_draws, n_cells, width)``."""
    out = np.empty((n_draws, len(rows), width), np.float32)
    for place, row in enumerate(rows.tolist()):
        out[:, place] = np.random.Generator(stream_of_cell(seed, row)).standard_normal((n_draws, width), np.float32)
    return torch.from_numpy(out)


def seeds_of_cells(seed: int, rows: np.ndarray, n_modalities: int) -> list[list[int]]:
    """Return for each cell a seed of the draws of each modality."""
    # 63 bits: torch takes no larger seed.
    return [(stream_of_cell(seed, row, VALUES).random_raw(n_modalities) >> np.uint64(1)).tolist() for row in rows.tolist()]
