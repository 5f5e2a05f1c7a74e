"""What the figure dialog remembers from one figure to the next; unreadable parts are left out, never a reason to stop."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.files import write_json_atomic

LOG = logging.getLogger("cellweave.window")
OF_THE_DATA = frozenset({"title", "columns", "terms", "colours", "layout", "comparison", "imputation_modality", "imputation_feature"})
"""Options that belong to one run and are not carried over to the next."""


def load_options(path: Path) -> FigureOptions:
    """Return the options of the last figure, or the defaults for what cannot be read.

    Parameters
    ----------
    path
        The file; it need not exist.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return FigureOptions()
    except (OSError, ValueError) as error:
        LOG.warning("The options of the last figure could not be read and start anew: %s", error)
        return FigureOptions()
    good: dict[str, Any] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if name not in FigureOptions.model_fields or name in OF_THE_DATA:
            continue
        try:
            FigureOptions.model_validate({name: value})
        except ValidationError:
            LOG.warning("The figure option '%s' could not be read and has its default.", name)
        else:
            good[name] = value
    return FigureOptions.model_validate(good)


def save_options(options: FigureOptions, path: Path) -> None:
    """Write the options; a folder that cannot be written is no reason to stop."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, options.model_dump(mode="json", exclude=set(OF_THE_DATA)))
    except OSError as error:
        LOG.warning("The options of the figure could not be kept: %s", error)
