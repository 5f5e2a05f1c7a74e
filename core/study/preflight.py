"""The checks before a run: what would go wrong, in plain words, and a change of the spec that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellweave.core.spec.run import RunSpec
from cellweave.core.study.checks import Check
from cellweave.core.study.header import FileHeader
from cellweave.core.study.study import Study


def preflight(spec: RunSpec, study: Study, folder: Path | None = None) -> list[Check]:
    """Check a spec against the data it was loaded from.

    Parameters
    ----------
    spec
        The run's spec.
    study
        The loaded study.
    folder
        Where the run will be written, for the check of free disk space; the working folder where None.

    Returns
    -------
    list of Check
        What was looked at: data first, then covariates, then the machine. ``FAIL`` blocks training. The changes of
        every fix validate through ``spec.with_changes``.
    """
    from cellweave.core.study import preflight_covariates, preflight_data, preflight_machine

    found = preflight_data.check_data(spec, study)
    found += preflight_covariates.check_covariates(spec, study)
    found += preflight_machine.check_machine(spec, study, folder)
    return found


def preflight_header(spec: RunSpec, headers: Sequence[FileHeader]) -> list[Check]:
    """Check a spec against the headers of its files, before the data are read.

    Parameters
    ----------
    spec
        The run's spec.
    headers
        One a file.

    Returns
    -------
    list of Check
        What can be said without the values: modalities, layers, columns and their kinds, memory.
    """
    from cellweave.core.study import preflight_covariates, preflight_data, preflight_machine

    found = preflight_data.check_headers(spec, headers)
    found += preflight_covariates.check_headers(spec, headers)
    found += preflight_machine.check_headers(spec, headers)
    return found
