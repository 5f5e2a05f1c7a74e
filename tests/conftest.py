"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# Spinning OpenMP threads slow a shared machine many times over; it must be said before the first of them starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _collect_only_what_is_new() -> None:
    """Let the collector pass over what is there before the tests of a file begin: half a million objects of modules that every look would go through."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Hold torch at one thread where a test or its imports have loaded it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real data: ``$CELLWEAVE_DATA``, or ``shared/data`` beside the project; skips where there is none."""
    named = os.environ.get("CELLWEAVE_DATA")
    folder = Path(named).expanduser() if named else PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; set CELLWEAVE_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def example_file() -> Path:
    """The packaged example: RNA and ADT of four batches."""
    found = PROJECT / "resources" / "example" / "pbmc_mosaic.h5mu"
    if not found.is_file():
        pytest.skip("the packaged example is not there")
    return found
