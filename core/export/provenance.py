"""Where a result comes from: the same facts in every figure, table and h5ad."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellweave.core.spec import RunSpec, to_toml

if TYPE_CHECKING:
    from cellweave.core.export.run_data import RunData

PACKAGES = ("torch", "anndata", "mudata", "numpy", "scipy", "pandas", "umap-learn", "igraph", "matplotlib")


def program_version() -> str:
    """Return the version of this program."""
    return version("cellweave")


def spec_hash(spec: RunSpec) -> str:
    """Return the SHA-256 of the spec as TOML: two runs with the same hash were asked to do the same."""
    return hashlib.sha256(to_toml(spec).encode()).hexdigest()


def provenance(run: RunData, **more: Any) -> dict[str, Any]:
    """Return what a figure or table says of its origin; files by name, so that no path of this machine leaves it.

    Parameters
    ----------
    run
        The run.
    **more
        What the figure shows: its kind, the columns, the number of cells.
    """
    spec = run.spec
    return {
        "program": f"Cellweave {program_version()}",
        "run": run.name,
        "model": spec.model.kind,
        "epoch": run.epoch,
        "data": [Path(path).name for path in spec.data.paths],
        "data_sha256": list(spec.data.sha256),
        "spec_sha256": spec_hash(spec),
        **more,
    }


def uns_entry(run: RunData, **more: Any) -> dict[str, Any]:
    """Return ``uns["cellweave"]`` of an export: the whole spec and what is needed to repeat the run."""
    versions = {"cellweave": program_version(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "run": run.name,
        "spec": to_toml(run.spec),
        "spec_sha256": spec_hash(run.spec),
        "epoch": run.epoch,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        **more,
    }


def free_name(wanted: str, taken: Collection[str]) -> str:
    """Return ``wanted``, or ``wanted_cellweave`` (``_2`` ...) where the user's data have that name already."""
    if wanted not in taken:
        return wanted
    name, number = f"{wanted}_cellweave", 2
    while name in taken:
        name, number = f"{wanted}_cellweave_{number}", number + 1
    return name
