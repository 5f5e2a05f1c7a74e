"""Trained runs that the tests of questions share: each is trained once in a session, on real data."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from cellweave.core.example import EXAMPLE_BATCH, EXAMPLE_LABELS, example_path
from cellweave.core.query.opened import open_run
from cellweave.core.query.trained_run import TrainedRun
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

_HOME = tempfile.TemporaryDirectory(prefix="cellweave-query-")
KANG = "rna_kang_2conditions_2donors_labelled.h5ad"
QUIET = {
    **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")},
    "training.threads": 1, "training.preview_every": 0, "training.device": "cpu",
}  # fmt: skip


def train(name: str, changes: dict[str, object]) -> Path:
    """Train a run into a folder of the session."""
    folder = Path(_HOME.name) / name
    execute(RunSpec().with_changes({**QUIET, **changes}), folder)
    return folder


def example_folder(**options: object) -> Path:
    """Return the example's run with these options (by path, ``__`` for the dot), trained once."""
    return _example(tuple(sorted((name.replace("__", "."), value) for name, value in options.items())))


@cache
def _example(options: tuple[tuple[str, object], ...]) -> Path:
    """Two epochs on the RNA of the packaged example: 1,200 of 1,600 cells measured, four batches (one without RNA)."""
    base = {
        "data.paths": str(example_path()), "data.modality": "rna", "covariates.batch": EXAMPLE_BATCH, "covariates.labels": EXAMPLE_LABELS,
        "training.max_epochs": 2, "training.batch_size": 256,
    }  # fmt: skip
    return train(f"example-{len(list(Path(_HOME.name).iterdir()))}", {**base, **dict(options)})


def example_run(**options: object) -> TrainedRun:
    """Open the run of :func:`example_folder`."""
    return open_run(example_folder(**options))


@cache
def kang_folder(data_folder: Path) -> Path:
    """Eight epochs on blood cells with and without interferon, two donors."""
    path = data_folder / KANG
    if not path.is_file():
        pytest.skip(f"{KANG} is not in {data_folder}")
    changes = {"training.max_epochs": 8, "training.kl_warmup_epochs": 8, "training.learning_rate": 4e-3, "training.batch_size": 64}
    return train("kang", {"data.paths": str(path), "covariates.batch": "batch", **changes})


@cache
def _kang(folder: Path) -> TrainedRun:
    return open_run(folder)


def kang_run(data_folder: Path) -> TrainedRun:
    """Open the run of :func:`kang_folder`, once."""
    return _kang(kang_folder(data_folder))
