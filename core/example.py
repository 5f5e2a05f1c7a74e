"""The data set that ships with the program (its origin and licence: ``resources/example/SOURCE.md``)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

EXAMPLE_SHA256 = "ba7e65819b77dca7cae0473043893a471920e25a07ee08bc91b3eb9fcc2e1cdd"
EXAMPLE_BATCH = "batch"
EXAMPLE_LABELS = "celltype"


def example_path() -> Path:
    """Return where the bundled example is: an h5mu of 1,600 PBMC, RNA and ADT, four batches, eight cell types.

    Returns
    -------
    pathlib.Path
        Absolute path of ``pbmc_mosaic.h5mu``. The package is always installed as plain files, so it is a real path.
    """
    return Path(str(files("cellweave.resources").joinpath("example", "pbmc_mosaic.h5mu")))


def example_changes() -> dict[str, Any]:
    """Return the changes of a spec that make it the example's RNA with batch and cell types named.

    Returns
    -------
    dict
        Values by dotted path, for ``RunSpec.with_changes``.
    """
    return {
        "name": "First look: PBMC",
        "data.paths": (str(example_path()),),
        "data.sha256": (EXAMPLE_SHA256,),
        "data.modality": "rna",
        "covariates.batch": EXAMPLE_BATCH,
        "covariates.labels": EXAMPLE_LABELS,
    }
