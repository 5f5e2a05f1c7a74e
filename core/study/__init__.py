"""Studies: opening files, saying what is in them, and checking them before a run.

The names below are loaded when they are first used, so that importing this package costs nothing. The checks before
a run are ``cellweave.core.study.preflight.preflight`` (a function may not share its module's name here).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellweave.core.study.checks import Check, Fix, Level
    from cellweave.core.study.columns import ColumnInfo, confounded, crosstab, describe_columns, suggest_roles
    from cellweave.core.study.counts import CountsReport, find_counts, scan_matrix
    from cellweave.core.study.header import ColumnHeader, FileHeader, MatrixHeader, ModalityHeader, read_header
    from cellweave.core.study.held_out import HeldOut, held_out_truth
    from cellweave.core.study.load import load_study
    from cellweave.core.study.mosaic import Island, Mosaic
    from cellweave.core.study.study import Modality, SourceFile, Study

_HOME = {
    "Check": "checks", "Fix": "checks", "Level": "checks",
    "ColumnInfo": "columns", "confounded": "columns", "crosstab": "columns", "describe_columns": "columns",
    "suggest_roles": "columns",
    "CountsReport": "counts", "find_counts": "counts", "scan_matrix": "counts",
    "ColumnHeader": "header", "FileHeader": "header", "MatrixHeader": "header", "ModalityHeader": "header",
    "read_header": "header",
    "HeldOut": "held_out", "held_out_truth": "held_out",
    "load_study": "load",
    "Island": "mosaic", "Mosaic": "mosaic",
    "Modality": "study", "SourceFile": "study", "Study": "study",
}  # fmt: skip

__all__ = [
    "Check",
    "ColumnHeader",
    "ColumnInfo",
    "CountsReport",
    "FileHeader",
    "Fix",
    "HeldOut",
    "Island",
    "Level",
    "MatrixHeader",
    "Modality",
    "ModalityHeader",
    "Mosaic",
    "SourceFile",
    "Study",
    "confounded",
    "crosstab",
    "describe_columns",
    "find_counts",
    "held_out_truth",
    "load_study",
    "read_header",
    "scan_matrix",
    "suggest_roles",
]


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name`` and return it from there."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
