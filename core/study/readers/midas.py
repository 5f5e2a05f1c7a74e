"""MIDAS folders: ``feat/feat_dims.toml`` beside one folder a batch with ``mat/MODALITY.mtx`` or ``.csv``."""

from __future__ import annotations

import re
from pathlib import Path


def is_midas(path: Path) -> bool:
    """Return whether a folder is laid out as MIDAS reads it."""
    return (path / "feat" / "feat_dims.toml").is_file()


def batch_folders(path: Path) -> list[Path]:
    """Return the folders of the batches in natural order (batch 2 before batch 10)."""
    found = [item for item in path.iterdir() if item.is_dir() and ((item / "mat").is_dir() or (item / "vec").is_dir())]
    return sorted(found, key=lambda item: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", item.name)])


def expand(path: Path) -> list[Path]:
    """Return the batches of a MIDAS folder, or the path itself where it is none."""
    return batch_folders(path) if path.is_dir() and is_midas(path) else [path]
